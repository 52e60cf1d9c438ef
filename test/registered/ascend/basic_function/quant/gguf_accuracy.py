"""What the GGUF accuracy tests have in common: a server on NPUs, asked the problems of GSM8K."""

from __future__ import annotations

import os
import unittest
from pathlib import Path

import gsm8k
from evaluation import evaluate


def require_npu_and_model(variable: str) -> str:
    """The model's path, which the environment variable holds.

    Raises:
        unittest.SkipTest: there is no NPU, or no model; the message says which.
    """
    import torch

    try:
        import torch_npu  # noqa: F401
    except ImportError:
        raise unittest.SkipTest("no Ascend NPU here: torch_npu is not installed") from None
    if not torch.npu.is_available():
        raise unittest.SkipTest("no Ascend NPU here")
    path = os.environ.get(variable, "")
    if not path:
        raise unittest.SkipTest(f"no model: {variable} names none")
    if "/" in path and not Path(path).exists():
        raise unittest.SkipTest(f"no model: {variable}={path} does not exist")
    return path


class GGUFAccuracyMixin:
    """Starts the server of a class's ``model`` and asks it; to be combined with CustomTestCase."""

    model = ""
    #: Least share of problems to solve.
    accuracy = 0.0
    tp_size = 1
    num_shots = 5
    num_questions = 200
    parallel = 128
    timeout_for_server_launch = 1800

    @classmethod
    def setUpClass(cls):
        from sglang.test.test_utils import DEFAULT_URL_FOR_TEST, popen_launch_server

        cls.base_url = DEFAULT_URL_FOR_TEST
        cls.process = popen_launch_server(
            cls.model,
            cls.base_url,
            timeout=cls.timeout_for_server_launch,
            device="npu",
            other_args=[
                *("--quantization", "gguf", "--device", "npu", "--attention-backend", "ascend"),
                *("--tp-size", str(cls.tp_size)),
            ],
        )

    @classmethod
    def tearDownClass(cls):
        from sglang.srt.utils import kill_process_tree

        if process := getattr(cls, "process", None):
            kill_process_tree(process.pid)

    def test_gsm8k(self):
        problems = gsm8k.problems(gsm8k.test_set())
        examples, questions = problems[: self.num_shots], problems[self.num_shots :]
        result = evaluate(
            self.base_url,
            questions[: self.num_questions],
            examples,
            concurrent=self.parallel,
        )
        print(f"{self.model}: {result}")
        self.assertGreaterEqual(result.accuracy, self.accuracy)
