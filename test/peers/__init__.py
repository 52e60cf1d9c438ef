"""Small models that llama.cpp's own converter wrote: an oracle for names, keys and rows."""
