"""Forks servers on request: the process behind :class:`serving.Zygote`.

Takes orders at a socket (arguments, environment, log; routes, engine or resolver where they are
wanted), forks a server, an engine without one (:mod:`forked_engine`) or a :mod:`resolver`, and
answers with its process id.  A number is a question: the exit status of that process, or None while
it runs.  Ends when nobody is connected any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import multiprocessing
import multiprocessing.util
import os
import signal
import socket
import sys
import tempfile
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

#: What the engine imports once it starts, beside all that the server's modules import.
_IMPORTED_LATE = (
    *(f"arg_groups.{name}_hook" for name in (
        "attention", "cp_tp_group_sharing", "cuda_graph", "dllm", "expert_pack", "hicache",
        "hisparse", "layernorm_sp", "lora", "mamba", "mega_moe", "memory", "moe", "parallel",
        "pd_disaggregation", "platform", "speculative",
    )),
    *(f"distributed.device_communicators.{name}" for name in (
        "custom_all_reduce", "hpu_communicator", "pcie_ipc_ar", "pymscclpp", "torch_symm_mem",
        "xpu_communicator",
    )),
    "arg_groups.boundary_reduction",
    "dllm.algorithm",
    "layers.attention.deepseek_v4_backend",
    "layers.attention.qsa.config",
    "mem_cache.rust_tree_core.adapter",
    "model_loader.expert_pack_config",
    "rust_extensions.torch_build",
)  # fmt: skip
_IMPORTED_LATE_ON_AN_NPU = (
    "hardware_backend.npu.graph_runner.npu_cudagraph_backend",
    "hardware_backend.npu.memory_pool_npu",
)

#: Tokens decoded in a step, at the most; prompts whose routes are recorded are longer.
MOST_DECODED = 16

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _allow_forked_npu(_: object = None) -> None:
    """Let a forked process use the simulated NPU, which is plain memory of that process.

    Importing the engine touches the device, and torch_npu then refuses it in children: a real
    driver would not survive the fork.
    """
    if "torch_npu" in sys.modules:
        sys.modules["torch_npu.npu"]._is_internal_in_bad_fork = False


def _record_routes(folder: str) -> None:
    """Save the experts of each token of a prompt: ``LAYER.npy``, ``[tokens, k]``.

    The engine's own ``--enable-return-routed-experts`` needs a CUDA runtime.
    """
    import numpy as np
    from sglang.srt.layers.moe import topk

    def record(topk_config, layer_id, topk_ids):
        is_prompt = topk_ids.shape[0] > MOST_DECODED  # else a step of decoding, or its graph
        if is_prompt and topk_config.allow_routed_experts_capture:
            np.save(os.path.join(folder, f"{layer_id}.npy"), topk_ids.cpu().numpy())

    for module in (topk, sys.modules.get("sglang.srt.hardware_backend.npu.moe.topk")):
        if module is not None:
            module.capture_routed_experts_if_allowed = record


def listen_to_interrupts() -> None:
    """As a command in the foreground does: what a shell starts in the background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _serve(order: dict, begins: int) -> None:
    """Do what is ordered; ``begins`` is a pipe that is closed once group and log are there."""
    os.setsid()
    listen_to_interrupts()
    # A test run that is killed takes its servers along.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.close(begins)
    os.environ.update(order["environment"])
    tempfile.tempdir = None  # as the environment says
    if threads := order["environment"].get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(int(threads))  # OpenMP has read its environment long ago

    _allow_forked_npu()

    if order.get("routes"):
        _record_routes(order["routes"])
    if "engine" in order:
        from forked_engine import serve

        return serve(order["arguments"], **order["engine"])
    if "resolver" in order:
        from forked_resolver import serve

        return serve(order["resolver"])

    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args

    run_server(prepare_server_args(order["arguments"]))


def _compile_kernels(on_npu: bool) -> None:
    """What nearly every server computes with: compiled here, so that none has to."""
    import torch

    from ascend_gguf.cpu import gemm, gemv, paged_attention, row_ops
    from ascend_gguf.decoders import rows
    from ascend_gguf.ggml_types import BLOCK_TYPES
    from ascend_gguf.npu import conversion
    from ascend_gguf.npu.int8 import Int8
    from ascend_gguf.npu.transpose import transposer

    dtype = torch.float16 if on_npu else torch.float32
    of = {kind.name: kind for kind in BLOCK_TYPES.values()}
    rows.kernel(of["F32"], dtype)
    if on_npu:
        transposer(8, 0)
        for name in ("Q5_0", "Q5_1", "Q8_0"):
            conversion.kernel(of[name], Int8.packing, dtype, name == "Q5_1")
        return
    for name in ("Q4_0", "Q4_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0"):
        rows.kernel(of[name], dtype)
        gemm.kernel(of[name], dtype, dtype)
        for columns in (1, 3):
            gemv.kernel(of[name], dtype, dtype, columns)
    for adds in (False, True):
        row_ops._rms_norm(128, dtype, dtype, adds, False)
    for head_size in (32, 64):
        paged_attention._attend(dtype, dtype, False, 2, head_size, head_size)


def main(address: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    _import_everything()
    users: list[Connection] = []
    ended: dict[int, int] = {}  # process id to exit status
    while True:
        for ready in wait([listener, *users]):
            if ready is listener:
                users.append(Connection(listener.accept()[0].detach()))
                continue
            try:
                order = ready.recv()
            except EOFError:
                users.remove(ready)
                continue
            _reap(ended)
            if isinstance(order, int):
                ready.send(ended.get(order))
                continue
            begun, begins = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(begun)
                listener.close()
                for user in users:
                    user.close()
                _run(order, begins)
            os.close(begins)
            os.read(begun, 1)  # Its group and its log are there, or it has ended.
            os.close(begun)
            ready.send(pid)
        if not users:
            Path(address).unlink(missing_ok=True)
            if not wait([listener], 0):  # nobody came before that
                return


def _reap(ended: dict[int, int]) -> None:
    """Note the exit status of each process that has ended: negative where a signal ended it."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])


def _run(order: dict, begins: int) -> None:
    """Does not return."""
    status: Any = 1
    try:
        _serve(order, begins)
        status = 0
    except SystemExit as end:
        status = end.code
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


def _import_everything() -> None:
    """What servers and engines import, so that none has to."""
    import sglang.launch_server  # noqa: F401
    import sglang.srt.arg_groups.pipeline  # noqa: F401
    import sglang.srt.distributed.device_communicators.shm_broadcast  # noqa: F401
    import sglang.srt.entrypoints.http_server  # noqa: F401
    import sglang.srt.managers.detokenizer_manager  # noqa: F401
    import sglang.srt.managers.scheduler  # noqa: F401
    from sglang.srt.models.registry import ModelRegistry  # noqa: F401  imports every model
    from sglang.srt.plugins import load_plugins

    import kernel_cache

    on_npu = "torch_npu" in sys.modules
    for name in _IMPORTED_LATE + (_IMPORTED_LATE_ON_AN_NPU if on_npu else ()):
        # Of what is not here, or not for this torch.
        with contextlib.suppress(ImportError, RuntimeError):
            importlib.import_module(f"sglang.srt.{name}")
    kernel_cache.install()
    # Once for all servers: the engine looks through every module for each hook.
    load_plugins()
    if "ascend_gguf.srt.plugin" in sys.modules:  # not in an engine that is to be alone
        _compile_kernels(on_npu)
    # The engine asks for it again and again; looking through every folder takes as long.
    sys.modules["vllm"] = None

    # The engine asks for spawn, which would import everything again in each process.
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.set_start_method = lambda *args, **kwargs: None
    multiprocessing.util.register_after_fork(_allow_forked_npu, _allow_forked_npu)

    # Else each forked process searches through, and so copies, what has been imported here.
    gc.collect()
    gc.freeze()
    gc.unfreeze = lambda: None  # which the engine calls when it has captured graphs


if __name__ == "__main__":
    main(sys.argv[1])
