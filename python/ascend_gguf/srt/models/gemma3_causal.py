"""The output matrix of Gemma 3, and its rotary embedding on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch

from ascend_gguf.kernels.row_ops import rotate_by
from ascend_gguf.srt.device import uses_cpu_kernels


def use_own_output(result: None, self: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
    """AFTER ``Gemma3ForCausalLM.__init__``: load and use the output matrix of the file.

    The engine's logits are of the embedding, even where the file has an output matrix, and its
    loader leaves out one of plain numbers.
    """
    is_gguf = self.quant_config is not None and self.quant_config.get_name() == "gguf"
    if is_gguf and self.lm_head is not self.model.embed_tokens:
        self.logits_processor.register_forward_pre_hook(
            lambda module, inputs: (*inputs[:2], self.lm_head, *inputs[3:])
        )
        self.load_weights = partial(_load_weights, self, self.load_weights)


def _load_weights(
    self: torch.nn.Module, original: Callable, weights: Iterable[tuple[str, torch.Tensor]]
) -> Any:
    def others() -> Iterator[tuple[str, torch.Tensor]]:
        for name, data in weights:
            if name == "lm_head.weight":
                self.lm_head.weight.weight_loader(self.lm_head.weight, data)
            else:
                yield name, data

    return original(others())


def apply_rotary_pos_emb(
    original: Callable,
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    unsqueeze_dim: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """AROUND the engine's: both halves of ``cos`` and ``sin [tokens, head_size]`` are the same."""
    half = cos.shape[-1] // 2
    if (
        (q.dim(), k.dim(), cos.dim(), unsqueeze_dim) != (3, 3, 2, 1)
        or half % 16
        or cos.shape[-1] != q.shape[-1]
        or not uses_cpu_kernels(q, k, cos, sin)
    ):
        return original(q, k, cos, sin, unsqueeze_dim)
    cos, sin = cos[:, :half], sin[:, :half]
    return tuple(rotate_by(x.contiguous(), cos, sin) for x in (q, k))
