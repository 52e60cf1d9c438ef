"""RoPE parameters, as in transformers' ``rope_parameters``.

Keys: gguf's ``Keys.Rope``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ascend_gguf.architectures.metadata import Attributes, number, reads
from ascend_gguf.reader import GGUFFile

_ASK_FOR_CONFIG = "Put the model's config.json beside the file."

#: Keys that every function here follows.
KEYS = frozenset(
    {
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.attn_factor",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    }
)

#: ``(low_freq_factor, high_freq_factor, original_max_position_embeddings)`` of published models.
#: The factors in a file follow from them; of other models some that give the same are found.
_LLAMA3 = ((1.0, 4.0, 8192), (1.0, 1.0, 8192))


def parameters(file: GGUFFile, attributes: Attributes, rotated: int | None = None) -> Attributes:
    """One RoPE for all layers: plain, linear, YaRN, or of Llama 3's kind, known by its factors.

    Args:
        rotated: dimensions of a head that are turned, if the factors are of more.

    Raises:
        GGUFError: another type of scaling, or factors of another kind.
    """
    plain, scaling = unscaled(file), scaling_of(file)
    if "rope_freqs.weight" not in file.tensors:
        return plain | scaling
    factors = _llama3(file, plain["rope_theta"], rotated)
    if factors and scaling:
        raise file.error(
            "RoPE is scaled twice, by this key and by rope_freqs.weight",
            "rope.scaling.factor",
            found=scaling["factor"],
            expected="one of the two",
            hint=_ASK_FOR_CONFIG,
        )
    return plain | scaling | factors


def absent(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Of a model with position embeddings instead."""
    return {}


def unscaled(file: GGUFFile) -> dict[str, Any]:
    """The base of the frequencies: 10,000 where the file does not say."""
    theta = number(file, "rope.freq_base", float)
    return {"rope_theta": 10000.0 if theta is None else theta, "rope_type": "default"}


def partial(file: GGUFFile, attributes: Attributes) -> Attributes:
    """As :func:`parameters`, on the first ``rope.dimension_count`` dimensions of each head."""
    return parameters(file, attributes) | partial_factor(file, attributes)


def longrope(file: GGUFFile, attributes: Attributes) -> Attributes:
    """As :func:`partial`, or LongRoPE with factors for short and long prompts (Phi-3)."""
    if "rope_factors_long.weight" not in file.tensors:
        found = partial(file, attributes)
        if found["rope_type"] != "default":
            raise file.error(
                "Phi-3 supports no RoPE scaling but LongRoPE",
                "rope.scaling.factor",
                found=found["factor"],
                expected="tensors rope_factors_long.weight and rope_factors_short.weight",
                hint=None,
            )
    else:
        found = unscaled(file) | partial_factor(file, attributes) | {"rope_type": "longrope"}
        for kind in ("long", "short"):
            tensor = file.tensors[f"rope_factors_{kind}.weight"]
            found[f"{kind}_factor"] = tensor.dequantize().flatten().tolist()
        attention = number(file, "rope.scaling.attn_factor", float, least=0)
        if attention is not None:  # transformers' name, then the engine's
            names = ("attention_factor", "short_mscale", "long_mscale")
            found |= dict.fromkeys(names, attention)
    original = number(file, "rope.scaling.original_context_length")
    if original is not None:
        found["original_max_position_embeddings"] = original
    return found


def longrope_or_other(file: GGUFFile, attributes: Attributes) -> Attributes:
    """LongRoPE if the file has its factors (MiniCPM 4), and else as :func:`parameters`."""
    if "rope_factors_long.weight" not in file.tensors:
        return parameters(file, attributes)
    original = attributes["max_position_embeddings"]
    return {"original_max_position_embeddings": original} | longrope(file, attributes)


def by_layer_type(
    sliding_theta: float | None, rotated: int | None = None, scaled: bool = False
) -> Callable[[GGUFFile, Attributes], Attributes]:
    """Separate parameters for sliding-window and full attention.

    Args:
        sliding_theta: base for sliding-window attention if the file lacks it; that of full
            attention if None.
        rotated: as of :func:`parameters`.
        scaled: scaling is that of sliding-window attention too.
    """

    @reads("rope.freq_base_swa")
    def parameters_by_type(file: GGUFFile, attributes: Attributes) -> Attributes:
        full = parameters(file, attributes, rotated)
        theta = number(file, "rope.freq_base_swa", float)
        if theta is None:
            theta = full["rope_theta"] if sliding_theta is None else sliding_theta
        sliding = (full if scaled else {"rope_type": "default"}) | {"rope_theta": theta}
        return {"sliding_attention": sliding, "full_attention": full}

    return parameters_by_type


def partial_by_layer_type(scaled: bool = False) -> Callable[[GGUFFile, Attributes], Attributes]:
    """As :func:`by_layer_type`, each on as many dimensions of a head as the file says."""

    @reads("rope.freq_base_swa", "rope.dimension_count", "rope.dimension_count_swa")
    def parameters_by_type(file: GGUFFile, attributes: Attributes) -> Attributes:
        head = attributes["head_dim"]
        full = rotated(file, head)
        with_window = rotated(file, head, "rope.dimension_count_swa", full)
        found = by_layer_type(None, scaled=scaled)(file, attributes)
        for kind, dimensions in (("full", full), ("sliding", with_window)):
            found[f"{kind}_attention"]["partial_rotary_factor"] = dimensions / head
        return found

    return parameters_by_type


@reads("rope.dimension_count")
def partial_factor(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``partial_rotary_factor``: the share of each head that RoPE covers; all by default."""
    heads = attributes["num_attention_heads"]
    head = attributes.get("head_dim") or attributes["hidden_size"] // heads
    return {"partial_rotary_factor": rotated(file, head) / head}


def rotated(
    file: GGUFFile, head: int, key: str = "rope.dimension_count", default: int | None = None
) -> int:
    """How many numbers of a head are rotated, in pairs; all by default.

    Raises:
        GGUFError: there are not so many pairs.
    """
    found = number(file, key) or default or head
    if found % 2 or found > head:
        raise file.error(
            "RoPE cannot rotate so many numbers of a head",
            key,
            found=found,
            expected=f"an even number up to {head}",
        )
    return found


def scaling_of(file: GGUFFile) -> dict[str, Any]:
    """Linear or YaRN.  A factor without a type is linear; no factor, 0 or 1 is no scaling."""
    scaling = file.arch_field("rope.scaling.type", "linear")
    if not isinstance(scaling, str) or scaling not in ("", "none", "linear", "yarn"):
        raise file.error(
            "unknown type of RoPE scaling",
            "rope.scaling.type",
            found=scaling if isinstance(scaling, str) else repr(scaling),
            expected="none, linear or yarn",
            hint=_ASK_FOR_CONFIG,
        )
    factor = number(file, "rope.scaling.factor", float, least=0)
    if factor is None:
        factor = number(file, "rope.scale_linear", float, least=0)  # files before October 2023
    attention = number(file, "rope.scaling.attn_factor", float, least=0)
    if scaling == "yarn" and factor not in (None, 0, 1):
        return {"rope_type": "yarn", "factor": factor} | _yarn(file, factor, attention)
    if attention not in (None, 1):
        raise file.error(
            "only YaRN and LongRoPE scale attention",
            "rope.scaling.attn_factor",
            found=attention,
            expected="1, or rope.scaling.type of another kind",
            hint=_ASK_FOR_CONFIG,
        )
    if scaling == "none" or factor in (None, 0, 1):
        return {}
    return {"rope_type": "linear", "factor": factor}


def _yarn(file: GGUFFile, factor: float, attention: float | None) -> dict[str, Any]:
    original = number(file, "rope.scaling.original_context_length")
    original = original or number(file, "context_length", required=True)
    found: dict[str, Any] = {"original_max_position_embeddings": original}
    for name in ("beta_fast", "beta_slow"):
        value = number(file, f"rope.scaling.yarn_{name}", float, least=0)
        if value is not None:
            found[name] = value
    # The multiplier of sines and cosines: transformers takes the number itself, the engine its
    # ratio to the one that follows from the factor.
    usual = usual_attention(factor)
    whole = number(file, "rope.scaling.yarn_attn_factor", float, least=0)
    whole = (usual if whole is None else whole) * (1 if attention is None else attention)
    if whole != usual:
        found |= {"attention_factor": whole, "attn_factor": whole / usual}
    return found


def refuse_attention_factor(file: GGUFFile, found: Mapping[str, Any]) -> None:
    """Raises GGUFError if parameters of YaRN have a factor beside the logarithm's multiplier."""
    if "attention_factor" in found:
        names = (f"rope.scaling.{name}attn_factor" for name in ("yarn_", ""))
        name = next(name for name in names if file.key(name) in file.metadata)
        raise file.error(
            "SGLang's model does not support this value of the key",
            name,
            found=file.arch_field(name),
            expected="only rope.scaling.yarn_log_multiplier",
            hint=None,
        )


def usual_attention(factor: float) -> float:
    """YaRN's multiplier of sines and cosines for a factor."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def _llama3(file: GGUFFile, theta: float, rotated: int | None) -> dict[str, Any]:
    tensor = file.tensors["rope_freqs.weight"]
    factors = tensor.array().ravel()
    if rotated and (factors[rotated // 2 :] == 1).all():
        factors = factors[: rotated // 2]
    if (factors == 1).all():
        return {}
    found = _llama3_parameters(factors, theta)
    if found is None:
        raise tensor.error(
            "the RoPE scaling factors are not of Llama 3's kind",
            found=f"{len(factors)} factors up to {factors.max():g}",
            expected="1 up to a frequency, another factor from a lower one, a line between them",
            hint=_ASK_FOR_CONFIG,
        )
    largest, low, high, original = found
    return {
        "rope_type": "llama3",
        "factor": largest,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _llama3_parameters(factors: np.ndarray, theta: float) -> tuple[float, float, float, int] | None:
    """``(factor, low, high, original)`` that give these factors; None if nothing does."""
    largest = factors.max().item()
    if not (np.isfinite(factors) & (factors > 0)).all():
        return None
    for low, high, original in (*_LLAMA3, _fit_llama3(factors, theta)):
        expected = llama3_factors(theta, 2 * len(factors), largest, low, high, original)
        if low <= high and np.allclose(factors, expected, rtol=1e-3):
            return largest, low, high, original
    return None


def _fit_llama3(factors: np.ndarray, theta: float) -> tuple[float, float, int]:
    """``(low, high, original)`` of the line of reciprocals from that of the largest factor to 1.

    Reciprocals are a line in the turns within the original context, whose length follows from
    nothing: it is that of Llama 3.  Where fewer than two factors are on the line it is the
    steepest that begins at the last largest factor, or ends at the first 1.
    """
    original = _LLAMA3[0][2]
    turns = original * theta ** (-np.arange(len(factors)) / len(factors)) / (2 * math.pi)
    least = 1 / factors.max()
    line = (factors > 1) & (1 / factors > least)
    first = turns[1 / factors == least].max().item()
    last = turns[factors == 1].min(initial=2 * turns[0]).item()
    if not line.any():
        return first, (first + last) / 2, original
    x, y = turns[line], 1 / factors[line].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # of factors that are no line
        slope = max((y[0] - least) / (x[0] - first), (1 - y[0]) / (last - x[0]))
        if len(x) > 1:
            slope = (y[0] - y[-1]) / (x[0] - x[-1])
        low = x[0] - (y[0] - least) / slope
        return low.item(), (low + (1 - least) / slope).item(), original


def llama3_factors(
    theta: float, rotated: int, factor: float, low: float, high: float, original: int
) -> np.ndarray:
    """Llama 3.1's divisors of the RoPE frequencies: ``[rotated / 2]``, float32.

    Source: transformers, ``modeling_rope_utils._compute_llama3_parameters``.

    Args:
        theta: base of the frequencies.
        rotated: dimensions of a head that RoPE covers.
        factor: for wavelengths above ``original / low``; those below ``original / high`` stay, and
            in between the factor changes smoothly.
    """
    frequencies = theta ** (-np.arange(0, rotated, 2) / rotated)
    turns = original * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / max(high - low, 1e-12), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
