"""Tables of calls that break one rule each.

A family's test file builds a call that is right, as a dict of arguments, and lists what to change
in it:

    Case(Tensor.int, "weight", "dtype is one of", soc=P310)

`refused` runs every case and asserts that the operator refuses it, naming the argument and the
rule.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest

from npu_sim.operators.rules import OperatorRuleError

A2, A3, P310, A5 = "Ascend910B3", "Ascend910_9391", "Ascend310P3", "Ascend950PR_9599"
OLD = "Ascend910ProB"


def on(soc: str | None) -> AbstractContextManager:
    """The simulated product inside the block."""
    return mock.patch.dict(os.environ, NPU_SIM_SOC=soc or A2)


@dataclass
class Case:
    # The argument's value, or a function of its right one; a dict of several such, by argument.
    change: Any
    argument: str  # named in the refusal
    rule: str  # part of the rule's text
    base: dict = field(default_factory=dict)  # arguments of what builds the right call
    soc: str = A2


@dataclass
class Operator:
    """An operator with what it takes and what it refuses."""

    name: str  # in refusals
    call: Callable
    build: Callable[..., dict]  # a right call
    cases: Iterable[Case]
    soc: str = A2  # takes the right call

    def run_right(self) -> None:
        with on(self.soc):
            self.call(**self.build())

    def run(self, case: Case) -> None:
        with on(case.soc):
            self.call(**arguments(self.build, case))


def arguments(build: Callable[..., dict], case: Case) -> dict:
    call, change = build(**case.base), case.change
    changes = change if isinstance(change, dict) else {case.argument: change}
    return call | {name: v(call[name]) if callable(v) else v for name, v in changes.items()}


def refused(operator: Operator, case: Case) -> None:
    with pytest.raises(OperatorRuleError) as error:
        operator.run(case)
    assert error.value.operator == operator.name
    assert error.value.argument == case.argument, str(error.value)
    assert case.rule in error.value.rule, str(error.value)


def every_case(operators: Iterable[Operator]) -> pytest.MarkDecorator:
    """A test for each case, of ``operator`` and ``case``."""
    rows = [(operator, case) for operator in operators for case in operator.cases]
    ids = [
        f"{operator.name}-{case.argument}-{case.rule}".replace(" ", "_") for operator, case in rows
    ]
    return pytest.mark.parametrize(("operator", "case"), rows, ids=ids)
