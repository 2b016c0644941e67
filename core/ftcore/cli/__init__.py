"""The commands of ``ftcore``."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .group import main
    from .run import run_config

__all__ = ["main", "run_config"]

__getattr__ = lazy(__name__, {"group": "main", "run": "run_config"})
