"""Forks servers on request: the process behind :class:`serving.Zygote`.

Reads one JSON object a line (arguments, environment, log), forks a server, prints its process id.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys


def _serve(order: dict) -> None:
    os.setsid()
    log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order["environment"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    run_server(prepare_server_args(order["arguments"]))


def main() -> None:
    import sglang.launch_server  # noqa: F401
    import sglang.srt.entrypoints.http_server  # noqa: F401
    import sglang.srt.managers.detokenizer_manager  # noqa: F401
    import sglang.srt.managers.scheduler  # noqa: F401
    from sglang.srt.models.registry import ModelRegistry  # noqa: F401  imports every model

    # The engine asks for spawn, which would import everything again in each process.
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.set_start_method = lambda *args, **kwargs: None
    # Servers are nobody's children once they run: let the kernel reap them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                _serve(order)
            finally:
                os._exit(1)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
