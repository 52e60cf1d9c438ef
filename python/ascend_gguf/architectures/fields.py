"""Metadata keys and the attributes of the configuration that come from them."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Field:
    """An attribute of the configuration that comes from a metadata key.

    Args:
        attribute: its name.
        kind: type of the value: int, float or bool.
        least: the smallest valid value.
        unset: a value that means the same as a missing key.
        required: the file must have the key.
        by_layer: layers may have values of their own (:func:`.dimensions.of_layer`).
    """

    attribute: str
    kind: type = int
    least: float = 1
    unset: float | None = None
    required: bool = False
    by_layer: bool = False


def fraction(attribute: str) -> Field:
    """A :class:`Field` of a float that every file has."""
    return Field(attribute, float, 0, required=True)


def scale(attribute: str) -> Field:
    """A :class:`Field` of a factor or divisor; zero means none."""
    return Field(attribute, float, 0, unset=0)


def flag(attribute: str) -> Field:
    """A :class:`Field` that is true or false."""
    return Field(attribute, bool)


def count(attribute: str) -> Field:
    """A :class:`Field` of an integer that may be zero."""
    return Field(attribute, int, 0)


def length(attribute: str) -> Field:
    """A :class:`Field` of an integer; zero means none."""
    return Field(attribute, int, 0, unset=0)


#: Metadata keys and their attributes; a plain name is an integer of at least one, and required.
Fields = dict[str, str | Field]


def as_field(field: str | Field) -> Field:
    """A value of :data:`Fields`, written out."""
    return field if isinstance(field, Field) else Field(field, required=True)


def required(fields: Fields) -> Fields:
    """The same fields, which every file must have."""
    return {key: replace(as_field(field), required=True) for key, field in fields.items()}
