"""What a model's weights take, form by form, for the log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Holding:
    """One weight in place: the name of its form, how many numbers it stands for, its bytes."""

    form: str
    weights: int
    nbytes: int


def table(holdings: Iterable[Holding], file_bytes: int, dense_bits: int) -> str:
    """A line a form, and one for the whole.

    Args:
        holdings: every weight.
        file_bytes: what the same weights take in the file.
        dense_bits: of a weight held as a number.
    """
    by_form: dict[str, list[Holding]] = {}
    for holding in holdings:
        by_form.setdefault(holding.form, []).append(holding)
    lines = [f"{'form':<16}{'tensors':>8}{'weights':>16}{'MiB':>12}{'bits a weight':>15}"]
    lines += [_line(form, held) for form, held in by_form.items()]
    everything = [holding for held in by_form.values() for holding in held]
    nbytes = sum(holding.nbytes for holding in everything)
    dense = sum(holding.weights for holding in everything) * dense_bits // 8
    lines.append(
        f"{_line('all', everything)}  {nbytes / file_bytes:.3f} of the file, "
        f"{nbytes / dense:.3f} of dense"
    )
    return "\n".join(lines)


def _line(form: str, held: list[Holding]) -> str:
    weights = sum(holding.weights for holding in held)
    nbytes = sum(holding.nbytes for holding in held)
    bits = 8 * nbytes / weights if weights else 0.0
    return f"{form:<16}{len(held):>8}{weights:>16,}{nbytes / _MIB:>12.1f}{bits:>15.3f}"
