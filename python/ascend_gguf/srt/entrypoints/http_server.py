"""Coming and going of a server: its port, its temporary files, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import multiprocessing.process
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil
from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.entrypoints.engine import init_tokenizer_manager
from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.srt.managers.io_struct import AbortReq, GenerateReqInput
from sglang.srt.managers.load_snapshot import shm_path_for
from sglang.srt.managers.tokenizer_manager import SignalHandler, TokenizerManager
from sglang.srt.parser.reasoning_parser import ReasoningParser
from sglang.srt.utils import configure_logger, kill_process_tree
from sglang.srt.utils.hf_transformers.common import check_gguf_file

from ascend_gguf.errors import GGUFError
from ascend_gguf.requests import RequestError, check_body
from ascend_gguf.srt.entrypoints.errors import answer_in_one_line, in_one_line
from ascend_gguf.srt.managers.tokenizer_manager import BadRequest, has_gguf_model
from ascend_gguf.srt.overrides import override

#: Seconds that requests have to end by themselves once the server is told to stop.
_GRACE = 4.0
#: Seconds for the last events to reach the clients: the engine then blocks its event loop.
_FLUSH = 0.5
_POLL = 0.25

#: Exit status of a command that Ctrl-C ended, as shells have it.
_INTERRUPTED = 128 + signal.SIGINT

#: Of a temporary folder, for the sockets in a folder of their own to have names: Linux gives a
#: socket 107 characters.
_LONGEST_FOLDER = 107 - len("/sglang-12345678/tmp12345678")

#: Fields that name a parser of the engine, by route.
_PARSERS = {
    "/parse_function_call": ("tool_call_parser", FunctionCallParser.ToolCallParserEnum),
    "/separate_reasoning": ("reasoning_parser", ReasoningParser.DetectorMap),
}

#: Where Vertex AI asks, and what it may ask for.
_VERTEX = os.environ.get("AIP_PREDICT_ROUTE", "/vertex_generate")
_GENERATE = TypeAdapter(GenerateReqInput)

#: The engine makes an error event of an abort with a status.
_STOPPED = {
    "type": "abort",
    "message": "The server is shutting down.",
    "status_code": HTTPStatus.SERVICE_UNAVAILABLE,
}


def launch_server(
    original: Callable,
    server_args: Any,
    init_tokenizer_manager_func: Callable = init_tokenizer_manager,
    *args: Any,
    **kwargs: Any,
) -> None:
    """AROUND ``launch_server``: a port in use is noticed first, and nothing is left at the end.

    Raises:
        GGUFError: nothing can listen at the address.
        SystemExit: Ctrl-C before the server answers.
    """
    configure_logger(server_args)
    server_args.resolve_once()
    found = resolving_view(server_args)
    if not check_gguf_file(found.model_path):
        return original(server_args, init_tokenizer_manager_func, *args, **kwargs)
    if found.node_rank == 0:
        check_address(found.host, found.port)
    left: set[Path] = set()

    def init(server_args: Any, port_args: Any) -> Any:
        left.add(Path(shm_path_for(port_args.instance_id)))
        from sglang.srt.entrypoints.http_server import app

        answer_as_ours(app)
        manager, *others = init_tokenizer_manager_func(server_args, port_args)
        manager.signal_handler_class = _StopsOnInterrupt
        manager.sigterm_watchdog = lambda: _stop(manager, left)
        return manager, *others

    with _own_temporary_folder(), _interrupts_for_this_process_alone():
        try:
            return original(server_args, init, *args, **kwargs)
        except KeyboardInterrupt:
            left |= _queues_of_children()
            kill_process_tree(os.getpid(), include_parent=False)
            raise SystemExit(_INTERRUPTED) from None
        finally:
            for path in left | _queues_of_children():
                path.unlink(missing_ok=True)


def answer_as_ours(app: FastAPI) -> None:
    """Let the engine's application answer as the patch does, before it starts."""
    answer_in_one_line(app)
    app.router.lifespan_context = _with_our_handlers(app.router.lifespan_context)


def _with_our_handlers(lifespan: Callable) -> Callable:
    """The engine's lifespan of an application, which makes what answers its routes."""

    @contextlib.asynccontextmanager
    async def ours(app: FastAPI) -> AsyncIterator[Any]:
        async with lifespan(app) as state:
            for handler in app.state._state.values():
                override(handler)
            yield state

    return ours


async def checked_json(original: Callable, self: Any) -> Any:
    """AROUND ``ORJSONRequest.json``, by which each route has its body: the fields are checked.

    Prompts and their parameters are checked where the tokenizer manager takes them.

    Raises:
        BadRequest: the field, what was found, what is allowed; status 400.
    """
    if hasattr(self, "_json"):
        return self._json
    body = await original(self)
    manager = _manager()
    if manager is not None and has_gguf_model(manager):
        body = self._json = {} if body is None else body
        path = self.url.path.removeprefix(self.scope.get("root_path", ""))
        try:
            check_body(path, body, manager.model_config.vocab_size, _PARSERS)
            if path == _VERTEX:
                _check_vertex(body.get("parameters"))
        except RequestError as error:
            raise BadRequest(str(error)) from None
        except ValidationError as error:
            raise BadRequest(in_one_line(error.errors())) from None
    return body


def _check_vertex(parameters: Any) -> None:
    """That they are what ``/generate`` takes: the engine makes a request of whatever they are."""
    if isinstance(parameters, dict):
        for field in ("text", "input_ids", "input_embeds", "image_data"):
            if field in parameters:
                raise RequestError("parameters", field, "in instances alone", "twice")
        _GENERATE.validate_python({"text": "", **parameters})


def _manager() -> TokenizerManager | None:
    from sglang.srt.entrypoints.http_server import get_global_state

    state = get_global_state()
    return None if state is None else state.tokenizer_manager


def check_address(host: str | None, port: int) -> None:
    """Raises GGUFError if a server cannot listen at ``host:port``, as uvicorn would find later."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or "127.0.0.1", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise GGUFError(
            f"the server cannot listen at {host}:{port}: {error.strerror or error}",
            hint="Choose another with --host and --port, or stop what listens there.",
        ) from error


def _queues_of_children() -> set[Path]:
    """Queues in shared memory, by which ranks talk: each has the name of the process it is of."""
    return {
        path
        for child in psutil.Process().children(recursive=True)
        for path in Path("/dev/shm").glob(f"sgl_shm_*_{child.pid}_*")
    }


@contextlib.contextmanager
def _own_temporary_folder() -> Iterator[None]:
    """A folder for the sockets of this server's processes, which the engine never removes."""
    before = tempfile.gettempdir()
    if len(before) > _LONGEST_FOLDER:
        yield
        return
    # torch keeps compiled code below the temporary folder, for the next start.
    cache = os.path.join(before, f"torchinductor_{getpass.getuser()}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache)
    with tempfile.TemporaryDirectory(prefix="sglang-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            tempfile.tempdir = os.environ["TMPDIR"] = before


@contextlib.contextmanager
def _interrupts_for_this_process_alone() -> Iterator[None]:
    """Processes that are started ignore Ctrl-C, which a terminal sends to all of them.

    This one ends them.  They inherit that from their first instruction on, before any Python runs.
    """
    start = multiprocessing.process.BaseProcess.start

    def start_ignoring(process: multiprocessing.process.BaseProcess) -> None:
        if threading.current_thread() is not threading.main_thread():
            return start(process)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            start(process)
        finally:
            signal.signal(signal.SIGINT, before)

    multiprocessing.process.BaseProcess.start = start_ignoring
    try:
        yield
    finally:
        multiprocessing.process.BaseProcess.start = start


class _StopsOnInterrupt(SignalHandler):
    """Ctrl-C is SIGTERM; a second time it ends the server at once."""

    def __init__(self, manager: TokenizerManager) -> None:
        super().__init__(manager)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self.interrupt)

    def interrupt(self) -> None:
        if self.tokenizer_manager.gracefully_exit:
            kill_process_tree(os.getpid())
        self.sigterm_handler(signal.SIGINT)


async def _stop(manager: TokenizerManager, left: set[Path]) -> None:
    """The engine's ``sigterm_watchdog``, which waits for requests however long they take.

    Those that are not done after :data:`_GRACE` end with an error that says why.

    Args:
        left: takes what the engine's processes would leave behind.
    """
    while not manager.gracefully_exit:
        await asyncio.sleep(_POLL)
    deadline = time.monotonic() + _GRACE
    while manager.rid_to_state and time.monotonic() < deadline:
        await asyncio.sleep(_POLL)
    for rid in list(manager.rid_to_state):
        manager.abort_request(rid)
        # Not by way of the scheduler, which may be at a long prompt.
        manager._handle_abort_req(AbortReq(rid=rid, finished_reason=dict(_STOPPED)))
    await asyncio.sleep(_FLUSH)
    left |= _queues_of_children()
    manager.rid_to_state.clear()
    await TokenizerManager.sigterm_watchdog(manager)
