"""What a value of the configuration may be."""

from __future__ import annotations

import re
from typing import Any

from attrs import validators

check_not_negative: Any = validators.ge(0)
check_count: Any = [validators.gt(0), validators.le(10**6)]
check_few: Any = [validators.gt(0), validators.le(1024)]


def check_sides(_instance: Any, attribute: Any, size: int | tuple[int, int]) -> None:
    """Take a height and a width in pixels, or one number for both."""
    sides = (size,) if isinstance(size, int) else size
    if min(sides) <= 0 or max(sides) > 2**16:
        raise ValueError(f"'{attribute.name}' must be > 0 and <= {2**16}: {size}")


SAVE_INTERVAL = re.compile(r"([1-9]\d{0,8}) (step|minute|epoch)s?")
"""The form of `run.save_every`."""


def check_save_interval(_instance: Any, _attribute: Any, text: str) -> None:
    """Take a text of the form of `SAVE_INTERVAL`."""
    if not SAVE_INTERVAL.fullmatch(text):
        raise ValueError(f"a number of steps, minutes or epochs, such as '500 steps' or '1 epoch', not {text!r}")
