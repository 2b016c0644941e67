"""Class-weighted cross-entropy with either divisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from .modules import probabilities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class WeightedCrossEntropyLoss(nn.Module):
    """sum_i w[y_i] * -log softmax(x_i)[y_i], divided by sum_i w[y_i] or by the number of samples N.

    The first divisor is that of `torch.nn.CrossEntropyLoss(weight=w)`; the second keeps the scale of a rare,
    heavily weighted class, for a batch without it is not blown up. With label smoothing e over K classes, the whole
    loss of an image weighs what its class weighs,

        w[y] * ((1 - e) * -log p[y] + e/K sum_c -log p[c]),

    so it is least where p is the smoothed target. By torch's rule each class counts with its own weight for its share,

        (1 - e) w[y] * -log p[y] + e/K sum_c w[c] * -log p[c],

    which is least at p[c] ~ w[c] e/K + [c = y] w[y] (1 - e): a heavy class can win. The divisor is that of the target
    as it was.
    """

    class_weights: Tensor

    def __init__(
        self,
        weights: Sequence[float],
        *,
        mean_over_samples: bool,
        label_smoothing: float = 0.0,
        smooth_as_torch: bool = False,
    ) -> None:
        """Take one weight (> 0) a class, and a smoothing in [0, 1)."""
        super().__init__()
        self.mean_over_samples, self.label_smoothing = mean_over_samples, label_smoothing
        self.smooth_as_torch = smooth_as_torch
        self.register_buffer("class_weights", torch.tensor(weights, dtype=torch.float32))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs (N, K) float32, targets (N,) int64 or probabilities (N, K) float32 -> scalar."""
        smoothing, weights = self.label_smoothing, self.class_weights
        if smoothing and not self.smooth_as_torch:
            weighted = probabilities(targets, outputs) * weights
            wanted = (1 - smoothing) * weighted + smoothing / len(weights) * weighted.sum(dim=1, keepdim=True)
            loss = functional.cross_entropy(outputs, wanted, reduction="sum")
        else:
            loss = functional.cross_entropy(outputs, targets, weights, reduction="sum", label_smoothing=smoothing)
        return loss / self.denominator(targets)

    def denominator(self, targets: Tensor) -> Tensor | float:
        """Targets -> what the loss was divided by.

        For probabilities p, that is sum_i sum_k p_ik w_k, so that one-hot targets weigh what their classes weigh; torch
        divides by the number of samples there.
        """
        if self.mean_over_samples:
            return float(len(targets))
        return (targets @ self.class_weights if targets.ndim > 1 else self.class_weights[targets]).sum()
