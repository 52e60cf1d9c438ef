"""The language that kernels are written in: how it is compiled, and what threads run it."""
