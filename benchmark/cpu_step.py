"""Operations of a step on the CPU besides matmul: the engine's and ours.

Milliseconds of CPU time of one thread, so that other processes of a busy machine do not count.  For
all layers of a model of Qwen3-0.6B's shape in bfloat16; the engine's and ours take turns; the
fastest rounds of each.  With ``--model file.gguf`` also whole steps of that model, with the time in
matmul shown separately, and replayed by the decode graph.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

import numpy as np
import torch

LAYERS, HIDDEN, FFN, VOCABULARY = 28, 1024, 3072, 151936
HEADS, KV_HEADS, HEAD_SIZE = 16, 8, 128
DTYPE = torch.bfloat16
#: Steps that are not measured: kernels are compiled, the graph is captured and compared.
WARM = 3
#: Requests with one new token each and their cached tokens; or new tokens of one request and 0.
STEPS = {
    "1 request, 512 tokens": (1, 512),
    "16 requests, 300 tokens": (16, 300),
    "prompt of 512": (512, 0),
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="cpu_step", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="for each (%(default)s)")
    parser.add_argument("--model", help="a GGUF file: measure whole steps of it too")
    options = parser.parse_args(arguments)

    from sglang.srt.plugins import load_plugins

    load_plugins()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _print_operations(options.rounds)
    if options.model:
        _print_steps(options.model, options.rounds)
    torch.set_num_threads(threads)


@contextmanager
def _kernels(on: bool) -> Iterator[None]:
    """With our operations on the CPU, or the engine's."""
    from ascend_gguf.srt import device

    with mock.patch.object(device, "_serves_gguf", on):
        yield


def _print_operations(rounds: int) -> None:
    from sglang.srt.runtime_context import get_context

    override = get_context().override_server_args(device="cpu")
    override.install()
    print("| step | operation | engine | ours | engine : ours |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name, sizes in STEPS.items():
        for operation, (calls, run) in _operations(*sizes).items():
            best = {True: np.inf, False: np.inf}
            for i in range(2 * rounds + 2):  # the first of each compiles
                with _kernels(bool(i % 2)):
                    start = time.process_time()
                    run()
                    taken = time.process_time() - start
                if i > 1:
                    best[bool(i % 2)] = min(best[bool(i % 2)], 1e3 * calls * taken)
            engine, ours = best[False], best[True]
            print(f"| {name} | {operation} | {engine:.2f} | {ours:.2f} | {engine / ours:.1f} |")
    override.restore()


def _operations(tokens: int, before: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name -> calls per step, and the engine's function on inputs of that size."""
    from sglang.srt.layers.activation import SiluAndMul
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
    from sglang.srt.layers.sampler import (
        sampling_from_probs_torch,
        top_k_top_p_min_p_sampling_from_probs_torch,
    )

    torch.manual_seed(0)
    x, residual = torch.randn(2, tokens, HIDDEN).to(DTYPE)
    sizes = [heads * HEAD_SIZE for heads in (HEADS, KV_HEADS, KV_HEADS)]
    qkv = torch.randn(tokens, sum(sizes)).to(DTYPE)
    query, key, value = qkv.split(sizes, -1)
    gate_up = torch.randn(tokens, 2 * FFN).to(DTYPE)
    norm, head_norm = RMSNorm(HIDDEN).to(DTYPE), RMSNorm(HEAD_SIZE).to(DTYPE)
    rope = RotaryEmbedding(HEAD_SIZE, HEAD_SIZE, 4096, 1e6, True, DTYPE)
    # A prompt is one request; otherwise each token belongs to a request of its own.
    requests, length = (tokens, before) if before else (1, tokens)
    caches = torch.randn(2, requests * length, KV_HEADS, HEAD_SIZE).to(DTYPE)
    slots = torch.randperm(requests * length).view(requests, length).int()
    lengths, ids = torch.full((requests,), length), torch.arange(requests)
    backend = TorchNativeAttnBackend.__new__(TorchNativeAttnBackend)
    backend.ascend_gguf_extras = {}
    heads = query.reshape(tokens, HEADS, HEAD_SIZE)
    attention = [backend, heads, torch.empty_like(heads), *caches, slots, ids, lengths]
    attend = TorchNativeAttnBackend._run_sdpa_forward_decode
    if not before:
        attend = TorchNativeAttnBackend._run_sdpa_forward_extend
        attention += [torch.zeros_like(lengths), lengths]
    attention.append(None)  # no encoder
    scaling = {"scaling": HEAD_SIZE**-0.5, "enable_gqa": True, "causal": not before}
    probs = torch.softmax(torch.randn(requests, VOCABULARY) * 6, -1)
    ks, ps = torch.full((requests,), 1 << 30), torch.full((requests,), 0.9)

    def norm_heads() -> None:
        for part in (query, key):
            head_norm.forward_native(part.reshape(-1, HEAD_SIZE))

    def top_p() -> None:
        top_k_top_p_min_p_sampling_from_probs_torch(probs, ks, ps, ps, False, None, None)

    return {
        "RMSNorm and addition": (2 * LAYERS, lambda: norm.forward_native(x, residual)),
        "RMSNorm of queries and keys": (LAYERS, norm_heads),
        "rotary embedding": (
            LAYERS,
            lambda: rope.forward_native(torch.arange(tokens), query, key),
        ),
        "attention": (LAYERS, lambda: attend(*attention, **scaling)),
        "SiLU and product": (LAYERS, lambda: SiluAndMul.forward_native(SiluAndMul(), gate_up)),
        "sampling": (1, lambda: sampling_from_probs_torch(probs)),
        "sampling, top-p 0.9": (1, top_p),
    }


def _print_steps(model: str, rounds: int) -> None:
    from sglang.benchmark import one_batch
    from sglang.srt.server_args import PortArgs, ServerArgs

    from ascend_gguf.cpu.linear import BlocksLinear

    arguments = ServerArgs(
        model_path=model,
        quantization="gguf",
        device="cpu",
        dtype="bfloat16",
        attention_backend="torch_native",
        max_total_tokens=16384,
        mem_fraction_static=0.3,
        disable_radix_cache=True,
    )
    arguments.resolve_once()
    one_batch._set_envs_and_config(arguments)
    ranks = one_batch.SpawnRanks(
        world_rank=one_batch.spawn_world_rank(arguments, tp_rank=0, pp_rank=0), gpu_id=0
    )
    one_batch.publish(arguments, role="scheduler", ranks=ranks)
    one_batch._init_process_global_configs()
    runner, _ = one_batch.load_model(arguments, PortArgs.init_new(arguments), 0, 0)

    in_matrices, linear = 0.0, BlocksLinear.linear

    def timed_linear(*args, **kwargs) -> torch.Tensor:
        nonlocal in_matrices
        start = time.process_time()
        result = linear(*args, **kwargs)
        in_matrices += time.process_time() - start
        return result

    def prompt(requests: int, tokens: int) -> tuple:
        runner.clear()
        ids = np.random.default_rng(0).integers(3, 500, (requests, tokens)).tolist()
        batch = one_batch.prepare_synthetic_inputs_for_latency_test(requests, tokens, ids)
        return runner.extend(batch)

    # Whose operations, and the graph runner that replays them.
    replays = runner.torch_runner.decode_cuda_graph_runner
    ways = {"engine": (False, None), "ours": (True, None), "replayed": (True, replays)}

    print(f"\n{os.path.basename(model)}: whole steps.\n")
    print("| step | engine: all | matrices | rest | ours: all | matrices | rest | replayed: all |")
    print("| --- " + "| ---: " * 7 + "|")
    with mock.patch.object(BlocksLinear, "linear", timed_linear):
        for name, (tokens, before) in STEPS.items():
            if before:
                with _kernels(True):
                    ids, _, batch = prompt(tokens, before)
            best: dict[str, tuple[float, float]] = {}
            for i in range(-WARM, rounds):
                for way, (is_ours, graph_runner) in ways.items():
                    runner.torch_runner.decode_cuda_graph_runner = graph_runner
                    in_matrices, start = 0.0, time.process_time()
                    with _kernels(is_ours):
                        if before:
                            ids, _ = runner.decode(ids, batch)
                        elif graph_runner is None:
                            prompt(1, tokens)
                    taken = 1e3 * (time.process_time() - start), 1e3 * in_matrices
                    if i >= 0:
                        best[way] = min(best.get(way, taken), taken)
            cells = [
                f"{t:.1f} | {m:.1f} | {t - m:.1f}" for t, m in map(best.get, ("engine", "ours"))
            ]
            cells.append(f"{best['replayed'][0]:.1f}" if before else "")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print()
