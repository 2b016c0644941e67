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
    return ((numbers - torch.tensor(task.mean)) / torch.tensor(task.std)).float()


def decode_targets(values: Tensor, task: Task) -> Tensor:
    """Standardised outputs or targets (N, T) -> the target's own unit; scores of classes and labels stay."""
    if task.kind != "regression":
        return values
    return values * torch.tensor(task.std, device=values.device) + torch.tensor(task.mean, device=values.device)


def probabilities(outputs: Tensor, task: Task) -> Tensor:
    """Outputs (N, K) -> what they say: probabilities of classes or of labels, or numbers in the target's own unit."""
    if task.kind == "classification":
        return outputs.softmax(dim=1)
    return outputs.sigmoid() if task.kind == "multilabel" else decode_targets(outputs, task)
