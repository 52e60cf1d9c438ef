"""Ask a server word problems through its OpenAI API, and count how many it solves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import sqrt
from time import perf_counter

import gsm8k
from gsm8k import Problem

#: Standard deviations to either side that hold 95 %.
_Z = 1.959964


class EvaluationError(Exception):
    """The server did not answer; the message is one line for the user."""


@dataclass(frozen=True)
class Answer:
    """The server's answer to one question, and the number in it, if there is one."""

    question: str
    expected: str
    text: str
    found: str | None
    tokens: int

    @property
    def is_right(self) -> bool:
        return self.found == self.expected


@dataclass(frozen=True)
class Result:
    """All answers in the order of the questions, and the seconds they took together."""

    answers: list[Answer]
    seconds: float

    @property
    def solved(self) -> int:
        return sum(answer.is_right for answer in self.answers)

    @property
    def accuracy(self) -> float:
        return self.solved / len(self.answers)

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.solved, len(self.answers))

    @property
    def invalid(self) -> int:
        """Answers without a number."""
        return sum(answer.found is None for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.seconds

    def record(self) -> dict:
        """Everything, for a JSON file."""
        return {
            "questions": len(self.answers),
            "accuracy": self.accuracy,
            "interval": self.interval,
            "invalid": self.invalid,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "answers": [asdict(answer) | {"right": answer.is_right} for answer in self.answers],
        }

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"accuracy {self.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}): "
            f"{self.solved} of {len(self.answers)}, {self.invalid} without a number; "
            f"{self.tokens_per_second:.0f} tokens a second for {self.seconds:.1f} s"
        )


def wilson(solved: int, asked: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927, score interval)."""
    share, z2 = solved / asked, _Z * _Z / asked
    centre = share + z2 / 2
    half = _Z * sqrt((share * (1 - share) + z2 / 4) / asked)
    return max(0.0, (centre - half) / (1 + z2)), min(1.0, (centre + half) / (1 + z2))


def evaluate(
    url: str,
    questions: Sequence[Problem],
    examples: Sequence[Problem] = (),
    *,
    concurrent: int = 64,
    max_tokens: int = 512,
    progress: Callable[[Answer], None] = lambda answer: None,
) -> Result:
    """Ask every question, with greedy sampling.

    Args:
        url: the server's address, without ``/v1``.
        examples: shown with their answers before each question, which the model then completes;
            without examples the question is a chat message.
        concurrent: number of concurrent requests.
        progress: called with each answer as it comes, from several threads.

    Raises:
        EvaluationError: the server refuses a request, or is gone.
    """
    from openai import OpenAI, OpenAIError

    client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=3600, max_retries=0)
    greedy = {"model": "default", "temperature": 0, "max_tokens": max_tokens}

    def ask(problem: Problem) -> Answer:
        if examples:
            reply = client.completions.create(
                prompt=gsm8k.prompt(problem.question, examples), stop=list(gsm8k.STOP), **greedy
            )
            text = reply.choices[0].text
        else:
            message = {"role": "user", "content": problem.question}
            reply = client.chat.completions.create(messages=[message], **greedy)
            text = reply.choices[0].message.content or ""
        found, expected = gsm8k.final_number(text), gsm8k.final_number(problem.answer)
        answer = Answer(
            problem.question,
            str(expected),
            text,
            # 42.00 is 42.
            str(expected if found == expected else found) if found is not None else None,
            reply.usage.completion_tokens,
        )
        progress(answer)
        return answer

    started = perf_counter()
    with client, ThreadPoolExecutor(concurrent) as pool:
        try:
            answers = list(pool.map(ask, questions))
        except OpenAIError as error:
            raise EvaluationError(f"{url}: {type(error).__name__}: {error}") from error
        finally:
            # No more requests after an error.
            pool.shutdown(wait=False, cancel_futures=True)
    return Result(answers, perf_counter() - started)
