"""The embeddings of BERT's tokens."""

from __future__ import annotations

from typing import Any


def drop_positions(embedding: Any, config: Any) -> None:
    """``BertEmbedding``: it has a parameter that nothing uses, and no file has a value for."""
    del embedding.position_ids
