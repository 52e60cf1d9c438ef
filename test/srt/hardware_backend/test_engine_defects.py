"""The engine alone fails on the simulated NPU where ``docs/engine.md`` says so.

The same files with the patch are in ``test_npu.py``, most under the same names.
"""

from __future__ import annotations

import pytest

from ascend_gguf import load_config
from random_model import PROMPT, write_model
from serving import NPU
from srt.models.test_accuracy import VARIANTS

#: number in docs/engine.md and variant of a file -> further arguments of the server
CASES = {
    (1, "expert-types-alike"): (),
    (2, "every-expert-chosen"): ("--tp-size", "2"),
    (4, "expert-types"): (),
    (5, "down-off-block"): ("--tp-size", "2"),
    (6, "file-order"): (),
    (7, "BF16-experts"): (),
    (8, "F32"): (),
    (8, "F16-router"): (),
    (9, "qkv-types"): (),
    (10, "fused-experts"): (),
    (12, "head-size"): (),
    (13, "qwen2moe"): (),
}
_MORE_VARIANTS = {
    "expert-types-alike": {"arch": "qwen3moe", "default": "Q8_0"},
    # Nothing to renormalise, which would hide that the result is multiplied by the ranks.
    "every-expert-chosen": {"arch": "qwen3moe", "default": "Q8_0", "experts_used": 4},
    "down-off-block": {"default": "Q4_K"},
    "qwen2moe": {"arch": "qwen2moe"},
}

#: An answer as far from the reference as this is wrong, not inexact: with the patch float16 is
#: within 0.005.
WRONG = 0.05


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_engine_alone_fails(engine_alone, log, tmp_path, case):
    defect, variant = case
    model = write_model(tmp_path / "model.gguf", **(VARIANTS | _MORE_VARIANTS)[variant])
    if defect != 12:
        # So that the file's own sizes do not add to the defect in question.
        load_config(model.path).save_pretrained(tmp_path)
    arguments = (*NPU, "--dtype", "float16", "--disable-cuda-graph", *CASES[case])
    try:
        with engine_alone.serve(model.path, log, *arguments) as server:
            error = server.mean_error(PROMPT, model.logprobs())
    except (AssertionError, OSError) as failure:
        # It did not start, or died of the first request.
        print(f"defect {defect}: {str(failure).splitlines()[-1]:.200}")
        return
    assert not error <= WRONG


def test_engine_alone_serves_what_it_can(engine_alone, log, tmp_path):
    """The way it fails above is not this test's own doing."""
    model = write_model(tmp_path / "model.gguf", default="Q8_0")
    load_config(model.path).save_pretrained(tmp_path)
    arguments = (*NPU, "--dtype", "float16", "--disable-cuda-graph")
    with engine_alone.serve(model.path, log, *arguments) as server:
        error = server.mean_error(PROMPT, model.logprobs())
    assert error <= 0.005
