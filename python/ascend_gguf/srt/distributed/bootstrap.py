"""Where the engine's processes meet."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sglang.srt.runtime_context import get_model, get_parallel
from sglang.srt.utils.hf_transformers.common import check_gguf_file
from torch.distributed import Store, TCPStore, register_rendezvous_handler
from torch.distributed.constants import default_pg_timeout

_SCHEME = "loopback"
_LOOPBACK = "127.0.0.1"


def _resolve_dist_init_method(original: Callable, **kwargs: Any) -> str:
    """AROUND ``_resolve_dist_init_method``: one machine's processes meet on its loopback interface.

    torch's store listens on every interface, whatever address it is given, and anybody may write
    to it; gloo listens where the machine's name leads.
    """
    method = original(**kwargs)
    parallel = get_parallel()
    elsewhere = parallel.dist_init_addr or parallel.nnodes > 1
    if elsewhere or not method.startswith("tcp://") or not check_gguf_file(get_model().model_path):
        return method
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    port = urlsplit(method).port
    # The engine takes them from a method of TCP, for the names of what its ranks share.
    os.environ.setdefault("MASTER_ADDR", _LOOPBACK)
    os.environ.setdefault("MASTER_PORT", str(port))
    return f"{_SCHEME}://{_LOOPBACK}:{port}"


def _rendezvous(
    url: str, timeout: timedelta = default_pg_timeout, **kwargs: Any
) -> Iterator[tuple[Store, int, int]]:
    """torch's rendezvous over TCP, with a socket that listens on the loopback interface only."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    rank, world_size = int(query["rank"][0]), int(query["world_size"][0])
    listening = None
    if rank == 0:
        server = socket.create_server((parts.hostname, parts.port))
        listening = server.detach()  # the store closes it
    store = TCPStore(
        parts.hostname,
        parts.port,
        world_size,
        is_master=rank == 0,
        timeout=timeout,
        multi_tenant=False,
        master_listen_fd=listening,
    )
    yield store, rank, world_size


register_rendezvous_handler(_SCHEME, _rendezvous)
