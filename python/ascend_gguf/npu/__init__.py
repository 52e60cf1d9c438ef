"""What runs on an Ascend NPU: layouts of packed weights, linear layers, experts, the self-check."""
