"""The table of errors behind the tests."""

from __future__ import annotations


def pytest_terminal_summary(terminalreporter) -> None:
    errors: dict[str, dict[str, str]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            found = dict(report.user_properties).get("error")
            if found and "test_peers.py" in report.nodeid:
                test, _, name = report.nodeid.rstrip("]").rpartition("[")
                device = "NPU" if "npu" in test else "CPU"
                errors.setdefault(name, {})[device] = found
    if errors:
        terminalreporter.section("mean (bfloat16: median) errors of log-probabilities")
    for name, found in errors.items():
        row = "  ".join(f"{device} {error}" for device, error in found.items())
        terminalreporter.write_line(f"{name:24} {row}")
