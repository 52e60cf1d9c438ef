"""The table of errors behind the tests."""

from __future__ import annotations


def pytest_terminal_summary(terminalreporter) -> None:
    rows: dict[str, dict[str, float]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            found = dict(report.user_properties).get("error")
            if found and "test_peers.py" in report.nodeid:
                test, _, case = report.nodeid.partition("[")
                device = "NPU" if "npu" in test else "CPU"
                name, column = case.rpartition("-")[0], f"{device} {found[0]}"
                rows.setdefault(name, {})[column] = found[1]
    if not rows:
        return
    columns = sorted({column for row in rows.values() for column in row})
    rows["largest"] = {
        column: max(row[column] for row in rows.values() if column in row) for column in columns
    }
    terminalreporter.section("mean (bfloat16: median) errors of log-probabilities")
    terminalreporter.write_line("  ".join((" " * 24, *columns)))
    for name, row in rows.items():
        cells = (
            f"{row[column]:{len(column)}.1e}" if column in row else " " * len(column)
            for column in columns
        )
        terminalreporter.write_line("  ".join((f"{name:24}", *cells)))
