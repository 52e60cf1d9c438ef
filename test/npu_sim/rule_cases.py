"""Tables of calls that break one rule each.

A family's test file builds a call that is right, as a dict of arguments, and lists what to change
in it:

    Case("weight not int8", {"weight": lambda c: c["weight"].int()}, "weight", "dtype is one of",
    soc="Ascend310P3")

`refused` runs every case and asserts that the operator refuses it, naming the argument and the
rule.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from npu_sim.operators.rules import OperatorRuleError

A2, A3, P310, A5 = "Ascend910B3", "Ascend910_9391", "Ascend310P3", "Ascend950PR_9599"
OLD = "Ascend910ProB"


@contextmanager
def on(soc: str | None):
    """The simulated product inside the block."""
    before = os.environ.get("NPU_SIM_SOC")
    os.environ["NPU_SIM_SOC"] = soc or A2
    try:
        yield
    finally:
        os.environ.pop("NPU_SIM_SOC") if before is None else os.environ.__setitem__(
            "NPU_SIM_SOC", before
        )


@dataclass
class Case:
    what: str  # the test's name
    change: dict  # argument -> value, or function of the right call's dict
    argument: str  # named in the refusal
    rule: str  # part of the rule's text
    soc: str = A2
    base: dict = field(
        default_factory=dict
    )  # arguments for the function that builds the right call


def arguments(build: Callable[..., dict], case: Case) -> dict:
    call = build(**case.base)
    changed = {
        name: value(call) if callable(value) else value for name, value in case.change.items()
    }
    return call | changed


def run(operator: Callable, build: Callable[..., dict], case: Case) -> None:
    with on(case.soc):
        operator(**arguments(build, case))


def refused(operator: Callable, build: Callable[..., dict], case: Case, name: str) -> None:
    with on(case.soc), pytest.raises(OperatorRuleError) as error:
        operator(**arguments(build, case))
    assert error.value.operator == name
    assert error.value.argument == case.argument, str(error.value)
    assert case.rule in error.value.rule, str(error.value)
    for part in (name, case.argument, case.rule):
        assert part in str(error.value)


def ids(cases) -> list[str]:
    return [c.what.replace(" ", "_") for c in cases]


def case_list(*cases: Case) -> pytest.MarkDecorator:
    """A test for each case."""
    return pytest.mark.parametrize("case", cases, ids=ids(cases))
