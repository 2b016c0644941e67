"""Targets of samples as tensors, and outputs as what they say."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ftcore.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from ftcore.types.data import Task


class TargetError(UserError):
    """A sample's target is not of the form that its task has."""


def checked_target(target: Any, task: Task, origin: str, sample: str) -> Any:
    """Return a sample's target as `ftcore.SampleDataset` has it; numbers of numpy and of 0-d tensors are plain then.

    Raises:
        TargetError: it is not what the task has for a target; names who gave it, and the sample.
    """
    try:
        return _plain_target(target, task)
    except ValueError as error:
        shown = f"{target!r:.80}, a {type(target).__name__}"
        raise TargetError(f"{origin}: the target of sample {sample} is {shown}; {error}") from None


def _plain_target(target: Any, task: Task) -> Any:
    plain = target.tolist() if isinstance(target, torch.Tensor | np.ndarray | np.generic) else target
    if task.kind == "classification":
        if isinstance(plain, int) and 0 <= plain < task.outputs:
            return int(plain)
        raise ValueError(f"a class is a whole number from 0 to {task.outputs - 1}")
    row = list(plain) if isinstance(plain, list | tuple) else [plain]
    if task.kind == "multilabel":
        if len(row) == task.outputs and all(isinstance(there, int | float) and there in {0, 1} for there in row):
            return tuple(row)
        raise ValueError(f"labels are {task.outputs} numbers, each 0 or 1")
    if len(row) == task.outputs and all(isinstance(number, int | float) and math.isfinite(number) for number in row):
        return row[0] if len(row) == 1 else tuple(row)
    raise ValueError(f"a target is {task.outputs} finite number{'s' if task.outputs > 1 else ''}")


def encode_targets(targets: tuple[Any, ...], task: Task) -> Tensor:
    """Targets as the data gives them -> as the loss takes them."""
    if task.kind == "classification":
        return torch.tensor(targets, dtype=torch.int64)
    if task.kind == "multilabel":
        return torch.tensor(targets, dtype=torch.float32)
    numbers = torch.tensor(targets, dtype=torch.float64).reshape(len(targets), -1)
    mean, std = (torch.tensor(given, dtype=torch.float64) for given in (task.mean, task.std))
    return ((numbers - mean) / std).float()


def decode_targets(values: Tensor, task: Task) -> Tensor:
    """Standardised outputs or targets (N, T) -> the target's own unit, float64; scores of classes and labels stay.

    float32 has seven digits: of 1,000,000 +- 1 it would leave one.
    """
    if task.kind != "regression":
        return values
    wide = torch.float32 if values.device.type == "mps" else torch.float64  # Apple's devices have no float64
    mean, std = (torch.tensor(given, dtype=wide, device=values.device) for given in (task.mean, task.std))
    return values.to(wide) * std + mean


def probabilities(outputs: Tensor, task: Task) -> Tensor:
    """Outputs (N, K) -> what they say: probabilities of classes or of labels, or numbers in the target's own unit."""
    if task.kind == "classification":
        return outputs.softmax(dim=1)
    return outputs.sigmoid() if task.kind == "multilabel" else decode_targets(outputs, task)
