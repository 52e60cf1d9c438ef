"""Pictures of the tables of docs/performance.md: ``make bench ARGS=--plot``.

They are drawn from the page's own numbers; each picture holds those that it shows, so that a test
can tell when a table has changed since.
"""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "performance.md"

Table = dict[str, dict[str, float]]

_COLORS = {"packed": "C0", "bytes of dense": "C0", "traffic of dense": "C9", "llama.cpp": "0.6"}

#: File -> axis, and of each panel: title, first column of its table (and which of several such
#: tables), columns that are drawn.
PICTURES = {
    "performance-serving.png": (
        "tokens a second on two cores",
        (
            ("Qwen3 0.6B, Q4_K_M", "tokens a second", 0, ("packed", "dense", "llama.cpp")),
            ("Gemma 3 270M, Q4_K_M", "tokens a second", 1, ("packed", "llama.cpp")),
        ),
    ),
    "performance-memory.png": (
        "bytes, relative to dense weights",
        (
            (
                "Weights on the NPU: held, and read for a token",
                "model",
                0,
                ("bytes of dense", "traffic of dense"),
            ),
        ),
    ),
}


def numbers(picture: str) -> list[Table]:
    """Of each panel: row -> column -> number."""
    return [
        {row: {column: float(values[column]) for column in columns} for row, values in rows.items()}
        for _, heading, place, columns in PICTURES[picture][1]
        for rows in [_tables(heading)[place]]
    ]


def draw(folder: Path = DOCS) -> None:
    """Write every picture."""
    from matplotlib.figure import Figure

    for name, (axis, panels) in PICTURES.items():
        figure = Figure(figsize=(3 + 3.5 * len(panels), 3.2), layout="constrained")
        tables = numbers(name)
        for panel, ((title, *_, columns), rows) in enumerate(zip(panels, tables, strict=True)):
            axes = figure.add_subplot(1, len(panels), panel + 1)
            thick = 0.8 / len(columns)
            for place, column in enumerate(columns):
                at = [row + (place - (len(columns) - 1) / 2) * thick for row in range(len(rows))]
                values, color = [row[column] for row in rows.values()], _COLORS.get(column, "C1")
                bars = axes.barh(at, values, thick, label=column, color=color)
                axes.bar_label(bars, padding=2, fontsize="small")
            axes.set_yticks(range(len(rows)), list(rows))
            axes.invert_yaxis()
            axes.margins(x=0.2)
            axes.set(title=title, xlabel=axis)
            axes.legend(fontsize="small", loc="lower right")
        figure.savefig(folder / name, metadata={"Description": repr(tables)})
        print(folder / name)


def _tables(heading: str) -> list[dict[str, dict[str, str]]]:
    """The tables of the page whose first column has this heading."""
    found = []
    lines = iter(PAGE.read_text().splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            columns = _cells(line)[1:]
            next(lines)
            rows = {}
            while (line := next(lines, "")).startswith("|"):
                name, *values = _cells(line)
                rows[name] = dict(zip(columns, values, strict=True))
            found.append(rows)
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
