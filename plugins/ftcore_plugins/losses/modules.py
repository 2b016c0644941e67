"""The losses that torch does not have, as torch modules; what they are called and set by is in the plugins' modules.

All take outputs (N, K) float32, logits. Targets are class indices (N,) int64, or probabilities of classes (N, K)
float32, or labels (N, K) float32 in [0, 1]. Where the paper has class indices alone, the loss is linear in the
probabilities, so one-hot targets and indices give the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def probabilities(targets: Tensor, outputs: Tensor) -> Tensor:
    """Class indices (N,) or what is (N, K) already -> (N, K), of the outputs' dtype."""
    if targets.ndim > 1:
        return targets
    return functional.one_hot(targets, outputs.shape[1]).to(outputs.dtype)


def safe_pow(base: Tensor, exponent: float) -> Tensor:
    """Raise numbers in [0, 1]; with an exponent below 1 the gradient would be infinite at 0, hence the floor."""
    return base.clamp(min=torch.finfo(base.dtype).tiny) ** exponent


class FocalLoss(nn.Module):
    """Mean over the batch of sum_c -y_c alpha_c (1 - p_c)^gamma log(p_c), p the softmax.

    For a class index that is FL(p_t) of Lin et al. 2017 (arXiv:1708.02002), eq. 5, who write the case of two classes.
    """

    alpha: Tensor

    def __init__(self, gamma: float, alpha: Sequence[float]) -> None:
        """Take gamma >= 0 and K factors > 0."""
        super().__init__()
        self.gamma = gamma
        self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float32))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs (N, K), indices or probabilities -> scalar."""
        log_p = outputs.log_softmax(dim=1)
        focused = safe_pow(-log_p.expm1(), self.gamma) * log_p  # 1 - p without cancellation
        return -(probabilities(targets, outputs) * self.alpha * focused).sum(dim=1).mean()


class AsymmetricLabelLoss(nn.Module):
    """Mean over images and labels of -y a (1 - p)^gamma_pos log(p) - (1 - y) b q^gamma_neg log(1 - q), p the sigmoid.

    q = max(p - clip, 0) gives up negatives that are easy (Ridnik et al. 2021, arXiv:2009.14119, section 2). With one
    gamma for both and no clip it is the focal loss of Lin et al. 2017 (arXiv:1708.02002), eq. 5.
    """

    present: Tensor
    absent: Tensor

    def __init__(
        self,
        gamma_pos: float,
        gamma_neg: float,
        clip: float = 0.0,
        *,
        present: Sequence[float] = (1.0,),
        absent: Sequence[float] = (1.0,),
    ) -> None:
        """Take both gammas >= 0, clip in [0, 1), and the factors a and b > 0, for all labels or one a label."""
        super().__init__()
        self.gamma_pos, self.gamma_neg, self.clip = gamma_pos, gamma_neg, clip
        self.register_buffer("present", torch.tensor(present, dtype=torch.float32))
        self.register_buffer("absent", torch.tensor(absent, dtype=torch.float32))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs (N, K), labels (N, K) -> scalar."""
        present = self.present * safe_pow((-outputs).sigmoid(), self.gamma_pos) * functional.logsigmoid(outputs)
        absent = self.absent * safe_pow((outputs.sigmoid() - self.clip).clamp(min=0), self.gamma_neg)
        return -(targets * present + (1 - targets) * absent * self._log_absent(outputs)).mean()

    def _log_absent(self, outputs: Tensor) -> Tensor:
        """log(1 - q); without a clip, 1 - q may be 0."""
        if not self.clip:
            return functional.logsigmoid(-outputs)
        return ((-outputs).sigmoid() + self.clip).clamp(max=1).log()


class AsymmetricClassLoss(nn.Module):
    """Mean over the batch of sum_c -y'_c w_c log(p_c), p the softmax, y' the smoothed target.

    w_c = (1 - p_c)^gamma_pos for the class of the image and p_c^gamma_neg for the others, which count by smoothing
    alone: y' = 1 - s + s / K and s / K (`ASLSingleLabel` in the code of Ridnik et al. 2021, arXiv:2009.14119).
    """

    def __init__(self, gamma_pos: float, gamma_neg: float, label_smoothing: float) -> None:
        """Take both gammas >= 0 and s in [0, 1)."""
        super().__init__()
        self.gamma_pos, self.gamma_neg, self.label_smoothing = gamma_pos, gamma_neg, label_smoothing

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs (N, K), indices or probabilities -> scalar."""
        log_p, y = outputs.log_softmax(dim=1), probabilities(targets, outputs)
        low = self.label_smoothing / outputs.shape[1]
        own = y * (1 - self.label_smoothing + low) * safe_pow(-log_p.expm1(), self.gamma_pos)
        others = (1 - y) * low * safe_pow(log_p.exp(), self.gamma_neg)
        return -((own + others) * log_p).sum(dim=1).mean()


class BinaryCrossEntropyLoss(nn.Module):
    """Mean over images and outputs of f y B(1) + (1 - y) B(0), p the sigmoid, s the smoothing, B the cross-entropy.

    B(y) = -y' log(p) - (1 - y') log(1 - p) with y' = (1 - s) y + s / among: what is there weighs f, with its smoothed
    target as a whole. `smooth_as_torch` is torch's `pos_weight` on smoothed targets, of which it is the mean of
    -f y' log(p) - (1 - y') log(1 - p): there the share s / among of what is absent weighs f, too, and wins where
    f s / among > 1 - s / among. `among` is 2 for labels, each of which is there or not, and K for classes.
    """

    factors: Tensor

    def __init__(
        self, factors: Sequence[float], label_smoothing: float, among: int, *, smooth_as_torch: bool = False
    ) -> None:
        """Take K factors f > 0 and s in [0, 1)."""
        super().__init__()
        self.label_smoothing, self.among, self.smooth_as_torch = label_smoothing, among, smooth_as_torch
        self.register_buffer("factors", torch.tensor(factors, dtype=torch.float32))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs (N, K), indices, probabilities or labels -> scalar."""
        there, low = probabilities(targets, outputs), self.label_smoothing / self.among
        if self.smooth_as_torch or not self.label_smoothing:
            smoothed = there * (1 - self.label_smoothing) + low
            return functional.binary_cross_entropy_with_logits(outputs, smoothed, pos_weight=self.factors)
        present, absent = self.factors * there, 1 - there
        weight = present + absent
        smoothed = (present * (1 - self.label_smoothing) + weight * low) / weight
        return functional.binary_cross_entropy_with_logits(outputs, smoothed, weight=weight)


class SoftF1DiceLoss(nn.Module):
    """1 - mean over classes of (2 sum_i p_i y_i + eps) / (sum_i (p_i + y_i) + eps), the sums over the batch.

    With 2 TP = 2 sum p y and 2 TP + FP + FN = sum (p + y), counted in probabilities, that is 1 - F1. `squared` has
    p_i^2 + y_i^2 in the denominator. `micro` sums over classes too, before it divides.
    """

    def __init__(self, *, squared: bool, exclusive: bool, micro: bool, eps: float) -> None:
        """Take whether p is a softmax (`exclusive`) or a sigmoid, and eps > 0."""
        super().__init__()
        self.squared, self.exclusive, self.micro, self.eps = squared, exclusive, micro, eps

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs (N, K), indices, probabilities or labels -> scalar in [0, 1]."""
        p = outputs.softmax(dim=1) if self.exclusive else outputs.sigmoid()
        y = probabilities(targets, outputs)
        sizes = p * p + y * y if self.squared else p + y
        over = (0, 1) if self.micro else (0,)
        return 1 - ((2 * (p * y).sum(dim=over) + self.eps) / (sizes.sum(dim=over) + self.eps)).mean()


class SquaredEarthMoversDistance(nn.Module):
    """Mean over the batch of sum_k (CDF_k(p) - CDF_k(y))^2, p the softmax, the classes in order.

    Hou, Yu and Samaras 2016 (arXiv:1611.05916), for classes on a line at equal distances.
    """

    at_most: Tensor

    def __init__(self, ranks: Sequence[int]) -> None:
        """Take the place of each class, from 0, the lowest."""
        super().__init__()
        # (K, K): whether class c is at most at place k. One product with it puts in order and adds up.
        at_most = torch.tensor(ranks)[:, None] <= torch.arange(len(ranks))
        self.register_buffer("at_most", at_most.float())

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs (N, K), indices or probabilities -> scalar >= 0."""
        difference = outputs.softmax(dim=1) - probabilities(targets, outputs)
        return ((difference @ self.at_most) ** 2).sum(dim=1).mean()


class LogitAdjustedLoss(nn.Module):
    """Cross-entropy of outputs + tau log(prior) (Menon et al. 2021, arXiv:2007.07314, eq. 10)."""

    adjustment: Tensor

    def __init__(self, adjustment: Sequence[float]) -> None:
        """Take tau log(prior) of each class."""
        super().__init__()
        self.register_buffer("adjustment", torch.tensor(adjustment, dtype=torch.float32))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs (N, K), indices or probabilities -> scalar."""
        return functional.cross_entropy(outputs + self.adjustment, targets)
