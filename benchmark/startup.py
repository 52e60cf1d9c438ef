"""Start-up: a GGUF file, and the same model from a Hugging Face folder.

The model is small (Qwen3, two layers), its vocabulary is not: 152 thousand tokens.  The two take
turns.  Wall-clock seconds from starting the command until /health answers, and CPU seconds that
all of the server's processes have used by then; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from ascend_gguf import load_config, load_tokenizer, open_gguf
from ascend_gguf.reader.shard import read_shard
from demo import free_port, running, wait_until_ready

SHARED = Path(os.environ.get("ASCEND_GGUF_SHARED") or Path(__file__).parents[2] / "shared")
#: Qwen2's own vocabulary, if available.
VOCABULARY = SHARED / "vocab" / "ggml-vocab-qwen2.gguf"
TOKENS = 151_936

HIDDEN, LAYERS, HEADS, HEAD_SIZE, FFN = 256, 2, 4, 64, 768


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="startup", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="for each of the two (%(default)s)")
    parser.add_argument("--vocabulary", type=Path, help="a GGUF file to take it from")
    parser.add_argument("--log", type=Path, help="keep the servers' logs in this folder")
    options = parser.parse_args(arguments)
    given = options.vocabulary or (VOCABULARY if VOCABULARY.exists() else None)
    with tempfile.TemporaryDirectory(prefix="ascend-gguf-startup-") as temporary:
        folder = Path(temporary)
        file, hf = folder / "model.gguf", folder / "hf"
        _write_gguf(file, given)
        _write_hf(hf, file)
        name = "a made-up vocabulary" if given is None else given.stem
        print(f"{name}, {len(load_tokenizer(file))} tokens; {options.rounds} rounds.\n")
        _print_tokenizers(file, hf)
        models = {"GGUF file": file, "Hugging Face folder": hf}
        logs = options.log or folder
        logs.mkdir(exist_ok=True)
        times = {name: [] for name in models}
        for round_ in range(options.rounds):
            order = list(models)
            random.Random(round_).shuffle(order)
            for name in order:
                log = logs / f"{models[name].name}-{round_}.log"
                times[name].append(_start(models[name], log))
    medians = {name: [statistics.median(t) for t in zip(*times[name])] for name in models}  # noqa: B905
    print("| | seconds to ready | CPU seconds |\n| --- | ---: | ---: |")
    for name, (wall, cpu) in medians.items():
        print(f"| {name} | {wall:.1f} | {cpu:.1f} |")
    ratios = [ours / theirs for ours, theirs in zip(*medians.values())]  # noqa: B905
    print(f"| ratio | {ratios[0]:.2f} | {ratios[1]:.2f} |\n")


def _print_tokenizers(file: Path, hf: Path) -> None:
    """CPU seconds that a process spends on its tokenizer, medians of five."""
    calls = {
        "metadata and tensor table of the file": lambda: read_shard(file),
        "tokenizer of the file": lambda: load_tokenizer(file),
        "tokenizer of the folder, by transformers": lambda: AutoTokenizer.from_pretrained(hf),
    }
    print("| | CPU seconds |\n| --- | ---: |")
    for name, call in calls.items():
        seconds = []
        for _ in range(5):
            started = time.process_time()
            call()
            seconds.append(time.process_time() - started)
        print(f"| {name} | {statistics.median(seconds):.2f} |", flush=True)
    print()


def _start(model: Path, log: Path) -> tuple[float, float]:
    port = free_port()
    command = [
        *(sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)),
        *("--port", str(port), "--device", "cpu", "--attention-backend", "torch_native"),
        *("--max-total-tokens", "4096", "--max-running-requests", "4", "--skip-server-warmup"),
    ]
    environment = os.environ | {"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1"}
    with running(command, environment, log) as server:
        seconds = wait_until_ready(server, f"http://127.0.0.1:{port}/health", log, 600)
        return seconds, _processor_seconds(server.pid)


def _processor_seconds(group: int) -> float:
    """CPU seconds that all processes of a group have used so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _write_gguf(path: Path, vocabulary: Path | None) -> None:
    """A Qwen3 of random weights in Q8_0."""
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_block_count(LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(HEAD_SIZE)
    writer.add_value_length(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    _made_up_vocabulary(writer) if vocabulary is None else _copy_vocabulary(writer, vocabulary)
    rng = np.random.default_rng(0)
    inner = HEADS * HEAD_SIZE
    shapes = {"token_embd": (TOKENS, HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        block = {
            **dict.fromkeys(("attn_norm", "ffn_norm"), (HIDDEN,)),
            **dict.fromkeys(("attn_q_norm", "attn_k_norm"), (HEAD_SIZE,)),
            **dict.fromkeys(("attn_q", "attn_k", "attn_v"), (inner, HIDDEN)),
            **dict.fromkeys(("ffn_gate", "ffn_up"), (FFN, HIDDEN)),
            "attn_output": (HIDDEN, inner),
            "ffn_down": (HIDDEN, FFN),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", 1 + values / 10)
        else:
            blocks = gguf.quantize(values / shape[1] ** 0.5, GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{name}.weight", blocks, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_vocabulary(writer: gguf.GGUFWriter, path: Path) -> None:
    for key, value in open_gguf(path).metadata.items():
        if key.startswith("tokenizer."):
            if isinstance(value, list | np.ndarray):
                writer.add_array(key, value if isinstance(value, list) else value.tolist())
            else:
                writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))


def _made_up_vocabulary(writer: gguf.GGUFWriter) -> None:
    """Bytes, and random merges of earlier tokens."""
    rng = random.Random(0)
    tokens = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    names, merges = list(tokens), []
    while len(names) < TOKENS - 1:
        left, right = rng.choice(names), rng.choice(names)
        if len(left + right) < 12 and left + right not in tokens:
            tokens[left + right] = None
            names.append(left + right)
            merges.append(f"{left} {right}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*names, "<|im_end|>"])
    writer.add_token_types([1] * len(names) + [3])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(len(names))


def _write_hf(folder: Path, file: Path) -> None:
    config = load_config(file)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    load_tokenizer(file).save_pretrained(folder)
    # As in Qwen's own folders.
    about = folder / "tokenizer_config.json"
    about.write_text(
        json.dumps(json.loads(about.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"})
    )
