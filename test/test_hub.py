"""Models on the Hugging Face hub, seen through a stand-in of it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from ascend_gguf import GGUFError, open_gguf
from ascend_gguf.hub import Reference, fetch_model, find_files, is_gguf_repository, parse_reference
from demo import free_port
from hub_standin import hub, use_hub
from rewrite import finish


@pytest.mark.parametrize(
    "text, expected",
    [
        ("owner/repo", Reference("owner/repo")),
        ("owner/repo-GGUF:Q4_K_M", Reference("owner/repo-GGUF", "Q4_K_M")),
        ("owner/repo/file.gguf", Reference("owner/repo", None, "file.gguf")),
        ("owner/repo/sub/file.gguf", Reference("owner/repo", None, "sub/file.gguf")),
        ("owner/file.gguf", None),
        ("file.gguf", None),
        ("./owner/repo", None),
        ("/owner/repo", None),
        ("~/owner/repo", None),
        ("owner/repo/folder", None),
        ("s3://bucket/model", None),
        ("hf.co/owner/repo:Q4_K_M", Reference("owner/repo", "Q4_K_M")),
        ("hf://owner/repo", Reference("owner/repo")),
        ("huggingface.co/owner/repo/sub/FILE.GGUF", Reference("owner/repo", None, "sub/FILE.GGUF")),
        ("https://huggingface.co/owner/repo", Reference("owner/repo")),
        ("https://hf.co/owner/repo/", Reference("owner/repo")),
        (
            "https://huggingface.co/owner/repo/tree/v1",
            Reference("owner/repo", revision="v1"),
        ),
        (
            "https://huggingface.co/owner/repo/blob/main/sub/m.gguf?show_file_info=m.gguf",
            Reference("owner/repo", None, "sub/m.gguf", "main"),
        ),
        (
            "https://huggingface.co/owner/repo/resolve/v2/m.gguf?download=true",
            Reference("owner/repo", None, "m.gguf", "v2"),
        ),
        ("https://example.com/owner/repo", None),
    ],
)
def test_references(text, expected):
    assert parse_reference(text) == expected


SHARDS = [f"BF16/m-BF16-{number:05d}-of-00002.gguf" for number in (1, 2)]
FILES = ["README.md", "config.json", "mmproj-F16.gguf", "m-Q4_K_M.gguf", "m.IQ4_XS.gguf", *SHARDS]
FILES += ["m-UD-Q2_K_XL.GGUF"]


@pytest.mark.parametrize(
    "reference, expected",
    [
        ("o/r:Q4_K_M", ["m-Q4_K_M.gguf"]),
        ("o/r:q4_k_m", ["m-Q4_K_M.gguf"]),
        ("o/r:IQ4_XS", ["m.IQ4_XS.gguf"]),
        ("o/r:BF16", SHARDS),
        ("o/r:UD-Q2_K_XL", ["m-UD-Q2_K_XL.GGUF"]),
        (f"o/r/{SHARDS[1]}", SHARDS),
        ("o/r/m-Q4_K_M.gguf", ["m-Q4_K_M.gguf"]),
        ("o/r/mmproj-F16.gguf", ["mmproj-F16.gguf"]),
    ],
)
def test_choosing(reference, expected):
    assert find_files(parse_reference(reference), FILES) == expected


@pytest.mark.parametrize(
    "reference, files, message",
    [
        ("o/r", FILES, "several.*found BF16/m-BF16-00001.*m-Q4_K_M.gguf.*m.IQ4_XS.gguf.*QUANTIZ"),
        ("o/r:F16", FILES, "o/r:F16: no such GGUF model.*found BF16/.*m-Q4_K_M.gguf"),
        ("o/r/x.gguf", FILES, "o/r/x.gguf: no such"),
        ("o/r:Q4_K_M", ["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "several.*a-Q4_K_M.gguf, b-Q4_K_M"),
        ("o/r", ["config.json", "model.safetensors"], "no .gguf file"),
        ("o/r:Q8_0", ["m.Q8_0.gguf.part1of2", "m.Q8_0.gguf.part2of2"], "part2of2.*join.*cat"),
        ("o/r:BF16", SHARDS[:1], "split into 2 files.*no BF16/m-BF16-00002-of-00002.gguf"),
        ("o/r:BF16", SHARDS[1:], "split into 2 files.*no BF16/m-BF16-00001-of-00002.gguf"),
    ],
)
def test_what_cannot_be_chosen(reference, files, message):
    with pytest.raises(GGUFError, match=message):
        find_files(parse_reference(reference), files)


def test_which_repositories_are_gguf():
    assert is_gguf_repository(FILES)
    assert not is_gguf_repository([*FILES, "model-00001-of-00002.safetensors"])
    assert not is_gguf_repository(["config.json"])


def _said(text: str, **options) -> str:
    """What ``fetch_model`` returns or says."""
    try:
        return str(fetch_model(parse_reference(text), **options))
    except GGUFError as error:
        return str(error)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> dict[str, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("models")
    writer = gguf.GGUFWriter(folder / "m-Q8_0.gguf", "llama", split_max_tensors=2)
    for number in range(4):
        writer.add_tensor(f"tensor.{number}", np.full(64, number, np.float32))
    finish(writer)
    shards = {path.name: path for path in folder.glob("*.gguf")}
    single = next(iter(shards.values()))
    return {
        "owner/split": shards,
        "owner/single": {"model.gguf": single, "config.json": single},
        "owner/other": {"config.json": single, "model.safetensors": single},
    }


def test_fetching(repositories, tmp_path, monkeypatch):
    with hub(repositories) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path)
        split = _said("owner/split:q8_0")
        model = open_gguf(split)
        assert len(model.files) == 2 and len(model.tensors) == 4
        single = Path(_said("owner/single", required=False))
        assert single.name == "model.gguf" and single.exists()
        assert _said("owner/other", required=False) == "None"
        missing = _said("owner/nothing:Q4_0")
        assert missing.startswith("owner/nothing: no such repository")
        revision = _said("owner/split", revision="v2")
        assert revision.startswith("owner/split: the repository has no such revision")
        assert _said("owner/other").startswith("owner/other: no such GGUF model")

    # And again without a network: what was fetched is there, the rest says what is wrong.
    use_hub(monkeypatch, f"http://127.0.0.1:{free_port()}", tmp_path)
    assert _said("owner/split:q8_0") == split
    absent = _said("owner/nothing:Q4_0")
    assert absent.startswith("owner/nothing: the Hugging Face Hub cannot be reached")
    assert _said("owner/nothing", required=False) == "None"
