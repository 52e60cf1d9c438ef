"""How many GSM8K problems a GGUF model solves: ``make eval MODEL=file.gguf DEVICE=cpu``.

Serves the model as ``make serve`` does and asks it through the OpenAI API, or asks a running server
(``URL=http://127.0.0.1:30000``).  The first problems are shown as examples and not asked.
Arguments after ``--`` go to the engine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import gsm8k
import serve
from demo import DemoError, free_port, raise_on_sigterm, running, wait_until_ready
from evaluation import Answer, EvaluationError, Result, evaluate

_SECONDS_TO_START = 3600  # a large model from a slow disk


@contextlib.contextmanager
def _served(asked: argparse.Namespace) -> Iterator[str]:
    """Serve the model; the address of the server, which ends with the block."""
    port = free_port()
    command, added = serve.plan(asked.model, asked.device, port, asked.sim, asked.engine_arguments)
    with tempfile.TemporaryDirectory(prefix="ascend-gguf-eval-") as folder:
        log = Path(folder) / "server.log"
        with running(command, os.environ | added, log) as server:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(server, f"{url}/health", log, _SECONDS_TO_START)
            yield url


def _with_progress(
    url: str, problems: Sequence[gsm8k.Problem], asked: argparse.Namespace
) -> Result:
    from tqdm import tqdm

    examples, questions = problems[: asked.shots], problems[asked.shots :][: asked.questions]
    if not questions:
        raise gsm8k.DataError(
            f"{len(problems)} problems: no question is left after {asked.shots} examples"
        )
    solved = 0
    with tqdm(total=len(questions), unit="question") as bar:

        def progress(answer: Answer) -> None:
            nonlocal solved
            with bar.get_lock():
                solved += answer.is_right
            bar.set_postfix_str(f"solved {solved}", refresh=False)
            bar.update()

        return evaluate(
            url, questions, examples,
            concurrent=asked.concurrent, max_tokens=asked.max_tokens, progress=progress,
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="make eval", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sim", action="store_true")
    parser.add_argument("--url", help="a running server, instead of a model")
    parser.add_argument("--data", type=Path, help="problems, instead of GSM8K's test set")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--shots", type=int, default=5, help="examples; 0 asks in a chat message")
    parser.add_argument("--concurrent", type=int, default=64, help="concurrent requests")
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens of an answer")
    parser.add_argument("--record", type=Path, default=Path("eval.json"))
    parser.add_argument("engine_arguments", nargs="*")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, raise_on_sigterm)
    try:
        problems = gsm8k.problems(asked.data or gsm8k.test_set())
        with contextlib.nullcontext(asked.url) if asked.url else _served(asked) as url:
            result = _with_progress(url, problems, asked)
    except (DemoError, EvaluationError, serve.UsageError, gsm8k.DataError, OSError) as error:
        print(f"make eval: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmake eval: interrupted", file=sys.stderr)
        return 130
    record = vars(asked) | result.record()
    asked.record.write_text(json.dumps(record, indent=1, default=str) + "\n")
    print(f"{result}\nevery answer is in {asked.record}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
