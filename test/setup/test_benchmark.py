"""What the benchmarks of serving ask."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from ascend_gguf import open_gguf

ROOT = Path(__file__).parents[2]


def test_prompts_are_of_the_models_vocabulary():
    """A token that the model does not have ends a server."""
    # By its path: the tests have a module ``serving`` too.
    spec = spec_from_file_location("benchmark_serving", ROOT / "benchmark" / "serving.py")
    benchmark = module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    path = ROOT / "test" / "data" / "qwen3-dense-Q4_K_M.gguf"
    tokens = benchmark._tokens(path)
    vocabulary = open_gguf(path).metadata["tokenizer.ggml.tokens"]
    assert 200 < len(tokens) <= len(vocabulary)
    assert 0 <= min(tokens) and max(tokens) < len(vocabulary)
    assert set(benchmark.Server("ours", "", 0, tokens).prompt(1000)) <= set(tokens)
