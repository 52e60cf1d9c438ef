"""What a user sees when a model cannot be served: one clear error, and nothing left running."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType as Type

from demo import free_port
from random_model import write_model
from reader.bad_files import BAD_FILES, good_file
from rewrite import rewrite
from serving import (
    CPU,
    SMALL,
    cpu_environment,
    server_command,
    status_at_end,
    wait_for_group_to_end,
)

DATA = Path(__file__).parents[2] / "data"


def _lacks_tensor(source: Path, target: Path) -> None:
    rewrite(source, target, lambda n, d: [] if n == "blk.1.ffn_up.weight" else [(n, d)])


def _unknown_tensor(source: Path, target: Path) -> None:
    extra = ("blk.0.attn_sinks.weight", np.zeros(4, np.float32))
    rewrite(source, target, lambda n, d: [(n, d), extra] if n == "output_norm.weight" else [(n, d)])


def _wrong_shape(source: Path, target: Path) -> None:
    rewrite(source, target, lambda n, d: [(n, d[:-1] if n == "blk.0.attn_k.weight" else d)])


def _unknown_architecture(source: Path, target: Path) -> None:
    rewrite(source, target, arch="qwen3-with-wings")


def _keys(**keys: tuple) -> Callable[[Path, Path], None]:
    keys = {name.replace("__", "."): value for name, value in keys.items()}
    return lambda source, target: rewrite(source, target, keys=keys)


def _token_without_row(source: Path, target: Path) -> None:
    fields = gguf.GGUFReader(source).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    metadata = {
        "tokenizer.ggml.tokens": [*tokens, "<|boom|>"],
        "tokenizer.ggml.token_type": [*kinds, 3],
    }
    rewrite(source, target, metadata=metadata)


def _reranker(source: Path, target: Path) -> None:
    rewrite(source, target, tensors={"cls.weight": np.ones((2, 256), np.float32)})


def _missing(source: Path, target: Path) -> None:
    pass


#: how to spoil a good model -> what the message says besides the file
SPOILED = {
    "missing file": (_missing, ["no such file"]),
    "lacks a tensor": (_lacks_tensor, ["blk.1.ffn_up.weight", "lacks"]),
    "unknown tensor": (_unknown_tensor, ["blk.0.attn_sinks.weight", "no such tensor"]),
    "wrong shape": (_wrong_shape, ["blk.0.attn_k.weight", "(127, 256)", "(128, 256)"]),
    "token without a row": (_token_without_row, ["token_embd.weight", "512 rows for 513 tokens"]),
    "heads that cannot be shared": (
        _keys(qwen3__attention__head_count=(3, Type.UINT32)),
        ["qwen3.attention.head_count", "found 3", "multiple"],
    ),
    "heads that do not fit": (
        _keys(qwen3__attention__head_count=(8, Type.UINT32)),
        ["blk.0.attn_output.weight", "(256, 512)", "hidden q"],
    ),
    "infinite base": (
        _keys(qwen3__rope__freq_base=(float("inf"), Type.FLOAT32)),
        ["qwen3.rope.freq_base", "inf"],
    ),
    "epsilon that is no number": (
        _keys(qwen3__attention__layer_norm_rms_epsilon=(float("nan"), Type.FLOAT32)),
        ["qwen3.attention.layer_norm_rms_epsilon", "nan"],
    ),
    "endless context": (
        _keys(qwen3__context_length=(2**32 - 1, Type.UINT32)),
        ["qwen3.context_length", str(2**32 - 1)],
    ),
    "temperature that is no number": (
        _keys(general__sampling__temp=(float("nan"), Type.FLOAT32)),
        ["general.sampling.temp", "nan"],
    ),
    "escape sequences": (
        _keys(tokenizer__ggml__pre=("\x1b[31mred\x1b[0m\x1b]0;title\x07", Type.STRING)),
        ["tokenizer.ggml.pre", r"\x1b[31mred\x1b[0m"],
    ),
    "template that is a number": (
        _keys(tokenizer__chat_template=(7, Type.UINT32)),
        ["tokenizer.chat_template", "found 7"],
    ),
    "template that is not valid Jinja": (
        _keys(tokenizer__chat_template=("{% if %}", Type.STRING)),
        ["tokenizer.chat_template", "is not valid Jinja"],
    ),
    "attends in both directions": (
        _keys(qwen3__attention__causal=(False, Type.BOOL)),
        ["qwen3.attention.causal", "found False", "--is-embedding"],
    ),
    "reranker": (_reranker, ["cls.weight", "reranker", "original model"]),
    "adapter": (_keys(general__type=("adapter", Type.STRING)), ["LoRA adapter"]),
    "unknown architecture": (_unknown_architecture, ["qwen3-with-wings", "qwen3moe"]),
}


def _check_message(kind: str, message: str, path: Path, *expected: str) -> None:
    assert kind == "GGUFError", (kind, message)
    assert message.isprintable()
    for text in (path.name, *expected):
        assert text in message


@pytest.mark.parametrize("case", SPOILED)
def test_model_that_does_not_fit(tmp_path, resolver, case):
    spoil, expected = SPOILED[case]
    path = tmp_path / "model.gguf"
    spoil(DATA / "qwen3-dense-Q4_K_M.gguf", path)
    kind, message = resolver("--model-path", str(path), *CPU)
    _check_message(kind, message, path, *expected)


@pytest.mark.parametrize("case", BAD_FILES)
def test_damaged_file(tmp_path, resolver, case):
    path = tmp_path / "model.gguf"
    good_file(path)
    path.write_bytes(BAD_FILES[case].spoil(path.read_bytes()))
    kind, message = resolver("--model-path", str(path), "--quantization", "gguf", *CPU)
    _check_message(kind, message, path)


def test_not_a_gguf_file_without_the_suffix(tmp_path, resolver):
    path = tmp_path / "model.bin"
    path.write_bytes(b"PK\x03\x04 not a model")
    kind, message = resolver("--model-path", str(path), "--quantization", "gguf", *CPU)
    _check_message(kind, message, path)


def test_a_template_of_the_users_own_takes_the_place_of_a_broken_one(tmp_path, resolver):
    path, template = tmp_path / "model.gguf", tmp_path / "own.jinja"
    _keys(tokenizer__chat_template=("{% if %}", Type.STRING))(
        DATA / "qwen3-dense-Q4_K_M.gguf", path
    )
    template.write_text("{{ messages }}")
    arguments = ("--chat-template", str(template), *CPU)
    assert resolver("--model-path", str(path), *arguments) == ("", "")


@pytest.mark.parametrize(("pooling", "says"), [(0, "none"), (4, "rank"), (9, "unknown")])
def test_pooling_that_the_engine_lacks(tmp_path, resolver, pooling, says):
    path = tmp_path / "model.gguf"
    _keys(qwen3__pooling_type=(pooling, Type.UINT32))(DATA / "qwen3-dense-Q4_K_M.gguf", path)
    kind, message = resolver("--model-path", str(path), *CPU, "--is-embedding")
    _check_message(kind, message, path, "qwen3.pooling_type", f"{pooling} ({says}")
    assert resolver("--model-path", str(path), *CPU) == ("", "")


def test_piece_of_a_model(tmp_path, resolver):
    data = (DATA / "qwen3-dense-Q4_K_M.gguf").read_bytes()
    pieces = [tmp_path / f"model.gguf.part{number}of2" for number in (1, 2)]
    pieces[0].write_bytes(data[:1_000_000])
    pieces[1].write_bytes(data[1_000_000:])
    for path in (*pieces, tmp_path / "model.gguf", tmp_path):
        kind, message = resolver("--model-path", str(path), *CPU)
        assert kind == "GGUFError" and "\n" not in message
        assert "cat model.gguf.part1of2 model.gguf.part2of2 > model.gguf" in message


def test_good_model_resolves(resolver):
    assert resolver("--model-path", str(DATA / "qwen3-moe-Q4_K_M.gguf"), *CPU) == ("", "")


def test_command_line_ends_with_one_line(tmp_path, log):
    """Also of a path that is relative.  The command a user types ends by itself."""
    path = tmp_path / "model.gguf"
    path.write_bytes((DATA / "qwen3-moe-Q4_K_M.gguf").read_bytes()[:-100_000])
    command = server_command(Path(path.name), free_port(), "--quantization", "gguf", *CPU, *SMALL)
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=cpu_environment(),
            cwd=tmp_path,
            start_new_session=True,
        )
    assert process.wait(180) != 0
    # The last to go are helpers of Python itself that notice the end of their parents.
    assert wait_for_group_to_end(process.pid) == []
    text = log.read_text()
    assert "Traceback" not in text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and path.name in errors[0] and "tensor" in errors[0]


def test_error_in_a_worker_ends_everything(zygote, tmp_path, log):
    # A config.json beside the file wins; this one is of another model, which shows at loading.
    model = write_model(tmp_path / "model.gguf", arch="qwen2")
    from ascend_gguf import load_config

    config = load_config(model.path)
    config.num_attention_heads = 8
    config.save_pretrained(tmp_path)
    command = ("--model-path", str(model.path), "--port", str(free_port()), *CPU, *SMALL)
    assert status_at_end(zygote, log, *command) != 0
    text = log.read_text()
    (error,) = (line for line in text.splitlines() if f"error: {model.path}" in line)
    assert "attn_q" in error or "attn_k" in error
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "options", ['{"weigths": "dense"}', '{"modules_to_not_convert": "lm_head"}', "{not JSON"]
)
def test_unknown_loader_option(resolver, options):
    model = str(DATA / "qwen3-dense-Q4_K_M.gguf")
    kind, message = resolver("--model-path", model, *CPU, "--model-loader-extra-config", options)
    assert kind == "GGUFError"
    assert "--model-loader-extra-config" in message


def test_parameter_left_uninitialised(zygote, tmp_path, log):
    # NaN in the file is as good as nothing: the same check finds it.
    path = tmp_path / "model.gguf"

    def spoil(name, data):
        if name == "blk.1.ffn_norm.weight":
            data = data.copy()
            data[3] = np.nan
        return [(name, data)]

    rewrite(DATA / "qwen3-dense-Q4_K_M.gguf", path, spoil)
    with pytest.raises(AssertionError, match="ended while"), zygote.serve(path, log, *CPU):
        pass
    text = log.read_text()
    assert "model.layers.1.post_attention_layernorm.weight" in text
    assert "uninitialised" in text
