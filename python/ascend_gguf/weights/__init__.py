"""Weights on their way from a file to a device, whatever the device: blocks, layouts, loading."""
