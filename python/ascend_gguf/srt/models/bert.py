"""The embeddings of BERT's tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class _NoTypes(nn.Module):
    """Adds nothing to a token: DistilBERT knows no types."""

    def forward(self, types: torch.Tensor) -> torch.Tensor:
        return torch.zeros((), device=types.device)


def repair_embedding(embedding: Any, config: Any) -> None:
    """``BertEmbedding``: parameters that nothing uses, and no file has values for."""
    del embedding.position_ids
    if not config.type_vocab_size:
        embedding.token_type_embeddings = _NoTypes()
