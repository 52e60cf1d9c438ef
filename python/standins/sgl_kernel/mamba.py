"""Stand-in for sgl_kernel.mamba: what SGLang calls of it for linear attention on every CPU."""

from ascend_gguf.cpu.causal_conv import causal_conv1d_fn as causal_conv1d_fn_cpu
from ascend_gguf.cpu.causal_conv import causal_conv1d_update as causal_conv1d_update_cpu
from ascend_gguf.cpu.delta_net import chunk_gated_delta_rule as chunk_gated_delta_rule_cpu

__all__ = ["causal_conv1d_fn_cpu", "causal_conv1d_update_cpu", "chunk_gated_delta_rule_cpu"]
