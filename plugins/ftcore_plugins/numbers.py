"""Read labels as numbers."""

from __future__ import annotations

import math

from ftcore import UserError


def number(label: str) -> float:
    """Read a label as the target of a regression."""
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"data.task = 'regression' needs numbers as labels, got {label!r}")
    return value
