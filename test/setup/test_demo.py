"""python/make/demo.py against a server that is quick to start: its answer, no process left."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import demo

SERVER = """
import json, os, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

port, child_file = int(sys.argv[1]), sys.argv[2]
# A worker that, like the engine's, does not end with its parent.
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(child_file, "w") as file:
    file.write(f"{os.getpid()} {child.pid}")

class Handler(BaseHTTPRequestHandler):
    def send(self, body, status=200):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.send({}, 200 if self.path == "/health" else 404)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "fail" in asked["messages"][0]["content"]:
            return self.send({"error": {"message": "no such luck"}}, 500)
        message = {"role": "assistant", "content": " twelve "}
        self.send({
            "id": "1", "object": "chat.completion", "created": 1, "model": asked["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
        })

HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def stub(tmp_path):
    """The command of the stub server, its address, and the file its process ids go to."""
    script, pids = tmp_path / "server.py", tmp_path / "pids"
    script.write_text(SERVER)
    port = demo.free_port()
    yield [sys.executable, str(script), str(port), str(pids)], f"http://127.0.0.1:{port}", pids
    if pids.exists():
        for pid in map(int, pids.read_text().split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def assert_none_left(pids):
    server, child = map(int, pids.read_text().split())
    deadline = time.monotonic() + 5
    while not (ended(server) and ended(child)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended(server) and ended(child)


def test_question_and_answer(stub, capsys):
    command, address, pids = stub
    demo.run(command, os.environ, address, question="Which?", timeout=30)
    printed = capsys.readouterr().out
    assert "question: Which?\nanswer:   twelve\n" in printed
    assert "3 tokens in" in printed and printed.endswith("the server is stopped\n")
    assert_none_left(pids)


def test_a_refused_question(stub):
    command, address, pids = stub
    with pytest.raises(demo.DemoError, match="no such luck"):
        demo.run(command, os.environ, address, question="fail", timeout=30)
    assert_none_left(pids)


def test_a_server_that_does_not_start():
    command = [sys.executable, "-c", "import sys; sys.exit('the tensor x is missing')"]
    with pytest.raises(demo.DemoError, match="stopped while starting:\nthe tensor x is missing"):
        demo.run(command, os.environ, f"http://127.0.0.1:{demo.free_port()}", timeout=30)


def test_a_server_that_never_answers():
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(demo.DemoError, match="did not answer within 1 s"):
        demo.run(command, os.environ, f"http://127.0.0.1:{demo.free_port()}", timeout=1)


@pytest.mark.parametrize(
    "sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_interrupted_while_starting(stub, tmp_path, sent, status):
    command, _, pids = stub
    driver = tmp_path / "driver.py"
    driver.write_text(
        textwrap.dedent(f"""
            import signal, sys
            sys.path.insert(0, {os.path.dirname(demo.__file__)!r})
            import demo
            # What a shell starts in the background ignores it, and so do its children.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # A server on another port than the one that is asked: the wait goes on.
            demo.serve.plan = lambda *_: ({command!r}, {{}})
            sys.exit(demo.main())
        """)
    )
    process = subprocess.Popen([sys.executable, driver], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    process.communicate(timeout=30)
    assert process.returncode == status
    assert_none_left(pids)


def test_a_bad_model_is_one_line():
    script = [sys.executable, demo.__file__, "--model", "absent.gguf"]
    refused = subprocess.run(script, capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr == "make demo: MODEL=absent.gguf does not exist\n"
