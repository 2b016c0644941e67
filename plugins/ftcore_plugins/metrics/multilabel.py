"""Metrics of several labels that need every score of the split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torchmetrics import Metric
from torchmetrics.classification import MultilabelF1Score
from torchmetrics.utilities import dim_zero_cat

if TYPE_CHECKING:
    from torch import Tensor


class _Scores(Metric):
    """Keeps the scores (N, K) float32 and whether each label is there (N, K)."""

    full_state_update = False
    scores: list[Tensor]
    present: list[Tensor]

    def __init__(self, labels: int) -> None:
        """Take the number of labels."""
        super().__init__()
        self.labels = labels
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("present", default=[], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: outputs (N, K) before the sigmoid, targets (N, K) in 0 and 1."""
        self.scores.append(outputs.sigmoid())
        self.present.append(targets > 0.5)

    def sort_scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores (N, K), highest first, the number of true labels down to each, and whether a tie ends there."""
        scores, order = dim_zero_cat(self.scores).sort(dim=0, descending=True, stable=True)
        hits = dim_zero_cat(self.present).gather(0, order).cumsum(0)
        last = torch.ones_like(scores[:1], dtype=torch.bool)
        return scores, hits, torch.cat([scores[:-1] != scores[1:], last])


class F1(MultilabelF1Score):
    """F1 of the labels whose probability is above 0.5.

    torchmetrics takes outputs for probabilities where a batch happens to lie within [0, 1], so these are made first.
    """

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: outputs (N, K) before the sigmoid, targets (N, K) in 0 and 1."""
        super().update(outputs.sigmoid(), targets)


class AveragePrecision(_Scores):
    """Area under the precision-recall curve, sum_n (R_n - R_n-1) P_n, as in scikit-learn.

    The mean over labels; one without an image in the split does not count.
    """

    higher_is_better: bool | None = True

    def compute(self) -> Tensor:
        """Return () float64 in [0, 1]."""
        return self.per_label().nanmean()

    def undefined_for(self, targets: Tensor) -> list[int]:
        """Return the labels that no image has: targets (N, K) in 0 and 1 -> places."""
        return [place for place, there in enumerate((targets > 0.5).any(dim=0).tolist()) if not there]

    def per_label(self) -> Tensor:
        """Return (K,) float64 in [0, 1], NaN for a label without an image in the split."""
        _, hits, ends = self.sort_scores()
        rank = torch.arange(1, len(hits) + 1, device=hits.device, dtype=torch.float64)[:, None]
        precision, values = hits / rank, []
        for label in range(self.labels):
            here = ends[:, label]
            found = hits[here, label].double()
            gained = torch.diff(found, prepend=found.new_zeros(1))
            values.append((gained * precision[here, label]).sum() / found[-1])
        return torch.stack(values)


class AveragePrecisionOfEach(AveragePrecision):
    """The same, label by label; several numbers, so not to be monitored."""

    higher_is_better = None

    def compute(self) -> Tensor:
        """Return (K,) float64 in [0, 1], NaN for a label without an image in the split."""
        return self.per_label()


class Thresholds(_Scores):
    """The probability from which each label should count, for the best F1 of that label on this split.

    Halfway between two scores that the split has, so that a score near the cut falls clearly to one side; 0.5 for a
    label without an image in the split.
    """

    higher_is_better = None

    def compute(self) -> Tensor:
        """Return (K,) float32 in [0, 1]."""
        scores, hits, ends = self.sort_scores()
        rank = torch.arange(1, len(hits) + 1, device=hits.device)[:, None]
        f1 = torch.where(ends, 2 * hits / (rank + hits[-1:]), -1.0)
        below = torch.cat([scores[1:], torch.zeros_like(scores[:1])])
        halfway = ((scores + below) / 2).gather(0, f1.argmax(dim=0, keepdim=True))[0]
        return torch.where(hits[-1] > 0, halfway, 0.5)
