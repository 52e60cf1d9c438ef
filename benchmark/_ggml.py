"""ggml's own C decoders, built from the source of llama-cpp-python for comparison."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

RELEASE = "llama-cpp-python==0.3.36"

#: ggml-base's default build (only ggml-cpu gets -march=native), and one for this processor.
FLAGS = {"as released": ["-O3", "-DNDEBUG"], "native": ["-O3", "-DNDEBUG", "-march=native"]}


def folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "ascend_gguf_benchmark"


class Ggml:
    """A library of ggml's decoders.

    Raises:
        OSError, subprocess.CalledProcessError: it cannot be built (no network, no C compiler).
    """

    def __init__(self, build: str) -> None:
        library = folder() / f"ggml-{RELEASE[-6:]}-{build.replace(' ', '-')}.so"
        if not library.exists():
            _build(library, FLAGS[build])
        self._library = ctypes.CDLL(str(library), os.RTLD_LAZY)

    def decoder(self, name: str) -> Callable[[int, int, int], None] | None:
        """To float32: addresses of the blocks and of the result, number of weights."""
        plain = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}
        family, _, suffix = name.lower().partition("_")
        symbol = plain.get(name) or f"dequantize_row_{family}_{suffix.replace('k', 'K')}".rstrip(
            "_"
        )
        function = getattr(self._library, symbol, None)
        if function is not None:
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
            function.restype = None
        return function


def _build(library: Path, flags: list[str]) -> None:
    sources = folder() / "ggml"
    if not sources.exists():
        _download(sources)
    # ggml's backends are not built: these two files refer to them, but never call them.
    subprocess.run(
        [
            os.environ.get("CC", "cc"), *flags, "-std=gnu11", "-D_GNU_SOURCE", "-shared", "-fPIC",
            "-I", sources, "-I", sources / "include", "-I", sources / "src",
            sources / "src" / "ggml-quants.c", sources / "src" / "ggml.c", "-lm", "-o", library,
        ],
        check=True, capture_output=True,
    )  # fmt: skip


def _download(sources: Path) -> None:
    print(f"fetching {RELEASE} for ggml's C code ...", file=sys.stderr)
    sources.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=sources.parent) as temporary:
        subprocess.run(
            [
                sys.executable, "-m", "pip", "download", "-q", "--no-deps",
                "--no-binary", "llama-cpp-python", "-d", temporary, RELEASE,
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        (archive,) = Path(temporary).glob("*.tar.gz")
        top = archive.name.removesuffix(".tar.gz")
        with tarfile.open(archive) as tar:
            wanted = f"{top}/vendor/llama.cpp/ggml/"
            members = [
                m for m in tar if m.name.startswith(wanted) and m.name.endswith((".c", ".h"))
            ]
            tar.extractall(temporary, members, filter="data")
        unpacked = Path(temporary) / top / "vendor" / "llama.cpp" / "ggml"
        (unpacked / "ggml-version.h").write_text(
            '#define GGML_VERSION "0"\n#define GGML_COMMIT "0"\n'
        )
        unpacked.rename(sources)
