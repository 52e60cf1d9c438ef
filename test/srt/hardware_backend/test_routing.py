"""Experts are chosen right on an NPU, also where its operators do not do what a model asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hf_models import TINY, Written, write_model
from srt.models.test_architectures import ANY_DTYPE, score_right

#: Groups of two experts, and sigmoids that are not divided by their sum.
SMALL_GROUPS = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "norm_topk_prob": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Written:
    sizes = {**TINY["glm4moe"].sizes, **SMALL_GROUPS}
    return write_model(tmp_path_factory.mktemp("routing"), replace(TINY["glm4moe"], sizes=sizes))


def test_small_groups_on_the_simulated_npu(npu_engine, model):
    assert "Experts are chosen by torch's operators" in score_right(npu_engine, model, "float16")


def test_every_route_on_the_simulated_npu(npu_engine, model):
    with npu_engine.load(model.path, probe="probes:routes", dtype="float16", **ANY_DTYPE) as loaded:
        (routes,) = loaded.probes
    wrong = {key: found for key, found in routes.items() if found[1] > 1e-5}
    assert not wrong
    # Operators do what most models ask for: one of 16 experts, groups of DeepSeek V3.
    assert routes[16, 1, 1, 2, "softmax", False, True, False][0] == "_softmax_of_best"
    assert routes[256, 8, 4, 8, "sigmoid", True, True, True][0] == "fused_topk_npu"
