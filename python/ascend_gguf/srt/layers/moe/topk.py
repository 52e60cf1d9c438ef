"""From a router's logits to experts and their weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.topk import (
    StandardTopKOutput,
    TopK,
    TopKConfig,
    fused_topk_native,
    select_experts,
)

from ascend_gguf.cpu.routing import softmax_of_best
from ascend_gguf.npu.self_check import refusal
from ascend_gguf.srt.device import uses_cpu_kernels
from ascend_gguf.srt.overrides import seeing

logger = logging.getLogger(__name__)

_Route = Callable[..., StandardTopKOutput]

# What a route depends on -> what is right on this device: a function, or None for the engine's own.
_routes: dict[tuple, _Route | None] = {}


def forward_native(original: Callable, self: TopK, *args: Any, **kwargs: Any) -> StandardTopKOutput:
    """Overrides ``TopK.forward_native``: on the CPU the softmax of the best logits is a kernel."""
    select = seeing(select_experts, fused_topk_native=_best)
    return seeing(original, select_experts=select)(self, *args, **kwargs)


def _best(**given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    logits, is_softmax = given["gating_output"], given.get("scoring_func", "softmax") == "softmax"
    if not is_softmax or given["correction_bias"] is not None or not uses_cpu_kernels(logits):
        return fused_topk_native(**given)
    return softmax_of_best(logits, given["topk"], renormalize=given["renormalize"])


def forward_npu(
    original: Callable,
    self: TopK,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    *,
    num_token_non_padded: torch.Tensor | None = None,
    expert_location_dispatch_info: Any = None,
    **options: torch.Tensor | None,
) -> StandardTopKOutput:
    """Overrides ``TopK.forward_npu``: experts are chosen as :func:`choose_routes` has found right.

    Args:
        router_logits: ``[tokens, experts]``.
    """
    route = _routes.get(_key(self.topk_config, router_logits.shape[-1], router_logits.dtype))
    if route is None or options.get("dynamic_expert_bias") is not None:
        return original(
            self,
            hidden_states,
            router_logits,
            num_token_non_padded=num_token_non_padded,
            expert_location_dispatch_info=expert_location_dispatch_info,
            **options,
        )
    tokens, info = num_token_non_padded, expert_location_dispatch_info
    if hasattr(self, "_resolve_routing_inputs"):  # not before 0.5.23
        tokens, info = self._resolve_routing_inputs(tokens, info)
    return route(
        hidden_states,
        router_logits,
        self.topk_config,
        num_token_non_padded=tokens,
        expert_location_dispatch_info=info,
        layer_id=self.layer_id,
    )


def choose_routes(model: torch.nn.Module) -> None:
    """Try the operators that choose experts, with the sizes and settings of a model's routers.

    First comes one operator for a softmax of the best logits, where the engine has two; then what
    the engine does.  Its ``npu_moe_gating_top_k`` takes no groups of two experts and no ``renorm``
    on some versions of CANN, and divides sigmoids by their sum whether it is told to or not.  Where
    neither is right torch's operators do it.

    Call before steps are captured; weights need not be loaded.
    """
    experts = {m.layer_id: m.num_experts for m in model.modules() if isinstance(m, FusedMoE)}
    for module in model.modules():
        if isinstance(module, TopK) and module.layer_id in experts:
            for dtype in {torch.float32, torch.get_default_dtype()}:
                _choose(module.topk_config, experts[module.layer_id], dtype)


def softmax_problem(experts: int, chosen: int) -> str | None:
    """What the operator for a softmax of the best logits gets wrong on this device, or None."""
    route = _softmax_of_best
    if not hasattr(_engine(), "_finalize_topk_npu"):
        route = _engine().fused_topk_npu
    return _mismatch(route, TopKConfig(top_k=chosen), experts, torch.float32)


def _choose(config: TopKConfig, experts: int, dtype: torch.dtype) -> None:
    key = _key(config, experts, dtype)
    if key in _routes:
        return
    _routes[key] = None
    engine = _engine()
    is_plain = _is_plain_softmax(config) and config.renormalize
    if is_plain and hasattr(engine, "_finalize_topk_npu"):  # not before 0.5.23
        reason = _mismatch(_softmax_of_best, config, experts, dtype)
        if reason is None:
            _routes[key] = _softmax_of_best
            return
        logger.info("Experts are chosen by two operators: %s", reason)
    if config.use_grouped_topk and config.correction_bias is None:
        reason = "groups count by their best expert"  # and by their two best in the operator
    else:
        reason = _mismatch(engine.fused_topk_npu, config, experts, dtype)
    if reason is not None:
        _routes[key] = _native
        logger.info("Experts are chosen by torch's operators: %s", reason)


def _engine() -> Any:
    """The engine's routing, whose module imports operators of the NPU before 0.5.23."""
    return import_module("sglang.srt.hardware_backend.npu.moe.topk")


def _key(config: TopKConfig, experts: int, dtype: torch.dtype) -> tuple:
    groups = (config.num_expert_group, config.topk_group) if config.use_grouped_topk else None
    is_scaled = config.apply_routed_scaling_factor_on_output
    return (
        *(experts, dtype, config.top_k, groups, config.scoring_func, config.renormalize),
        *(config.correction_bias is not None, _shared_experts(config)),
        *(config.routed_scaling_factor if is_scaled else None, config.custom_routing_function),
    )


def _mismatch(route: _Route, config: TopKConfig, experts: int, dtype: torch.dtype) -> str | None:
    """Why a route is not right on this device, or None."""
    generator = torch.Generator(device="cpu").manual_seed(experts)
    # No two are equal, in bfloat16 neither.
    rows = [torch.randperm(experts, generator=generator, device="cpu") for _ in range(32)]
    logits = ((torch.stack(rows) + 0.5) * (8 / experts) - 4).to(dtype)
    bias = torch.randn(experts, generator=generator, device="cpu", dtype=torch.float32)
    expected = _weights(_native, config, logits, bias)
    try:
        found = _weights(route, config, logits.npu(), bias.npu())
    except Exception as error:
        return refusal(error)
    if torch.allclose(found, expected, rtol=0.02):
        return None
    return f"weights differ from torch's ({experts} experts, {config.top_k} for a token)"


def _weights(
    route: _Route, config: TopKConfig, logits: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """``[tokens, experts]`` on the host, zero where an expert was not chosen."""
    own = bias if config.correction_bias is not None else None
    config = replace(config, correction_bias=own, allow_routed_experts_capture=False)
    tokens = torch.full((), len(logits), device=logits.device)
    weights, ids, _ = route(logits, logits, config, num_token_non_padded=tokens)
    chosen = torch.zeros(logits.shape, device="cpu", dtype=torch.float32)
    return chosen.scatter_(1, ids.cpu().long(), weights.cpu().float())


def _native(
    hidden_states: torch.Tensor, router_logits: torch.Tensor, config: TopKConfig, **kwargs: Any
) -> StandardTopKOutput:
    """The engine's own choice in plain torch."""
    config.torch_native = True
    if not hasattr(_engine(), "_finalize_topk_npu"):
        # Rows of padding choose experts too, and nobody reads them: before 0.5.23 torch's
        # operators cannot leave them out.
        kwargs["num_token_non_padded"] = None
    found = select_experts(hidden_states, router_logits.float(), config, **kwargs)
    return found._replace(
        topk_weights=found.topk_weights.float(), topk_ids=found.topk_ids.to(torch.int32)
    )


def _softmax_of_best(
    hidden_states: torch.Tensor, router_logits: torch.Tensor, config: TopKConfig, **kwargs: Any
) -> StandardTopKOutput:
    """One operator; the engine takes the softmax of all, and divides the best by their sum."""
    weights, ids, _ = torch.ops.npu.npu_moe_gating_top_k_softmax_v2(
        router_logits, k=config.top_k, renorm=1
    )
    return _engine()._finalize_topk_npu(
        topk_ids=ids,
        topk_weights=weights.float(),
        router_logits=router_logits,
        topk_config=config,
        **{"expert_location_dispatch_info": None, "layer_id": None, **kwargs},
    )


def _is_plain_softmax(config: TopKConfig) -> bool:
    is_changed = config.use_grouped_topk or _shared_experts(config)
    return config.scoring_func == "softmax" and config.correction_bias is None and not is_changed


def _shared_experts(config: TopKConfig) -> int:
    """How many of a token's experts are shared ones, which releases name differently."""
    if hasattr(config, "num_shared_topk_slots"):
        return config.num_shared_topk_slots
    return config.num_fused_shared_experts
