"""A stand-in of the Hugging Face hub on the loopback interface: what its client needs to download.

API: https://huggingface.co/docs/hub/api, as ``huggingface_hub`` uses it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def hub(repositories: dict[str, dict[str, Path]], sent: list[int] | None = None) -> Iterator[str]:
    """The URL of a hub with these repositories: name -> file's name -> file.

    Args:
        sent: gets the bytes of each answer.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            if path.startswith("api/models/"):
                self._describe(path.removeprefix("api/models/").split("/revision/"))
            else:
                repo, _, rest = path.partition("/resolve/")
                self._send_file(repo, *rest.split("/", 1))

        def _describe(self, parts: list[str]) -> None:
            repo, revision = parts if len(parts) > 1 else (*parts, "main")
            if self._exists(repo, revision):
                files = [{"rfilename": name} for name in repositories[repo]]
                about = {"id": repo, "modelId": repo, "sha": _COMMIT, "siblings": files}
                self._reply(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

        def _send_file(self, repo: str, revision: str, name: str = "") -> None:
            if not self._exists(repo, revision):
                return
            file = repositories[repo].get(name)
            if file is None:
                self._reply(404, headers={"X-Error-Code": "EntryNotFound"})
            else:
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
                if wanted is None:
                    data = file.read_bytes()
                    etag = f'"{hashlib.sha256(data).hexdigest()}"'
                    self._reply(200, data, {"ETag": etag, "X-Repo-Commit": _COMMIT})
                    return
                first, last = int(wanted[1]), int(wanted[2])
                with file.open("rb") as opened:
                    opened.seek(first)
                    data = opened.read(last - first + 1)
                last, size = first + len(data) - 1, file.stat().st_size
                self._reply(206, data, {"Content-Range": f"bytes {first}-{last}/{size}"})

        def _exists(self, repo: str, revision: str) -> bool:
            if repo in repositories and revision in ("main", _COMMIT):
                return True
            missing = "RevisionNotFound" if repo in repositories else "RepoNotFound"
            self._reply(404, headers={"X-Error-Code": missing})
            return False

        def _reply(self, status: int, body: bytes = b"", headers: dict | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
                if sent is not None:
                    sent.append(len(body))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path | None = None) -> None:
    """``HF_ENDPOINT`` and a cache, for a client that has been imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    if cache is not None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
