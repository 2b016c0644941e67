"""Metrics of classes at a price that does not grow with their number.

torchmetrics makes a K x K matrix of each batch; here a batch adds to as many counts as it has images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

if TYPE_CHECKING:
    from torch import Tensor


class Accuracy(MulticlassAccuracy):
    """Share of images whose class is the most probable one."""

    is_proportion = True


class F1(MulticlassF1Score):
    """F1 as the mean over classes, as in scikit-learn."""

    tp: Tensor
    fp: Tensor
    fn: Tensor

    def __init__(self, classes: int) -> None:
        """Take the number of classes."""
        super().__init__(classes, average="macro", validate_args=False)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: outputs (N, K), targets (N,) int64."""
        said = outputs.argmax(dim=1)
        right = (said == targets).long()
        self.tp = self.tp.index_add(0, targets, right)
        self.fp = self.fp.index_add(0, said, 1 - right)
        self.fn = self.fn.index_add(0, targets, 1 - right)

        # the true negatives have no part in F1


class ConfusionMatrix(MulticlassConfusionMatrix):
    """How many images of each class (rows) were taken for each (columns)."""

    confmat: Tensor

    def __init__(self, classes: int) -> None:
        """Take the number of classes."""
        super().__init__(classes, validate_args=False)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: outputs (N, K), targets (N,) int64."""
        places: Any = targets * self.num_classes + outputs.argmax(dim=1)
        self.confmat = self.confmat.view(-1).index_add(0, places, torch.ones_like(places)).view_as(self.confmat)
