"""``ascend-gguf inspect``: what a file is, whether it is served here, and how it is held."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from math import prod
from typing import Any

from ascend_gguf.architectures import is_reranker
from ascend_gguf.architectures.dimensions import experts, first
from ascend_gguf.desk import text
from ascend_gguf.desk.chips import CPU, NPUS, Chip
from ascend_gguf.desk.source import opened
from ascend_gguf.desk.weights import layout_of, modules_of
from ascend_gguf.errors import GGUFError
from ascend_gguf.generation_config import recommended_sampling
from ascend_gguf.npu.choice import choose
from ascend_gguf.reader import GGUFFile
from ascend_gguf.servable import attends_both_ways, describe_model, reach, refuse_device
from ascend_gguf.tokenizer import check_tokenizer, stop_token_ids

#: ``tokenizer.ggml.KEY_token_id``.
_SPECIAL = ("bos", "eos", "unknown", "padding")
_DTYPE = "bfloat16"


def run(asked: Namespace) -> tuple[dict[str, Any], str, bool]:
    """The command: what was found, as text too, and whether the model is served somewhere."""
    with opened(asked.model, asked.revision) as file:
        facts = inspect(file)
    return facts, lines(facts), True in facts["served"].values()


def inspect(file: GGUFFile) -> dict[str, Any]:
    """Everything about a model that its header says; see ``docs/desk.md``.

    Raises:
        GGUFError: the header is damaged.
    """
    facts = _facts(file)
    served: dict[str, bool | str] = dict.fromkeys(("cpu", "npu", "310P3"), True)
    try:
        config = describe_model(file.path)
        check_tokenizer(file.path)
    except GGUFError as error:
        return facts | {"served": dict.fromkeys(served, _reason(error))}
    for device, dtype in (("npu", _DTYPE), ("310P3", "float16")):  # which has no bfloat16
        try:
            refuse_device(file, config, True, dtype)
        except GGUFError as error:
            served[device] = _reason(error)
    gives = "embeddings" if attends_both_ways(file) else "text"
    return facts | {
        "served": served,
        "gives": "scores of a reranker" if is_reranker(file) else gives,
        "sizes": _sizes(config),
        "sampling": recommended_sampling(file),
        "layouts": _layouts(file, config, NPUS if served["npu"] is True else ()),
    }


def _reason(error: GGUFError) -> str:
    """What serving would end with, without the folder of the file."""
    error.file = None
    return str(error)


def _facts(file: GGUFFile) -> dict[str, Any]:
    metadata = file.metadata
    tensors = list(file.tensors.values())
    counts = Counter(tensor.type.name for tensor in tensors)
    nbytes: Counter[str] = Counter()
    for tensor in tensors:
        nbytes[tensor.type.name] += tensor.nbytes
    tokens = metadata.get("tokenizer.ggml.tokens")
    template = metadata.get("tokenizer.chat_template")
    return {
        "name": metadata.get("general.name"),
        "architecture": metadata.get("general.architecture"),
        "files": len(file.files),
        "weights": sum(prod(tensor.shape) for tensor in tensors),
        "bytes": sum(nbytes.values()),
        "types": {kind: {"tensors": counts[kind], "bytes": n} for kind, n in nbytes.most_common()},
        "vocabulary": {
            "tokens": len(tokens) if isinstance(tokens, list) else 0,
            "model": metadata.get("tokenizer.ggml.model"),
            "pre": metadata.get("tokenizer.ggml.pre"),
        },
        "chat_template": len(template) if isinstance(template, str) else None,
        "special_tokens": _special(file, tokens),
    }


def _special(file: GGUFFile, tokens: Any) -> dict[str, Any]:
    def named(number: object) -> bool:
        return type(number) is int and isinstance(tokens, list) and 0 <= number < len(tokens)

    ids = {key: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in _SPECIAL}
    found: dict[str, Any] = {
        key: {"id": number, "text": tokens[number]} for key, number in ids.items() if named(number)
    }
    if isinstance(tokens, list):
        try:
            stops = sorted(stop_token_ids(file.path))
        except GGUFError:  # said where the tokenizer is checked
            stops = []
        found["end of an answer"] = [{"id": number, "text": tokens[number]} for number in stops]
    return found


def _sizes(config: Any) -> dict[str, Any]:
    names = {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "key_value_heads": "num_key_value_heads",
        "context": "max_position_embeddings",
        "experts": "",
        "experts_of_a_token": "num_experts_per_tok moe_k moe_topk",
        "sliding_window": "sliding_window",
    }
    sizes = {name: first(config, *attributes.split()) for name, attributes in names.items()}
    sizes |= {"experts": experts(config), "served_context": reach(config)}
    return {name: value for name, value in sizes.items() if value}


def _layouts(file: GGUFFile, config: Any, npus: tuple[Chip, ...]) -> list[dict[str, Any]]:
    """For each kind of weight its types, and the layout on each chip."""
    choice = choose({}, file.path)
    modules = [module for _, module in modules_of(file, config)]
    rows: dict[tuple, dict[str, Any]] = {}
    for module, count in Counter(modules).items():
        if all(len(part.shape) == 1 for part in module.parts):
            continue
        held = {chip.name: layout_of(module, chip, choice, _DTYPE) for chip in (CPU, *npus)}
        key = module.name, module.types, tuple(held.values())
        row = rows.setdefault(
            key, {"weight": module.name, "types": module.types, "count": 0, "layouts": held}
        )
        row["count"] += count
    return sorted(rows.values(), key=lambda row: row["weight"])


def lines(facts: dict[str, Any]) -> str:
    """What :func:`inspect` found, for a terminal."""
    parts = [text.table(("", ""), _summary(facts)).lstrip("\n")]
    kinds = [
        (kind, of["tensors"], text.size(of["bytes"]), f"{of['bytes'] / facts['bytes']:.1%}")
        for kind, of in facts["types"].items()
    ]
    parts.append(text.table(("type", "tensors", "bytes", "share"), kinds, (1, 2, 3)))
    reasons: dict[str, list[str]] = {}
    for device, said in facts["served"].items():
        key = f"{device}: served" if said is True else f"not served: {said}"
        reasons.setdefault(key, []).append(device)
    parts.append(
        "\n".join(
            f"{', '.join(devices)}: {said}" if said.startswith("not ") else said
            for said, devices in reasons.items()
        )
    )
    if rows := facts.get("layouts"):
        columns = _alike(rows)
        body = [
            (row["weight"], row["types"], row["count"], *(row["layouts"][c[0]] for c in columns))
            for row in rows
        ]
        head = ("weight", "types", "count", *(", ".join(column) for column in columns))
        parts.append(text.table(head, body, (2,)))
    return "\n\n".join(parts)


def _alike(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Chips in groups with the same layouts."""
    groups: dict[tuple, list[str]] = {}
    for chip in rows[0]["layouts"]:
        groups.setdefault(tuple(row["layouts"][chip] for row in rows), []).append(chip)
    return list(groups.values())


def _summary(facts: dict[str, Any]) -> list[tuple[str, object]]:
    vocabulary, special = facts["vocabulary"], facts["special_tokens"]
    files = "1 file" if facts["files"] == 1 else f"{facts['files']} files"
    template, gives = facts["chat_template"], facts.get("gives", "text")
    summary: list[tuple[str, object]] = [
        ("name", facts["name"] or "not given"),
        ("architecture", facts["architecture"] or "not given"),
        ("weights", f"{facts['weights']:,} in {text.size(facts['bytes'])}, {files}"),
    ]
    sizes = {name.replace("_", " "): n for name, n in facts.get("sizes", {}).items()}
    if sizes:
        context, served = sizes.pop("context"), sizes.pop("served context", None)
        summary.append(("sizes", ", ".join(f"{n} {name}" for name, n in sizes.items())))
        end = f", of which {served:,} are served" if served and served < context else ""
        summary.append(("context", f"{context:,} tokens{end}"))
    kind = " ".join(filter(None, (vocabulary["model"], vocabulary["pre"])))
    summary.append(("vocabulary", f"{vocabulary['tokens']:,} tokens ({kind})"))
    chat = f"{template:,} characters" if template else "none"
    if gives != "text":
        summary.append(("gives", f"{gives}: see docs/features.md"))
    elif not template:
        chat += ": ask it through /v1/completions"
    summary.append(("chat template", chat))
    for name, token in special.items():
        tokens = token if isinstance(token, list) else [token]
        said = ", ".join(f"{one['text']!r} ({one['id']})" for one in tokens[:6])
        summary.append((name, said + ", ..." * (len(tokens) > 6) or "none"))
    if sampling := facts.get("sampling"):
        summary.append(("sampling", ", ".join(f"{name} {n:g}" for name, n in sampling.items())))
    return summary
