"""What an Ascend operator refuses, said as data.

A simulated operator states its rules with one `Rules` object, before it computes:

    rule = Rules("aclnnRmsNorm", source="torch_npu 2.13.0 documentation of npu_rms_norm")
    rule.dtype("x", x, F16, BF16, F32)
    rule.same_dtype("gamma", gamma, "x", x)

A broken rule raises `OperatorRuleError`, whose message names the operator, the argument, the rule,
what was found, the product and where the rule comes from.  On a device most of these would come
back as error 161002 with a line in a log file, and some (value ranges, block numbers, slots) would
not be noticed at all but read or write memory that is not theirs.

Where the documentation and the released CANN sources say nothing, the rule is
`rule.undocumented(...)`: refused, unless code in production is known to call the operator that way,
in which case a comment beside the rule names that code.
"""

from __future__ import annotations

import sys

import torch

from . import faults
from .products import OPERATORS, P310, product

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
I8, I16, I32, I64, U8, BOOL = (
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)

# Storage formats (aclFormat).  torch_npu tags plain tensors with ND, NCHW or, by dimension,
# NHWC-less relatives: all "ND" here.
FORMAT_ND, FORMAT_NZ = 2, 29
PLAIN_FORMATS = (-1, 0, 1, 2, 30, 47)


class OperatorRuleError(ValueError):
    """An operator was called in a way its documentation refuses.

    operator: aclnn, npu or atb name; argument: the argument's documented name; rule: the rule
    broken and what was found; source: where the rule is stated.
    """

    def __init__(self, operator: str, argument: str, rule: str, source: str):
        self.operator, self.argument, self.rule, self.source = operator, argument, rule, source
        super().__init__(f"{operator}: argument '{argument}': {rule} [{product()}; {source}]")


class OperatorMissing(NotImplementedError):
    """An operator, or a form of one, that the simulation does not have.

    Nothing falls back to something else.
    """

    def __init__(self, operator: str, form: str = ""):
        self.operator, self.form = operator, form
        super().__init__(f"{operator}{': ' + form if form else ''}: not simulated")


# (file, line) of every rule that has refused something; tests use it to find rules that nothing
# breaks.
REFUSED_AT: set[tuple[str, int]] = set()


def dtype_name(dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Rules:
    """The rules of one operator.

    Every method takes the argument's name first and raises OperatorRuleError when broken.  The
    first rule is that the product has the operator.
    """

    def __init__(self, operator: str, source: str):
        self.operator, self.source = operator, source
        families, page = OPERATORS[operator]
        exists = f"the operator exists on {', '.join(families)} only"
        self.that(product() in families, "product", exists, page)
        faults.strike(operator)

    # -- the general form
    def that(self, holds: bool, argument: str, rule: str, source: str | None = None) -> None:
        """`rule` must hold of `argument`."""
        if not holds:
            self._refuse(argument, rule, source)

    def _refuse(self, argument: str, rule: str, source: str | None = None):
        frame = sys._getframe(1)
        while frame.f_code.co_filename == __file__:
            frame = frame.f_back
        REFUSED_AT.add((frame.f_code.co_filename, frame.f_lineno))
        raise OperatorRuleError(self.operator, argument, rule, source or self.source)

    def undocumented(self, holds: bool, argument: str, what: str) -> None:
        """`what` is nowhere documented: refused unless `holds` says the call is of a form
        production code is known to use.
        """
        self.that(
            holds,
            argument,
            f"{what}: not documented, and not known from production code, so refused",
        )

    # -- presence
    def present(self, argument: str, value, why: str = "is required") -> None:
        self.that(value is not None, argument, why)

    def absent(self, argument: str, value, why: str = "must not be given") -> None:
        self.that(value is None, argument, why)

    # -- tensors
    def dtype(self, argument: str, t, *allowed) -> None:
        if t is not None:
            self.that(
                t.dtype in allowed,
                argument,
                f"dtype is one of {', '.join(map(dtype_name, allowed))} (found "
                f"{dtype_name(t.dtype)})",
            )

    def floats(self, argument: str, t, *others) -> None:
        """A type of floats, or one of ``others``; 310P has no bfloat16."""
        halves = (F16,) if product() == P310 else (F16, BF16)
        self.dtype(argument, t, *halves, F32, *others)

    def same_dtype(self, argument: str, t, other: str, o) -> None:
        if t is not None:
            self.that(
                t.dtype == o.dtype,
                argument,
                f"dtype equals that of {other}, {dtype_name(o.dtype)}"
                f" (found {dtype_name(t.dtype)})",
            )

    def ndim(self, argument: str, t, low: int, high: int | None = None) -> None:
        if t is not None:
            high = low if high is None else high
            span = str(low) if low == high else f"{low} to {high}"
            self.that(
                low <= t.dim() <= high,
                argument,
                f"has {span} dimensions (found shape {tuple(t.shape)})",
            )

    def shape(self, argument: str, t, *allowed) -> None:
        if t is not None:
            shapes = [tuple(a) for a in allowed]
            self.that(
                tuple(t.shape) in shapes,
                argument,
                f"shape is {' or '.join(map(str, shapes))} (found {tuple(t.shape)})",
            )

    def not_empty(self, argument: str, t) -> None:
        if t is not None:
            self.that(
                t.numel() > 0,
                argument,
                f"empty tensors are not supported (found shape {tuple(t.shape)})",
            )

    def contiguous(self, argument: str, t) -> None:
        if t is not None:
            self.that(
                t.is_contiguous(),
                argument,
                f"must be contiguous (found shape {tuple(t.shape)}, strides {t.stride()})",
            )

    def contiguous_or_transposed(self, argument: str, t) -> None:
        """Contiguous, or something contiguous with its last two dimensions swapped."""
        if t is not None:
            self.that(
                t.is_contiguous() or is_transposed(t),
                argument,
                "is contiguous or a transposed view of a contiguous tensor (found shape "
                f"{tuple(t.shape)}, strides {t.stride()})",
            )

    def values(self, argument: str, t, low, high) -> None:
        """Every value in [low, high].

        A device does not look at values: out of range it computes or addresses garbage.
        """
        if t is not None and t.numel():
            smallest, largest = t.min().item(), t.max().item()
            self.that(
                low <= smallest and largest <= high,
                argument,
                f"values lie in [{low}, {high}] (found {smallest} to {largest})",
            )

    def plain(self, argument: str, view) -> None:
        """The storage format is ND."""
        if view is not None:
            self.that(
                view.format in PLAIN_FORMATS,
                argument,
                f"storage format is ND (found {view.format})",
            )

    # -- numbers
    def range(self, argument: str, what: str, value, low, high) -> None:
        self.that(low <= value <= high, argument, f"{what} is in [{low}, {high}] (found {value})")

    def multiple(self, argument: str, what: str, value: int, of: int) -> None:
        self.that(value % of == 0, argument, f"{what} is a multiple of {of} (found {value})")

    def one_of(self, argument: str, value, *allowed) -> None:
        self.that(
            value in allowed,
            argument,
            f"is one of {', '.join(map(repr, allowed))} (found {value!r})",
        )

    def equal(self, argument: str, what: str, value, expected) -> None:
        self.that(value == expected, argument, f"{what} is {expected} (found {value})")


def is_transposed(t: torch.Tensor) -> bool:
    """Whether t is a contiguous tensor seen with its last two dimensions swapped: CANN's own test,
    on strides alone.
    """
    if (
        t.dim() < 2
        or t.stride(-2) != 1
        or t.stride(-1) != t.shape[-2]
        or t.shape[-1] == t.shape[-2] == 1
    ):
        return False
    expected = t.shape[-1] * t.shape[-2]
    for size, stride in zip(reversed(t.shape[:-2]), reversed(t.stride()[:-2]), strict=False):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
