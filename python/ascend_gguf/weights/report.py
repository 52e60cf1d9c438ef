"""What a model's weights take, layout by layout, for the log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Holding:
    """One weight in place: the name of its layout, its number of weights, its bytes."""

    layout: str
    weights: int
    nbytes: int


def table(holdings: Iterable[Holding], file_bytes: int, dense_bits: int) -> str:
    """A line a layout, and one for the whole.

    Args:
        holdings: every weight.
        file_bytes: what the same weights take in the file.
        dense_bits: of a dense weight.
    """
    by_layout: dict[str, list[Holding]] = {}
    for holding in holdings:
        by_layout.setdefault(holding.layout, []).append(holding)
    lines = [f"{'layout':<22}{'tensors':>8}{'weights':>16}{'MiB':>12}{'bits a weight':>15}"]
    lines += [_line(layout, held) for layout, held in by_layout.items()]
    everything = [holding for held in by_layout.values() for holding in held]
    nbytes = sum(holding.nbytes for holding in everything)
    dense = sum(holding.weights for holding in everything) * dense_bits // 8
    lines.append(
        f"{_line('all', everything)}  {nbytes / file_bytes:.3f} of the file, "
        f"{nbytes / dense:.3f} of dense"
    )
    return "\n".join(lines)


def _line(layout: str, held: list[Holding]) -> str:
    weights = sum(holding.weights for holding in held)
    nbytes = sum(holding.nbytes for holding in held)
    bits = 8 * nbytes / weights if weights else 0.0
    return f"{layout:<22}{len(held):>8}{weights:>16,}{nbytes / _MIB:>12.1f}{bits:>15.3f}"
