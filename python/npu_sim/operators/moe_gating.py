"""From a router's logits to experts and their weights: logits (T, E) to weights (T, K) and experts
(T, K).

Equal gate values go to the expert with the lower number.
"""

from __future__ import annotations

from math import ceil

import torch

from . import faults
from .products import A5, P310, product
from .registry import aclnn
from .rules import BF16, BOOL, F16, F32, OperatorMissing, Rules
from .view import viewed

DOC = "torch_npu 2.13.0 documentation of "


def top_k(values: torch.Tensor, k: int):
    """The k largest along the last dimension, downwards; ties by position."""
    best, index = values.sort(dim=-1, descending=True, stable=True)
    return best[..., :k], index[..., :k]


def write(out, value):
    out.t.copy_(value.reshape(out.t.shape))


@aclnn("aclnnMoeGatingTopKSoftmax", "ttittt")
def gating_top_k_softmax(x, finished, k, y, expert_idx, row_idx):
    """softmax, then the k largest;

    no renormalisation.  row_idx[t, j] = j T + t.
    """
    name = "npu_moe_gating_top_k_softmax"
    rule = Rules(name, f"{DOC}{name}; CANN aclnnMoeGatingTopKSoftmax.md")
    if product() == P310:
        shape = tuple(x.t.shape)
        rule.dtype("x", x.t, F16)
        rule.absent("finished", finished, "must not be given on 310P")
        rule.that(
            len(shape) == 2 and shape[1] % 16 == 0 and shape[1] <= 256,
            "x",
            f"shape is (T, E) with E a multiple of 16 up to 256 on 310P (found {shape})",
        )
    if product() == A5:
        rule.range("x", "E on Ascend 950", x.t.shape[-1], 1, 2048)
    values = _softmax_top_k(rule, x, finished, k, False, y, expert_idx)
    tokens = values.numel() // k
    write(row_idx, torch.arange(tokens * k).view(k, tokens).t())
    if product() == P310:
        row_idx.t.zero_()


@aclnn("aclnnMoeGatingTopKSoftmaxV2", "tt" + "iib" + "ttt")
def gating_top_k_softmax_v2(x, finished, k, renorm, output_softmax, y, expert_idx, softmax):
    """softmax, then the k largest; or with ``renorm`` 1 the k largest, then their softmax."""
    rule = Rules("npu_moe_gating_top_k_softmax_v2", DOC + "npu_moe_gating_top_k_softmax_v2")
    rule.one_of("renorm", renorm, 0, 1)
    softmax_last = renorm == 1 and not faults.has(faults.TOP_K_RENORM)
    _softmax_top_k(rule, x, finished, k, softmax_last, y, expert_idx)
    if output_softmax and not renorm:
        write(softmax, x.t.float().softmax(-1))


def _softmax_top_k(rule, x, finished, k, softmax_last, y, expert_idx):
    """Finished rows get expert E."""
    rule.floats("x", x.t)
    rule.ndim("x", x.t, 2, 3)
    rule.plain("x", x)
    experts = x.t.shape[-1]
    rule.that(
        0 < k <= min(experts, 1024),
        "k",
        f"is in [1, min(experts, 1024)] = [1, {min(experts, 1024)}] (found {k})",
    )
    if finished:
        rule.dtype("finished", finished.t, BOOL)
        rule.shape("finished", finished.t, x.t.shape[:-1])
    logits = x.t.float()
    values, index = top_k(logits if softmax_last else logits.softmax(-1), k)
    values = values.softmax(-1) if softmax_last else values
    if finished:
        index = index.masked_fill(finished.t.unsqueeze(-1), experts)
    write(y, values)
    write(expert_idx, index)
    return values


@viewed
def gating_top_k(
    x,
    bias,
    k,
    k_group,
    group_count,
    group_select_mode,
    renorm,
    norm_type,
    out_flag,
    factor,
    eps,
    y,
    expert_idx,
    norm_out,
):
    """Sigmoid or softmax;

    experts chosen with the bias added, in the best groups; their weights without it, divided by
    their sum, scaled.
    """
    _gate_rules(x, bias, k, k_group, group_count, group_select_mode, renorm, norm_type)
    f = x.t.float()
    norm = f.sigmoid() if norm_type == 1 else f.softmax(-1)
    if out_flag and norm_out is not None and norm_out.t.numel() == norm.numel():
        write(norm_out, norm)
    choice = norm + bias.t.float() if bias else norm
    if group_count > 1:
        grouped = choice.view(len(f), group_count, -1)
        score = grouped.amax(-1) if group_select_mode == 0 else top_k(grouped, 2)[0].sum(-1)
        kept = torch.zeros_like(score, dtype=torch.bool).scatter_(1, top_k(score, k_group)[1], True)
        choice = grouped.masked_fill(~kept.unsqueeze(-1), -torch.inf).view(f.shape)
    index = top_k(choice, k)[1]
    weights = norm.gather(1, index)
    # The kernels divide for sigmoid only (moe_gating_top_k_generalized.h).
    if norm_type == 1 or renorm:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    write(y, weights * factor)
    write(expert_idx, index)


def _gate_rules(x, bias, k, k_group, group_count, group_select_mode, renorm, norm_type) -> None:
    rule = Rules(
        "npu_moe_gating_top_k", DOC + "npu_moe_gating_top_k; CANN moe_gating_top_k_tiling.cpp"
    )
    rule.dtype("x", x.t, F16, BF16, F32)
    rule.ndim("x", x.t, 2)
    rule.plain("x", x)
    experts = x.t.shape[1]
    rule.that(experts <= 2048, "x", f"has at most 2048 experts (found {experts})")
    if bias:
        rule.same_dtype("bias", bias.t, "x", x.t)
        rule.shape("bias", bias.t, (experts,))
    rule.that(
        group_count > 0 and experts % group_count == 0,
        "group_count",
        f"divides the {experts} experts (found {group_count})",
    )
    members = experts // group_count
    rule.range("k_group", "it", k_group, 1, group_count)
    rule.range("k", "it", k, 1, k_group * members)
    rule.one_of("group_select_mode", group_select_mode, 0, 1)
    rule.that(
        group_count == 1 or members > 2,
        "group_count",
        f"groups have more than 2 experts (found {members})",
    )
    rule.that(
        group_count == 1 or ceil(members / 32) * 32 * group_count <= 2048,
        "group_count",
        "groups, padded to 32 experts, have at most 2048 in all",
    )
    rule.one_of("norm_type", norm_type, 0, 1)
    # Documented as 0 only.  SGLang 0.5.23 (hardware_backend/npu/moe/topk.py) passes renormalize, 1
    # for most models, in production.
    rule.one_of("renorm", renorm, 0, 1)


@aclnn("aclnnMoeGatingTopK", "tt" + "iiiiiibdd" + "ttt")
def gating_top_k_v1(*arguments):
    gating_top_k(*arguments)


@aclnn("aclnnMoeGatingTopKV2", "tttt" + "iiiiiibdd" + "ttt")
def gating_top_k_v2(x, bias, input_ids, tid2eid, *arguments):
    if input_ids is not None or tid2eid is not None:
        raise OperatorMissing("npu_moe_gating_top_k", "hash mode (input_ids, tid2eid)")
    gating_top_k(x, bias, *arguments)
