"""What weights that stay quantized take of an NPU: bytes, traffic, launches."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from random_model import PROMPT, Spec, write_blocks
from serving import NPU, NPU_ONE, Server

DENSE = Spec(
    arch="qwen3", layers=8, hidden=1024, heads=16, kv_heads=8, head_size=64, ffn=3072, vocab=16384
)
MOE = Spec(
    arch="qwen3moe", layers=6, hidden=1024, heads=16, kv_heads=8, head_size=64, experts=16,
    experts_used=4, expert_ffn=512, vocab=8192,
)  # fmt: skip


class Hybrid(Spec):
    """Qwen3.5: three layers of four are of a gated delta net, heads of 128."""

    @property
    def metadata(self) -> dict[str, int | list[int]]:
        ssm = {"conv_kernel": 4, "state_size": 128, "group_count": 16, "time_step_rank": 16}
        keys = {f"ssm.{name}": size for name, size in ssm.items()} | {"ssm.inner_size": 2048}
        rope = {"dimension_count": 64, "dimension_sections": [11, 11, 10, 0]}
        return keys | {f"rope.{name}": size for name, size in rope.items()}

    def type_of(self, name: str) -> str:
        return "F32" if re.search(r"ssm_(a|conv1d|dt)", name) else super().type_of(name)

    def _attention(self, layer: int) -> dict[str, tuple[int, ...]]:
        if layer % 4 == 3:
            gated = {"attn_q.weight": (2 * self.heads * self.head_size, self.hidden)}
            block = super()._attention(layer) | gated
            del block["ffn_norm.weight"]
        else:
            inner, heads = 2048, 16
            block = {
                "attn_qkv.weight": (3 * inner, self.hidden),
                "attn_gate.weight": (inner, self.hidden),
                "ssm_alpha.weight": (heads, self.hidden),
                "ssm_beta.weight": (heads, self.hidden),
                "ssm_out.weight": (self.hidden, inner),
                "ssm_conv1d.weight": (3 * inner, 4),
                "ssm_norm.weight": (128,),
                "ssm_a": (heads,),
                "ssm_dt.bias": (heads,),
            }
        return block | {"post_attention_norm.weight": (self.hidden,)}

    def _attention_extras(self, q: int, kv: int) -> dict[str, tuple[int, ...]]:  # noqa: ARG002
        return {f"attn_{name}_norm.weight": (self.head_size,) for name in "qk"}


HYBRID = Hybrid(
    arch="qwen35", layers=4, hidden=1024, heads=8, kv_heads=2, head_size=256, ffn=3072, vocab=16384
)

EAGER = ("--disable-cuda-graph", "--skip-tokenizer-init", "--dtype", "bfloat16")


def recipe(spec: Spec, name: str) -> Spec:
    """The types that llama.cpp gives the tensors of a model."""
    if name != "Q4_K_M":
        return replace(spec, default=name)
    n = spec.layers
    better = [i for i in range(n) if i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2]
    layers = "|".join(map(str, better))
    types = {rf"blk\.({layers})\.(attn_v|attn_qkv|ffn_down)": "Q6_K", r"^output\.": "Q6_K"}
    return replace(spec, types=types, default="Q4_K")


def decoding_step(server: Server, record: Path) -> dict:
    """What the device does for one token."""
    server.generate(PROMPT[:8], {"max_new_tokens": 3, "ignore_eos": True})
    steps = [json.loads(line) for line in record.read_text().splitlines()]
    return [step for step in steps if step["mode"] == "DECODE"][-1]


@pytest.mark.parametrize(
    ("spec", "name", "of_the_file", "read_of_dense"),
    [
        pytest.param(DENSE, "Q4_K_M", 1.25, 0.40, id="dense-Q4_K_M"),
        pytest.param(HYBRID, "Q4_K_M", 1.25, 0.42, id="hybrid-Q4_K_M"),
        pytest.param(MOE, "Q4_K_M", 1.25, 0.40, id="moe-Q4_K_M"),
        pytest.param(MOE, "Q8_0", 1.10, 0.65, id="moe-Q8_0"),
        pytest.param(MOE, "Q4_0", 1.15, 0.35, id="moe-Q4_0"),
    ],
)
def test_bytes_of_large_models(npu_zygote, log, tmp_path, spec, name, of_the_file, read_of_dense):
    path, record = tmp_path / "model.gguf", tmp_path / "record.jsonl"
    write_blocks(path, recipe(spec, name))
    sizes = {n: torch.Size(shape).numel() for n, shape in spec.shapes().items()}
    assert sum(sizes.values()) > 100e6
    environment = {"NPU_SIM_RECORD": str(record)}
    with npu_zygote.serve(path, log, *NPU, *EAGER, environment=environment) as server:
        step = decoding_step(server, record)
    total = re.search(r"^all .*?([\d.]+) of the file, ([\d.]+) of dense$", log.read_text(), re.M)
    assert float(total[1]) <= of_the_file
    # As numbers of 16 bits: the chosen experts of each layer, and one row of the embedding.
    read = sum(
        size * (spec.experts_used / spec.experts if "_exps" in n else 1)
        for n, size in sizes.items()
        if n != "token_embd.weight"
    )
    of_dense = step["weight_bytes"] / (2 * (read + spec.hidden))
    print(f"{total[1]} of the file, {total[2]} of dense; a token reads {of_dense:.3f} of dense")
    assert of_dense <= read_of_dense
    # A few bytes of the engine's own, about requests.
    assert sum(nbytes for _, nbytes in step["copies"].values()) < 64


def write_awq(folder: Path, spec: Spec) -> None:
    """The same model as W4A16, as the engine itself serves it on NPUs."""
    is_moe = spec.is_moe
    config = {
        "architectures": ["Qwen3MoeForCausalLM" if is_moe else "Qwen3ForCausalLM"],
        "model_type": "qwen3_moe" if is_moe else "qwen3", "torch_dtype": "float16",
        "hidden_size": spec.hidden, "num_hidden_layers": spec.layers, "vocab_size": spec.vocab,
        "num_attention_heads": spec.heads, "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_size, "intermediate_size": spec.ffn, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "num_experts": spec.experts, "num_experts_per_tok": spec.experts_used,
        "moe_intermediate_size": spec.expert_ffn, "norm_topk_prob": True,
        "quantization_config": {
            "quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True,
            "version": "gemm", "modules_to_not_convert": ["gate"] if is_moe else None,
        },
    }  # fmt: skip
    tensors = {
        "model.embed_tokens.weight": torch.zeros(spec.vocab, spec.hidden),
        "lm_head.weight": torch.zeros(spec.vocab, spec.hidden),
        "model.norm.weight": torch.ones(spec.hidden),
    }
    q, kv = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    matrices = {
        "self_attn.q_proj": (q, spec.hidden), "self_attn.k_proj": (kv, spec.hidden),
        "self_attn.v_proj": (kv, spec.hidden), "self_attn.o_proj": (spec.hidden, q),
    }  # fmt: skip
    ffn = spec.expert_ffn if is_moe else spec.ffn
    for mlp in [f"mlp.experts.{i}" for i in range(spec.experts)] if is_moe else ["mlp"]:
        matrices |= {f"{mlp}.{name}_proj": (ffn, spec.hidden) for name in ("gate", "up")}
        matrices[f"{mlp}.down_proj"] = spec.hidden, ffn
    for layer in range(spec.layers):
        block = f"model.layers.{layer}."
        for name, size in (
            ("input_layernorm", spec.hidden), ("post_attention_layernorm", spec.hidden),
            ("self_attn.q_norm", spec.head_size), ("self_attn.k_norm", spec.head_size),
        ):  # fmt: skip
            tensors[f"{block}{name}.weight"] = torch.ones(size)
        if is_moe:
            tensors[f"{block}mlp.gate.weight"] = torch.zeros(spec.experts, spec.hidden)
        for name, (outputs, inputs) in matrices.items():
            groups = inputs // 64
            tensors[f"{block}{name}.qweight"] = torch.ones(inputs, outputs // 8, dtype=torch.int32)
            tensors[f"{block}{name}.qzeros"] = torch.ones(groups, outputs // 8, dtype=torch.int32)
            tensors[f"{block}{name}.scales"] = torch.full((groups, outputs), 0.01)
    floats = {name: t.half() for name, t in tensors.items() if t.is_floating_point()}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors | floats, folder / "model.safetensors")


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(Spec(), id="dense"),
        pytest.param(Spec(arch="qwen3moe"), id="moe"),
    ],
)
def test_launches_of_a_layer_are_those_of_the_engines_own_int4(npu_zygote, log, tmp_path, spec):
    """Half of the layers have down projections in Q6_K, which take an operator more."""
    arguments = (*NPU_ONE, "--skip-tokenizer-init", "--dtype", "float16")
    launches: dict[tuple[str, int], int] = {}
    for layers in (1, 3):
        paths = {"gguf": tmp_path / f"{layers}.gguf", "awq": tmp_path / f"awq-{layers}"}
        some = Spec(**{**vars(spec), "layers": layers, "default": "Q4_K"})
        some = Spec(**{**vars(some), "types": {r"attn_v|ffn_down": "Q6_K"}})
        write_blocks(paths["gguf"], some)
        write_awq(paths["awq"], some)
        for kind, path in paths.items():
            record = tmp_path / f"{kind}-{layers}.jsonl"
            environment = {"NPU_SIM_RECORD": str(record)}
            with npu_zygote.serve(path, log, *arguments, environment=environment) as server:
                step = decoding_step(server, record)
            assert step["graph_replays"] == 1 and not step["copies"]
            if kind == "gguf":
                assert not step["weights_transposed"]
            launches[kind, layers] = step["launches"]
    print(launches)
    of_two_layers = {kind: launches[kind, 3] - launches[kind, 1] for kind in ("gguf", "awq")}
    assert of_two_layers["gguf"] <= of_two_layers["awq"]


def test_eight_bits_are_wide_planes_where_few_requests_are_served(npu_zygote, log, tmp_path):
    """Groups of 64 in four bits: what the template for up to 8 inputs takes on Atlas A2 and A3."""
    path, record = tmp_path / "model.gguf", tmp_path / "record.jsonl"
    write_blocks(path, Spec(default="Q8_0"))
    arguments = (*NPU_ONE, *EAGER, "--max-running-requests", "8")
    environment = {"NPU_SIM_RECORD": str(record)}
    with npu_zygote.serve(path, log, *arguments, environment=environment) as server:
        step = decoding_step(server, record)
    held = dict(re.findall(r"^(\w.*?)\s{2,}(\d+)\s", log.read_text(), re.M))
    assert "wide planes" in held and "int8" not in held
    assert not step["weights_transposed"]
