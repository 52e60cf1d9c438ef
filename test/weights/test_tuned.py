"""The cache of ``ascend-gguf tune``, and what loading makes of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType

from ascend_gguf import BlockTensor, GGUFError
from ascend_gguf.ggml_types import block_type
from ascend_gguf.npu.int4 import Int4, Int4Rows
from ascend_gguf.npu.int8 import Int8
from ascend_gguf.weights import tuned
from ascend_gguf.weights.dense import Dense
from ascend_gguf.weights.layout import Piece, Weight
from ascend_gguf.weights.pending import PendingWeight
from ascend_gguf.weights.tuned import Preferences, Tuned

LAYOUTS = (Int4, Int8, Dense)
DEVICE = "a chip, CANN 1"


def weight(type_name: str = "Q4_0") -> Weight:
    kind = block_type(GGMLQuantizationType[type_name])
    blocks = torch.zeros(64, kind.row_bytes(256), dtype=torch.uint8)
    matrix = BlockTensor(blocks, kind.ggml_type)
    return Weight(None, 64, 256, torch.float16, (Piece(0, 0, 0, matrix),))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "folder" / "tuned.json"
    monkeypatch.setenv(tuned.VARIABLE, str(path))
    return path


KEY = "linear 64 x 256 Q4_0 float16"


def test_what_a_weight_is_known_by():
    assert tuned.key("linear", weight()) == KEY


@pytest.mark.parametrize(
    "chosen, wider, expected",
    [
        ("int8", True, (Int8, Int4, Dense)),
        ("dense", True, (Dense, Int4, Int8)),
        ("int4, rows", True, (Int4Rows, *LAYOUTS)),
        ("int4", True, LAYOUTS),
        ("planes", True, LAYOUTS),  # one that this kernel does not multiply with
        ("dense", False, LAYOUTS),  # one that the device has no room for
    ],
)
def test_the_chosen_layout_comes_first(chosen, wider, expected):
    is_wider = chosen in ("int8", "dense")
    preferences = Preferences({KEY: Tuned(chosen, is_wider)}, takes_wider=wider)
    found = preferences.order("linear", (Int4Rows,), weight(), LAYOUTS)
    assert tuple(found) == expected
    assert preferences.obeyed == ([KEY] if expected != LAYOUTS else [])
    for other in ("output", "experts"):
        assert preferences.order(other, (), weight(), LAYOUTS) == LAYOUTS
    assert preferences.order("linear", (), weight("Q4_1"), LAYOUTS) == LAYOUTS


def test_a_layout_that_cannot_hold_the_weight_is_not_chosen():
    key = tuned.key("linear", weight("Q8_0"))
    preferences = Preferences({key: Tuned("int4", False)})
    assert preferences.order("linear", (), weight("Q8_0"), LAYOUTS) == LAYOUTS


def test_a_weight_is_converted_to_the_chosen_layout():
    preferences = Preferences({KEY: Tuned("int8", True)}, takes_wider=True)
    pending = PendingWeight(
        (64, 256),
        torch.float16,
        torch.device("cpu"),
        LAYOUTS,
        lambda weight, layouts: preferences.order("linear", (), weight, layouts),
    )
    pending.copy_(weight().pieces[0].data)
    assert type(pending.loaded) is Int8
    assert type(pending.loaded.next("the self-check failed")) is Int4


def test_devices_and_weights_are_added(cache):
    assert tuned.read() == {}
    one, two = Tuned("int8", True, {"int8": {"1": 2e-5}}), Tuned("dense", True)
    assert tuned.write(DEVICE, {"a": one, "b": one}) == cache
    tuned.write(DEVICE, {"b": two})
    tuned.write("another", {"a": two})
    assert tuned.read() == {DEVICE: {"a": one, "b": two}, "another": {"a": two}}
    assert os.listdir(cache.parent) == [cache.name]


ENTRY = {"layout": "int4", "is_wider": False, "seconds": {}}


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "not what `ascend-gguf tune` writes"),
        ("[]", "not what"),
        ("{" * 100_000, "not what"),
        ('{"version": 1, "devices": {"x": []}}', "not what"),
        (json.dumps({"version": 1, "devices": {"x": {"y": {"layout": 3}}}}), "not what"),
        (json.dumps({"version": 1, "devices": {"x": {"y": ENTRY | {"layout": 3}}}}), "not what"),
        (json.dumps({"version": 1, "devices": {"x": {"y": ENTRY | {"more": 3}}}}), "not what"),
        ('{"version": 2}', "of another version (found 2, expected 1)"),
        ("\0" * 100, "not what"),
    ],
)
def test_a_damaged_cache_is_one_line(cache, text, said):
    cache.parent.mkdir()
    cache.write_text(text)
    with pytest.raises(GGUFError, match="ascend-gguf tune") as error:
        tuned.read()
    assert said in str(error.value) and str(cache) in str(error.value)
    assert "It is ignored" in str(error.value) and "\n" not in str(error.value)
    tuned.write(DEVICE, {"a": Tuned("int4", False)})
    assert list(tuned.read()) == [DEVICE]


def test_a_cache_that_cannot_be_read_or_written(cache):
    cache.mkdir(parents=True)
    with pytest.raises(GGUFError, match="unreadable"):
        tuned.read()
    with pytest.raises(GGUFError, match="cannot be written"):
        tuned.write(DEVICE, {})
    assert os.listdir(cache.parent) == [cache.name]


def test_room_for_wider_layouts():
    assert tuned.has_room(1000, torch.float16, 1, 4000)
    assert not tuned.has_room(1001, torch.float16, 1, 4000)
    assert tuned.has_room(2000, torch.bfloat16, 2, 4000)
