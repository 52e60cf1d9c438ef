"""Chips that a model can be planned for: their memory, and the layouts that they multiply with."""

from __future__ import annotations

from typing import NamedTuple

from ascend_gguf.cpu.blocks import Blocks
from ascend_gguf.errors import GGUFError
from ascend_gguf.npu.choice import Choice
from ascend_gguf.npu.experts import EXPERT_LAYOUTS
from ascend_gguf.npu.products import EXPERTS, LINEAR, product_of
from ascend_gguf.npu.roles import KERNELS
from ascend_gguf.weights.layout import Layout

_SGLANG = "SGLang's Ascend guide (docs.sglang.io, Ascend NPU reference)"
_A2_32 = "Atlas 800I A2, variant of 32 GB a card"
_KEYNOTE = "Huawei Connect 2025, keynote of E. Xu (huawei.com/en/news/2025/9/hc-xu-keynote-speech)"


class Chip(NamedTuple):
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

    def layouts(self, role: str, choice: Choice, dtype: str) -> tuple[type[Layout], ...]:
        """The packed layouts of weights of a role, best first; none: they are dense.

        What is only tried on the device is not counted on.
        """
        if choice.weights == "dense" or self.is_npu and dtype == "float32":
            return ()
        if not self.is_npu:
            return (Blocks,)
        product = product_of(f"Ascend{self.name}")
        if role == "experts":
            return product.layouts(EXPERTS, EXPERT_LAYOUTS)
        return product.layouts(LINEAR, KERNELS[role](choice).layouts)


CPU = Chip("cpu", None, "all of this host's")
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
    """The chip of a name, with ``Ascend`` before it or not; ``cpu`` for the host.

    Raises:
        GGUFError: it is not in the table.
    """
    chips = {chip.name.lower(): chip for chip in (*NPUS, CPU)}
    try:
        return chips[name.lower().removeprefix("ascend")]
    except KeyError:
        raise GGUFError(
            "no such chip",
            found=name,
            expected=", ".join(chip.name for chip in chips.values()),
            hint="Take the most similar one, and give its memory with --memory.",
        ) from None
