"""Small GGUF models of any block types, with the answer they must give.

Weights are blocks drawn from ``data/golden.npz``, whose values ggml's C code computed: the
reference needs no decoder.  It needs none of this project's names or configurations either: those
come from gguf-py's tensor name map and from transformers' own model, run in float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType

from rewrite import finish

DATA = Path(__file__).with_name("data")

#: Every block type that golden.npz has.
ALL_TYPES = tuple(
    sorted(key.removesuffix(".blocks") for key in np.load(DATA / "golden.npz") if "blocks" in key)
)

_NUMPY_TYPES = {"F32": np.float32, "F16": np.float16}

PROMPT = [int(t) for t in np.random.default_rng(7).integers(3, 500, 48)]


#: The architectures that a :class:`Spec` can be of.
NAMES = ("qwen2", "qwen2moe", "qwen3", "qwen3moe")

# Random blocks are drawn so many weights at a time, and repeated.
_DRAWN = 1 << 22


@dataclass(frozen=True)
class Spec:
    """What to write.

    Args:
        arch: ``general.architecture``, one of :data:`NAMES`.
        types: pattern of tensor names (``re.search``) to type name; the first match counts.
        default: the type of other matrices.
        tied: no output matrix of its own.
        fused_experts: gate and up experts in one ``ffn_gate_up_exps``.
        vectors: the type of norms and biases, if not F32.
        scales: every matrix of a layer has a ``.scale``, as in files of NVFP4, and an
            ``.input_scale``, which is for other programs.
        order: sort key of tensor names; the order in which they stand in the file.
    """

    arch: str = "qwen3"
    types: dict[str, str] = field(default_factory=dict)
    default: str = "Q4_K"
    tied: bool = False
    fused_experts: bool = False
    vectors: str = "F32"
    scales: bool = False
    order: Callable[[str], object] | None = None
    seed: int = 0
    layers: int = 2
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    ffn: int = 768
    experts: int = 4
    experts_used: int = 2
    expert_ffn: int = 256
    shared_ffn: int = 512
    vocab: int = 512

    @property
    def is_moe(self) -> bool:
        return self.arch.endswith("moe")

    @property
    def renormalizes(self) -> bool:
        """Whether the weights of a token's experts are made to sum to one."""
        return self.arch == "qwen3moe"

    @property
    def metadata(self) -> dict[str, int | list[int]]:
        """Keys of its own, without the architecture."""
        return {}

    def type_of(self, name: str) -> str:
        for pattern, type_name in self.types.items():
            if re.search(pattern, name):
                return type_name
        # What llama.cpp keeps in full precision whatever the quantization.
        if name.endswith(("norm.weight", ".bias")):
            return self.vectors
        return "F32" if "ffn_gate_inp" in name else self.default

    def has_scale(self, name: str) -> bool:
        """Whether a tensor has a ``.scale`` beside it."""
        is_matrix = len(self.shapes()[name]) > 1 and "gate_inp" not in name
        return self.scales and is_matrix and name != "token_embd.weight"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name to shape, outermost dimension first."""
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (self.vocab, self.hidden)}
        if not self.tied:
            shapes["output.weight"] = (self.vocab, self.hidden)
        for layer in range(self.layers):
            block = {
                "attn_norm.weight": (self.hidden,),
                **self._attention(layer),
                **(self._experts() if self.is_moe else self._mlp()),
            }
            shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
        return shapes | {"output_norm.weight": (self.hidden,)}

    def _attention(self, layer: int) -> dict[str, tuple[int, ...]]:  # noqa: ARG002
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "attn_q.weight": (q, self.hidden),
            "attn_k.weight": (kv, self.hidden),
            "attn_v.weight": (kv, self.hidden),
            "attn_output.weight": (self.hidden, q),
            "ffn_norm.weight": (self.hidden,),
            **self._attention_extras(q, kv),
        }

    def _attention_extras(self, q: int, kv: int) -> dict[str, tuple[int, ...]]:
        if self.arch.startswith("qwen3"):
            return {
                name: (self.head_size,) for name in ("attn_q_norm.weight", "attn_k_norm.weight")
            }
        return {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}

    def _mlp(self) -> dict[str, tuple[int, ...]]:
        up = (self.ffn, self.hidden)
        return {"ffn_gate.weight": up, "ffn_up.weight": up, "ffn_down.weight": up[::-1]}

    def _experts(self) -> dict[str, tuple[int, ...]]:
        e, ffn, hidden = self.experts, self.expert_ffn, self.hidden
        shapes = {"ffn_gate_inp.weight": (e, hidden), "ffn_down_exps.weight": (e, hidden, ffn)}
        if self.fused_experts:
            shapes["ffn_gate_up_exps.weight"] = (e, 2 * ffn, hidden)
        else:
            shapes |= {f"ffn_{name}_exps.weight": (e, ffn, hidden) for name in ("gate", "up")}
        if self.arch == "qwen2moe":
            shared = (self.shared_ffn, hidden)
            shapes |= {
                "ffn_gate_inp_shexp.weight": (hidden,),
                "ffn_gate_shexp.weight": shared,
                "ffn_up_shexp.weight": shared,
                "ffn_down_shexp.weight": shared[::-1],
            }
        return shapes


@dataclass(frozen=True)
class Model:
    """A file that was written, and the numbers in it."""

    path: Path
    spec: Spec
    #: float32 values by tensor name.
    weights: dict[str, np.ndarray]

    def logprobs(self, prompt: Sequence[int] = PROMPT) -> list[float]:
        """log p of each token of ``prompt`` but the first, by transformers in float32."""
        return _logprobs(self.in_transformers(), prompt)

    def in_transformers(self) -> torch.nn.Module:
        """transformers' own model with these numbers, in float32."""
        return _transformers_model(self.spec, self.weights)

    def logprobs_by_routes(
        self, prompt: Sequence[int], routes: Sequence[np.ndarray]
    ) -> tuple[list[float], float]:
        """As :meth:`logprobs`, with the experts chosen by somebody else.

        Args:
            routes: for each layer the experts of each token, ``[tokens, k]``.

        Returns:
            The log-probabilities, and how far from being among the ``k`` best a chosen expert's
            logit ever is: 0 if all choices are transformers' own.
        """
        model = self.in_transformers()
        furthest = 0.0

        def choose(chosen: torch.Tensor, logits: torch.Tensor, weights: torch.Tensor):
            nonlocal furthest
            best = logits.topk(chosen.shape[1]).values[:, -1]
            furthest = max(furthest, (best - logits.gather(1, chosen).amin(1)).amax().item())
            weights = logits.softmax(-1).gather(1, chosen)
            if self.spec.renormalizes:
                weights = weights / weights.sum(-1, keepdim=True)
            return logits, weights, chosen

        for layer, experts in zip(model.model.layers, routes, strict=True):
            chosen = torch.from_numpy(experts.astype(np.int64))
            layer.mlp.gate.register_forward_hook(
                lambda gate, inputs, output, chosen=chosen: choose(chosen, *output[:2])
            )
        return _logprobs(model, prompt), furthest

    def embedding(
        self, prompt: Sequence[int], pooling: str = "last", causal: bool = True
    ) -> np.ndarray:
        """The final hidden state, of length one: float32 ``(hidden,)``.

        Args:
            pooling: of the ``last`` token, of the first (``cls``), or the ``mean``.
            causal: a token does not see those that follow it.
        """
        model = self.in_transformers().model
        nothing_hidden = None if causal else torch.zeros(1, 1, len(prompt), len(prompt))
        with torch.no_grad():
            output = model(torch.tensor([list(prompt)]), attention_mask=nothing_hidden)
        states = output.last_hidden_state
        pooled = {"last": states[0, -1], "cls": states[0, 0], "mean": states[0].mean(0)}[pooling]
        return torch.nn.functional.normalize(pooled, dim=0).numpy()


def write_model(path: Path, spec: Spec | None = None, **changes) -> Model:
    """Write a model to ``path``; ``changes`` are fields of :class:`Spec`."""
    spec = replace(spec or Spec(), **changes)
    rng = np.random.default_rng(spec.seed)
    writer = gguf.GGUFWriter(path, spec.arch)
    _write_metadata(writer, spec)
    weights = {}
    for name in sorted(spec.shapes(), key=spec.order) if spec.order else spec.shapes():
        shape = spec.shapes()[name]
        data, raw_type, values = _tensor(rng, spec, name, shape)
        writer.add_tensor(name, data, raw_shape=None, raw_dtype=raw_type)
        weights[name] = values.reshape(shape)
        if spec.has_scale(name):
            scale = rng.uniform(0.5, 1.5, shape[0] if len(shape) == 3 else 1).astype(np.float32)
            base = name.removesuffix(".weight")
            writer.add_tensor(f"{base}.scale", scale)
            writer.add_tensor(f"{base}.input_scale", scale * 1000)
            weights[name] *= scale.reshape(-1, *[1] * (len(shape) - 1))
    finish(writer)
    return Model(path, spec, weights)


def write_blocks(path: Path, spec: Spec) -> None:
    """Write a model of any size; its numbers are not computed."""
    writer = gguf.GGUFWriter(path, spec.arch)
    _write_metadata(writer, spec)
    tensors = {name: (spec.type_of(name), shape) for name, shape in spec.shapes().items()}
    for name, (type_name, shape) in tensors.items():
        ggml_type = GGMLQuantizationType[type_name]
        size, nbytes = gguf.GGML_QUANT_SIZES[ggml_type]
        row_bytes = shape[-1] // size * nbytes
        total = int(np.prod(shape[:-1])) * row_bytes
        if type_name == "F32":
            writer.add_tensor_info(name, shape, np.dtype(np.float32), total)
        else:
            blocks = (*shape[:-1], row_bytes)
            writer.add_tensor_info(name, blocks, np.dtype(np.uint8), total, ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(spec.seed)
    drawn: dict[str, np.ndarray] = {}
    for name, (type_name, shape) in tensors.items():
        if type_name == "F32":
            # Norms small enough for what random blocks make of them to be finite in float16.
            # Factors of decay are negative.
            value = -(2**-10) if name.endswith("ssm_a") else 2**-10
            writer.write_tensor_data(np.full(shape, value, np.float32))
            continue
        if type_name not in drawn:
            drawn[type_name] = random_blocks(rng, type_name, (_DRAWN,))[0]
        size, nbytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
        writer.write_tensor_data(np.resize(drawn[type_name], int(np.prod(shape)) // size * nbytes))
    writer.close()


def read_model(path: Path) -> Model:
    """A file of one of the architectures of :class:`Spec`, decoded by gguf-py."""
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()

    def size(key: str, default: int = 0) -> int:
        entry = reader.fields.get(f"{arch}.{key}")
        return default if entry is None else entry.contents()

    weights = {
        t.name: gguf.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])
        for t in reader.tensors
    }
    hidden, heads = size("embedding_length"), size("attention.head_count")
    spec = Spec(
        arch=arch,
        tied="output.weight" not in weights,
        layers=size("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=size("attention.head_count_kv"),
        head_size=size("attention.key_length", hidden // heads),
        ffn=size("feed_forward_length"),
        experts=size("expert_count"),
        experts_used=size("expert_used_count"),
        expert_ffn=size("expert_feed_forward_length"),
        shared_ffn=size("expert_shared_feed_forward_length"),
        vocab=len(weights["token_embd.weight"]),
    )
    return Model(path, spec, weights)


def random_blocks(
    rng: np.random.Generator, type_name: str, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks uint8 ``[..., row_bytes]`` of a type and their values float32 ``shape``."""
    blocks, values = _golden_blocks(type_name)
    chosen = rng.integers(0, len(blocks), int(np.prod(shape)) // values.shape[1])
    return blocks[chosen].reshape(*shape[:-1], -1), values[chosen].reshape(shape)


@cache
def _golden_blocks(type_name: str) -> tuple[np.ndarray, np.ndarray]:
    golden = np.load(DATA / "golden.npz")
    size, nbytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    # Rows 0 to 3 are extremes for decoders; as weights they would drown the rest.
    blocks, values = golden[f"{type_name}.blocks"][4:], golden[f"{type_name}.values"][4:]
    return blocks.reshape(-1, nbytes), values.reshape(-1, size)


def _tensor(
    rng: np.random.Generator, spec: Spec, name: str, shape: tuple[int, ...]
) -> tuple[np.ndarray, GGMLQuantizationType | None, np.ndarray]:
    """What to give GGUFWriter.add_tensor, and the values."""
    type_name = spec.type_of(name)
    if len(shape) == 1 or type_name == "F32":
        # Small norms bring activations back to order one after matrices of order one.
        scale = 1 / (2 * np.sqrt(spec.hidden)) if "norm" in name else 0.1
        if "attn_q_norm" in name or "attn_k_norm" in name:
            scale = 1.0
        noise = rng.standard_normal(shape).astype(np.float32)
        values = scale * (1 + 0.1 * noise) if "norm" in name else scale * noise
        if type_name not in _NUMPY_TYPES:
            ggml_type = GGMLQuantizationType[type_name]
            blocks = gguf.quantize(values, ggml_type)
            return blocks, ggml_type, gguf.dequantize(blocks, ggml_type)
        values = values.astype(_NUMPY_TYPES[type_name])
        return values, None, values.astype(np.float32)
    blocks, values = random_blocks(rng, type_name, shape)
    if type_name in _NUMPY_TYPES:
        return blocks.view(_NUMPY_TYPES[type_name]), None, values
    return blocks, GGMLQuantizationType[type_name], values


def _write_metadata(writer: gguf.GGUFWriter, spec: Spec) -> None:
    writer.add_block_count(spec.layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(spec.hidden)
    writer.add_feed_forward_length(spec.ffn)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    if spec.arch.startswith("qwen3"):
        writer.add_key_length(spec.head_size)
        writer.add_value_length(spec.head_size)
    if spec.is_moe:
        writer.add_expert_count(spec.experts)
        writer.add_expert_used_count(spec.experts_used)
        writer.add_expert_feed_forward_length(spec.expert_ffn)
    if spec.arch == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(spec.shared_ffn)
    for key, value in spec.metadata.items():
        add = writer.add_array if isinstance(value, list) else writer.add_uint32
        add(f"{spec.arch}.{key}", value)
    for key, value, kind in tokenizer_fields():
        if kind == gguf.GGUFValueType.ARRAY:
            # No more tokens than rows; the merges of the others do not matter then.
            writer.add_array(key, value if key.endswith("merges") else value[: spec.vocab])
        else:
            writer.add_key_value(key, value, kind)


@cache
def tokenizer_fields() -> list[tuple[str, object, gguf.GGUFValueType]]:
    """Key, value and type of what a real file says of its tokenizer, of 512 tokens."""
    reader = gguf.GGUFReader(DATA / "qwen3-dense-Q4_K_M.gguf")
    return [
        (key, f.contents(), f.types[0]) for key, f in reader.fields.items() if "tokenizer" in key
    ]


def _logprobs(model: torch.nn.Module, prompt: Sequence[int]) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([list(prompt)])).logits[0, :-1].log_softmax(-1)
    return logits.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()


def _transformers_model(spec: Spec, weights: dict[str, np.ndarray]) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": spec.tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    if spec.arch.startswith("qwen3"):
        sizes["head_dim"] = spec.head_size
    if spec.is_moe:
        sizes |= {
            "num_experts": spec.experts,
            "num_experts_per_tok": spec.experts_used,
            "moe_intermediate_size": spec.expert_ffn,
            "norm_topk_prob": spec.renormalizes,
        }
    if spec.arch == "qwen2moe":
        sizes["shared_expert_intermediate_size"] = spec.shared_ffn
    config = AutoConfig.for_model(spec.arch.replace("moe", "_moe"), **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == spec.arch)
    names = gguf.get_tensor_name_map(arch, spec.layers)
    state = {}
    for hf_name in model.state_dict():
        if spec.tied and hf_name == "lm_head.weight":
            continue
        values = _weight(weights, names, hf_name)
        state[hf_name] = torch.tensor(values)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model.eval()


def _weight(weights: dict[str, np.ndarray], names: gguf.TensorNameMap, hf_name: str) -> np.ndarray:
    """The values of one tensor of the transformers model, whose experts are stacked and fused."""
    if match := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(\w+)", hf_name):
        block = f"blk.{match[1]}.ffn_"
        if match[2] == "down_proj":
            return weights[f"{block}down_exps.weight"]
        if f"{block}gate_up_exps.weight" in weights:
            return weights[f"{block}gate_up_exps.weight"]
        gate_up = [weights[f"{block}{name}_exps.weight"] for name in ("gate", "up")]
        return np.concatenate(gate_up, axis=1)
    base, _, suffix = hf_name.rpartition(".")
    values = weights[f"{names.get_name(base)}.{suffix}"]
    return values[None] if base.endswith("shared_expert_gate") else values
