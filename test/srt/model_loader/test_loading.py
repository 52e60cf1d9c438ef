"""How the loader feeds a model: by a stream, with a progress bar, and what it says of failures."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sglang.srt.model_loader.utils import should_async_load
from sglang.srt.model_loader.weight_utils import default_weight_loader
from sglang.srt.runtime_context import get_parallel

from ascend_gguf import BlockTensor, GGUFError, open_gguf
from ascend_gguf.architectures import architecture_of
from ascend_gguf.config import load_config
from ascend_gguf.reader.mapping import MappedFile
from ascend_gguf.srt.model_loader import loader
from ascend_gguf.weights.block_tensor import as_blocks
from random_model import Model, write_model

MIXED = {"attn_q.w": "F16", "attn_k.w": "Q8_0", "ffn_down": "Q6_K", "^output.w": "F32"}


class Names(torch.nn.Module):
    """A model that is its file's matrices and vectors, under their names with dots."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            module, last = self.module(name)
            parameter = torch.nn.Parameter(torch.empty(shape), requires_grad=False)
            module.register_parameter(last, parameter)

    def module(self, name: str) -> tuple[torch.nn.Module, str]:
        *path, last = name.split(".")
        module = self
        for part in path:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]
        return module, last

    def load_weights(self, weights) -> None:
        parameters = dict(self.named_parameters())
        for name, data in weights:
            parameter = parameters[name]
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, data)


@pytest.fixture(autouse=True)
def one_rank():
    with get_parallel().override(tp_size=1, tp_rank=0, pp_size=1, moe_ep_size=1):
        yield


@pytest.fixture
def file(tmp_path) -> Model:
    return write_model(tmp_path / "m.gguf", types=MIXED, vocab=2048)


def names_of(file: Model) -> dict[str, str]:
    return architecture_of(open_gguf(file.path)).name_map(
        open_gguf(file.path), load_config(file.path)
    )


def shapes_of(file: Model) -> dict[str, tuple[int, ...]]:
    names = names_of(file)
    return {names[name]: shape for name, shape in file.spec.shapes().items()}


def load(file: Model, model: Names | None = None) -> Names:
    model = model or Names(shapes_of(file))
    weights = loader._weights(model, str(file.path), names_of(file))
    loader._load_weights(model, str(file.path), weights)
    return model


def test_every_number_is_in_place(file):
    model = load(file)
    names = names_of(file)
    parameters = dict(model.named_parameters())
    assert len(parameters) == len(names) == len(file.weights)
    for name, values in file.weights.items():
        assert np.array_equal(parameters[names[name]].numpy(), values), name


def test_no_weight_is_left_to_threads(file):
    """DeepSeek's loader has some, of which one took blocks before their type was in."""

    class AtOnce(Names):
        def load_weights(self, weights) -> None:
            weights = list(weights)
            assert not any(should_async_load(data) for _, data in weights)
            super().load_weights(weights)

    load(file, AtOnce(shapes_of(file)))


def test_nothing_of_the_data_is_mapped(file, monkeypatch):
    """Every byte of every tensor is read, none twice."""
    read = []
    original = MappedFile.read_into

    def read_into(self, buffer, offset):
        read.extend(range(offset, offset + len(buffer), 4))
        original(self, buffer, offset)

    monkeypatch.setattr(MappedFile, "read_into", read_into)
    load(file)
    tensors = open_gguf(file.path).tensors.values()
    expected = [i for t in tensors for i in range(t.offset, t.offset + t.nbytes, 4)]
    assert sorted(read) == sorted(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(5,), (3, 7)], ids=str)
def test_numbers_as_blocks(dtype, shape):
    numbers = torch.randn(shape).to(dtype)
    blocks = as_blocks(numbers)
    assert isinstance(blocks, BlockTensor)
    assert blocks.shape == shape
    assert torch.equal(blocks.dequantize(), numbers.float())


@pytest.mark.parametrize(
    "data",
    [
        torch.tensor(12),
        torch.tensor(1.5),
        torch.zeros(3, 144, dtype=torch.uint8),
        BlockTensor(torch.zeros(3, 144, dtype=torch.uint8), 12),
        torch.zeros(3, 4).t(),
    ],
    ids=["type", "number", "blocks", "BlockTensor", "transposed"],
)
def test_blocks_and_types_stay_as_they_are(data):
    assert as_blocks(data) is data


# --- the progress bar -------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(file, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    load(file)
    last = terminal.getvalue().split("\r")[-1]
    count = len(file.weights)
    assert last.startswith("Loading GGUF: 100%")
    assert f"{count} tensors" in last
    assert "B/s" in last


def test_weights_count_when_they_are_in_place(file, monkeypatch):
    counted = []

    class Bar(loader.tqdm):
        def update(self, n=1):
            counted.append((n, stream.submitted, stream.finished))
            return super().update(n)

    class Stream(loader.Stream):
        def __init__(self, **options):
            nonlocal stream
            super().__init__(threads=1, **options)
            stream = self

    stream = None
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(loader, "tqdm", Bar)
    monkeypatch.setattr(loader, "Stream", Stream)
    load(file)
    tensors = open_gguf(file.path).tensors.values()
    assert [n for n, *_ in counted] == [t.nbytes for t in tensors]
    assert stream.submitted == 2  # the embedding and the output; the rest is small
    assert [finished for *_, finished in counted] == sorted(f for *_, f in counted)
    index = next(i for i, t in enumerate(tensors) if t.name == "output.weight")
    assert counted[index][2] == 2


def test_no_progress_elsewhere(file, capsys):
    load(file)
    assert "Loading" not in capsys.readouterr().err


def test_no_progress_on_other_ranks(file, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with get_parallel().override(tp_size=2, tp_rank=1):
        load(file)
    assert terminal.getvalue() == ""


# --- the page cache ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "ranks", "kept"),
    [("much", 1, True), ("little", 1, False), ("little", 2, True)],
)
def test_what_stays_in_the_page_cache(file, available, ranks, kept, monkeypatch):
    size = file.path.stat().st_size
    memory = type("Memory", (), {"available": 3 * size if available == "much" else size})
    monkeypatch.setattr(loader.psutil, "virtual_memory", lambda: memory)
    back = []

    def advise(self, offset, nbytes, advice):
        back.extend([nbytes] * (advice == os.POSIX_FADV_DONTNEED))

    monkeypatch.setattr(MappedFile, "advise", advise)
    with get_parallel().override(tp_size=ranks):
        load(file)
    data = sum(tensor.nbytes for tensor in open_gguf(file.path).tensors.values())
    assert sum(back) == (0 if kept else data)


# --- errors -----------------------------------------------------------------------------------


def test_a_file_cut_short(file):
    class CutShort(Names):
        def load_weights(self, weights) -> None:
            def cut():
                for i, named in enumerate(weights):
                    yield named
                    if i == 20:
                        os.truncate(file.path, 20_000)

            super().load_weights(cut())

    model = CutShort(shapes_of(file))
    with pytest.raises(GGUFError, match="the file was cut short while it was being read") as error:
        load(file, model)
    assert error.value.file == str(file.path)
    assert error.value.tensor in file.weights
    assert error.value.found == "20000 bytes"


def test_errors_of_threads_end_loading(file, monkeypatch):
    def dequantize_into(self, out):
        raise MemoryError("no room")

    monkeypatch.setattr(BlockTensor, "dequantize_into", dequantize_into)
    with pytest.raises(GGUFError, match="cannot be loaded: no room") as error:
        load(file)
    assert Path(error.value.file) == file.path
    assert error.value.tensor in file.weights


def test_what_does_not_fit_is_named(file):
    shapes = shapes_of(file) | {"model.layers.1.mlp.down_proj.weight": (7, 7)}
    with pytest.raises(GGUFError, match=r"cannot load model\.layers\.1\.mlp\.down_proj"):
        load(file, Names(shapes))
