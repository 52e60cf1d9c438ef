"""Stand-in for torchaudio: no CPU build on the index; SGLang imports it for speech models only."""

from ascend_gguf_standins import stand_in_for

stand_in_for("torchaudio", "torchaudio has no CPU build for this torch on the package index.")

#: Older than any version transformers supports, so that it keeps off the torchaudio paths.
__version__ = "0.0.0"
