"""The half of :mod:`engine_process` that runs in a forked process."""

from __future__ import annotations

from importlib import import_module
from multiprocessing.connection import Client
from typing import Any


def serve(arguments: list[str], address: str, probe: str) -> None:
    """The engine on one model, in a forked process: answers until the other side hangs up."""
    connection = Client(address, family="AF_UNIX")
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.server_args import prepare_server_args

    if probe:
        _probe_each_rank(probe)
    engine = Engine(server_args=prepare_server_args(arguments))
    connection.send([info.get("probe") for info in engine._scheduler_init_result.scheduler_infos])
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            if "embed" in request:
                connection.send(_embed(engine, request["embed"]))
            else:
                connection.send(engine.generate(**request))
        except Exception as error:
            connection.send(error)


def _embed(engine: Any, input_ids: list[list[int]]) -> Any:
    from sglang.srt.managers.io_struct import EmbeddingReqInput

    # ``Engine.encode`` takes text alone.
    asked = EmbeddingReqInput(input_ids=input_ids)
    answers = engine.tokenizer_manager.generate_request(asked, None)
    return engine.loop.run_until_complete(answers.__anext__())


def _probe_each_rank(probe: str) -> None:
    """Have each rank tell what ``probe`` finds as part of what it tells when it is ready."""
    from sglang.srt.managers.scheduler import Scheduler

    module, _, name = probe.partition(":")
    function = getattr(import_module(module), name)
    original = Scheduler.get_init_info

    def get_init_info(self: Any) -> dict[str, Any]:
        return original(self) | {"probe": function(self.tp_worker.model_runner)}

    Scheduler.get_init_info = get_init_info
