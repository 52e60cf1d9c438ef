"""Architectures that are not served: each ends in a line of its own."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import gguf
import numpy as np
import pytest

from ascend_gguf import GGUFError, load_config, open_gguf
from ascend_gguf.architectures import ARCHITECTURES, REFUSED, architecture_of
from ascend_gguf.architectures.refused import WITHOUT_CLASS, WITHOUT_TABLE
from fetch import FetchError, llama_cpp
from hf_models import TINY, write_model
from rewrite import finish, rewrite

SERVED = {architecture.name for architecture in ARCHITECTURES}


def _problem(path: Path, name: str) -> str:
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(1)
    finish(writer)
    with pytest.raises(GGUFError) as error:
        architecture_of(open_gguf(path))
    return error.value.problem


@pytest.mark.parametrize("name", REFUSED)
def test_reasons_of_their_own(tmp_path, name):
    problem = _problem(tmp_path / "m.gguf", name)
    assert "architecture is not supported" in problem
    assert REFUSED[name] in problem


def test_no_architecture_of_llama_cpp_is_unknown(tmp_path):
    names = set(gguf.MODEL_ARCH_NAMES.values())
    with contextlib.suppress(FetchError):
        source = (llama_cpp() / "gguf-py/gguf/constants.py").read_text()
        names |= set(re.findall(r'^ +MODEL_ARCH\.\w+: +"([^"]+)"', source, re.MULTILINE))
    assert len(names) > 100
    for name in sorted(names - SERVED):
        problem = _problem(tmp_path / f"{name}.gguf", name)
        assert problem != "this model architecture is not supported", name


def test_stablelm_12b(tmp_path):
    """By the norms of its heads, or as no other norm follows attention; by no key of the file."""
    model = write_model(tmp_path, TINY["stablelm"])
    norms = {f"blk.0.attn_{kind}_norm.weight": np.ones((4, 32), np.float32) for kind in "qk"}
    rewrite(model.path, tmp_path / "norms.gguf", tensors=norms)
    rewrite(
        model.path,
        tmp_path / "parallel.gguf",
        edit=lambda name, data: [] if "ffn_norm" in name else [(name, data)],
    )
    for name in ("norms", "parallel"):
        with pytest.raises(GGUFError, match="StableLM 2 12B is not supported"):
            load_config(tmp_path / f"{name}.gguf")


def test_muse_glimmer_with_weights_of_queries(tmp_path):
    """Of which conversion makes one factor for all; the engine has no others."""
    model = write_model(tmp_path, TINY["muse-glimmer"])
    changed = {
        "blk.1.attn_q_norm.weight": np.ones,
        "blk.2.attn_k_norm.weight": lambda n, t: np.arange(n, dtype=t),
    }

    def edit(name: str, data: np.ndarray) -> list[tuple[str, np.ndarray]]:
        return [(name, changed[name](64, np.float32) if name == at else data)]

    for at in changed:
        rewrite(model.path, tmp_path / "other.gguf", edit)
        with pytest.raises(GGUFError, match="one factor for all queries") as error:
            load_config(tmp_path / "other.gguf")
        assert error.value.tensor == at


def test_none_is_served_and_refused():
    kinds = [set(REFUSED), WITHOUT_CLASS, WITHOUT_TABLE, SERVED]
    assert sum(map(len, kinds)) == len(set().union(*kinds))
