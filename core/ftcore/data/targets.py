"""Targets of samples as their task takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ftcore.errors import UserError

if TYPE_CHECKING:
    from ftcore.types.task import Task


class TargetError(UserError):
    """A sample's target is not of the form that its task has."""


def checked_target(target: Any, task: Task, origin: str, sample: str) -> Any:
    """Return a sample's target as `ftcore.SampleDataset` has it; numbers of numpy and of tensors are plain then.

    Raises:
        TargetError: it is not what the task has for a target; names who gave it, and the sample.
    """
    plain = target.tolist() if isinstance(target, torch.Tensor | np.ndarray | np.generic) else target
    try:
        return task.check(plain)
    except ValueError as error:
        shown = f"{target!r:.80}, a {type(target).__name__}"
        raise TargetError(f"{origin}: the target of sample {sample} is {shown}; {error}") from None
