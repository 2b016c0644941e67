"""Class-weighted cross-entropy with either divisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class WeightedCrossEntropyLoss(nn.Module):
    """sum_i w[y_i] * -log softmax(x_i)[y_i], divided by sum_i w[y_i] or by the number of samples N.

    The first divisor is that of `torch.nn.CrossEntropyLoss(weight=w)`; the second keeps the scale of a rare,
    heavily weighted class, for a batch without it is not blown up.
    """

    class_weights: Tensor

    def __init__(self, weights: Sequence[float], *, by_samples: bool) -> None:
        """Take one weight (> 0) a class."""
        super().__init__()
        self.by_samples = by_samples
        self.register_buffer("class_weights", torch.tensor(weights, dtype=torch.float32))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs (N, K) float32, targets (N,) int64 -> scalar."""
        reduction = "sum" if self.by_samples else "mean"
        loss = functional.cross_entropy(outputs, targets, self.class_weights, reduction=reduction)
        return loss / len(targets) if self.by_samples else loss

    def weight_of(self, targets: Tensor) -> Tensor | float:
        """Targets (N,) int64 -> what the loss was divided by."""
        return float(len(targets)) if self.by_samples else self.class_weights[targets].sum()
