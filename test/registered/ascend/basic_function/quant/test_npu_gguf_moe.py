"""GSM8K solved by a mixture of experts in GGUF on NPUs.

``GGUF_QWEN3_30B_A3B`` names Qwen3-30B-A3B Q4_K_M: a file, a folder, or ``owner/repo:Q4_K_M`` on
the Hugging Face hub.  ``GGUF_TP_SIZE`` is the number of NPUs.
"""

import os

from registered.ascend.basic_function.quant.gguf_accuracy import (
    GGUFAccuracyMixin,
    require_npu_and_model,
)

MODEL = require_npu_and_model("GGUF_QWEN3_30B_A3B")

from sglang.test.ci.ci_register import register_npu_ci  # noqa: E402
from sglang.test.test_utils import CustomTestCase  # noqa: E402

register_npu_ci(est_time=400, suite="nightly-2-npu-a3", nightly=True)


class TestAscendGGUFMoE(GGUFAccuracyMixin, CustomTestCase):
    """
    Testcase: accuracy of a mixture of experts of K-quants on GSM8K, five examples

    [Test Category] Quantization
    [Test Target] --quantization gguf
    """

    model = MODEL
    accuracy = 0.85
    tp_size = int(os.environ.get("GGUF_TP_SIZE", "2"))
