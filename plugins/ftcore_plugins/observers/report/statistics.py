"""What a page says of an evaluation, counted batch by batch on the device: sums, and the samples that went worst.

Memory does not grow with the number of samples, and nothing waits for the device before the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field

from ftcore_plugins.tasks import Classification, Multilabel, Regression

from .accumulators import DRAWN, TopK, bincount_, sum_dtype
from .regression_statistics import RegressionStatistics

if TYPE_CHECKING:
    from torch import Tensor

    from ftcore import BatchEvaluated, Task

    from .accumulators import Measured


BINS = 15
"""Of confidence, as in Guo et al. 2017, On Calibration of Modern Neural Networks."""

STEPS = 100
"""Thresholds 0, 0.01, ... 1 at which labels are counted."""

MATRIX = 1000
"""Most classes of which pairs are counted."""

PAIRS = 1000
"""Pairs that are kept of more than a hundred classes: those with most images, without those that are right."""


def measured(task: Task, samples: int) -> Measured | None:
    """Return what counts the evaluations of a task; None for one that is none of the built-in ones.

    Args:
        task: what is learnt.
        samples: how many are kept by each of two orders: most confidently wrong, and highest loss.
    """
    match task:
        case Classification():
            return MulticlassStatistics(task, samples)
        case Multilabel():
            return MultilabelStatistics(task, samples)
        case Regression():
            return RegressionStatistics(task, samples)
        case _:
            return None


@define
class MulticlassStatistics:
    """Counts for classification.

    Attributes:
        task: its classes.
        samples: see `measured`.
        sums: name -> counts: images of each class ``true`` (K,), ``predicted`` (K,) and both, ``hits`` (K,); ``pairs``
            (K * K,), true classes first; of each bin of confidence ``images``, ``right`` and ``confidence`` (BINS,).
        confident: mistakes with the highest probability for the wrong class.
        worst: samples with the highest cross-entropy.
    """

    task: Classification
    samples: int
    sums: dict[str, Tensor] = field(factory=dict)
    confident: TopK = field(init=False)
    worst: TopK = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.confident, self.worst = TopK(self.samples), TopK(self.samples)

    def add(self, batch: BatchEvaluated) -> None:
        """Count a batch."""
        outputs, targets = batch.outputs, batch.targets
        sums = self.sums = self.sums or self._zeros(outputs.device)
        probabilities, predicted = outputs.softmax(dim=1), outputs.argmax(dim=1)
        confidence, right = probabilities.gather(1, predicted[:, None])[:, 0], predicted == targets
        bincount_(sums["true"], targets)
        bincount_(sums["predicted"], predicted)
        bincount_(sums["hits"], targets, right)
        if "pairs" in sums:
            bincount_(sums["pairs"], targets * outputs.shape[1] + predicted)
        edges = torch.arange(1, BINS, dtype=sums["confidence"].dtype, device=outputs.device) / BINS
        bins = torch.bucketize(confidence.to(edges.dtype), edges)
        bincount_(sums["images"], bins)
        bincount_(sums["right"], bins, right)
        bincount_(sums["confidence"], bins, confidence)
        losses = -outputs.log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
        said = (batch.indices.to(outputs.device), targets, predicted, confidence, losses)
        self.confident.add(torch.where(right, -1.0, confidence), *said)
        self.worst.add(losses, *said)

    def _zeros(self, device: torch.device) -> dict[str, Tensor]:
        sizes = dict.fromkeys(("true", "predicted", "hits"), self.task.outputs) | dict.fromkeys(
            ("images", "right"), BINS
        )
        if self.task.outputs <= MATRIX:
            sizes["pairs"] = self.task.outputs**2
        sums = {name: torch.zeros(size, dtype=torch.int64, device=device) for name, size in sizes.items()}
        return sums | {"confidence": torch.zeros(BINS, dtype=sum_dtype(device), device=device)}

    def result(self) -> dict[str, Any]:
        """Return plain numbers; of the pairs, those that there are, as (true, predicted, images)."""
        found = {name: tensor.tolist() for name, tensor in self.sums.items() if name != "pairs"}
        if "pairs" in self.sums:
            found["pairs"] = self._pairs(self.sums["pairs"].cpu())
        mistakes = [row for row in self.confident.rows() if row[0] >= 0]
        return found | {
            "confident": self._describe_samples(mistakes),
            "worst": self._describe_samples(self.worst.rows()),
        }

    def _pairs(self, counts: Tensor) -> list[list[int]]:
        size = self.task.outputs
        if size > 100:
            counts = counts.clone()
            counts[:: size + 1] = 0
            places = counts.topk(min(PAIRS, len(counts))).indices
            places = places[counts[places] > 0]
        else:
            places = counts.nonzero()[:, 0]
        return torch.stack([places // size, places % size, counts[places]], dim=1).tolist()

    def _describe_samples(self, rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
        names = self.task.names
        return [
            {"index": i, "loss": loss, "wrong": t != p, "true": names[t], "said": [[names[p], confidence]]}
            for _, i, t, p, confidence, loss in rows
        ]


@define
class MultilabelStatistics:
    """Counts for several labels.

    Attributes:
        task: its labels.
        samples: see `measured`.
        sums: name -> counts: ``true`` (K,), ``predicted`` (K,) above 0.5, ``hits`` (K,) both; ``present`` and
            ``absent`` (K * (STEPS + 2),), images with and without a label by how many thresholds its score reaches.
        images: so far.
        confident: samples with the highest probability for what is wrong of one label.
        worst: samples with the highest binary cross-entropy, the mean over labels.
    """

    task: Multilabel
    samples: int
    sums: dict[str, Tensor] = field(factory=dict)
    images: int = 0
    confident: TopK = field(init=False)
    worst: TopK = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.confident, self.worst = TopK(self.samples), TopK(self.samples)

    def add(self, batch: BatchEvaluated) -> None:
        """Count a batch."""
        scores, there = batch.outputs.sigmoid(), batch.targets > 0.5
        sums = self.sums = self.sums or self._zeros(scores.device)
        self.images += len(scores)
        chosen = scores > 0.5  # as torchmetrics does
        for name, which in (("true", there), ("predicted", chosen), ("hits", there & chosen)):
            sums[name] += which.sum(dim=0)
        reached = torch.bucketize(scores, torch.arange(STEPS + 1, device=scores.device) / STEPS, right=True)
        places = reached + torch.arange(self.task.outputs, device=scores.device) * (STEPS + 2)
        bincount_(sums["present"], places.flatten(), there.flatten())
        bincount_(sums["absent"], places.flatten(), ~there.flatten())
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            batch.outputs, batch.targets, reduction="none"
        ).mean(dim=1)
        said = (batch.indices.to(scores.device), there, scores, losses)
        self.confident.add((there.to(scores.dtype) - scores).abs().amax(dim=1), *said)
        self.worst.add(losses, *said)

    def _zeros(self, device: torch.device) -> dict[str, Tensor]:
        sizes = dict.fromkeys(("true", "predicted", "hits"), self.task.outputs)
        sizes |= dict.fromkeys(("present", "absent"), self.task.outputs * (STEPS + 2))
        return {name: torch.zeros(size, dtype=torch.int64, device=device) for name, size in sizes.items()}

    def result(self) -> dict[str, Any]:
        """Return plain numbers; `present` and `absent` a row for each label of `drawn`."""
        found: dict[str, Any] = {name: self.sums[name].tolist() for name in ("true", "predicted", "hits")}
        f1 = self.sums["hits"] / (self.sums["true"] + self.sums["predicted"])
        drawn = f1.nan_to_num(2.0).argsort()[:DRAWN].sort().values
        for name in ("present", "absent"):
            found[name] = self.sums[name].reshape(-1, STEPS + 2)[drawn].tolist()
        found["drawn"] = drawn.tolist()
        mistakes = [row for row in self.confident.rows() if row[0] >= 0.5]
        return found | {
            "images": self.images,
            "confident": self._describe_samples(mistakes),
            "worst": self._describe_samples(self.worst.rows()),
        }

    def _describe_samples(self, rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
        said = []
        for _, index, there, scores, loss in rows:
            pairs = list(zip(self.task.names, there, scores, strict=True))
            wrong = sorted(((abs(t - score), name, score) for name, t, score in pairs), reverse=True)
            true = ", ".join(name for name, present, _ in pairs if present) or "none"
            shown = [[name, score] for error, name, score in wrong[:3] if error >= 0.5] or [[wrong[0][1], wrong[0][2]]]
            said.append({"index": index, "loss": loss, "wrong": wrong[0][0] >= 0.5, "true": true, "said": shown})
        return said
