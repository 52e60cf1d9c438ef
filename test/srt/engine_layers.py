"""The engine's own layers in a test's process, loaded with blocks by their own loaders.

Needs no process group: the engine reads sizes and ranks from its context, which a test may set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from sglang.srt.runtime_context import get_parallel

from ascend_gguf import BlockTensor
from ascend_gguf.weights.pending import PendingWeight
from random_model import ALL_TYPES, random_blocks

HIDDEN = 256
HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 32
EXPERTS, TOP_K = 4, 2
#: Types of plain numbers: they come under the name of the weight itself.
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EVERY_TYPE = pytest.mark.parametrize("type_name", ALL_TYPES)


@contextlib.contextmanager
def ranks(tp: int = 1, rank: int = 0, ep: int = 1) -> Iterator[None]:
    """Layers made inside are those of one of ``tp`` ranks; their experts are shared by ``ep``."""
    moe_tp = tp // ep
    with get_parallel().override(
        tp_size=tp,
        tp_rank=rank,
        attn_tp_size=tp,
        attn_tp_rank=rank,
        attn_dp_rank=0,
        attn_cp_rank=0,
        moe_ep_size=ep,
        moe_ep_rank=rank // moe_tp,
        moe_tp_size=moe_tp,
        moe_tp_rank=rank % moe_tp,
    ):
        yield


class Matrix:
    """A matrix as a file holds it, and its numbers."""

    def __init__(self, type_name: str, *shape: int, seed: int = 0) -> None:
        self.type_name = type_name
        blocks, values = random_blocks(np.random.default_rng(seed), type_name, shape)
        self.blocks, self.values = torch.from_numpy(blocks), torch.from_numpy(values)

    @property
    def weight(self) -> torch.Tensor:
        """What the iterator yields for it."""
        if self.type_name in PLAIN:
            return self.blocks.view(PLAIN[self.type_name])
        return BlockTensor(self.blocks, GGMLQuantizationType[self.type_name])


def load(layer: torch.nn.Module, matrices: dict[Any, Matrix]) -> None:
    """Each to the weight's loader; keys are shards or None."""
    for shard, matrix in matrices.items():
        arguments = () if shard is None else (shard,)
        layer.weight.weight_loader(layer.weight, matrix.weight, *arguments)
    layer.quant_method.process_weights_after_loading(layer)


def numbers(layer: torch.nn.Module, name: str = "weight") -> torch.Tensor:
    """A loaded weight as it is held, or float32 where that is not as numbers."""
    if hasattr(layer, name):
        return getattr(layer, name).data
    method = layer.quant_method
    if name == "weight":
        layout = method.weight
    else:
        layout = getattr(method.experts, name.removesuffix("_weight"))
    assert {f"{name}_{part}" for part in layout.tensors} <= dict(layer.named_parameters()).keys()
    return layout.dequantize()


def assert_only_weights(layer: torch.nn.Module, **expected: torch.Tensor) -> None:
    """That nothing is left of what receives blocks, and every weight is right."""
    assert not any(isinstance(parameter, PendingWeight) for parameter in layer.parameters())
    for name, values in expected.items():
        found = numbers(layer, name)
        assert torch.equal(found, values.to(found.dtype))


def assert_only_weight(layer: torch.nn.Module, expected: torch.Tensor) -> None:
    assert_only_weights(layer, weight=expected)


def assert_near(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the order of float32 sums."""
    assert ours.shape == expected.shape
    assert (ours - expected).norm() <= 1e-5 * expected.norm()
