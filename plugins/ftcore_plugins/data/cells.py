"""Read labels as numbers."""

from __future__ import annotations

import math

from ftcore import UserError


def number(label: str) -> float:
    """Read a label as the target of a regression."""
    value = parse_float(label)
    if value is None:
        raise UserError(f"data.task = 'regression' needs numbers as labels, got {label!r}")
    return value


def parse_float(text: str) -> float | None:
    """Return the finite number that a text is, if it is one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def parse_finite(text: str) -> float:
    """Return the finite number that a text is.

    Raises:
        ValueError: it is none.
    """
    value = parse_float(text)
    if value is None:
        raise ValueError("must be a finite number")
    return value


def parse_binary(text: str) -> float:
    """Return 0 or 1.

    Raises:
        ValueError: the text is neither.
    """
    value = parse_float(text)
    if value is None or value not in {0.0, 1.0}:
        raise ValueError("must be 0 or 1 (labels in words, in one cell, need table.labels)")
    return value


def is_missing(text: str) -> bool:
    """Whether a cell holds no value."""
    return text.lower() in {"", "nan", "null", "none", "na", "n/a"}
