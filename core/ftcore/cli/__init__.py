"""The commands of ``ftcore``."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .group import main

__all__ = ["main"]

__getattr__ = lazy(__name__, {"group": "main"})
