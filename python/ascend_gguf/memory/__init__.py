"""Memory of the host: huge pages, and zeros that take none until they are touched."""
