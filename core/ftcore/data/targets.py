"""Targets of samples as tensors, and outputs as what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ftcore.types.data import Task


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
