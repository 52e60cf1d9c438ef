"""What a user needs of a server's log; the whole log goes to a file."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

#: Lines that are shown: what they look like in the log, and what is shown of them.
_SHOWN = (
    (re.compile(r"(Loaded the weights in .*)"), r"\1"),
    (re.compile(r"(layout +tensors .*|.* of the file, .* of dense)$"), r"  \1"),
    (re.compile(r"(\d+ weights have the layout .*)"), r"\1"),
    (re.compile(r"KV Cache is allocated.*#tokens: (\d+)"), r"room for \1 tokens in the KV cache"),
    (re.compile(r"(error: .*|\w*Error: .*)"), r"\1"),
    (re.compile(r"(falling back to .*|.*[Gg]raphs? (?:active|is off|are off).*)"), r"\1"),
)
#: Rows of the table of weights: they follow its head.
_ROW = re.compile(r"[a-z][\w, ]*? +\d+ +[\d,]+ +[\d.]+ +[\d.]+$")
_STAMP = re.compile(r"^\[[^\]]*\] ?")
_LONG = re.compile(r"(?<=for )\d+(?= tokens)")
_READY = "The server is fired up and ready to roll!"
#: What is in the log of a model that is asked otherwise than by ``chat/completions``.
_ASK = {
    "ForSequenceClassification": "rerank",
    r"is_embedding'?[=:] ?True": "embeddings",
    "No chat template found": "completions",
}
_BODIES = {
    "chat/completions": '"messages": [{"role": "user", "content": "Hello"}]',
    "completions": '"prompt": "Once upon a time", "max_tokens": 32',
    "embeddings": '"input": "Hello"',
    "rerank": '"query": "What is a panda?", "documents": ["A bear.", "A car."]',
}
_LINES_OF_AN_END = 15


def shown(line: str) -> str | None:
    """What is shown of a line of the log; None if nothing."""
    said = _STAMP.sub("", line.rstrip())
    for pattern, form in _SHOWN:
        if match := pattern.match(said):
            return _LONG.sub(lambda number: f"{int(number[0]):,}", match.expand(form))
    return f"  {said}" if _ROW.fullmatch(said) else None


def serve(
    command: Sequence[str], environment: Mapping[str, str], log: Path, url: str, model: str
) -> int:
    """Run a server until it ends; returns its exit status.

    Args:
        log: where its output goes.
        url: where it answers.
        model: what is served, in words.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    named = log.relative_to(Path.cwd()) if log.is_relative_to(Path.cwd()) else log
    print(f"Serving {model}\nthe engine's log: {named} (VERBOSE=1 shows it here)", flush=True)
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    # Ctrl-C reaches the server too, which ends its requests and itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: server.send_signal(number))
    is_ready, marks, lines = False, set(), set()
    for line in _lines(log, server):
        marks |= {mark for mark in _ASK if re.search(mark, line)}
        if _READY in line:
            is_ready = True
            print(_ready(url, marks), flush=True)
        elif (said := shown(line)) and (said not in lines):
            lines.add(said)  # of several ranks once
            print(said, flush=True)
    if server.returncode and not is_ready:
        tail = log.read_text(errors="replace").splitlines()[-_LINES_OF_AN_END:]
        told = [line[:300] for line in tail if "server_args=" not in line]
        print("\n".join(["the server stopped while starting:", *told]), file=sys.stderr)
    return server.returncode


def _lines(log: Path, server: subprocess.Popen) -> Iterator[str]:
    """The lines of a growing file, until the server has ended."""
    with log.open(errors="replace") as file:
        part = ""
        while True:
            has_ended = server.poll() is not None
            while chunk := file.readline():
                part += chunk
                if part.endswith("\n"):
                    yield part
                    part = ""
            if has_ended:
                return
            time.sleep(0.1)


def _ready(url: str, marks: set[str]) -> str:
    ask = next((route for mark, route in _ASK.items() if mark in marks), "chat/completions")
    return (
        f"\nready at {url}; try:\n\n"
        f"curl {url}/v1/{ask} -H 'Content-Type: application/json' \\\n"
        f'    -d \'{{"model": "default", {_BODIES[ask]}}}\'\n'
    )
