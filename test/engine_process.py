"""The engine without an HTTP server, one small model after the other.

:class:`EngineProcess` forks SGLang's own offline engine (``sglang.Engine``: request manager,
schedulers, all ranks) from a :class:`serving.Zygote` for each model, so a model takes a second or
two and a failure ends nothing but its own processes.  Options are those of the command line, and
every hook of the patch runs::

    with EngineProcess() as engine:
        tokens, logprobs = engine.score("model.gguf", prompt, 12, tp_size=2, dtype="float32")
"""

from __future__ import annotations

import contextlib
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from select import select
from typing import Any

from serving import (
    CPU,
    NPU_ONE,
    SMALL,
    START_TIMEOUT,
    Zygote,
    cpu_environment,
    npu_simulation,
    printed_error,
    process_is_running,
    stop_group,
    tail,
)

#: Seconds that a request may take.
ANSWER_TIMEOUT = 600.0

#: Lines of a log that say what went wrong, the clearest first.
_ERROR_LINES = (
    r"GGUFError: (.+)",
    r"(?:^|] )error: (.+)",
    r"^(?:\w+\.)*(\w+(?:Error|Exception)\b.*)",
)


class EngineFailed(AssertionError):
    """The engine did not start, or ended while it computed.

    Attributes:
        reason: the line of the log that says why.
        log: the whole log.
    """

    def __init__(self, what: str, log: Path) -> None:
        self.log = log.read_text(errors="replace")
        self.reason = _reason(self.log)
        super().__init__(f"{what}: {self.reason}\n{tail(log)}")


def _reason(log: str) -> str:
    for pattern in _ERROR_LINES:
        if found := re.findall(pattern, log, re.MULTILINE):
            return found[0]
    return "the log does not say why"


@dataclass(frozen=True)
class Score:
    """What a model said about a prompt and its most probable continuation.

    Iterating gives the first two: ``tokens, logprobs = engine.score(...)``.

    Attributes:
        tokens: the prompt and what followed.
        logprobs: log p of each token but the first; those of the prompt from prefill, those of what
            followed from decode.
        cached_logprobs: log p of what followed but its first token, from prefill behind the prompt
            in the KV cache.
        cached_tokens: how much of the prompt was found in the cache then.
        probes: what ``probe`` returned in each rank.
        log: what the engine wrote.
    """

    tokens: list[int]
    logprobs: list[float]
    cached_logprobs: list[float]
    cached_tokens: int
    probes: list[Any]
    log: str

    def __iter__(self) -> Iterator[list]:
        return iter((self.tokens, self.logprobs))


class Model:
    """A model that is loaded: what :meth:`EngineProcess.load` gives."""

    def __init__(self, listener: socket.socket, pid: int, log: Path) -> None:
        self.pid, self._log = pid, log
        failure = "the engine ended while starting"
        self._await(lambda: select([listener], [], [], 0.1)[0], failure, START_TIMEOUT)
        self._connection = Connection(listener.accept()[0].detach())
        self.probes: list[Any] = self._receive(failure, START_TIMEOUT)

    @property
    def log(self) -> str:
        """What the engine wrote so far."""
        return self._log.read_text(errors="replace")

    def generate(self, **arguments: Any) -> Any:
        """``sglang.Engine.generate``.  Raises what it raises, and EngineFailed."""
        self._connection.send(arguments)
        return self._receive("the engine ended while computing", ANSWER_TIMEOUT)

    def prompt_logprobs(self, prompt: Sequence[int]) -> list[float]:
        """log p of each token but the first, given those before it."""
        return _values(self._generate(list(prompt), 1), "input")[1:]

    def mean_error(self, prompt: Sequence[int], expected: Sequence[float]) -> float:
        """Mean absolute error of the log-probabilities of a prompt's tokens; printed too."""
        return printed_error(self.prompt_logprobs(prompt), expected)

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """What a model without text says of each prompt: an embedding, or logits of labels."""
        answers = self.generate(embed=[list(prompt) for prompt in prompts])
        return [answer["embedding"] for answer in answers]

    def continued(
        self, prompts: Sequence[Sequence[int]], new: int
    ) -> list[tuple[list[int], list[float]]]:
        """Each prompt with its most probable continuation, and log p of all but the first token.

        The prompts are computed together.
        """
        answers = self._generate([list(prompt) for prompt in prompts], new)
        return [
            ([*prompt, *answer["output_ids"]], _values(answer, "input")[1:] + _values(answer))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def score(self, prompt: Sequence[int], continue_tokens: int) -> Score:
        """A prompt and its continuation, and the latter again behind the cached prompt."""
        ((tokens, logprobs),) = self.continued([prompt], continue_tokens)
        # A recurrent state is kept of whole prompts alone.
        again = self._generate(tokens, 1, start=len(prompt))
        return Score(
            tokens,
            logprobs,
            _values(again, "input")[1:],
            again["meta_info"]["cached_tokens"],
            self.probes,
            self.log,
        )

    def _generate(self, input_ids: list, new: int, start: int = 0) -> Any:
        """A greedy answer, or one for each prompt, with log-probabilities from ``start`` on."""
        return self.generate(
            input_ids=input_ids,
            sampling_params={"max_new_tokens": new, "ignore_eos": True, "temperature": 0},
            return_logprob=True,
            logprob_start_len=start,
        )

    def close(self) -> None:
        self._connection.close()

    def _receive(self, failure: str, timeout: float) -> Any:
        self._await(lambda: self._connection.poll(0.1), failure, timeout)
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            raise EngineFailed(failure, self._log) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _await(self, happens: Callable[[], Any], failure: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not happens():
            if not process_is_running(self.pid) and not happens():
                raise EngineFailed(failure, self._log)
            if time.monotonic() > deadline:
                raise EngineFailed(f"nothing happened for {timeout:.0f} s", self._log)


def _values(answer: dict, which: str = "output") -> list[float]:
    return [entry[0] for entry in answer["meta_info"][f"{which}_token_logprobs"]]


class EngineProcess:
    """Loads models in processes that are forked for each.

    Args:
        device: "cpu", or "npu" for the simulated one.
        tp, pp: ranks where ``tp_size`` or ``pp_size`` does not say otherwise.
        zygote: the process to fork from, shared with tests of servers.  By default its own.
    """

    def __init__(
        self, device: str = "cpu", tp: int = 1, pp: int = 1, zygote: Zygote | None = None
    ) -> None:
        self._device, self._ranks = device, {"tp_size": tp, "pp_size": pp}
        self._zygote, self._owned = zygote, zygote is None
        self._folder = tempfile.TemporaryDirectory(prefix="engine-process-")
        self._models = 0

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._owned and self._zygote is not None:
            self._zygote.close()
        self._folder.cleanup()

    def score(
        self,
        model_path: Path | str,
        prompt_ids: Sequence[int],
        continue_tokens: int,
        **options: Any,
    ) -> Score:
        """Load a model and score one prompt; see :meth:`load` and :class:`Score`."""
        with self.load(model_path, **options) as model:
            return model.score(prompt_ids, continue_tokens)

    @contextlib.contextmanager
    def load(
        self,
        model_path: Path | str,
        *arguments: str,
        environment: dict[str, str] | None = None,
        probe: str = "",
        routes: Path | None = None,
        **options: Any,
    ) -> Iterator[Model]:
        """A model, loaded.

        Args:
            arguments: options as they are typed.
            environment: variables of its processes.
            probe: ``module:function`` of a function of the engine's ``ModelRunner`` that is called
                in each rank once the model is loaded, such as one of :mod:`probes`.
            routes: a folder for the experts that it chooses for the tokens of a prompt.
            options: the same as ``arguments``: ``tp_size=2`` is ``--tp-size 2``, True is a flag
                alone, None is left out.

        Raises:
            EngineFailed: it does not start.  The harness goes on.
        """
        options = self._ranks | options
        self._models += 1
        log = Path(self._folder.name, f"{self._models}.log")
        address = str(log.with_suffix(".socket"))
        order = {
            "arguments": [*self._arguments(model_path), *arguments, *_typed(options)],
            "log": str(log),
            "environment": self._environment(options) | (environment or {}),
            "engine": {"address": address, "probe": probe},
            "routes": str(routes or ""),
        }
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            pid = self._started_zygote().fork(order)
            try:
                with contextlib.closing(Model(listener, pid, log)) as model:
                    yield model
            finally:
                stop_group(pid, ask=False)

    def _arguments(self, model_path: Path | str) -> list[str]:
        device = CPU if self._device == "cpu" else NPU_ONE
        # Prompts are token ids; files may have another model's tokenizer.
        return ["--model-path", str(model_path), *device, *SMALL, "--skip-tokenizer-init"]

    def _environment(self, options: dict[str, Any]) -> dict[str, str]:
        ranks = int(options["tp_size"]) * int(options["pp_size"])
        # One thread a rank: two that wait for each other on a busy machine take many times as long.
        # Tests of servers have all threads.
        one = {"OMP_NUM_THREADS": "1"}
        if self._device != "cpu" or ranks == 1:
            return one
        bound = "SGLANG_CPU_OMP_THREADS_BIND"
        return one | {bound: cpu_environment(ranks)[bound]}

    def _started_zygote(self) -> Zygote:
        if self._zygote is None:
            if self._device == "cpu":
                self._zygote = Zygote(cpu_environment() | {"TORCHDYNAMO_DISABLE": "1"})
            else:
                prefix, environment = npu_simulation()
                self._zygote = Zygote(environment, prefix)
        return self._zygote


def _typed(options: dict[str, Any]) -> list[str]:
    """Options as they are typed."""
    typed = []
    for name, value in options.items():
        if value is not None and value is not False:
            typed.append("--" + name.replace("_", "-"))
            typed += [] if value is True else [str(value)]
    return typed
