"""Architectures that llama.cpp writes and that are not served: why."""

from __future__ import annotations

#: Reasons of their own.
REFUSED = {"gptj": "llama.cpp has its name, and can neither convert nor run it"}

#: The engine has no class for these (its registry of models, 0.5.23).
WITHOUT_CLASS = frozenset(
    (
        *("arctic", "bitnet", "bloom", "chameleon", "codeshell", "cogvlm"),
        *("falcon", "gptneox", "grovemoe", "jais", "jais2", "maincoder", "maple"),
        *("minimax-01", "mpt", "nemotron", "openelm", "pangu-embedded", "plamo", "plamo3", "plm"),
        *("graniteswitch", "refact", "smallthinker", "talkie"),
        # Encoders.
        *("eurobert", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert"),
        *("nomic-bert-moe", "t5encoder"),
    )
)

#: The engine has a class for these, and there is no table here of their tensors yet.
WITHOUT_TABLE = frozenset(
    (
        *("bailingmoe3", "deepseek4", "dots3note", "glm5-next"),
        *("hrm_text", "kimi-k3", "qwen4exp"),
    )
)


def why_refused(name: str | None) -> str | None:
    """Why an architecture is not served, as a clause; None if nothing is known of it."""
    if name in WITHOUT_CLASS:
        return "SGLang has no class for it"
    if name in WITHOUT_TABLE:
        return "SGLang has a class for it, and ascend-gguf no table of its tensors yet"
    return REFUSED.get(name or "")
