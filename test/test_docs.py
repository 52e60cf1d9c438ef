"""The tables of docs/ say what the code does."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ascend_gguf import GGUFError, dequantize
from ascend_gguf.architectures import ARCHITECTURES, REFUSED
from ascend_gguf.architectures.refused import WITHOUT_CLASS, WITHOUT_TABLE
from ascend_gguf.decoders.dequantize import OUTPUT_DTYPES
from ascend_gguf.desk.chips import NPUS
from ascend_gguf.ggml_types import BLOCK_TYPES, BlockType
from ascend_gguf.npu.experts import EXPERT_LAYOUTS
from ascend_gguf.npu.linear import NPUExactLinear, NPULinear
from ascend_gguf.npu.products import CHANNEL, EXPERTS, INT4, INT8, LINEAR, PRODUCTS
from ascend_gguf.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from hf_models import ONE_STAGE, TINY, Tiny
from peers.table import CROSS_ENCODERS, ENCODERS
from random_model import NAMES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

#: Every page, by its path in the repository.
PAGES = {
    str(path.relative_to(ROOT)): path
    for folder in ("", "docs", "python", "test", "benchmark", ".github")
    for path in sorted((ROOT / folder).glob("**/*.md" if folder else "*.md"))
}

#: Where a path in backticks may begin, besides the folder of its page and the engine.
ROOTS = [
    ROOT / folder
    for folder in ("", "python", "python/ascend_gguf", "python/ascend_gguf/srt", "test", "test/srt")
]
#: Of llama.cpp, what a command writes, and placeholders.
ELSEWHERE = (
    "convert_hf_to_gguf.py",
    "conversion/",
    "src/models/",
    "build/",
    "dist/",
    "folder/",
    "hf.co/",
    "huggingface.co/",
)


def _table(file: str, heading: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (DOCS / file).read_text().splitlines()
        if line.startswith("|")
    ]
    start = next(i for i, row in enumerate(rows) if row[0] == heading)
    # The next table, if any, starts two rows before its own line of dashes.
    dashes = [i for i, row in enumerate(rows) if set(row[0]) == {"-"} and i > start + 1]
    return rows[start + 2 : dashes[0] - 1 if dashes else None]


def _decodes(kind: BlockType) -> bool:
    try:
        dequantize(np.zeros((1, kind.type_size), np.uint8), kind.ggml_type)
    except GGUFError:
        return False
    return True


def _where(kind: BlockType) -> list[str]:
    """The file of a type's decoder, and its layouts on an NPU: of linear layers, and of experts."""
    near, exact, experts = (
        next((t.name for t in layouts if t.packing.unsupported_reason(kind) is None), "dense")
        for layouts in (NPULinear.layouts, NPUExactLinear.layouts, EXPERT_LAYOUTS)
    )
    linear = f"`{exact}`" if near == exact else f"`{exact}` or `{near}`"
    return [f"`decoders/{kind.decoder}.py`", linear, f"`{experts}`"]


def test_block_types():
    expected = [
        [kind.name, str(kind.block_size), str(kind.type_size), f"{bits:g}", *_where(kind)]
        for kind in sorted(BLOCK_TYPES.values(), key=lambda k: (k.is_quantized, k.name))
        for bits in [round(8 * kind.type_size / kind.block_size, 4)]
        if _decodes(kind) and (kind.is_quantized or kind.dtype in OUTPUT_DTYPES)
    ]
    table = "\n".join("| " + " | ".join(row) + " |" for row in expected)
    assert _table("quantization.md", "type") == expected, f"the table should be:\n{table}"


def test_ascend_products():
    """The table of ``npu/products.py``: an operator, a form, and what each product says to it."""
    linear = [(LINEAR, form) for form in (INT4, INT8, CHANNEL)]
    columns = [*linear, (EXPERTS, INT4), (EXPERTS, INT8)]
    expected = [
        [product.name, *(product.answers[column].answer for column in columns)]
        for product in PRODUCTS
    ]
    sources = [
        [product.name, f"`{operator}`", form, product.answers[operator, form].source]
        for product in PRODUCTS
        for operator, form in columns
    ]
    table = "\n".join("| " + " | ".join(row) + " |" for row in expected)
    assert _table("ascend_npu.md", "product") == expected, f"the table should be:\n{table}"
    table = "\n".join("| " + " | ".join(row) + " |" for row in sources)
    assert _table("ascend_npu.md", "source of") == sources, f"the table should be:\n{table}"


def _cell(device: str, tested: list[Tiny]) -> str:
    """Whether the tests of an architecture run on a device, and why some do not."""
    refused = sorted({tiny.refused[device] for tiny in tested if device in tiny.refused})
    runs = not tested or any(device not in tiny.refused for tiny in tested)
    return "; ".join(
        ["yes"] * runs + [f"{'but' if runs else 'no:'} {reason}" for reason in refused]
    )


def _stages(tested: list[str]) -> str:
    """Which shapes of an architecture run on several stages of a pipeline."""
    staged = [name for name in tested if name not in ONE_STAGE]
    if len(staged) == len(tested):
        return "yes"
    return f"yes, but {', '.join(sorted(set(tested) - set(staged)))}" if staged else "no"


def test_architectures():
    expected = []
    for name in sorted({architecture.name for architecture in ARCHITECTURES}):
        if name in ENCODERS:  # peers/test_peers.py
            shapes = [*ENCODERS[name], *(CROSS_ENCODERS if name == "bert" else ())]
            expected.append([f"`{name}`", ", ".join(shapes), "yes", "yes", "no"])
            continue
        tested = {shape: tiny for shape, tiny in TINY.items() if tiny.arch == name}
        assert tested or name in NAMES, f"no test of {name}"
        shapes = ", ".join(tested or [name])
        models = list(tested.values())
        cells = [_cell("cpu", models), _cell("npu", models), _stages(list(tested))]
        expected.append([f"`{name}`", shapes, *cells])
    expected += [[f"`{name}`", "", f"no: {why}", f"no: {why}", ""] for name, why in REFUSED.items()]
    expected.sort()
    table = "\n".join("| " + " | ".join(row) + " |" for row in expected)
    assert _table("models.md", "`general.architecture`") == expected, f"it should be:\n{table}"


@pytest.mark.parametrize("names", [WITHOUT_CLASS, WITHOUT_TABLE], ids=["class", "table"])
def test_refused_architectures(names):
    listed = ", ".join(f"`{name}`" for name in sorted(names))
    text = " ".join((ROOT / "docs/models.md").read_text().split())
    assert listed in text, listed


def test_pre_tokenizers():
    listed = [name for row in _table("tokenizers.md", "names of one rule") for name in row[:1]]
    names = re.findall("`([^`]+)`", " ".join(listed))
    assert sorted(names) == sorted(PRE_TOKENIZERS)


def test_chips():
    rows = [[chip.name, f"{chip.memory:g}", chip.source] for chip in NPUS]
    assert _table("desk.md", "chip") == rows


def test_hooks():
    from ascend_gguf.srt import plugin  # imports the engine: seconds

    rows = _table("architecture.md", "engine file (`sglang/srt/…`)")
    hooks = plugin.HOOKS + plugin.SERVER_HOOKS + plugin.NPU_HOOKS
    listed = [(row[0].strip("`"), row[1].strip("`")) for row in rows]
    assert sorted(listed) == sorted(
        (f"{module.replace('.', '/')}.py", target) for module, target, _ in hooks
    )
    assert all(why and until for _, _, why, until in rows)


def test_overrides():
    from ascend_gguf.srt import overrides

    rows = _table("architecture.md", "engine class (`sglang/srt/…`)")
    listed = {
        (file, f"{cls}.{method}")
        for where, methods, _ in rows
        for file, *classes in [re.findall("`([^`]+)`", where)]
        for cls in classes
        for method in re.findall("`([^`]+)`", methods)
    }
    assert listed == {
        (f"{module.replace('.', '/')}.py", target)
        for module, target, _ in overrides.OVERRIDES + overrides.NPU_OVERRIDES
    }


def test_repairs():
    from ascend_gguf.srt.models.repairs import REPAIRS, REPLACED

    rows = _table("architecture.md", "engine class (`sglang/srt/models/…`)")
    assert [row[0].strip("`") for row in rows] == sorted([*REPAIRS, *REPLACED])


def _anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links(name):
    """Links between pages lead to a file, and to a heading of it."""
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", PAGES[name].read_text()):
        path, _, anchor = link.partition("#")
        page = (PAGES[name].parent / path).resolve() if path else PAGES[name]
        assert page.exists(), link
        assert not anchor or anchor in _anchors(page), link


@pytest.mark.parametrize("name", PAGES)
def test_paths(name):
    """Files, folders and tests that are named in backticks exist."""
    engine = Path(find_spec("sglang").origin).parent
    roots = [
        PAGES[name].parent,
        *ROOTS,
        engine.parent,
        engine,
        engine / "srt",
        engine / "srt/models",
    ]
    text = re.sub(r"^```.*?^```", "", PAGES[name].read_text(), flags=re.M | re.S)
    names = re.findall(r"`([\w./-]+(?:\.py|\.md|\.toml|/))(?:::(\w+)(?:\[[^`]*\])?)?`", text)
    for path, function in names:
        if path.startswith(ELSEWHERE):
            continue
        found = next((root / path for root in roots if (root / path).exists()), None)
        if path.startswith("test_") and found is None:  # somewhere below, as the page says
            found = next((ROOT / "test/srt").rglob(path), None)
        assert found is not None, path
        assert not function or f"def {function}(" in found.read_text(), f"{path}::{function}"


@pytest.mark.parametrize("name", PAGES)
def test_selections(name):
    """What a command selects with ``-k`` is there."""
    tests = [str(path.relative_to(ROOT)) for path in (ROOT / "test").rglob("test_*.py")]
    for words in re.findall(r"ARGS=[\"']-k '?([^\"'`]+)", PAGES[name].read_text()):
        for word in set(words.split()) - {"and", "or", "not", "-rP"}:
            assert any(word in test for test in [*tests, *TINY]), word


@pytest.mark.parametrize(
    "page, sources",
    [
        (
            "adding-a-model.md",
            ["architectures/others.py", "architectures/parts.py", "../../test/hf_models/table.py"],
        ),
        ("quantization.md", ["decoders/legacy.py", "ggml_types.py"]),
    ],
)
def test_examples(page, sources):
    """Lines of Python in a page are lines of the code."""
    package = ROOT / "python" / "ascend_gguf"
    code = "".join((package / source).read_text() for source in sources)
    lines = {line.strip() for line in code.splitlines()}
    for example in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.S):
        for line in example.splitlines():
            assert line.split("  #")[0].strip() in lines, line


def test_pictures_show_the_tables(monkeypatch):
    """``make bench ARGS=--plot`` draws them again."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmark"))
    pictures = import_module("_pictures")
    for name in pictures.PICTURES:
        assert Image.open(DOCS / name).text["Description"] == repr(pictures.numbers(name))
