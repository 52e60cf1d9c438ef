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
from rule_cases import A2, A3, A5, OLD, P310, on

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
    table
    for tests in (atb, attention, dense, gate, grouped, latent, lora, moe, rope, small)
    for table in tests.OPERATORS
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
    for table in TABLES:
        for case in table.cases:
            with pytest.raises(OperatorRuleError):
                table.run(case)
    dense.test_nz_and_v2_v3_entry_points()
    attention.test_pages_of_more_elements_than_int32_counts()
    unbroken = [
        f"{Path(file).name}:{first}"
        for file, first, last in sorted(rule_sites())
        if not any(file == f and first <= line <= last for f, line in rules.REFUSED_AT)
    ]
    assert not unbroken


def test_every_right_call_is_taken():
    for table in TABLES:
        table.run_right()


def test_every_operator_can_be_at_fault(monkeypatch):
    seen = set()
    for table in TABLES:
        name = table.name.rpartition("::")[2].partition(" ")[0]
        seen.add(name)
        for kind in ("refuse", "missing"):
            monkeypatch.setenv(faults.VARIABLE, f"{kind}:{name}")
            with pytest.raises(faults.Fault, match=name):
                table.run_right()
    assert seen == set(faults.OPERATORS)


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


def test_operators_exist_on_the_products_that_have_them():
    for table in TABLES:
        families, page = products.OPERATORS[table.name]
        for soc, family in CHIPS.items():
            try:
                with on(soc):
                    table.call(**table.build())
                refused = ""
            except (OperatorRuleError, OperatorMissing) as error:
                refused = str(error)
            missing = f"argument 'product': the operator exists on {', '.join(families)} only"
            assert (missing in refused) == (family not in families), (table.name, soc, refused)
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
