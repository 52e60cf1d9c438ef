"""A simulated Ascend NPU: the real torch_npu wheel on stand-in CANN libraries.  See README.md."""
