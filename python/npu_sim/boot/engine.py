"""What SGLang needs beyond torch_npu, put in place once torch_npu is imported."""

from __future__ import annotations

from .around_import import AroundImport


def install() -> None:
    AroundImport.of("torch_npu.dynamo.trace_rule", _drop_duplicate_trace_rules)
    AroundImport.of("triton.runtime.interpreter", _run_triton_on_the_device)
    AroundImport.of("sglang.srt.model_executor.model_runner", _record_forward_passes)


def _drop_duplicate_trace_rules(trace_rule) -> None:
    """Four functions that torch 2.13 lists under torch.cuda with another rule.

    SGLang's transfer_to_npu makes torch.cuda's random functions the objects of torch.npu, and two
    rules for one object are an error that keeps the engine's model modules from importing.
    """
    for name in ("manual_seed", "manual_seed_all", "seed", "seed_all"):
        trace_rule.torch_non_c_binding_in_graph_functions_npu.pop(f"torch.npu.random.{name}", None)


def _run_triton_on_the_device(interpreter) -> None:
    from npu_sim.runtime import triton

    triton.install(interpreter)


def _record_forward_passes(model_runner) -> None:
    from npu_sim import recorder

    recorder.record_engine(model_runner)
