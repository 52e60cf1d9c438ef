"""``ascend-gguf inspect``: what a file is, and how it is served and held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from ascend_gguf import open_gguf
from ascend_gguf.desk.cli import COMMANDS, main
from hub_standin import hub, use_hub
from random_model import write_model
from rewrite import finish

DATA = Path(__file__).parents[1] / "data"
MOE = DATA / "qwen3-moe-Q4_K_M.gguf"
TOKENS = 151_936


def facts(capsys, *arguments: object, status: int = 0) -> dict:
    assert main(["inspect", *map(str, arguments), "--json"]) == status
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def large_vocabulary(tmp_path_factory) -> Path:
    """A model with Qwen3's number of tokens and merges, whose weights are a hole in the file."""
    path = tmp_path_factory.mktemp("large") / "large-Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    hidden, ffn = 1024, 3072
    for key, value in {
        "block_count": 1, "context_length": 40960, "embedding_length": hidden,
        "feed_forward_length": ffn, "attention.head_count": 16, "attention.head_count_kv": 8,
        "attention.key_length": 128,
    }.items():  # fmt: skip
        writer.add_uint32(f"qwen3.{key}", value)
    writer.add_float32("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    letters = [chr(256 + i) for i in range(256)]
    pairs = [a + b for a in letters for b in letters]
    threes = [pair + letter for pair in pairs[:700] for letter in letters]
    tokens = (letters + pairs + threes)[:TOKENS]
    writer.add_token_list(tokens)
    writer.add_token_merges([f"{t[:-1]} {t[-1]}" for t in tokens[256:]])
    writer.add_eos_token_id(5)
    rows = {
        "token_embd": (TOKENS, hidden), "output_norm": (hidden,), "blk.0.attn_norm": (hidden,),
        "blk.0.ffn_norm": (hidden,), "blk.0.attn_q": (2048, hidden), "blk.0.attn_k": (1024, hidden),
        "blk.0.attn_v": (1024, hidden), "blk.0.attn_output": (hidden, 2048),
        "blk.0.attn_q_norm": (128,), "blk.0.attn_k_norm": (128,), "blk.0.ffn_gate": (ffn, hidden),
        "blk.0.ffn_up": (ffn, hidden), "blk.0.ffn_down": (hidden, ffn),
    }  # fmt: skip
    size = 0
    for name, shape in rows.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if len(shape) == 2 else gguf.GGMLQuantizationType.F32
        nbytes = shape[0] * (shape[1] // 32 * 34 if len(shape) == 2 else 4)
        writer.add_tensor_info(f"{name}.weight", shape, np.dtype("float32"), nbytes, kind)
        size += nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + size)
    return path


def test_everything_about_a_mixture_of_experts(capsys):
    found = facts(capsys, MOE)
    assert found["architecture"] == "qwen3moe"
    assert found["served"] == {"cpu": True, "npu": True, "310P3": True}
    tensors = open_gguf(MOE).tensors.values()
    assert found["bytes"] == sum(t.nbytes for t in tensors)
    assert sum(of["tensors"] for of in found["types"].values()) == len(tensors)
    assert found["sizes"]["experts"] == 8 and found["sizes"]["experts_of_a_token"] == 2
    assert found["special_tokens"]["eos"] == {"id": 2, "text": "<|im_end|>"}
    held = {(row["weight"], row["types"]): row["layouts"] for row in found["layouts"]}
    q6 = held["experts output", "Q6_K"]
    assert q6["cpu"] == "blocks" and q6["910B3"] == "planes, experts" and q6["310P3"] == "dense"
    assert held["experts input", "Q4_K"]["910_93"] == "int4, experts"


def test_text_says_the_same(capsys):
    assert main(["inspect", str(MOE)]) == 0
    said = capsys.readouterr().out
    for words in ("qwen3moe", "Q4_K", "cpu: served", "npu: served", "planes, experts", "310P3"):
        assert words in said


def test_folders_and_split_models(capsys, tmp_path):
    os.symlink(MOE, tmp_path / "model.gguf")
    assert facts(capsys, tmp_path)["weights"] == facts(capsys, MOE)["weights"]


def test_a_model_that_is_not_served(capsys, tmp_path):
    """The words are those that serving ends with."""
    path = tmp_path / "m.gguf"
    written = write_model(path)
    writer = gguf.GGUFWriter(path, "rwkv7")
    writer.add_name("a\x1b[31mname\n")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    finish(writer)
    assert written.path == path
    found = facts(capsys, path, status=1)
    assert "architecture is not supported" in found["served"]["npu"]
    assert main(["inspect", str(path)]) == 1
    said = capsys.readouterr().out
    assert "not served" in said and "\x1b" not in said


@pytest.mark.parametrize("bad", ["absent.gguf", __file__, "owner/none:Q4_K_M"])
def test_bad_input_is_one_line(capsys, monkeypatch, bad):
    with hub({"owner/none": {"README.md": Path(__file__)}}) as url:
        use_hub(monkeypatch, url)
        assert main(["inspect", bad]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"ascend-gguf inspect: {bad.partition(':')[0]}")
    assert said.err.count("\n") == 1


def test_of_the_hub_the_header_alone_is_read(capsys, monkeypatch, large_vocabulary):
    sent: list[int] = []
    with hub({"owner/large": {"large-Q8_0.gguf": large_vocabulary}}, sent) as url:
        use_hub(monkeypatch, url)
        found = facts(capsys, "owner/large:Q8_0")
    assert sum(sent) < 0.05 * large_vocabulary.stat().st_size
    assert found == facts(capsys, large_vocabulary)


#: A process of its own: what it imported, and how long it took.
COLD = """
import json, sys, time
from ascend_gguf.desk.cli import main
main(["inspect", sys.argv[1], "--json"])
heavy = [name for name in sys.modules if name.startswith(("torch.", "transformers", "llvmlite"))]
print(json.dumps({"seconds": time.process_time(), "heavy": heavy}), file=sys.stderr)
"""


def test_a_large_vocabulary_takes_two_seconds(large_vocabulary):
    """Neither torch nor transformers, of a second each, is imported for what a header says."""
    command = [sys.executable, "-c", COLD, str(large_vocabulary)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    took = json.loads(process.stderr)
    assert took["heavy"] == [] and took["seconds"] < 2
    assert json.loads(process.stdout)["vocabulary"]["tokens"] == TOKENS


def test_help_has_examples(capsys):
    for command, (_, _, examples) in COMMANDS.items():
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        said = capsys.readouterr().out
        assert end.value.code == 0 and all(example in said for example in examples)
