"""The one way in which ftcore spells JSON: what any reader of JSON reads, and so without ``NaN`` and ``Infinity``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def to_json(value: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """Spell plain data as JSON; a number that is not finite becomes null.

    Args:
        value: texts, numbers, truth values and None, in lists, tuples and mappings.
        indent: spaces before what is inside; by default all is in one line.
        default: anything else -> plain data; by default it is an error.

    Raises:
        TypeError: there is something else in it.
    """
    return json.dumps(_finite(value), indent=indent, default=default, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return plain data with None for each number that is not finite, as it comes back from JSON."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
