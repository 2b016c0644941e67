"""Which options have been read: one that was set and that nobody reads would be ignored in silence."""

from __future__ import annotations

from typing import Any, TypeVar

import attrs

T = TypeVar("T")


def track_reads(options: T) -> tuple[T, set[str]]:
    """Return a copy of an attrs object, and the set to which it adds the name of each option that is read.

    The copy is of a class derived for it, which calls itself the plain one, so that both compare equal; pickled or
    evolved, it becomes an object of the plain class again.
    """
    plain: Any = type(options)
    names = frozenset(option.name for option in attrs.fields(plain))
    read: set[str] = set()

    def note(self: Any, name: str) -> Any:
        if name in names:
            read.add(name)
        return object.__getattribute__(self, name)

    def reduce(self: Any) -> Any:
        return _construct_without_validation, (plain, {name: object.__getattribute__(self, name) for name in names})

    members = {"__getattribute__": note, "__reduce__": reduce, "__slots__": (), "__class__": property(lambda _: plain)}
    copy = _construct_without_validation(
        type(plain.__name__, (plain,), members), {name: getattr(options, name) for name in names}
    )
    return copy, read


def _construct_without_validation(cls: Any, values: dict[str, Any]) -> Any:
    """Make an object without asking its validators again."""
    made = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made
