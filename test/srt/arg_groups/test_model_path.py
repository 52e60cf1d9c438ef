"""Where a model may come from: a file, a shard, a folder, the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import openai
import pytest
from sglang.srt.server_args import ServerArgs

from ascend_gguf import load_config, load_tokenizer
from ascend_gguf.srt.arg_groups import model_path_hook
from rewrite import rewrite
from serving import CPU

DATA = Path(__file__).parents[2] / "data"
MODEL = DATA / "qwen3-moe-Q4_K_M.gguf"


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> list[Path]:
    """The model in several files, the first without a tensor, in a folder of their own."""
    folder = tmp_path_factory.mktemp("split")
    rewrite(MODEL, folder / "m.gguf", split_max_tensors=12, small_first_shard=True)
    files = sorted(folder.glob("*.gguf"))
    assert len(files) > 2 and not gguf.GGUFReader(files[0]).tensors
    return files


def test_any_shard_and_the_folder(resolver, split):
    for path in (split[0], split[2], split[0].parent):
        found = resolver.paths("--model-path", str(path), *CPU)
        assert found["model_path"] == found["tokenizer_path"] == str(split[0])
        assert found["load_format"] == found["quantization"] == "gguf"


def test_no_step_begins_before_the_last_is_looked_at(resolver):
    assert resolver.paths("--model-path", str(MODEL), *CPU)["disable_overlap_schedule"]


def test_served_from_its_folder(zygote, log, split):
    reference = json.loads(MODEL.with_suffix(".ref.json").read_text())
    with zygote.serve(split[0].parent, log, *CPU, "--dtype", "float32") as server:
        prompt, expected = reference["input_ids"], reference["token_logprobs"]
        assert server.mean_error(prompt, expected) < 1e-4


def test_served_by_the_name_that_was_typed(zygote, log, tmp_path):
    """With a colon too, as references to the hub have."""
    typed = tmp_path / "repo:Q4_K_M"
    shutil.copy(MODEL, typed)
    with zygote.serve(typed, log, *CPU) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == [str(typed)]
        answer = client.completions.create(model=str(typed), prompt="1", max_tokens=1)
        assert answer.model == str(typed)


def test_layers_that_draft_are_said_to_be_left_out(tiny_model, tmp_path, caplog):
    path = tmp_path / "model.gguf"
    of_file = tiny_model("glm4moe").path
    further = f"blk.{load_config(of_file).num_hidden_layers}.attn_norm.weight"
    rewrite(of_file, path, tensors={further: np.ones(64, np.float32)})
    asked = ServerArgs(model_path=str(path), quantization="gguf", device="cpu")
    model_path_hook._check_model(str(path), asked)
    assert "multi-token prediction is not used" in caplog.text
    assert "(tensors: 1, 0.0 MB)" in caplog.text


def test_missing_shard(resolver, split, tmp_path):
    for file in split:
        shutil.copy(file, tmp_path)
    (tmp_path / split[1].name).unlink()
    for path in (tmp_path / split[2].name, tmp_path):
        kind, message = resolver("--model-path", str(path), *CPU)
        assert kind == "GGUFError" and f"no {split[1].name}" in message


def test_foreign_shard(resolver, split, tmp_path):
    for file in split:
        shutil.copy(file, tmp_path)
    shutil.copy(split[2], tmp_path / split[1].name)
    kind, message = resolver("--model-path", str(tmp_path), *CPU)
    assert kind == "GGUFError" and split[1].name in message and "split.no" in message


@pytest.mark.parametrize(
    "files",
    [
        ["model.gguf", "mmproj-F16.gguf", "imatrix.gguf"],
        ["Q8_0/model.gguf", "README.md"],
        ["MODEL.GGUF"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("quantization", [(), ("--quantization", "gguf")], ids=["", "gguf"])
def test_folders_as_repositories_on_the_hub(resolver, tmp_path, files, quantization):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(MODEL, tmp_path / name)
    found = resolver.paths("--model-path", str(tmp_path), *quantization, *CPU)
    assert found["model_path"] == found["tokenizer_path"] == str(tmp_path / files[0])
    assert found["served_model_name"] == str(tmp_path)


def test_folder_of_a_split_model_in_capitals(resolver, split, tmp_path):
    (tmp_path / "BF16").mkdir()
    for file in split:
        shutil.copy(file, tmp_path / "BF16" / file.with_suffix(".GGUF").name)
    found = resolver.paths("--model-path", str(tmp_path), *CPU)
    assert Path(found["model_path"]).name == split[0].with_suffix(".GGUF").name


def test_folder_of_several_quantizations(resolver, tmp_path):
    for folder in ("Q4_K_M", "Q8_0"):
        (tmp_path / folder).mkdir()
        shutil.copy(MODEL, tmp_path / folder / "m.gguf")
    kind, message = resolver("--model-path", str(tmp_path), *CPU)
    assert kind == "GGUFError" and "Q4_K_M/m.gguf, Q8_0/m.gguf" in message


def test_folder_of_several_models(resolver):
    kind, message = resolver("--model-path", str(DATA), *CPU)
    assert kind == "GGUFError"
    assert all(file.name in message for file in DATA.glob("*.gguf"))


def test_folder_without_a_model(resolver, tmp_path):
    kind, message = resolver("--model-path", str(tmp_path), "--quantization", "gguf", *CPU)
    assert kind == "GGUFError" and "no .gguf file" in message


def test_tokenizer_of_the_user_stays(resolver, tmp_path):
    load_tokenizer(MODEL).save_pretrained(tmp_path)
    found = resolver.paths("--model-path", str(MODEL), "--tokenizer-path", str(tmp_path), *CPU)
    assert found["tokenizer_path"] == str(tmp_path)


def test_draft_model(resolver, split, tmp_path):
    # The backend that checks drafts on a CPU.
    amx = ("--device", "cpu", "--attention-backend", "intel_amx")
    draft = ("--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path")
    found = resolver.paths("--model-path", str(MODEL), *draft, str(split[1]), *amx)
    assert found["speculative_draft_model_path"] == str(split[0])
    assert found["speculative_draft_model_quantization"] == "gguf"
    assert found["speculative_draft_load_format"] == "gguf"

    load_config(MODEL).save_pretrained(tmp_path)
    found = resolver.paths("--model-path", str(MODEL), *draft, str(tmp_path), *amx)
    assert found["quantization"] == "gguf"
    assert found["speculative_draft_model_quantization"] is None
    assert found["speculative_draft_load_format"] == "auto"

    load_tokenizer(MODEL).save_pretrained(tmp_path)
    found = resolver.paths("--model-path", str(tmp_path), *draft, str(MODEL), *amx)
    assert found["quantization"] is None
    assert found["speculative_draft_model_quantization"] == "gguf"


@pytest.mark.parametrize(
    "reference, file",
    [
        ("owner/one", "m.gguf"),
        ("owner/several:q8_0", "m-Q8_0.gguf"),
        ("owner/one/m.gguf", "m.gguf"),
        ("hf.co/owner/several:Q8_0", "m-Q8_0.gguf"),
        ("https://huggingface.co/owner/one/blob/main/m.gguf", "m.gguf"),
    ],
)
def test_on_the_hub(resolver, reference, file):
    found = resolver.paths("--model-path", reference, *CPU)
    assert found["model_path"] == found["tokenizer_path"]
    assert Path(found["model_path"]).name == file
    assert found["served_model_name"] == reference
    expected = (DATA / "qwen3-dense-Q4_K_M.gguf").read_bytes()
    assert Path(found["model_path"]).read_bytes() == expected


def test_where_files_from_the_hub_are_kept(resolver, tmp_path):
    found = resolver.paths("--model-path", "owner/one", "--download-dir", str(tmp_path), *CPU)
    assert Path(found["model_path"]).is_relative_to(tmp_path)


@pytest.mark.parametrize(
    "reference, expected",
    [
        ("owner/several", "m-Q4_K_M.gguf, m-Q8_0.gguf"),
        ("owner/several:Q2_K", "m-Q4_K_M.gguf, m-Q8_0.gguf"),
        ("owner/none", "no .gguf file"),
        ("owner/nothing", "no such repository"),
        ("owner/nothing/m.gguf", "no such repository"),
    ],
)
def test_not_on_the_hub(resolver, reference, expected):
    kind, message = resolver("--model-path", reference, "--quantization", "gguf", *CPU)
    assert kind == "GGUFError" and expected in message and "owner/" in message


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "glm4"])
def test_float16_is_refused_where_it_cannot_hold_the_model(resolver, tiny_model, name):
    command = ("--model-path", str(tiny_model(name).path), *CPU)
    kind, message = resolver(*command, "--dtype", "float16")
    assert kind == "GGUFError" and "does not work in float16" in message
    assert "--dtype bfloat16" in message and "310P" in message
    allow = ("--model-loader-extra-config", '{"float16": "allow"}')
    for arguments in (("--dtype", "bfloat16"), ("--dtype", "float16", *allow)):
        assert resolver(*command, *arguments) == ("", "")
