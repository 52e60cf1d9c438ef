"""python/make/check.py: what ``make check`` installs and runs."""

import sys

import pytest
from packaging.requirements import Requirement

import check


def test_what_checks_is_bounded_above():
    for line in check.requirements():
        operators = {specifier.operator for specifier in Requirement(line).specifier}
        assert operators & {"<", "=="}, f"a new release must not fail a checkout: {line}"


def test_what_is_missing():
    wanted = ["pytest>=8", "no-such-package>=1", "packaging<1"]
    assert check.missing(wanted) == ["no-such-package>=1", "packaging<1"]


def test_every_step_runs_whatever_fails(capfd):
    steps = {
        name: [sys.executable, "-c", f"print('{name} ran'); raise SystemExit({status})"]
        for name, status in {"one": 0, "two": 3, "three": 0, "four": 1}.items()
    }
    assert check.run(steps) == ["two", "four"]
    output = capfd.readouterr().out
    assert all(f"{name} ran" in output for name in steps)


@pytest.mark.parametrize("failing, status", [([], 0), (["types"], 1)])
def test_status(monkeypatch, capsys, failing, status):
    monkeypatch.setattr(check, "missing", lambda wanted: [])
    monkeypatch.setattr(check, "run", lambda steps: failing)
    monkeypatch.setattr(sys, "argv", ["check.py"])
    assert check.main() == status
    assert ("types failed" in capsys.readouterr().err) == bool(failing)
