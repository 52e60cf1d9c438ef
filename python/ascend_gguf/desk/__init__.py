"""The operator's desk, ``ascend-gguf``: look at a file, plan a machine, check an installation."""
