"""Errors that a user can mend, and the nearest-name hint that they carry.

UserError
├── UnknownOptionError    options that nothing has, by their names
└── DataError    an image or a table that cannot be used; carries no traceback into the terminal either
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can mend: printed as one message, exit code 2, no traceback.

    The text says what was wrong, the value that was given, what is allowed or nearest, and where
    it was set.

    Attributes:
        faulty_plugins: names of those that did not keep to what a hook is for; empty where none is to blame, as where
            one refuses what it was given.
    """

    def __init__(self, message: str, *, faulty_plugins: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.faulty_plugins = tuple(faulty_plugins)


class UnknownOptionError(UserError):
    """Options that nothing has.

    Attributes:
        names: as they were written, e.g. ``train.lr`` or ``epochs``.
    """

    def __init__(self, message: str, names: Iterable[str]) -> None:
        super().__init__(message)
        self.names = tuple(names)


class DataError(UserError):
    """A file of the user's data cannot be used; the message names its path and the reason."""


_OF_PLUGIN = "of_ftcore_plugin"


def blame_plugin(error: BaseException, note: str) -> None:
    """Add a note to an error that names the plugin that it comes from, and mark it for `is_plugin_error`."""
    error.add_note(note)
    vars(error)[_OF_PLUGIN] = True


def is_plugin_error(error: BaseException) -> bool:
    """Whether `blame_plugin` marked an error as coming from a plugin."""
    return _OF_PLUGIN in vars(error)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of `known`, or ``""``."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def suggestions(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return up to five of `known`, the closest first, each after `prefix`; or ``none``."""
    return ", ".join(prefix + match for match in close_matches(word, known)) or "none"


def close_matches(word: str, known: Iterable[str]) -> list[str]:
    """Return up to five of `known`, the closest first."""
    return get_close_matches(word, list(known), n=5, cutoff=0.4)


def format_names(words: Iterable[str]) -> str:
    """Return the words sorted and joined by commas, or ``none``."""
    return ", ".join(sorted(words)) or "none"
