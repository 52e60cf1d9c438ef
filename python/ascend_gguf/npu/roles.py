"""What multiplies with a weight on an NPU, by its role in the model."""

from __future__ import annotations

from ascend_gguf.npu.channel_int8 import NPUChannelLinear
from ascend_gguf.npu.choice import Choice
from ascend_gguf.npu.linear import NPUEmbedding, NPUExactLinear, NPULinear
from ascend_gguf.weights.linear_kernel import EmbeddingKernel, LinearKernel


def linear_kernel(choice: Choice) -> LinearKernel:
    """Of a linear layer."""
    if choice.weights == "int8":
        return NPUChannelLinear()
    return (NPULinear if choice.requantizes else NPUExactLinear)(choice.wide_planes)


def output_kernel(choice: Choice) -> LinearKernel:
    """Of the output matrix.  Its error is all in the logits: it is always exact."""
    return NPUExactLinear(choice.wide_planes)


def embedding_kernel(choice: Choice) -> EmbeddingKernel:  # noqa: ARG001
    """Of an embedding, which may be the output matrix too."""
    return NPUEmbedding()


#: What gives the kernel of a weight, by the weight's role.
KERNELS = {"linear": linear_kernel, "output": output_kernel, "embedding": embedding_kernel}
