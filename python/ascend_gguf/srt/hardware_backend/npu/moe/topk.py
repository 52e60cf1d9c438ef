"""From a router's logits to experts and their weights on an Ascend NPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.hardware_backend.npu.moe.topk import _finalize_topk_npu
from sglang.srt.layers.moe.topk import TopKConfig, TopKOutput

logger = logging.getLogger(__name__)

# Experts, how many of them a token has, and the dtype of logits -> whether one operator does it.
_is_right: dict[tuple[int, int, torch.dtype], bool] = {}


def fused_topk_npu(
    original: Callable,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    topk_config: TopKConfig,
    **kwargs: Any,
) -> TopKOutput:
    """AROUND ``fused_topk_npu``: one operator for a softmax of the best logits, not two.

    The engine takes the softmax of all, and divides the best by their sum.
    """
    key = router_logits.shape[-1], topk_config.top_k, router_logits.dtype
    if not (_is_right.get(key) and topk_config.renormalize and _is_plain_softmax(topk_config)):
        return original(hidden_states, router_logits, topk_config, **kwargs)
    weights, ids = _softmax_of_best(router_logits, topk_config.top_k)
    return _finalize_topk_npu(
        topk_ids=ids,
        topk_weights=weights.float(),
        router_logits=router_logits,
        topk_config=topk_config,
        **kwargs,
    )


def check_softmax(experts: int, k: int, dtype: torch.dtype) -> None:
    """Try the operator once with logits of a dtype, so that it is used where it is right."""
    key = experts, k, dtype
    if key in _is_right:
        return
    generator = torch.Generator(device="cpu").manual_seed(experts)
    logits = torch.randn(8, experts, generator=generator, device="cpu").to(dtype)
    best = logits.float().topk(k).values
    try:
        weights, ids = (t.cpu() for t in _softmax_of_best(logits.npu(), k))
    except RuntimeError as error:
        logger.info("Experts are chosen by two operators: %s", str(error).partition("\n")[0])
        _is_right[key] = False
        return
    # Logits that are equal after rounding may change places, and their weights are equal too.
    is_close = torch.allclose(weights.float(), best.softmax(-1), rtol=0.02)
    _is_right[key] = is_close and torch.equal(logits.float().gather(1, ids.long()), best)
    if not _is_right[key]:
        logger.error(
            "Experts are chosen by two operators, as this device is wrong with "
            "npu_moe_gating_top_k_softmax_v2 for %d experts, k %d, %s", *key
        )  # fmt: skip


def _softmax_of_best(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    weights, ids, _ = torch.ops.npu.npu_moe_gating_top_k_softmax_v2(logits, k=k, renorm=1)
    return weights, ids


def _is_plain_softmax(config: TopKConfig) -> bool:
    is_changed = config.use_grouped_topk or config.num_shared_topk_slots
    return config.scoring_func == "softmax" and config.correction_bias is None and not is_changed
