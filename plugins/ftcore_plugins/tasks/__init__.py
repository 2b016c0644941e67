"""The built-in tasks; losses and metrics ask `isinstance(task, Classification)`, also of others' subclasses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .classification import Classification
from .multilabel import Multilabel
from .regression import Regression

if TYPE_CHECKING:
    from ftcore import Task

__all__ = ["Classification", "Multilabel", "Regression", "built_in_name"]


def built_in_name(task: Task) -> str:
    """Return the name of the built-in task that this one is, or is derived from; nothing if it is none."""
    return next((kind.name for kind in (Classification, Multilabel, Regression) if isinstance(task, kind)), "")
