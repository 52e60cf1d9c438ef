"""Chips that a model can be planned for: their memory, and the layouts that they multiply with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ascend_gguf.cpu.linear import BlocksExperts, BlocksLinear
from ascend_gguf.errors import GGUFError
from ascend_gguf.npu.channel_int8 import NPUChannelLinear
from ascend_gguf.npu.choice import Choice
from ascend_gguf.npu.experts import EXPERT_LAYOUTS
from ascend_gguf.npu.linear import NPUEmbedding, NPUExactLinear, NPULinear
from ascend_gguf.npu.products import EXPERTS, LINEAR, product_of
from ascend_gguf.weights.layout import Layout
from ascend_gguf.weights.linear_kernel import LinearKernel

_SGLANG = "SGLang's Ascend guide (docs.sglang.io, Ascend NPU reference)"
_A2_32 = "Atlas 800I A2, variant of 32 GB a card"
_KEYNOTE = "Huawei Connect 2025, keynote of E. Xu (huawei.com/en/news/2025/9/hc-xu-keynote-speech)"


@dataclass(frozen=True)
class Chip:
    """A device.

    Attributes:
        name: as it is typed.
        memory: of a device in GB, as it is sold; None for the host.
        source: who says so.
    """

    name: str
    memory: float | None
    source: str

    @property
    def is_npu(self) -> bool:
        """False for the host."""
        return self.memory is not None

    def linear_layouts(
        self, choice: Choice, dtype: torch.dtype, exact: bool = False, by_rows: bool = False
    ) -> tuple[type[Layout], ...]:
        """The packed layouts of a linear layer, best first; none: it is dense.

        Args:
            exact: for an output matrix.
            by_rows: for an embedding.
        """
        if not self.is_npu:
            return BlocksLinear.layouts if choice.weights != "dense" else ()
        rounded = choice.requantizes and not exact
        kernel: type[LinearKernel] = NPULinear if rounded else NPUExactLinear
        if by_rows:
            kernel = NPUEmbedding
        elif choice.weights == "int8" and not exact:
            kernel = NPUChannelLinear
        return self._taken(LINEAR, kernel.layouts, choice, dtype)

    def expert_layouts(self, choice: Choice, dtype: torch.dtype) -> tuple[type[Layout], ...]:
        """As :meth:`linear_layouts`, for experts."""
        if not self.is_npu:
            return BlocksExperts.layouts if choice.weights != "dense" else ()
        return self._taken(EXPERTS, EXPERT_LAYOUTS, choice, dtype)

    def _taken(
        self, operator: str, layouts: tuple[type[Layout], ...], choice: Choice, dtype: torch.dtype
    ) -> tuple[type[Layout], ...]:
        """What is only tried on the device is not counted on."""
        packs = choice.weights != "dense" and dtype in (torch.float16, torch.bfloat16)
        return product_of(f"Ascend{self.name}").layouts(operator, layouts) if packs else ()


CPU = Chip("cpu", None, "")
NPUS = (
    Chip("910B1", 64, _SGLANG),
    Chip("910B2", 64, _SGLANG),
    Chip("910B3", 64, _SGLANG),
    Chip("910B4", 32, _A2_32),
    Chip("910_93", 64, f"{_SGLANG}: a device is one of a card's two dies"),
    Chip("950PR", 128, _KEYNOTE),
    Chip("950DT", 144, _KEYNOTE),
    Chip("310P3", 24, "Atlas 300I Pro; with an Atlas 300I Duo of 96 GB say --memory 48"),
)


def chip_named(name: str) -> Chip:
    """The NPU of a name, with ``Ascend`` before it or not.

    Raises:
        GGUFError: it is not in the table.
    """
    short = name.lower().removeprefix("ascend")
    for chip in NPUS:
        if chip.name.lower() == short:
            return chip
    raise GGUFError(
        "no such chip",
        found=name,
        expected=", ".join(chip.name for chip in NPUS),
        hint="Take the most similar one, and give its memory with --memory.",
    )
