"""The engine's own layers of experts, loaded with blocks, against the dense reference."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.moe.topk import StandardTopKOutput
from sglang.srt.layers.quantization.gguf import GGUFConfig

from ascend_gguf import GGUFError, load_config
from ascend_gguf.npu.choice import Choice
from ascend_gguf.srt.layers.quantization.gguf import GGUFMoEAscendMethod
from random_model import ALL_TYPES, write_model
from srt.engine_layers import (
    EVERY_TYPE,
    EXPERTS,
    HIDDEN,
    PLAIN,
    TOP_K,
    Matrix,
    assert_near,
    assert_only_weights,
    ranks,
)

pytestmark = pytest.mark.usefixtures("engine", "one_rank")

SHARDS = {"w1": "w13", "w2": "w2", "w3": "w13"}
#: One type for each expert and projection, plain ones among them.
EXPERT_TYPES = {
    (expert, shard): ALL_TYPES[(7 * i) % len(ALL_TYPES)]
    for i, (expert, shard) in enumerate(itertools.product(range(EXPERTS), SHARDS))
}
FFN = 256  # half of it is no boundary of a 256-wide block


def expert_matrices(types: dict[tuple[int, str], str]) -> dict[tuple[int, str], Matrix]:
    return {
        key: Matrix(name, *((HIDDEN, FFN) if key[1] == "w2" else (FFN, HIDDEN)), seed=i)
        for i, (key, name) in enumerate(types.items())
    }


def make_experts(weights: str = "auto", **options: Any) -> FusedMoE:
    config = GGUFConfig()
    config.choice = Choice(weights)
    return FusedMoE(
        EXPERTS,
        HIDDEN,
        FFN,
        0,
        top_k=TOP_K,
        quant_config=config,
        prefix="model.layers.0.mlp.experts",
        **options,
    )


def load_experts(layer: FusedMoE, matrices: dict[tuple[int, str], Matrix]) -> None:
    """As the models do it: every expert is offered to every rank."""
    parameters = dict(layer.named_parameters())
    for (expert, shard), matrix in matrices.items():
        name = f"{SHARDS[shard]}_weight"
        parameters[name].weight_loader(
            parameters[name], matrix.weight, f"experts.{name}", shard, expert
        )


def dense_experts(
    matrices: dict[tuple[int, str], Matrix],
) -> tuple[torch.Tensor, torch.Tensor]:
    w13 = [torch.cat([matrices[e, "w1"].values, matrices[e, "w3"].values]) for e in range(EXPERTS)]
    return torch.stack(w13), torch.stack([matrices[e, "w2"].values for e in range(EXPERTS)])


def routing(tokens: int) -> StandardTopKOutput:
    logits = torch.randn(tokens, EXPERTS, generator=torch.Generator().manual_seed(1))
    weights, ids = logits.softmax(-1).topk(TOP_K)
    return StandardTopKOutput(weights, ids.to(torch.int32), logits)


def run_experts(layer: FusedMoE, x: torch.Tensor, top_k: StandardTopKOutput) -> torch.Tensor:
    """This rank's share of the output, before the all-reduce."""
    dispatched = layer.dispatcher.dispatch(hidden_states=x.clone(), topk_output=top_k)
    return layer.run_moe_core(dispatched).hidden_states


def mixture(
    x: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    top_k: StandardTopKOutput,
    limit: float = math.inf,
) -> torch.Tensor:
    out = torch.zeros_like(x)
    for token, (weights, ids) in enumerate(zip(top_k.topk_weights, top_k.topk_ids, strict=True)):
        for weight, expert in zip(weights, ids.tolist(), strict=True):
            gate, up = (w13[expert] @ x[token]).chunk(2)
            gated = F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)
            out[token] += weight * (w2[expert] @ gated)
    return out


ORDERS = {"as in the table": list, "reversed": lambda items: list(items)[::-1]}


def test_types_of_experts_differ():
    assert len(set(EXPERT_TYPES.values())) == len(EXPERT_TYPES) == 12
    assert set(PLAIN) & set(EXPERT_TYPES.values())


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_experts_of_any_types(order):
    matrices = expert_matrices(EXPERT_TYPES)
    layer = make_experts()
    load_experts(layer, dict(order(matrices.items())))
    layer.quant_method.process_weights_after_loading(layer)
    w13, w2 = dense_experts(matrices)
    assert_only_weights(layer, w13_weight=w13, w2_weight=w2)
    x, top_k = 0.1 * torch.randn(5, HIDDEN), routing(5)
    assert_near(run_experts(layer, x, top_k), mixture(x, w13, w2, top_k))


@EVERY_TYPE
@pytest.mark.parametrize("weights", ["auto", "dense"])
def test_experts_of_one_type(type_name, weights):
    matrices = expert_matrices(dict.fromkeys(EXPERT_TYPES, type_name))
    layer = make_experts(weights, params_dtype=torch.bfloat16)
    load_experts(layer, matrices)
    layer.quant_method.process_weights_after_loading(layer)
    w13, w2 = dense_experts(matrices)
    assert_only_weights(layer, w13_weight=w13, w2_weight=w2)


@pytest.mark.parametrize(("tp", "ep"), [(2, 1), (4, 1), (2, 2), (4, 2)])
def test_experts_on_several_ranks(tp, ep):
    """Gate and up are cut along the output, down along the input; ranks sum to the whole, once."""
    matrices = expert_matrices(EXPERT_TYPES)
    w13, w2 = dense_experts(matrices)
    x, top_k = 0.1 * torch.randn(5, HIDDEN), routing(5)
    total = torch.zeros_like(x)
    moe_tp = tp // ep
    for rank in range(tp):
        with ranks(tp, rank, ep):
            layer = make_experts()
            load_experts(layer, matrices)
            layer.quant_method.process_weights_after_loading(layer)
            local = slice(rank // moe_tp * EXPERTS // ep, (rank // moe_tp + 1) * EXPERTS // ep)
            ffn = FFN // moe_tp
            cut = slice(rank % moe_tp * ffn, (rank % moe_tp + 1) * ffn)
            gate, up = w13.chunk(2, dim=1)
            expected = torch.cat([gate[local, cut], up[local, cut]], dim=1)
            assert_only_weights(layer, w13_weight=expected, w2_weight=w2[local, :, cut])
            total += run_experts(layer, x, top_k)
    assert_near(total, mixture(x, w13, w2, top_k))


def test_input_of_experts_is_not_written():
    layer = make_experts()
    load_experts(layer, expert_matrices(EXPERT_TYPES))
    layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(5, HIDDEN)
    before = x.clone()
    dispatched = layer.dispatcher.dispatch(hidden_states=x, topk_output=routing(5))
    layer.run_moe_core(dispatched)
    assert torch.equal(x, before)


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("expert", range(EXPERTS))
def test_missing_expert_is_named(shard, expert):
    matrices = expert_matrices(EXPERT_TYPES)
    del matrices[expert, shard]
    layer = make_experts()
    load_experts(layer, matrices)
    missing = rf"{SHARDS[shard]}_weight\[{expert}\] of FusedMoE was not loaded"
    with pytest.raises(GGUFError, match=missing):
        layer.quant_method.process_weights_after_loading(layer)


def test_experts_of_other_ranks_are_not_missed():
    matrices = expert_matrices(EXPERT_TYPES)
    with ranks(2, 1, ep=2):
        layer = make_experts()
        load_experts(layer, {key: matrix for key, matrix in matrices.items() if key[0] >= 2})
        layer.quant_method.process_weights_after_loading(layer)
        del matrices[3, "w3"]
        layer = make_experts()
        load_experts(layer, matrices)
        with pytest.raises(GGUFError, match=r"w13_weight\[1\]"):
            layer.quant_method.process_weights_after_loading(layer)


def test_biases_of_experts_are_the_engines_affair():
    matrices = expert_matrices(EXPERT_TYPES)
    layer = make_experts(with_bias=True)
    load_experts(layer, matrices)
    layer.w13_weight_bias.data.normal_()
    layer.w2_weight_bias.data.normal_()
    layer.quant_method.process_weights_after_loading(layer)
    x = 0.1 * torch.randn(1, HIDDEN)
    top_k = StandardTopKOutput(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int32), object())
    w13, w2 = dense_experts(matrices)
    gate, up = F.linear(x, w13[1], layer.w13_weight_bias[1]).chunk(2, dim=-1)
    expected = F.linear(F.silu(gate) * up, w2[1], layer.w2_weight_bias[1])
    assert_near(run_experts(layer, x, top_k), expected)


def test_router_weights_on_the_input():
    matrices = expert_matrices(EXPERT_TYPES)
    layer = make_experts(apply_router_weight_on_input=True)
    load_experts(layer, matrices)
    layer.quant_method.process_weights_after_loading(layer)
    x, weight = torch.randn(1, HIDDEN), torch.full((1, 1), 0.25)
    top_k = StandardTopKOutput(weight, torch.ones(1, 1, dtype=torch.int32), object())
    whole = top_k._replace(topk_weights=torch.ones(1, 1))
    expected = mixture(0.25 * x, *dense_experts(matrices), whole)
    assert_near(run_experts(layer, x, top_k), expected)


def test_gate_and_up_are_clamped():
    matrices = expert_matrices(EXPERT_TYPES)
    layer = make_experts(swiglu_limit=0.5)
    load_experts(layer, matrices)
    layer.quant_method.process_weights_after_loading(layer)
    x, top_k, dense = torch.randn(4, HIDDEN), routing(4), dense_experts(matrices)
    expected = mixture(x, *dense, top_k, limit=0.5)
    assert (expected - mixture(x, *dense, top_k)).abs().max() > 0.1
    assert_near(run_experts(layer, x, top_k), expected)


@pytest.mark.parametrize(
    "options",
    [
        *({"activation": "relu2"}, {"gemm1_alpha": 1.7}, {"is_gated": False}),
        {"activation": "gelu", "swiglu_limit": 7.0},
    ],
    ids=str,
)
def test_activation_that_nobody_implemented(options):
    """A wrong activation would give wrong numbers, not an error."""
    layer = make_experts(**options)
    x = torch.randn(1, HIDDEN)
    with pytest.raises(NotImplementedError, match=r"activation '\w+'.*not supported"):
        run_experts(layer, x, routing(1))


# --- models ---------------------------------------------------------------------------------


def sparse_block(tmp_path, repaired: bool = True, **changes: Any) -> torch.nn.Module:
    from sglang.srt.models.qwen3_moe import Qwen3MoeSparseMoeBlock

    from ascend_gguf.srt.models.repairs import repair

    config = load_config(write_model(tmp_path / "m.gguf", arch="qwen3moe").path)
    for name, value in changes.items():
        setattr(config, name, value)
    block = Qwen3MoeSparseMoeBlock(0, config, GGUFConfig(), prefix="model.layers.0.mlp")
    if repaired:
        repair(block, config)
    return block


@pytest.mark.parametrize("renormalize", [True, False])
def test_qwen3_moe_renormalises_as_its_configuration_says(renormalize, tmp_path):
    block = sparse_block(tmp_path, norm_topk_prob=renormalize)
    assert block.topk.topk_config.renormalize is renormalize
    assert type(block.experts.quant_method) is GGUFMoEAscendMethod


def test_qwen3_moe_alone_is_the_engines(tmp_path, other_device):
    block = sparse_block(tmp_path, repaired=False, norm_topk_prob=True)
    assert block.topk.topk_config.renormalize is False


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
    ],
    ids=str,
)
def test_gate_of_the_shared_expert(dtype):
    from ascend_gguf.srt.models.qwen2_moe import add_gated

    g = torch.Generator().manual_seed(0)
    x, shared, out = (torch.randn(50, HIDDEN, generator=g).to(dtype) for _ in range(3))
    gate = (0.1 * torch.randn(HIDDEN, generator=g)).to(dtype)
    scale = torch.sigmoid(x.double() @ gate.double())[:, None]
    expected = out.double() + scale * shared.double()
    rounded = expected.to(dtype).double()
    assert add_gated(x, gate, shared, out) is None
    # At most as far away as the nearest number, or by what float32 arithmetic adds.
    assert ((out - expected).abs() <= (rounded - expected).abs() + 1e-5).all()
