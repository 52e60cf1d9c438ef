"""What runs on the CPU: linear layers, attention, operations on rows, sampling, decode graphs."""
