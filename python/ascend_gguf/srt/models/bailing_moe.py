"""Routing of Ling and Ring 2.0."""

from __future__ import annotations

from typing import Any

import torch


def scale_topk(block: torch.nn.Module, config: Any) -> None:
    """``BailingMoESparseMoeBlock``: scale the chosen experts' weights.

    The engine leaves ``routed_scaling_factor`` to what runs the experts, which does not know of it
    on the CPU and on Ascend.
    """
    block.topk.topk_config.apply_routed_scaling_factor_on_output = True
