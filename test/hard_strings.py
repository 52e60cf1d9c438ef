"""Strings that tokenizers get wrong, and the tokens that llama.cpp makes of them.

``data/real/hard_strings.json`` holds both: rows of a string and its tokens in each model of
``real_models.py``.  ``python test/hard_strings.py`` computes the tokens again, of rows with the
string alone too: it fetches llama.cpp's source (``make/fetch.py``), compiles its vocabulary where
that lies, which takes a C++ compiler and two minutes, and asks it.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from real_models import DATA, MODELS, fetch

STRINGS = DATA / "hard_strings.json"

# What refers to the rest of llama.cpp is never called.
_GLUE = """
#include "llama-model-loader.h"
#include "llama-vocab.h"
extern "C" void * vocabulary(const char * path) {
    std::vector<std::string> splits;
    auto * loader = new llama_model_loader(nullptr, nullptr, nullptr, path, splits, nullptr,
        LLAMA_LOAD_MODE_NONE, false, true, false, nullptr, nullptr);
    auto * vocabulary = new llama_vocab();
    vocabulary->load(*loader, loader->llm_kv);
    return vocabulary;
}
extern "C" int tokens(void * vocabulary, const char * text, int bytes, int * ids, int most) {
    return ((llama_vocab *) vocabulary)->tokenize(text, bytes, ids, most, false, true);
}
"""
_SOURCES = (
    *("src/llama-vocab.cpp", "src/llama-model-loader.cpp", "src/llama-arch.cpp"),
    *("src/llama-impl.cpp", "src/llama-mmap.cpp", "src/unicode.cpp", "src/unicode-data.cpp"),
    *("ggml/src/gguf.cpp", "ggml/src/ggml.c", "ggml/src/ggml-quants.c"),
    "ggml/src/ggml-threading.cpp",
)


def llama_cpp(folder: Path) -> Callable[[Path], Callable[[str], list[int]]]:
    """llama.cpp's tokenizer of a model, compiled in ``folder``.

    Raises:
        fetch.FetchError, subprocess.CalledProcessError: there is no source, or no compiler.
    """
    source, glue, objects = fetch.llama_cpp(), folder / "glue.cpp", []
    glue.write_text(_GLUE)
    (folder / "ggml-version.h").write_text('#define GGML_VERSION ""\n#define GGML_COMMIT ""\n')
    parts = (source / part for part in ("src", "include", "ggml/include", "ggml/src"))
    headers = [f"-I{path}" for path in (folder, *parts)]
    for file in (glue, *(source / name for name in _SOURCES)):
        compiler = ["cc"] if file.suffix == ".c" else ["c++", "-std=c++17"]
        objects.append(folder / f"{file.stem}.o")
        options = ["-O1", "-fPIC", "-D_GNU_SOURCE", *headers]
        subprocess.run([*compiler, *options, "-c", file, "-o", objects[-1]], check=True)
    library = folder / "vocabulary.so"
    subprocess.run(["c++", "-shared", *objects, "-o", library], check=True)
    code = ctypes.CDLL(str(library), os.RTLD_LAZY)
    code.vocabulary.restype = ctypes.c_void_p

    def tokenizer(model: Path) -> Callable[[str], list[int]]:
        vocabulary = ctypes.c_void_p(code.vocabulary(str(model).encode()))

        def tokens(text: str) -> list[int]:
            data = text.encode()
            ids = (ctypes.c_int * (len(data) + 8))()
            return list(ids[: code.tokens(vocabulary, data, len(data), ids, len(ids))])

        return tokens

    return tokenizer


def main() -> None:
    strings = [row[0] for row in json.loads(STRINGS.read_text())]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = llama_cpp(Path(folder))
        columns = [map(tokenizer(model.path), strings) for model in MODELS.values()]
        rows = [
            json.dumps(row, separators=(",", ":")) for row in zip(strings, *columns, strict=True)
        ]
    STRINGS.write_text("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    main()
