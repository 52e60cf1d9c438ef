"""What tests ask a loaded model, in the engine's process: ``probe="probes:NAME"``."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from sglang.srt.hardware_backend.npu.moe import topk
from sglang.srt.layers.moe.topk import TopKConfig
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from torch import nn

from ascend_gguf.srt import device
from ascend_gguf.srt.layers.moe import topk as routing
from ascend_gguf.srt.model_executor.model_runner_components import weight_updater
from ascend_gguf.srt.model_loader.layouts import holdings


def bytes_by_form(model_runner: Any) -> dict[str, int]:
    """Bytes of this rank's weights, by the name of the layout that holds them."""
    found: dict[str, int] = {}
    for holding in holdings(model_runner.model):
        found[holding.layout] = found.get(holding.layout, 0) + holding.nbytes
    return found


def memory_of(model_runner: Any) -> tuple[dict[str, int], float, float]:
    """As :func:`bytes_by_form`; bytes of a token in the KV cache; bytes of a request's states."""
    pool = model_runner.token_to_kv_pool
    cache = pool.get_kv_size_bytes()
    token = (sum(cache) if isinstance(cache, tuple) else cache) / (pool.size + pool.page_size)
    states = getattr(model_runner.req_to_token_pool, "mamba_pool", None)
    state = 0 if states is None else states.get_kv_size_bytes() / (states.size + 1)
    return bytes_by_form(model_runner), token, state


def layouts(model_runner: Any) -> dict[str, str]:
    """The layout of embeddings, output matrices and attention's layers, by their paths."""
    return {
        name: module.gguf_layouts["weight"].name if vars(module).get("gguf_layouts") else "dense"
        for name, module in model_runner.model.named_modules()
        if isinstance(module, VocabParallelEmbedding | nn.Embedding)
        or name.endswith((".qkv_proj", ".o_proj"))
    }


def unchecked_update(model_runner: Any) -> tuple[bool, str]:
    """As :func:`update`, of a file whose numbers are only seen when loading."""
    check, weight_updater.check_finite = weight_updater.check_finite, lambda *_: None
    try:
        return update(model_runner)
    finally:
        weight_updater.check_finite = check


def lost_and_found(model_runner: Any) -> list[Any]:
    """A file that cannot be loaded, while the old one is not what it was; then the old one."""
    old = model_runner.model.gguf_source
    model_runner.model.gguf_source = replace(old, identities=())
    lost = unchecked_update(model_runner), device.lost_weights()
    found = model_runner.weight_updater.update_weights_from_disk(old.path, "auto")
    return [*lost, found, device.lost_weights()]


def update(model_runner: Any) -> tuple[bool, str]:
    """Replace the weights by those of ``$NEW_FILE``."""
    return model_runner.weight_updater.update_weights_from_disk(os.environ["NEW_FILE"], "auto")


def routes(model_runner: Any) -> dict[tuple, tuple[str, float]]:
    """How experts are chosen on this NPU, and the greatest error of their weights.

    By experts, groups, groups of a token, experts of a token, function, whether there is a bias,
    whether weights are divided by their sum, and whether they are scaled.
    """
    found = {}
    flags = (False, True)
    for key in product(_SHAPES, _SCORES, flags, flags, flags):
        sizes, scoring, biased, renormalize, scaled = key
        experts, count, used, chosen = sizes
        if count > 1 and biased and scoring == "softmax":
            continue  # as no model has it
        generator = torch.Generator(device="cpu").manual_seed(experts + chosen)
        logits, bias = (
            torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float32)
            for shape in ((7, experts), (experts,))
        )
        bias = bias if biased else None
        config = TopKConfig(
            top_k=chosen,
            use_grouped_topk=count > 1,
            num_expert_group=count,
            topk_group=used,
            scoring_func=scoring,
            correction_bias=None if bias is None else bias.npu(),
            renormalize=renormalize,
            routed_scaling_factor=2.5 if scaled else 1.0,
            apply_routed_scaling_factor_on_output=True,
        )
        routing._choose(config, experts, logits.dtype)
        route = routing._routes[routing._key(config, experts, logits.dtype)]
        route = route or topk.fused_topk_npu
        expected = _chosen(logits, bias, config)
        errors = []
        for tokens in (None, torch.tensor(7).npu()):  # the latter with expert parallelism
            weights, ids, _ = route(logits.npu(), logits.npu(), config, num_token_non_padded=tokens)
            placed = torch.zeros_like(logits).scatter_(1, ids.cpu().long(), weights.cpu().float())
            errors.append((placed - expected).abs().max().item())
        found[*sizes, *key[1:]] = (route.__name__, max(errors))
    return found


#: Experts, groups, groups of a token, experts of a token.
_SHAPES = ((16, 1, 1, 2), (8, 4, 2, 2), (16, 4, 2, 8), (256, 8, 4, 8), (512, 128, 9, 8))
_SCORES = ("softmax", "sigmoid")


def _chosen(logits: torch.Tensor, bias: torch.Tensor | None, config: TopKConfig) -> torch.Tensor:
    """The weight of each expert: groups by their two best with a bias, else by their best."""
    scores = logits.softmax(-1) if config.scoring_func == "softmax" else logits.sigmoid()
    choice = scores if bias is None else scores + bias
    groups = choice.unflatten(-1, (config.num_expert_group, -1))
    best = groups.topk(1 if bias is None else 2).values.sum(-1)
    others = best.argsort(descending=True)[:, config.topk_group :]
    groups = groups.clone().scatter_(1, others[..., None].expand(-1, -1, groups.shape[-1]), -99.0)
    ids = groups.flatten(1).topk(config.top_k).indices
    weights = torch.zeros_like(scores).scatter_(1, ids, scores.gather(1, ids))
    if config.renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * config.routed_scaling_factor


def whose(model_runner: Any) -> dict[str, list[str]]:
    """The engine's classes of a model's modules, and the names of those where something is ours."""
    known, changed = set(), []
    for name, module in model_runner.model.named_modules():
        known |= {f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__}
        functions = (*module._forward_pre_hooks.values(), *vars(module).values())
        if any(
            str(getattr(found, "__module__", "")).startswith("ascend_gguf")
            for found in (type(module), *map(type, functions), *functions)
        ):
            changed.append(name)
    parts = ("attn_backend", "sampler", "weight_exporter", "weight_updater")
    for name, part in (("runner", model_runner), *((n, getattr(model_runner, n)) for n in parts)):
        if type(part).__module__.startswith("ascend_gguf"):
            changed.append(name)
    return {"classes": sorted(known), "changed": changed}
