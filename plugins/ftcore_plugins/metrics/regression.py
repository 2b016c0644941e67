"""Metrics of numbers.

Errors are summed up in standard deviations of the target over the training split, in float64. Sums of squares in the
target's own unit lose all digits where that is far from zero: of 10,000 +- 1, float32 leaves none of the spread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torchmetrics import Metric

from ftcore_plugins.observers.report.accumulators import sum_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from ftcore_plugins.tasks import Regression


NO_SPREAD = 1e-13
"""Share of its sum of squares below which what is left of that around the mean is rounding."""


class _Sums(Metric):
    """Sums over images, of each target (T,)."""

    full_state_update = False
    images: Tensor
    absolute: Tensor
    squared: Tensor
    z: Tensor
    z2: Tensor

    def __init__(self, task: Regression) -> None:
        """Take the targets' mean and standard deviation over the training split."""
        super().__init__()
        self.mean, self.std = task.mean, task.std
        for name in ("images", "absolute", "squared", "z", "z2"):
            self.add_state(name, default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: outputs and targets (N, T), both in the targets' own unit."""
        dtype = sum_dtype(targets.device)
        mean, std = (torch.tensor(given, dtype=dtype, device=targets.device) for given in (self.mean, self.std))
        error, z = (outputs.to(dtype) - targets.to(dtype)) / std, (targets.to(dtype) - mean) / std
        self.images = self.images + len(targets)
        for name, amount in {"absolute": error.abs(), "squared": error**2, "z": z, "z2": z**2}.items():
            setattr(self, name, getattr(self, name) + amount.sum(dim=0))

    def in_own_unit(self, standardised: Tensor) -> Tensor:
        """Errors (T,) in standard deviations -> in the targets' own unit: (T,), or () of one target."""
        return (standardised * torch.tensor(self.std, dtype=standardised.dtype, device=standardised.device)).squeeze()


class RootMeanSquaredError(_Sums):
    """Root of the mean square, target by target, in the target's own unit."""

    higher_is_better: bool | None = False

    def compute(self) -> Tensor:
        """Return () float64 of one target, else (T,)."""
        return self.in_own_unit((self.squared / self.images).sqrt())


class MeanAbsoluteError(_Sums):
    """Mean absolute error, target by target, in the target's own unit."""

    higher_is_better: bool | None = False

    def compute(self) -> Tensor:
        """Return () float64 of one target, else (T,)."""
        return self.in_own_unit(self.absolute / self.images)


class R2(_Sums):
    """1 - sum of squares / sum of squares around the mean of the true values; the mean over targets.

    As in scikit-learn: of true values without spread it is 1 where all are met and 0 else; of one image it is NaN.
    """

    higher_is_better: bool | None = True

    def compute(self) -> Tensor:
        """Return () float64, at most 1."""
        return self.per_target().mean()

    def per_target(self) -> Tensor:
        """Return (T,) float64."""
        around = self.z2 - self.z**2 / self.images
        constant = around <= NO_SPREAD * self.z2
        r2 = torch.where(constant, (self.squared == 0).to(around.dtype), 1 - self.squared / around)
        return r2 if self.images > 1 else torch.full_like(r2, torch.nan)


class R2OfEach(R2):
    """The same, target by target; several numbers, so not to be monitored."""

    higher_is_better = None

    def compute(self) -> Tensor:
        """Return (T,) float64."""
        return self.per_target()
