"""95 % intervals of metrics: how far chance alone, in which images were measured, may have moved them.

Shares of independent images get Wilson's interval (Wilson 1927), which holds for few images and near 0 and 1, where a
bootstrap is too narrow; all others the percentiles of a bootstrap (Efron 1979) over images or, where images come in
groups, over whole groups (Field and Welsh 2007).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    Numbers = np.ndarray[Any, np.dtype[Any]]

LEVEL = 0.95

RESAMPLES = 1_000
"""Of the images, for a bootstrap."""

MAX_RESAMPLED = 4e9
"""Outputs that all resamples of a metric may have together; of a split that has more, fewer are drawn."""

MIN_GROUPS = 20
"""Fewer groups say too little of how groups differ."""

MAX_UNDEFINED = 0.05
"""Share of the resamples in which a metric may have no value."""


@define
class MeasuredOutputs:
    """What metrics were shown of a split, kept to be drawn from.

    Attributes:
        outputs: of each batch, (N, K), as metrics take them.
        targets: of each batch, (N,) or (N, K), likewise.
    """

    outputs: list[Tensor] = field(factory=list)
    targets: list[Tensor] = field(factory=list)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Keep a batch."""
        self.outputs.append(outputs)
        self.targets.append(targets)

    def __len__(self) -> int:
        return sum(map(len, self.targets))


def wilson(share: float, images: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of independent images, at least one."""
    from scipy.special import ndtri

    z = float(ndtri((1 + LEVEL) / 2))
    size = 1 + z**2 / images
    middle = (share + z**2 / (2 * images)) / size
    half = z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2)) / size
    return max(middle - half, 0.0), min(middle + half, 1.0)


@torch.inference_mode()
def intervals(
    metrics: Mapping[str, Any], values: Mapping[str, Any], seen: MeasuredOutputs, groups: Numbers | None = None
) -> dict[str, Any]:
    """Return the 95 % interval of each metric that is one number.

    Args:
        metrics: `torchmetrics.Metric` by name; they are reset. One that is the share of images that are right says so
            by an attribute ``is_proportion``.
        values: name -> what each was on all images.
        seen: what they were shown.
        groups: (N,) group of each image, such as the patient, if images are not independent.

    Returns:
        ``level``; ``resamples``; ``over``, ``images`` or ``groups``; ``metrics``: name -> [low, high], or None where
        there is none: fewer than 20 groups, or more than one resample of twenty in which the metric has no value.
    """
    scalars = {name: metric for name, metric in metrics.items() if isinstance(values.get(name), float | int)}
    shares = {n for n, metric in scalars.items() if groups is None and getattr(metric, "is_proportion", False)}
    found: dict[str, Any] = {name: wilson(values[name], len(seen)) for name in shares}
    drawn = {name: metric for name, metric in scalars.items() if name not in shares}
    outputs, targets = torch.cat(seen.outputs), torch.cat(seen.targets)
    resamples = int(min(RESAMPLES, max(100, MAX_RESAMPLED // max(outputs.numel(), 1))))
    if drawn and (groups is None or len(np.unique(groups)) >= MIN_GROUPS):
        samples: dict[str, list[float]] = {name: [] for name in drawn}
        for rows in _resamples(len(seen), groups, resamples):
            place = torch.from_numpy(rows).to(outputs.device)
            some, wanted = outputs[place], targets[place]
            for name, metric in drawn.items():
                metric.reset()
                metric.update(some, wanted)
                samples[name].append(float(metric.compute()))
        found |= {name: _percentiles(np.array(values)) for name, values in samples.items()}
    return {
        "level": LEVEL,
        "resamples": resamples,
        "over": "images" if groups is None else "groups",
        "metrics": {name: list(found[name]) if found.get(name) else None for name in scalars},
    }


def _resamples(images: int, groups: Numbers | None, count: int) -> Iterator[Numbers]:
    """Draw so many times as many images, or groups with all of their images, as there are, with replacement."""
    generator = np.random.default_rng(0)
    if groups is None:
        yield from (generator.integers(0, images, images) for _ in range(count))
        return
    _, codes = np.unique(groups, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    for _ in range(count):
        yield np.concatenate([members[group] for group in generator.integers(0, len(members), len(members))])


def _percentiles(values: Numbers) -> tuple[float, float] | None:
    there = values[np.isfinite(values)]
    if len(there) < (1 - MAX_UNDEFINED) * len(values):
        return None
    low, high = np.quantile(there, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
