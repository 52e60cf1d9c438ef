"""The decode graph of a GGUF model on the CPU."""

from __future__ import annotations

from collections.abc import Callable

from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.model_runner_components.cuda_graph_setup import GraphCapture

from ascend_gguf.srt.model_executor.cpu_graph_runner import GGUFGraphRunner


def capture_decode_graph(original: Callable, *, model_runner: ModelRunner) -> GraphCapture:
    """AROUND the engine's, which has a graph for the CPU only of what ``torch.compile`` makes."""
    captured = original(model_runner=model_runner)
    if captured.runner is not None or not GGUFGraphRunner.serves(model_runner):
        return captured
    return GraphCapture(
        runner=GGUFGraphRunner(model_runner),
        memory_phase=captured.memory_phase,
        memory_usage_gb=0,
        capture_time=0,
    )
