"""Heads of classification: of a reranker, instead of an output matrix."""

from __future__ import annotations

from ascend_gguf.architectures.base import Rename
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.reader import GGUFFile

#: The last matrix of every head, whose rows are labels.
OUTPUT = "cls.output.weight"

#: Of a decoder, which is nothing else.
DECODER_HEAD = Rename(OUTPUT, "labels hidden", "score.weight")

#: Of an encoder: the first token's vector through a layer with tanh, as XLM-RoBERTa's.
ENCODER_HEAD = tuple(
    Rename(f"{gguf}.{kind}", shape[kind], f"{hf}.{kind}", dense=True)
    for gguf, hf, shape in (
        ("cls", "bert.pooler.dense", {"weight": "hidden hidden", "bias": "hidden"}),
        ("cls.output", "classifier", {"weight": "labels hidden", "bias": "labels"}),
    )
    for kind in ("weight", "bias")
)

_RERANKERS = ("bert", "qwen3", "qwen3vl")

#: ``gguf.PoolingType``.
_RANK = 4


def is_reranker(file: GGUFFile) -> bool:
    """True for a model with a classification head instead of an output matrix."""
    if file.architecture not in _RERANKERS or OUTPUT not in file.tensors:
        return False
    pooling = file.arch_field("pooling_type", _RANK)
    return type(pooling) is int and pooling == _RANK


def labels(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``id2label`` and ``label2id``: the names of the head's rows."""
    head = file.tensors[OUTPUT]
    count = head.shape[0] if len(head.shape) == 2 else 1
    names = file.arch_field("classifier.output_labels", None)
    if names is None:
        names = [f"LABEL_{i}" for i in range(count)]
    if not isinstance(names, list) or len(names) != count:
        raise file.error(
            "the classification head does not have one row per label",
            "classifier.output_labels",
            found=f"{names!r:.80}",
            expected=f"{count} names, the rows of {OUTPUT}",
        )
    return {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
