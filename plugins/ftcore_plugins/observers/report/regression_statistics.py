"""Counts for regression: errors, and how they are spread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field

from ftcore_plugins.tasks.regression import significant_digits

from .accumulators import DRAWN, TopK, bincount_, sum_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from ftcore import BatchEvaluated
    from ftcore_plugins.tasks import Regression


REACH = 4
"""Standard deviations of a target up to which numbers are told apart."""

FINE, GRID = 4000, 256
"""Bins of residuals, and of predicted and true values, over twice that."""

BARS, CELLS = 40, 48
"""Of a drawing, at most; each joins several bins."""


@define
class RegressionStatistics:
    """Counts for regression.

    Attributes:
        task: its targets.
        samples: see `measured`.
        sums: name -> sums over the images, of each target: ``error``, ``absolute`` and ``squared``, of predicted -
            true in the target's unit; ``z`` and ``z2``, of the true value, standardised, and of its square (K,); of
            D = DRAWN targets ``residuals`` (D * FINE,), images by predicted - true, and ``grid`` (D * GRID * GRID,), by
            predicted and true value, both in standard deviations from -REACH to REACH, what is beyond in the last bins.
        images: so far.
        worst: samples with the largest error of one target, in standard deviations.
    """

    task: Regression
    samples: int
    sums: dict[str, Tensor] = field(factory=dict)
    images: int = 0
    worst: TopK = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.worst = TopK(self.samples)

    def add(self, batch: BatchEvaluated) -> None:
        """Count a batch."""
        sums = self.sums = self.sums or self._zeros(batch.outputs.device)
        dtype = sums["error"].dtype
        predicted, true = batch.outputs.to(dtype), batch.targets.to(dtype)
        mean, std = (
            torch.tensor(values, dtype=dtype, device=true.device) for values in (self.task.mean, self.task.std)
        )
        error, z = predicted - true, (true - mean) / std
        amounts = {"error": error, "absolute": error.abs(), "squared": error**2, "z": z, "z2": z**2}
        for name, amount in amounts.items():
            sums[name] += amount.sum(dim=0)
        self.images += len(true)
        drawn = torch.arange(min(self.task.outputs, DRAWN), device=true.device)
        residuals, said, z = ((values / std)[:, :DRAWN] for values in (error, predicted - mean, true - mean))
        bincount_(sums["residuals"], (drawn * FINE + _bins(residuals, FINE)).flatten())
        bincount_(sums["grid"], ((drawn * GRID + _bins(said, GRID)) * GRID + _bins(z, GRID)).flatten())
        score = (error / std).abs().amax(dim=1)
        self.worst.add(score, batch.indices.to(true.device), batch.targets, batch.outputs)

    def _zeros(self, device: torch.device) -> dict[str, Tensor]:
        names, size = ("error", "absolute", "squared", "z", "z2"), self.task.outputs
        sums = {name: torch.zeros(size, dtype=sum_dtype(device), device=device) for name in names}
        drawn = min(size, DRAWN)
        counts = {"residuals": drawn * FINE, "grid": drawn * GRID * GRID}
        return sums | {name: torch.zeros(n, dtype=torch.int32, device=device) for name, n in counts.items()}

    def result(self) -> dict[str, Any]:
        """Return plain numbers; `residuals` and `grid` as what is drawn of each target."""
        found: dict[str, Any] = {
            name: tensor.tolist() for name, tensor in self.sums.items() if tensor.is_floating_point()
        }
        found["residuals"] = [_bars(row) for row in self.sums["residuals"].reshape(-1, FINE).cpu()]
        found["grid"] = [_cells(rows) for rows in self.sums["grid"].reshape(-1, GRID, GRID).cpu()]
        return found | {"images": self.images, "confident": [], "worst": self._said(self.worst.rows())}

    def _said(self, rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
        return [
            {
                "index": index,
                "loss": score,
                "wrong": True,
                "true": ", ".join(f"{name} {value}" for name, value in self._spelled(true)),
                "said": self._spelled(predicted),
            }
            for score, index, true, predicted in rows
        ]

    def _spelled(self, values: list[float]) -> list[list[str]]:
        """Return the names of the first targets, each with its number, five digits of it within the spread."""
        task = self.task
        each = list(zip(task.names, values, task.mean, task.std, strict=True))[:3]
        return [[name, f"{value:.{significant_digits(mean, std) - 1}g}"] for name, value, mean, std in each]


def _bins(values: Tensor, bins: int) -> Tensor:
    """Return bins (N, K) int64 of values within REACH; of others the first or the last, of NaN the first."""
    scaled = (values.nan_to_num(-REACH) + REACH) * (bins / (2 * REACH))
    return scaled.clamp(0, bins - 1).long()


def _bars(counts: Tensor) -> dict[str, Any]:
    """Join bins of residuals (FINE,): left edge of the first bar and width, in standard deviations, and the counts.

    One sample in four hundred at either end may be beyond the bars, and is in the last of them.
    """
    reached = counts.cumsum(0)
    spare = int(reached[-1]) // 400
    low, high = int((reached <= spare).sum()), int((reached < reached[-1] - spare).sum())
    joined = -(-(high - low + 1) // BARS)
    bars = ((torch.arange(FINE) - low) // joined).clamp(0, (high - low) // joined)
    found = torch.zeros(int(bars[-1]) + 1, dtype=torch.int64).scatter_add_(0, bars, counts.long())
    step = 2 * REACH / FINE
    return {"low": low * step - REACH, "width": joined * step, "counts": found.tolist()}


def _cells(counts: Tensor) -> dict[str, Any]:
    """Join cells of a grid (GRID, GRID) of predicted and true values: [predicted, true, images] of those not empty.

    `low` is the edge of the first cell on both axes, `width` that of each, in standard deviations.
    """
    places = counts.nonzero()
    low, high = int(places.min()), int(places.max())
    joined = -(-(high - low + 1) // CELLS)
    side = (high - low) // joined + 1
    at = (places - low) // joined
    found = torch.zeros(side * side, dtype=torch.int64)
    found.scatter_add_(0, at[:, 0] * side + at[:, 1], counts[places[:, 0], places[:, 1]].long())
    cells = [[place // side, place % side, int(found[place])] for place in found.nonzero()[:, 0].tolist()]
    step = 2 * REACH / GRID
    return {"low": low * step - REACH, "width": joined * step, "side": side, "cells": cells}
