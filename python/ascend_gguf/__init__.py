"""GGUF models on Huawei Ascend NPUs and CPUs.

The library half: GGUF files, block types, model configurations and kernels.  It knows nothing of
any engine.  The patch that plugs it into SGLang is :mod:`ascend_gguf.srt`.
"""

from __future__ import annotations

__version__ = "0.1.0"

# Public name -> module that defines it.  Imported on first use: the engine loads this package in
# every process it starts, and most of them never touch a file.
_EXPORTS = {
    "GGUFError": "ascend_gguf.errors",
    "GGUFFile": "ascend_gguf.reader",
    "GGUFTensor": "ascend_gguf.reader",
    "BlockTensor": "ascend_gguf.weights.block_tensor",
    "dequantize": "ascend_gguf.decoders.dequantize",
    "load_config": "ascend_gguf.config",
    "load_generation_config": "ascend_gguf.generation_config",
    "load_tokenizer": "ascend_gguf.tokenizer",
    "open_gguf": "ascend_gguf.reader",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
