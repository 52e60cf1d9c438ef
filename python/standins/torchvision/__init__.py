"""Stand-in for torchvision: no CPU build on the index; SGLang imports it for image models only."""

from ascend_gguf_standins import stand_in_for

stand_in_for("torchvision", "torchvision has no CPU build for this torch on the package index.")

#: Older than any version transformers supports, so that it keeps off the torchvision paths.
__version__ = "0.0.0"
