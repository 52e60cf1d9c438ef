"""Rotary position embeddings: npu_rotary_mul, npu_interleave_rope, npu_mrope.

half:       pairs (i, i + D/2);  interleave: pairs (2i, 2i + 1)
y = x * cos + rotate(x) * sin    in float32, rounded once
"""

from __future__ import annotations

from math import prod

import torch

from .products import A5, P310, product
from .registry import aclnn
from .rules import BF16, F16, F32, I32, I64, OperatorMissing, Rules

ROTARY_DOC = (
    "torch_npu 2.13.0 documentation of npu_rotary_mul; CANN aclnnRotaryPositionEmbedding.md"
)
MROPE_DOC = "torch_npu 2.13.0 documentation of npu_mrope; CANN aclnnRopeWithSinCosCache.md"


def rotate(x: torch.Tensor, mode: str) -> torch.Tensor:
    """(-x2, x1) in the places of (x1, x2)."""
    if mode == "half":
        a, b = x.chunk(2, -1)
        return torch.cat((-b, a), -1)
    return torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)


@aclnn("aclnnRotaryPositionEmbedding", "tttit")
def rotary_mul(x, cos, sin, mode, y):
    """x (B, S, N, D) or another order; cos and sin the same, with 1 in the broadcast dimensions."""
    rule = Rules("npu_rotary_mul", ROTARY_DOC)
    rule.one_of("rotary_mode", mode, 0, 1)
    for argument, v in (("input", x), ("r1", cos), ("r2", sin)):
        rule.floats(argument, v.t)
        rule.ndim(argument, v.t, 4)
        rule.not_empty(argument, v.t)
        rule.plain(argument, v)
        rule.same_dtype(argument, v.t, "input", x.t)
    b, s, n, d = x.t.shape
    rule.multiple("input", "D", d, 32 if product() == P310 else 2)
    rule.range("input", "D", d, 1, {P310: 128, A5: 1024}.get(product(), 895))
    rule.that(mode == 0 or product() != P310, "rotary_mode", "is 0 on 310P")
    rule.shape("r2", sin.t, cos.t.shape)
    if mode == 0:
        # BNSD: 11SD B1SD BNSD; BSND: 1S1D BS1D BSND; SBND: S11D SB1D SBND
        allowed = [
            (1, 1, n, d),
            (b, 1, n, d),
            (1, s, 1, d),
            (b, s, 1, d),
            (b, 1, 1, d),
            (b, s, n, d),
        ]
    else:
        allowed = [(1, 1, n, d), (1, s, 1, d), (b, 1, 1, d)]
    rule.shape("r1", cos.t, *dict.fromkeys(allowed))
    if product() != A5:
        _bounded(rule, mode, x.t.shape[:3], cos.t.shape[:3])
    rule.values("r1", cos.t, -1, 1)
    rule.values("r2", sin.t, -1, 1)
    f = x.t.float()
    y.t.copy_(f * cos.t.float() + rotate(f, "half" if mode == 0 else "interleave") * sin.t.float())


def _bounded(rule: Rules, mode: int, shape, turns) -> None:
    """Which dimension is the sequence shows in cos alone: it is the one that is not broadcast.  The
    other two of x, and N, are bounded.
    """
    others = [size for size, c in zip(shape, turns, strict=True) if c != size or size == 1]
    if mode == 0:
        rule.that(
            all(size < 1000 for size in others),
            "input",
            f"B and N are less than 1000 (found {others})",
        )
    else:
        rule.that(
            prod(others) < 1000,
            "input",
            f"B * N is less than 1000 in interleave mode (found {prod(others)})",
        )


@aclnn("aclnnRotaryPositionEmbeddingV2", "tttit" + "t")
def rotary_mul_v2(x, cos, sin, mode, rotation, y):
    if rotation is not None:
        raise OperatorMissing("npu_rotary_mul", "rotate, a matrix in place of the mode")
    rotary_mul(x, cos, sin, mode, y)


@aclnn("aclnnInterleaveRope", "tttt")
def interleave_rope(x, cos, sin, y):
    """Pairs (2i, 2i+1) of x become a first half and a second half, then rotate as halves: x (B, N,
    S, 64), S = 1 or that of cos.
    """
    rule = Rules("npu_interleave_rope", "CANN interleave_rope_tiling.cpp")
    for argument, v in (("x", x), ("cos", cos), ("sin", sin)):
        rule.dtype(argument, v.t, F16, BF16)
        rule.same_dtype(argument, v.t, "x", x.t)
        rule.ndim(argument, v.t, 4)
        rule.equal(argument, "D", v.t.shape[-1], 64)
        rule.plain(argument, v)
    b, n, s, d = x.t.shape
    rule.shape("cos", cos.t, (b, 1, s, d), (b, 1, 1, d))
    rule.shape("sin", sin.t, cos.t.shape)
    f = x.t.float()
    f = torch.cat((f[..., 0::2], f[..., 1::2]), -1)
    y.t.copy_(f * cos.t.float() + rotate(f, "half") * sin.t.float())


@aclnn("aclnnRopeWithSinCosCacheV2", "tttt" + "Iibi" + "tt")
def mrope(
    positions, query, key, cache, mrope_section, head_size, neox, cache_mode, query_out, key_out
):
    """positions (T,): plain rope; (3, T): one row a section.  query (T, heads * head_size); cache
    (positions, rotary_dim), cos then sin.
    """
    q, k, q_out, k_out = query, key, query_out, key_out
    section = list(mrope_section or [0, 0, 0])
    rule = Rules("npu_mrope", MROPE_DOC)
    rule.dtype("positions", positions.t, I32, I64)
    rule.ndim("positions", positions.t, 1, 2)
    rule.equal("mrope_section", "its length", len(section), 3)
    rule.undocumented(cache_mode == 0, "cache_mode", "'interleave'")
    for argument, v in (("query", q), ("key", k), ("cos_sin_cache", cache)):
        rule.floats(argument, v.t)
        rule.ndim(argument, v.t, 2)
        rule.plain(argument, v)
        rule.same_dtype(argument, v.t, "query", q.t)
    tokens, rotary = q.t.shape[0], cache.t.shape[1]
    step = 16 if q.t.dtype == F32 else 32
    rule.multiple("cos_sin_cache", "the rotary dimension", rotary, step)
    rule.multiple("head_size", "it", head_size, step)
    rule.that(
        rotary <= head_size,
        "cos_sin_cache",
        f"the rotary dimension is at most the head size, {head_size} (found {rotary})",
    )
    for argument, v in (("query", q), ("key", k)):
        rule.multiple(argument, "the last dimension", v.t.shape[1], head_size)
        rule.equal(argument, "the number of tokens", v.t.shape[0], tokens)
    sections = positions.t.dim() == 2
    rule.shape("positions", positions.t, (3, tokens) if sections else (tokens,))
    rule.that(
        any(section) == sections, "mrope_section", "is given with (3, T) positions and only then"
    )
    if sections:
        rule.one_of("mrope_section", section, [16, 24, 24], [24, 20, 20], [8, 12, 12])
        rule.equal("mrope_section", "the sum", sum(section), rotary // 2)
    rule.values("positions", positions.t, 0, cache.t.shape[0] - 1)

    cos, sin = cache.t[positions.t.long()].float().chunk(2, -1)  # (T, R/2) or (3, T, R/2)
    if sections:
        cos, sin = (
            torch.cat([part[i] for i, part in enumerate(c.split(section, -1))], -1)
            for c in (cos, sin)
        )
    for v, out in ((q, q_out), (k, k_out)):
        heads = v.t.float().reshape(tokens, -1, head_size)
        turned, rest = heads[..., :rotary], heads[..., rotary:]
        c, s = cos.unsqueeze(1), sin.unsqueeze(1)
        if neox:
            a, b = turned.chunk(2, -1)
            turned = torch.cat((a * c - b * s, b * c + a * s), -1)
        else:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2)
        out.t.copy_(torch.cat((turned, rest), -1).reshape(out.t.shape))


@aclnn("aclnnRopeWithSinCosCache", "tttt" + "Iib" + "tt")
def mrope_v1(positions, query, key, cache, mrope_section, head_size, neox, query_out, key_out):
    mrope(positions, query, key, cache, mrope_section, head_size, neox, 0, query_out, key_out)
