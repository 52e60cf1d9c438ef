"""Models and options that the engine's backends do not go together with: limited, or refused."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.configs.model_config import AttentionArch

from ascend_gguf import GGUFError
from ascend_gguf.npu.products import product_of
from ascend_gguf.servable import refuse_on_npu
from ascend_gguf.srt.arg_groups import model_hook, speculative_hook
from ascend_gguf.srt.model_executor import layer_sizes
from hf_models import TINY, write_model
from serving import CPU

MODEL = Path(__file__).parents[2] / "data" / "qwen3-dense-Q4_K_M.gguf"
DRAFT = ("--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", str(MODEL))


def test_chunks_limit_the_context(resolver, tmp_path):
    sizes = TINY["llama4"].sizes | {"max_position_embeddings": 8192, "attention_chunk_size": 4096}
    model = write_model(tmp_path, replace(TINY["llama4"], sizes=sizes))
    overrides = ("--json-model-override-args", '{"attention_chunk_size": 4096}')
    found = resolver.paths("--model-path", str(model.path), *overrides, *CPU)
    assert found["context_length"] == 4096
    within = ("--context-length", "4000")
    found = resolver.paths("--model-path", str(model.path), *overrides, *within, *CPU)
    assert found["context_length"] == 4000


@pytest.mark.parametrize("name", ["glm-5", "hunyuan-4", "minimax-m3"])
def test_a_choice_of_tokens_limits_the_context(resolver, tmp_path, name):
    """What chooses is left out: up to as many tokens as it chooses, all are attended to."""
    model = write_model(tmp_path, TINY[name])
    sizes = TINY[name].sizes
    size = sizes.get("index_topk") or sizes["index_topk_blocks"] * sizes["index_block_size"]
    assert resolver.paths("--model-path", str(model.path), *CPU)["context_length"] == size
    longer = ("--context-length", str(size + 1))
    found = resolver.paths("--model-path", str(model.path), *longer, *CPU)
    assert found["context_length"] == size


def test_drafts_are_refused_on_the_cpu(resolver):
    kind, message = resolver("--model-path", str(MODEL), *DRAFT, *CPU)
    assert kind == "GGUFError" and "--speculative-algorithm" in message and MODEL.name in message


def test_no_embeddings_of_a_class_that_gives_none(resolver):
    path = str(MODEL.with_name("qwen3-moe-Q4_K_M.gguf"))
    assert resolver("--model-path", path, *CPU, "--is-embedding") == (
        "GGUFError",
        f"{path}: SGLang's Qwen3MoeForCausalLM gives no embeddings. Leave out --is-embedding.",
    )


@pytest.fixture
def on_an_npu(monkeypatch) -> None:
    for module in (model_hook, speculative_hook):
        monkeypatch.setattr(module, "is_npu", lambda: True)
        monkeypatch.setattr(module, "is_cpu", lambda: False)
        monkeypatch.setattr(module, "resolving_view", lambda options: options)
    monkeypatch.setattr(layer_sizes, "this_product", lambda: product_of("Ascend910B3"))


def _check(cache: str = "auto", **config) -> None:
    options = SimpleNamespace(model_path="m.gguf", kv_cache_dtype=cache)
    model_hook._refuse_what_is_left_out(options, SimpleNamespace(**config))


#: Options that matter where drafted tokens have states.
STATES = ("speculative_eagle_topk", "speculative_num_draft_tokens", "mamba_ssm_dtype")


@pytest.fixture
def check_drafts(on_an_npu, monkeypatch):
    """``check_drafts`` of a model, and of what is asked."""

    def check(algorithm, model, config=None, draft=None, **asked):
        config = SimpleNamespace(**config or {"model_type": "qwen3"})
        sizes = {"dtype": torch.bfloat16, "head_dim": 128, "attention_arch": "MHA"} | model
        found = SimpleNamespace(hf_config=config, hf_text_config=config, **sizes)
        monkeypatch.setattr(speculative_hook, "model_config_of", lambda _: found)
        is_hybrid = hasattr(config, "linear_conv_kernel_dim")
        monkeypatch.setattr(speculative_hook, "mambaish_config", lambda _: is_hybrid or None)
        options = SimpleNamespace(
            model_path="m.gguf",
            speculative_algorithm=algorithm,
            speculative_draft_model_path=draft,
            **dict.fromkeys(STATES) | asked,
        )
        unsupported = model_hook._caps(config) or model_hook._windows(config)
        speculative_hook.check_drafts(options, unsupported)

    return check


GEMMA2 = {"model_type": "gemma2", "attn_logit_softcapping": 50.0}
GEMMA3 = {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]}


PHI3 = {"model_type": "phi3", "sliding_window": 2047}


@pytest.mark.parametrize("config", [GEMMA2, GEMMA3, PHI3], ids=["gemma2", "gemma3", "phi3"])
def test_drafts_are_refused_on_an_npu(check_drafts, config):
    with pytest.raises(GGUFError, match=r"m\.gguf: .*windows and caps.*--speculative-algorithm"):
        check_drafts("STANDALONE", {}, config, "d.gguf")
    check_drafts(None, {}, config)
    check_drafts("STANDALONE", {}, {"model_type": "qwen3", "layer_types": ["full_attention"]}, "d")


@pytest.mark.parametrize("model", [{"dtype": torch.float16}, {"head_dim": 64}])
def test_drafts_of_queries_that_the_operator_does_not_take(check_drafts, model):
    with pytest.raises(GGUFError, match="expected bfloat16, heads of 128, 192, 256"):
        check_drafts("STANDALONE", model, draft="d.gguf")


def test_drafted_tokens_have_one_branch(check_drafts):
    """Ascend's backend of the engine makes no mask of a tree."""
    with pytest.raises(GGUFError, match="of one branch.*--speculative-eagle-topk 2"):
        check_drafts("STANDALONE", {}, draft="d.gguf", speculative_eagle_topk=2)
    check_drafts("STANDALONE", {}, draft="d.gguf", speculative_eagle_topk=1)


def test_more_drafted_tokens_than_the_operator_takes_over_latent_vectors(check_drafts):
    latent = {"attention_arch": AttentionArch.MLA, "dtype": torch.float16, "head_dim": 256}
    with pytest.raises(GGUFError, match=r"-draft-tokens 17, .*at most 16"):
        check_drafts("STANDALONE", latent, draft="d.gguf", speculative_num_draft_tokens=17)
    check_drafts("STANDALONE", latent, draft="d.gguf", speculative_num_draft_tokens=16)


@pytest.mark.parametrize("change", [{"kv_lora_rank": 256}, {"llama_4_scaling": {"beta": 0.1}}])
def test_drafts_over_latent_vectors_that_the_operator_does_not_take(check_drafts, change):
    config = {"model_type": "mistral4", "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    latent = {"attention_arch": AttentionArch.MLA}
    with pytest.raises(GGUFError, match="over latent vectors does not check these"):
        check_drafts("STANDALONE", latent, config | change, draft="d.gguf")
    check_drafts("STANDALONE", latent, config, draft="d.gguf")


@pytest.mark.parametrize(
    ("width", "asked"),
    [
        (3, {}),
        (4, {"speculative_num_draft_tokens": 9}),
        (4, {"mamba_ssm_dtype": "float32"}),
    ],
)
def test_states_of_drafted_tokens_that_are_not_kept(check_drafts, monkeypatch, width, asked):
    monkeypatch.setenv("SGLANG_MAMBA_SSM_DTYPE", "float32")  # for what is undone after the test
    monkeypatch.delenv("SGLANG_MAMBA_SSM_DTYPE")
    hybrid = {"model_type": "qwen3_5_text", "linear_conv_kernel_dim": width}
    with pytest.raises(GGUFError, match=r"do not keep the states .*up to 8 drafted tokens"):
        check_drafts("STANDALONE", {}, hybrid, "d.gguf", **asked)
    assert "SGLANG_MAMBA_SSM_DTYPE" not in os.environ
    check_drafts("STANDALONE", {}, hybrid | {"linear_conv_kernel_dim": 4}, "d.gguf")
    assert os.environ["SGLANG_MAMBA_SSM_DTYPE"] == "bfloat16"


def test_a_model_without_a_layer_that_drafts(check_drafts):
    glm = {"model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"]}
    for config in (
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
        glm | {"num_nextn_predict_layers": 0},
        glm | {"num_nextn_predict_layers": 2},
    ):
        for draft in (None, "m.gguf"):
            with pytest.raises(GGUFError, match="does not draft for itself"):
                check_drafts("NEXTN", {}, config, draft)
    check_drafts("EAGLE", {}, glm, "d.gguf")


@pytest.mark.parametrize(("version", "taken"), [("2.12.1+cpu", "python"), ("2.13.0+cpu", None)])
def test_the_compiled_prefix_cache_is_avoided(monkeypatch, version, taken):
    name = "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"
    monkeypatch.setenv(name, "rust")
    monkeypatch.setattr(model_hook, "is_cpu", lambda: True)
    monkeypatch.setattr(torch, "__version__", version)
    model_hook._avoid_compiled_prefix_cache()
    assert os.environ[name] == "rust"  # as somebody asked
    monkeypatch.delenv(name)
    model_hook._avoid_compiled_prefix_cache()
    assert os.environ.get(name) == taken


def test_sinks_are_refused_in_fused_attention(on_an_npu, monkeypatch):
    _check(model_type="gpt_oss")
    monkeypatch.setenv("ASCEND_USE_FIA", "1")
    with pytest.raises(GGUFError, match="ASCEND_USE_FIA"):
        _check(model_type="gpt_oss")
    _check(model_type="qwen3")


def test_a_cache_of_another_dtype_is_refused_on_an_npu(on_an_npu, monkeypatch):
    for dtype, cache, refused in (
        (torch.float16, "bfloat16", True),
        (torch.bfloat16, "bf16", False),
        (torch.float16, "auto", False),
    ):
        config = SimpleNamespace(dtype=dtype)
        monkeypatch.setattr(model_hook, "model_config_of", lambda _, config=config: config)
        with pytest.raises(GGUFError, match="--kv-cache-dtype") if refused else nullcontext():
            _check(cache=cache, model_type="qwen3")


LLAMA4 = {"model_type": "llama4_text", "num_experts_per_tok": 2, "num_local_experts": 4}


def test_experts_that_cannot_be_chosen_are_refused_on_an_npu():
    with pytest.raises(GGUFError, match=r"m\.gguf: .*expert_used_count.*On the CPU"):
        refuse_on_npu("m.gguf", SimpleNamespace(**LLAMA4))
    for change in ({"model_type": "deepseek_v2"}, {"num_experts_per_tok": 1}):
        refuse_on_npu("m.gguf", SimpleNamespace(**LLAMA4 | change))
