"""Routing of GLM-4.5."""

from __future__ import annotations

from typing import Any

import torch


def route_by_sigmoid(block: torch.nn.Module, config: Any) -> None:
    """``Glm4MoeSparseMoeBlock``: say what the routing on Ascend asks for.

    With a bias the engine takes sigmoids, whatever it is told; on Ascend it takes the softmax
    unless it is told.
    """
    block.topk.topk_config.scoring_func = "sigmoid"
