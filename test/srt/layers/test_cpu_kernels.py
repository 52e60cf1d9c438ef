"""The engine's own operations of a step on the CPU, overridden, against themselves."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from sglang.srt.layers import sampler
from sglang.srt.layers.activation import GeluAndMul, SiluAndMul
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.layernorm import Gemma3RMSNorm, GemmaRMSNorm, RMSNorm
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.utils import apply_rotary_pos_emb_native_eager

from ascend_gguf.srt import device
from ascend_gguf.srt.layers import sampler as hooks

pytestmark = pytest.mark.usefixtures("engine")

#: dtype -> the relative difference of results, the engine's rounded several times.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
EVERY_DTYPE = pytest.mark.parametrize("dtype", ROUNDING, ids=str)


@pytest.fixture(autouse=True)
def serving(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had loaded a GGUF model."""
    monkeypatch.setattr(device, "_serves_gguf", True)
    torch.manual_seed(0)


#: Hooks whose names are not those of what they stand around.
NAMES = {
    SiluAndMul: "silu_and_mul",
    GeluAndMul: "gelu_and_mul",
    GemmaRMSNorm: "gemma_norm",
    Gemma3RMSNorm: "gemma_norm",
}


def run(method: Callable, *args, is_ours: bool = True, **kwargs):
    """What an overridden function of the engine returns; the engine's own must (not) have run."""
    calls = []

    def original(*args, **kwargs):
        calls.append(args)
        return method(*args, **kwargs)

    module = method.__module__.replace("sglang", "ascend_gguf", 1)
    hook = getattr(import_module(module), NAMES.get(type(args[0]), method.__name__))
    result = hook(original, *args, **kwargs)
    assert bool(calls) != is_ours
    return result


def close(value, expected, dtype: torch.dtype) -> None:
    torch.testing.assert_close(value, expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@EVERY_DTYPE
def test_rms_norm(dtype: torch.dtype) -> None:
    norm = RMSNorm(128, eps=1e-5).to(dtype)
    norm.weight.data.uniform_(0.5, 2)
    x, residual = torch.randn(7, 128).to(dtype), torch.randn(7, 128).to(dtype)
    method = RMSNorm.forward_native
    close(run(method, norm, x), method(norm, x), dtype)
    close(run(method, norm, x, residual), method(norm, x, residual), dtype)
    close(run(method, norm, x, residual, None), method(norm, x, residual), dtype)


@pytest.mark.parametrize("kind", [GemmaRMSNorm, Gemma3RMSNorm])
@EVERY_DTYPE
def test_gemma_norm(kind: type, dtype: torch.dtype) -> None:
    norm = kind(128, eps=1e-5).to(dtype)
    norm.weight.data.uniform_(-1, 1)
    x, residual = torch.randn(7, 2, 128).to(dtype), torch.randn(7, 2, 128).to(dtype)
    method = kind.forward_native
    close(run(method, norm, x), method(norm, x), dtype)
    close(run(method, norm, x, residual), method(norm, x, residual), dtype)
    run(method, kind(100), torch.randn(3, 100), is_ours=False)
    if kind is GemmaRMSNorm:
        run(method, norm, x, residual, x, is_ours=False)


@pytest.mark.parametrize(
    "options",
    [
        {"var_hidden_size": 64},
        {"cast_x_before_out_mul": True},
        {"fp32_residual": True},
        {"override_orig_dtype": torch.float32},
        {"weight_dtype": torch.float64},
    ],
    ids=str,
)
def test_rms_norm_of_other_kinds_is_the_engines(options: dict) -> None:
    norm, x = RMSNorm(128, **options), torch.randn(3, 128)
    run(RMSNorm.forward_native, norm, x, x, is_ours=False)


def test_rms_norm_of_an_odd_size_is_the_engines() -> None:
    run(RMSNorm.forward_native, RMSNorm(100), torch.randn(3, 100), is_ours=False)


def test_rms_norm_with_an_addition_is_the_engines() -> None:
    norm, x = RMSNorm(128), torch.randn(3, 128)
    out, residual = run(RMSNorm.forward_native, norm, x, x, x, is_ours=False)
    close(residual, 3 * x, torch.float32)


@pytest.mark.parametrize("what", ["another model", "float64"])
def test_other_models_and_dtypes_are_the_engines(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(3, 128)
    if what == "another model":
        monkeypatch.setattr(device, "_serves_gguf", False)
    else:
        x = x.double()
    run(RMSNorm.forward_native, RMSNorm(128, weight_dtype=x.dtype), x, is_ours=False)
    run(SiluAndMul.forward_native, SiluAndMul(), x, is_ours=False)


@EVERY_DTYPE
def test_silu_and_mul(dtype: torch.dtype) -> None:
    x = torch.randn(5, 192).to(dtype)
    method = SiluAndMul.forward_native
    close(run(method, SiluAndMul(), x), method(SiluAndMul(), x), dtype)
    run(method, SiluAndMul(), x[:, :190], is_ours=False)


@EVERY_DTYPE
def test_gelu_and_mul(dtype: torch.dtype) -> None:
    x = 3 * torch.randn(5, 192).to(dtype)
    method = GeluAndMul.forward_native
    close(run(method, GeluAndMul(), x), method(GeluAndMul(), x), dtype)
    run(method, GeluAndMul("none"), x, is_ours=False)
    run(method, GeluAndMul(), x[:, :190], is_ours=False)


@EVERY_DTYPE
def test_rotary_embedding_of_gemma3(dtype: torch.dtype, monkeypatch) -> None:
    q, k = torch.randn(9, 4, 64).to(dtype), torch.randn(9, 2, 64).to(dtype)
    angles = (torch.rand(9, 32) * 6).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    expected = apply_rotary_pos_emb_native_eager(q, k, cos, sin)
    models = import_module("ascend_gguf.srt.models.gemma3_causal")
    monkeypatch.setattr(models, "apply_rotary_pos_emb", pytest.fail)
    close(models.rotate_both(q, k, cos, sin), expected, dtype)


@pytest.mark.parametrize("is_neox_style", [True, False])
@EVERY_DTYPE
def test_rotary_embedding(dtype: torch.dtype, is_neox_style: bool) -> None:
    rope = RotaryEmbedding(64, 64, 100, 10000, is_neox_style, dtype)
    # As a model hands them over: parts of the output of one matrix.
    query, key, _ = torch.randn(9, 8 * 64).to(dtype).split([4 * 64, 2 * 64, 2 * 64], -1)
    positions = torch.randint(0, 100, (9,))
    method = RotaryEmbedding.forward_native
    expected = method(rope, positions, query, key)
    close(run(method, rope, positions, query, key), expected, dtype)
    run(method, rope, positions - 1, query, key, torch.ones(9).long(), is_ours=False)


def backend() -> TorchNativeAttnBackend:
    """Attending for a layer without cap or sinks."""
    result = TorchNativeAttnBackend.__new__(TorchNativeAttnBackend)
    result.ascend_gguf_extras = {}
    return result


@EVERY_DTYPE
def test_attention(dtype: torch.dtype) -> None:
    """Three requests, with prefixes in the cache and without."""
    heads, kv_heads, size = 4, 2, 32
    caches = [torch.randn(300, kv_heads, size).to(dtype) for _ in range(2)]
    slots = torch.randperm(300).view(5, 60).int()
    requests, lengths = torch.tensor([3, 0, 1]), torch.tensor([60, 7, 20])
    prefixes = torch.tensor([50, 0, 19])
    options = {"scaling": 0.2, "enable_gqa": True, "causal": False}

    def compare(phase: str, query: torch.Tensor, *sizes: torch.Tensor, **others) -> None:
        method = getattr(TorchNativeAttnBackend, f"_run_sdpa_forward_{phase}")
        out, expected = torch.empty_like(query), torch.empty_like(query)
        arguments = *caches, slots, requests, *sizes
        run(method, backend(), query, out, *arguments, None, **options | others)
        method(backend(), query, expected, *arguments, None, **options | others)
        close(out, expected, dtype)

    for window in (None, 5):
        query = torch.randn(3, heads, size).to(dtype)
        compare("decode", query, lengths, sliding_window_size=window)
        query = torch.randn(int((lengths - prefixes).sum()), heads, size).to(dtype)
        sizes = lengths, prefixes, lengths - prefixes
        compare("extend", query, *sizes, causal=True, sliding_window_size=window)


@pytest.mark.parametrize("phase", ["decode", "extend"])
def test_attention_of_encoders_is_the_engines(phase: str) -> None:
    method = getattr(TorchNativeAttnBackend, f"_run_sdpa_forward_{phase}")
    query, cache = torch.randn(1, 2, 32), torch.randn(9, 2, 32)
    length = torch.tensor([4])
    sizes = [length] if phase == "decode" else [length, length - 1, length - 3]
    arguments = query, query.clone(), cache, cache, torch.arange(9)[None], torch.tensor([0]), *sizes
    options = {"scaling": 1.0, "causal": True}
    run(method, backend(), *arguments, torch.tensor([2]), **options, is_ours=False)


def test_sampling() -> None:
    """Only what the engine's top-p leaves is drawn, as often; what is seeded, the same again."""
    rows, kept = 2000, torch.tensor([0.4, 0.3, 0.2])  # and 5000 tokens that share 0.1
    places = torch.tensor([4000, 7, 99])
    probs = torch.full((rows, 5000), 0.1 / 4997)
    probs[:, places] = kept
    top_ks = torch.full((rows,), 1 << 30)
    top_ps, min_ps = torch.full((rows,), 0.85), torch.zeros(rows)
    method = sampler.top_k_top_p_min_p_sampling_from_probs_torch
    arguments = probs, top_ks, top_ps, min_ps, False, None, None
    calls = []

    def original(probs, *rest, **options):
        calls.append(probs.shape[1])
        return method(probs, *rest, **options)

    tokens = hooks.top_k_top_p_min_p_sampling_from_probs_torch(original, *arguments)
    assert calls == [64]
    assert tokens.dtype == torch.int32
    counts = tokens.bincount(minlength=5000)
    assert counts.sum() == counts[places].sum()
    share = kept / kept.sum()
    assert ((counts[places] - rows * share).abs() <= 4 * (rows * share).sqrt()).all()

    seed, engines = torch.arange(rows), object()
    method = hooks.top_k_top_p_min_p_sampling_from_probs_torch
    first, again = (method(original, *arguments[:5], seed, seed) for _ in range(2))
    assert torch.equal(first, again) and first.unique().numel() == len(places)
    assert first.bincount(minlength=5000)[places].sum() == rows
    others = (*arguments[:2], torch.full((rows,), 0.99), *arguments[3:])
    assert method(lambda *_, **__: engines, *others) is engines
    assert method(lambda *_, **__: engines, *arguments, return_filtered_probs=True) is engines
    run(sampler.sampling_from_probs_torch, probs)
    assert hooks.sampling_from_probs_torch(lambda *_, **__: engines, probs, seed, seed) is engines
