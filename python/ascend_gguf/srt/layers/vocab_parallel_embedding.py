"""Embeddings and output matrices that the engine's models make without a method for GGUF.

Some models pass no ``quant_config`` to their embedding or output matrix.  Their weights are packed
like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sglang.srt.layers.quantization.gguf import GGUFConfig
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from torch import nn

from ascend_gguf.srt.layers.linear import layers_without_method
from ascend_gguf.srt.layers.quantization.gguf import GGUFEmbeddingAscendMethod


@contextmanager
def no_initialization() -> Iterator[None]:
    """Within, an ``nn.Embedding`` draws no random rows: they are replaced."""
    original = nn.Embedding.reset_parameters
    nn.Embedding.reset_parameters = lambda self: None
    try:
        yield
    finally:
        nn.Embedding.reset_parameters = original


def pack_embeddings(model: nn.Module, quant_config: GGUFConfig) -> None:
    """Let embeddings and output matrices that have no method for GGUF hold packed weights.

    Call before loading, with the model's dtype and device as the default ones.
    """
    kinds = (VocabParallelEmbedding,)
    for module in layers_without_method(model, quant_config, kinds, UnquantizedEmbeddingMethod):
        _use_gguf_method(module, quant_config)


def _use_gguf_method(module: nn.Module, quant_config: GGUFConfig) -> None:
    rows, cols = module.weight.shape
    dtype, attributes = module.weight.dtype, vars(module.weight)
    del module.weight
    module.quant_method = GGUFEmbeddingAscendMethod(quant_config)
    module.quant_method.create_weights(
        module,
        cols,
        [rows],
        cols,
        rows,
        dtype,
        **{name: value for name, value in attributes.items() if name == "weight_loader"},
    )


def tie_output(model: nn.Module, embedding: str) -> None:
    """Let ``lm_head`` share the weight of the model's embedding, where it is one of its own.

    Of a file without output matrix, some models would hold the embedding twice.  Call before
    loading.

    Args:
        embedding: the path of the embedding.
    """
    modules = dict(model.named_modules())
    first, last = modules.get(embedding), modules.get("lm_head")
    if (
        last is not None
        and isinstance(first, VocabParallelEmbedding)
        and isinstance(last, VocabParallelEmbedding)
        and type(first.quant_method) is type(last.quant_method)
        and first.weight.shape == last.weight.shape
        and first.weight.dtype == last.weight.dtype
    ):
        last.weight = first.weight
