"""What tests ask a loaded model, in the engine's process: ``probe="probes:NAME"``."""

from __future__ import annotations

from typing import Any

from ascend_gguf.srt.model_loader import resident


def bytes_by_form(model_runner: Any) -> dict[str, int]:
    """Bytes of this rank's weights, by the name of the form that holds them."""
    found: dict[str, int] = {}
    for holding in resident.holdings(model_runner.model):
        found[holding.form] = found.get(holding.form, 0) + holding.nbytes
    return found
