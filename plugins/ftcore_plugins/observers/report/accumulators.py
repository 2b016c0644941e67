"""What every count of an evaluation is made with; nothing in it waits for the device before the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from attrs import define

if TYPE_CHECKING:
    from torch import Tensor

    from ftcore import BatchEvaluated


DRAWN = 12
"""Labels with the lowest F1, or targets, the first, that are drawn."""


class Measured(Protocol):
    """Counts of one evaluation."""

    def add(self, batch: BatchEvaluated) -> None:
        """Count a batch."""
        ...

    def result(self) -> dict[str, Any]:
        """Return plain numbers."""
        ...


@define
class TopK:
    """The samples of an evaluation with the highest scores.

    Attributes:
        size: how many at most.
        columns: of those so far: scores (n,), places in the split (n,), and what else is said of each (n, ...).
    """

    size: int
    columns: tuple[Tensor, ...] = ()

    def add(self, *columns: Tensor) -> None:
        """Take the columns of a batch, scores first."""
        if self.columns:
            columns = tuple(torch.cat(pair) for pair in zip(self.columns, columns, strict=True))
        highest = columns[0].topk(min(self.size, len(columns[0]))).indices
        self.columns = tuple(column[highest] for column in columns)

    def rows(self) -> list[tuple[Any, ...]]:
        """Return them as plain numbers, the worst first."""
        return list(zip(*(column.tolist() for column in self.columns), strict=True))


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the floating-point type for long sums; Apple's devices have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def bincount_(into: Tensor, places: Tensor, amounts: Tensor | None = None) -> None:
    """Add 1, or amounts (N,), at places (N,) int64 of a flat tensor; exact, for whole numbers in any order."""
    ones = torch.ones_like(places) if amounts is None else amounts
    into.scatter_add_(0, places, ones.to(into.dtype))
