"""Every rule has a test that breaks it, every operator one; the vocabulary itself."""

import ast
from pathlib import Path

import pytest
import test_rules_atb as atb
import test_rules_attention as attention
import test_rules_grouped_matmul as grouped
import test_rules_latent as latent
import test_rules_lora as lora
import test_rules_moe_gating as gate
import test_rules_moe_routing as moe
import test_rules_norm_activation_quant as small
import test_rules_rope_cache as rope
import test_rules_weight_quant_matmul as dense
import torch
from rule_cases import A2, A3, A5, OLD, P310, on, run

import npu_sim.operators as operators
from npu_sim.operators import faults, products, rules
from npu_sim.operators.registry import OPERATORS
from npu_sim.operators.rules import (
    OperatorMissing,
    OperatorRuleError,
    Rules,
    is_transposed,
)
from npu_sim.operators.view import View, int4_of, int4_pack, view

CHIPS = {
    **{A2: products.A2, A3: products.A3, P310: products.P310, A5: products.A5},
    OLD: products.OLD,
}
OPERATOR_FILES = sorted(Path(operators.__file__).parent.glob("*.py"))
CHECKS = {n for n in vars(Rules) if not n.startswith("_")}

TABLES = [
    (dense.operator, dense.call, dense.CASES),
    (dense.convert_weight_to_int4pack, dense.weight_call, dense.PACK_CASES),
    (grouped.operator, grouped.call, grouped.CASES),
    (small.rms_norm, small.norm_call, small.NORM),
    (small.add_rms_norm, small.add_call, small.ADD),
    (small.gemma_rms_norm, small.norm_call, small.GEMMA),
    (small.swiglu, small.swiglu_call, small.SWIGLU),
    (small.clipped_swiglu, small.clipped_call, small.CLIPPED),
    (small.geglu, small.geglu_call, small.GEGLU),
    (small.fast_gelu, small.fast_call, small.FAST),
    (small.dynamic_quant, small.quant_call, small.QUANT),
    (small.top_k_top_p, small.sampling_call, small.SAMPLING),
    (small.apply_token_bitmask, small.bitmask_call, small.BITMASK),
    (rope.rotary_mul, rope.rotary_call, rope.ROTARY),
    (rope.apply_rotary_pos_emb, rope.apply_call, rope.APPLY),
    (rope.interleave_rope, rope.interleave_call, rope.INTERLEAVE),
    (rope.mrope, rope.mrope_call, rope.MROPE),
    (rope.scatter_nd_update, rope.scatter_call, rope.SCATTER),
    (rope.scatter_pa_kv_cache, rope.pa_call, rope.PA),
    (rope.check_format_cast, rope.cast_call, rope.CAST),
    (gate.gating.gating_top_k_softmax, gate.softmax_call, gate.SOFTMAX),
    (gate.gating.gating_top_k_softmax_v2, gate.softmax_v2_call, gate.SOFTMAX_V2),
    (gate.gating.gating_top_k, gate.gate_call, gate.GATE),
    (moe.moe.init_routing, moe.older_call, moe.OLDER),
    (moe.moe.compute_expert_tokens, moe.count_call, moe.COUNT),
    (moe.moe.init_routing_v3, moe.init_call, moe.INIT),
    (moe.moe.finalize_routing, moe.final_call, moe.FINAL),
    (moe.moe.token_permute, moe.permute_call, moe.PERMUTE),
    (moe.moe.token_unpermute, moe.unpermute_call, moe.UNPERMUTE),
    (attention.fused, attention.call, attention.FUSED + attention.ON_950),
    (latent.kv_rmsnorm_rope_cache, latent.kv_call, latent.KV),
    (latent.transpose_batchmatmul, latent.product_call, latent.PRODUCT),
    (latent.with_rope, latent.pages_call, latent.ROPE + latent.ROPE_PAGES),
    (latent.with_rope, latent.tnd_call, latent.ROPE_TND),
    (lora.sgemmv_shrink, lora.shrink_call, lora.SHRINK),
    (lora.sgemmv_expand, lora.expand_call, lora.EXPAND),
    (atb.atb.reshape_and_cache, atb.store_call, atb.STORE),
    (atb.decode, atb.decode_call, atb.DECODES),
    (atb.prefill, atb.prefill_call, atb.PREFILL),
]


def rule_sites() -> set[tuple[str, int, int]]:
    """(file, first line, last line) of every call of a rule in the operator files."""
    found = set()
    for path in OPERATOR_FILES:
        if path.name == "rules.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in CHECKS
                and (
                    isinstance(node.func.value, ast.Name)
                    and node.func.value.id == "rule"
                    or isinstance(node.func.value, ast.Call)
                )
            ):
                found.add((str(path), node.lineno, node.end_lineno))
    return found


def test_every_rule_is_broken_by_a_case():
    rules.REFUSED_AT.clear()
    for operator, build, cases in TABLES:
        for case in cases:
            with pytest.raises(OperatorRuleError):
                run(operator, build, case)
    dense.test_nz_and_v2_v3_entry_points()
    attention.test_pages_of_more_elements_than_int32_counts()
    unbroken = [
        f"{Path(file).name}:{first}"
        for file, first, last in sorted(rule_sites())
        if not any(file == f and first <= line <= last for f, line in rules.REFUSED_AT)
    ]
    assert not unbroken


def test_every_right_call_is_taken():
    for operator, build, _ in TABLES:
        with on(A2):
            operator(**build())


def test_every_operator_can_be_at_fault(monkeypatch):
    seen = set()

    def names(build, operator) -> set[str]:
        named = []
        with monkeypatch.context() as m, on(A2):
            m.setattr(faults, "strike", lambda name, weights=None: named.append(name))
            operator(**build())
        return {name.rpartition("::")[2] for name in named}

    for operator, build, _ in TABLES:
        (name,) = names(build, operator)
        seen.add(name)
        for kind in ("refuse", "missing"):
            with monkeypatch.context() as m, on(A2), pytest.raises(faults.Fault, match=name):
                m.setenv(faults.VARIABLE, f"{kind}:{name}")
                operator(**build())
    assert seen == set(faults.OPERATORS)
    assert not names(small.norm_call, small.rms_norm) & set(faults.WITH_WEIGHTS)


@pytest.mark.parametrize(
    "fault",
    ["refuse", "refuse:npu_x", "crash:npu_rms_norm", "wrong:npu_rms_norm", "offset", "missing:",
     "refuse:npu_rms_norm:int4", "wrong:npu_grouped_matmul:int2", "top_k_renorm,refuse:npu_x"],
)  # fmt: skip
def test_unknown_faults_are_named(monkeypatch, fault):
    monkeypatch.setenv(faults.VARIABLE, fault)
    with pytest.raises(ValueError, match="no such fault") as error:
        faults.check()
    for name in (*faults.DEFECTS, *faults.KINDS, *faults.OPERATORS):
        assert name in str(error.value)
    assert f"{faults.VARIABLE}={fault.rpartition(',')[2]}:" in str(error.value)


def test_every_entry_point_has_a_signature_and_a_description():
    letters = set("tTIFsiwbdfSBLc")
    for name, entry in OPERATORS.items():
        assert name.startswith("aclnn") and set(entry.signature) <= letters
    for path in OPERATOR_FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_products():
    for soc, family in (*CHIPS.items(), ("Ascend910B1", products.A2), (None, products.A2)):
        with on(soc):
            assert products.product() == family
    for soc in ("Ascend910B", "Ascend910A", "Ascend910PremiumA"):
        with on(soc):
            assert products.product() == products.OLD
    with on("Ascend310"), pytest.raises(ValueError, match="Ascend310"):
        products.product()


def test_operators_exist_on_the_products_that_have_them(monkeypatch):
    for operator, build, _ in TABLES:
        named = []
        with monkeypatch.context() as m, on(A2):
            m.setattr(faults, "strike", lambda name, weights=None: named.append(name))  # noqa: B023
            operator(**build())
        families, page = products.OPERATORS[named[0]]
        for soc, family in CHIPS.items():
            try:
                with on(soc):
                    operator(**build())
                refused = ""
            except (OperatorRuleError, OperatorMissing) as error:
                refused = str(error)
            missing = f"argument 'product': the operator exists on {', '.join(families)} only"
            assert (missing in refused) == (family not in families), (named, soc, refused)
            assert family in families or page in refused


def test_refusals_say_everything():
    with on(P310), pytest.raises(OperatorRuleError) as error:
        Rules("npu_swiglu", "its documentation").dtype("x", torch.zeros(1), torch.float16)
    assert (
        str(error.value)
        == "npu_swiglu: argument 'x': dtype is one of float16 (found float32) [310P; its "
        "documentation]"
    )
    e = error.value
    assert (e.operator, e.argument, e.rule, e.source) == (
        "npu_swiglu",
        "x",
        "dtype is one of float16 (found float32)",
        "its documentation",
    )
    assert (
        str(OperatorMissing("npu_thing", "form")) == "npu_thing: form: not simulated"
        and OperatorMissing("a").form == ""
    )


def test_vocabulary():
    rule = Rules("npu_swiglu", "doc")
    for broken in (
        lambda: rule.that(False, "a", "r"),
        lambda: rule.undocumented(False, "a", "r"),
        lambda: rule.present("a", None),
        lambda: rule.absent("a", 1),
        lambda: rule.ndim("a", torch.zeros(1), 2, 3),
        lambda: rule.shape("a", torch.zeros(1), (2,)),
        lambda: rule.not_empty("a", torch.zeros(0)),
        lambda: rule.contiguous("a", torch.zeros(2, 2).t()),
        lambda: rule.contiguous_or_transposed("a", torch.zeros(4, 4)[:, ::2]),
        lambda: rule.values("a", torch.ones(1), 2, 3),
        lambda: rule.plain("a", View(torch.zeros(1), 29)),
        lambda: rule.range("a", "it", 3, 1, 2),
        lambda: rule.multiple("a", "it", 3, 2),
        lambda: rule.one_of("a", 3, 1, 2),
        lambda: rule.equal("a", "it", 1, 2),
        lambda: rule.same_dtype("a", torch.zeros(1), "b", torch.zeros(1).half()),
    ):
        with pytest.raises(OperatorRuleError, match="npu_swiglu: argument"):
            broken()
    for absent in (rule.not_empty, rule.contiguous, rule.contiguous_or_transposed, rule.plain):
        absent("a", None)
    (
        rule.dtype("a", None),
        rule.ndim("a", None, 1),
        rule.shape("a", None),
        rule.values("a", None, 0, 0),
        rule.same_dtype("a", None, "b", None),
    )


def test_transposed_views_as_cann_tells_them():
    m = torch.zeros(4, 6)
    assert (
        is_transposed(m.t())
        and not is_transposed(m)
        and not is_transposed(m[0])
        and not is_transposed(torch.zeros(1, 1))
    )
    assert is_transposed(torch.zeros(3, 4, 6).transpose(1, 2)) and not is_transposed(
        torch.zeros(6, 4, 3).permute(2, 0, 1).transpose(1, 2)[:, ::2]
    )
    assert is_transposed(torch.zeros(8, 1).t()) and not is_transposed(torch.zeros(1, 8))
    assert not is_transposed(torch.zeros(6, 4, 6).transpose(1, 2)[::2])


def test_int4_views():
    for shape in ((4, 16), (3, 4, 16), (16,)):
        values = torch.randint(-8, 8, shape, dtype=torch.int32)
        packed = int4_pack(values)
        assert packed.shape == (*shape[:-1], shape[-1] // 8) and torch.equal(
            int4_of(packed).int(), values
        )
        if len(shape) > 1:
            assert torch.equal(int4_of(packed.transpose(-1, -2)).int(), values.transpose(-1, -2))

    class Int4:
        dtype, t, fmt = "int4", torch.zeros(1), 2

    with pytest.raises(OperatorMissing, match="int4"):
        view(Int4())
