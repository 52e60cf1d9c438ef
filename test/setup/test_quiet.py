"""python/make/quiet.py: what `make serve` shows of the engine's log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import quiet

#: As SGLang 0.5.23 writes it on the CPU, shortened.
LOG = """\
[2026-11-29 18:52:55] gguf quantization is not fully optimized yet. The speed can be slower.
[2026-11-29 18:53:47] Load weight begin. avail mem=18.90 GB
[2026-11-29 18:53:48] Loaded the weights in 1.21 s, self-check in 0.39 s
[2026-11-29 18:53:48 TP1] Loaded the weights in 1.21 s, self-check in 0.39 s
[2026-11-29 18:53:48] The weights on the device (this rank's, beside the whole file):
layout           tensors         weights         MiB  bits a weight
blocks               121     134,479,872        92.0          5.737
int4, experts          3       2,621,440         1.6          5.000
all                  182     134,515,008        92.0          5.740  0.999 of the file, 0.359 of dense
[2026-11-29 18:53:50] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 622725, K size: 6.68 GB
[2026-11-29 18:53:50] Memory pool end. avail mem=18.72 GB
[2026-11-29 18:53:53] Prefill batch, #new-seq: 1, #new-token: 6, #cached-token: 0
[2026-11-29 18:53:54] The server is fired up and ready to roll!
"""  # noqa: E501
SHOWN = """\
Loaded the weights in 1.21 s, self-check in 0.39 s
  layout           tensors         weights         MiB  bits a weight
  blocks               121     134,479,872        92.0          5.737
  int4, experts          3       2,621,440         1.6          5.000
  all                  182     134,515,008        92.0          5.740  0.999 of the file, 0.359 of dense
room for 622,725 tokens in the KV cache

ready at http://127.0.0.1:1; try:
"""  # noqa: E501


def _serve(code: str, log: Path) -> int:
    return quiet.serve([sys.executable, "-c", code], os.environ, log, "http://127.0.0.1:1", "m")


def test_a_start(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    log = tmp_path / "new" / "serve.log"
    assert _serve(f"print({LOG!r}, end='')", log) == 0
    said = capfd.readouterr().out
    assert SHOWN in said and str(log) in said and "v1/chat/completions" in said
    assert "optimized" not in said and len(said.splitlines()) <= 25
    assert log.read_text() == LOG


def test_a_base_model_is_asked_by_completions(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    text = "No chat template found, defaulting to 'string' content format\n" + LOG
    assert _serve(f"print({text!r}, end='')", tmp_path / "log") == 0
    said = capfd.readouterr().out
    assert "/v1/completions" in said and "/v1/chat" not in said


@pytest.mark.parametrize(
    ("type_", "route", "body"),
    [("BertModel", "embeddings", "input"), ("BertForSequenceClassification", "rerank", "query")],
)
def test_a_model_that_gives_no_text(capfd, tmp_path, monkeypatch, type_, route, body):
    """Whether it has a chat template or not: the engine's log says what it is."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    text = "server_args={'is_embedding': True, 'a': secret}\nNo chat template found\n"
    text += f"Load weight end. elapsed=1 s, type={type_}, quant=gguf\n{LOG}"
    assert _serve(f"print({text!r}, end='')", tmp_path / "log") == 0
    said = capfd.readouterr().out
    assert f"/v1/{route} " in said and f'"{body}": ' in said and "secret" not in said


def test_a_failure_shows_the_end_of_the_log(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    code = "import sys; print('server_args=secret'); print('error: no such file'); sys.exit(3)"
    assert _serve(code, tmp_path / "log") == 3
    said = capfd.readouterr()
    assert "error: no such file" in said.out and "error: no such file" in said.err
    assert "secret" not in said.out + said.err


def test_sigterm_reaches_the_server(tmp_path):
    """In a process of its own, as `make serve` is."""
    server = "import signal, time; print('here', flush=True); time.sleep(60)"
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(quiet.__file__).parent)!r}); import quiet\n"
        f"from pathlib import Path\n"
        f"sys.exit(quiet.serve([sys.executable, '-c', {server!r}], os.environ, "
        f"Path({str(tmp_path / 'log')!r}), 'http://127.0.0.1:1', 'm'))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not (tmp_path / "log").exists() or "here" not in (tmp_path / "log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)  # its handlers are set after the server is started
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (-signal.SIGTERM, 256 - signal.SIGTERM)
