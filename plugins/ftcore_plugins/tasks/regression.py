"""Numbers, one or several per image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Self

from attrs import frozen

from ftcore import (
    Averaged,
    Fitted,
    Invertible,
    Matched,
    Parsed,
    Scored,
    Softened,
    Table,
    Task,
    UserError,
    hookimpl,
)
from ftcore_plugins.data.cells import parse_finite

from .vocabulary import read_count, read_names, read_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from torch import Tensor

    from ftcore import Prediction, SourceTargets

    Numbers = np.ndarray[Any, np.dtype[Any]]


@frozen
class Regression(Task, Averaged, Invertible, Matched, Parsed, Scored, Softened):
    """Numbers in their own unit, which the network sees standardised.

    Attributes:
        names: of the targets.
        images: in the training split.
        mean: of each target, in its own unit, over the training split.
        std: likewise; > 0.
    """

    name: ClassVar[str] = "regression"
    noun: ClassVar[tuple[str, str]] = ("target", "targets")
    score_name: ClassVar[str] = "absolute error"
    higher_is_better: ClassVar[bool] = False
    needs_all: ClassVar[bool] = True
    names: tuple[str, ...]
    images: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def fit(cls, given: SourceTargets) -> Fitted:
        """Take mean and standard deviation of the training images."""
        import numpy as np

        targets = np.asarray(given.values)
        if given.measuring:
            return Fitted(cls(given.names, sum(map(len, given.rows.values()))), targets, given.rows)
        task = cls._of(given.names, targets[given.rows["train"]])
        return Fitted(task, targets, given.rows, (task.table(targets[given.rows["train"]]),))

    @classmethod
    def _of(cls, names: tuple[str, ...], train: Numbers) -> Self:
        import numpy as np

        low, high = train.min(axis=0), train.max(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = train.mean(axis=0), train.std(axis=0)
        useless = np.flatnonzero((low == high) | ~np.isfinite(std))
        if len(useless):
            at = useless[0]
            raise UserError(
                f"regression needs targets with a finite variance; {names[at]!r} is {low[at]:g} to {high[at]:g} in "
                f"all {len(train)} training images"
            )
        return cls(names, images=len(train), mean=tuple(mean.tolist()), std=tuple(std.tolist()))

    def table(self, train: Numbers) -> Table:
        """Show how each target (N, T) is spread."""
        rows = []
        for name, c in zip(self.names, train.T, strict=True):
            mean, std, low, high = map(float, (c.mean(), c.std(), c.min(), c.max()))
            digits = significant_digits(mean, std) - 2
            rows.append((name, f"{mean:.{digits}g}", f"{std:.4g}", f"{low:.{digits}g}", f"{high:.{digits}g}"))
        return Table(f"targets of {len(train)} images", ("target", "mean", "std", "min", "max"), tuple(rows))

    @classmethod
    def parse(cls, cells: Sequence[str]) -> tuple[float, ...]:
        """Read a number in each cell."""
        return tuple(map(parse_finite, cells))

    @classmethod
    def read(cls, state: Mapping[str, Any]) -> Self:
        """Read names, means and standard deviations."""
        names = read_names(state, "mean", "std")
        mean, std = read_numbers(state, "mean", names, -math.inf), read_numbers(state, "std", names, 0)
        if not (len(mean) == len(std) == len(names) and all(std)):
            raise ValueError(f"each target must have a mean and a standard deviation > 0, not {std!r:.80}")
        return cls(names, read_count(state), mean, std)

    def state(self) -> dict[str, Any]:
        """Return names, means and standard deviations."""
        spread = {"mean": list(self.mean), "std": list(self.std)}
        return {"names": list(self.names), "images": self.images, **spread}

    def meaning(self) -> dict[str, Any]:
        """Return the names and what targets are standardised with."""
        return {"names": self.names, "mean of the targets": self.mean, "std of the targets": self.std}

    def check(self, target: Any) -> float | tuple[float, ...]:
        """Take a finite number for each name."""
        row = target if isinstance(target, list | tuple) else [target]
        if len(row) == self.outputs and all(
            isinstance(number, int | float) and math.isfinite(number) for number in row
        ):
            return row[0] if len(row) == 1 else tuple(row)
        raise ValueError(f"a target must be {self.outputs} finite number{'s' if self.outputs > 1 else ''}")

    def collate(self, targets: Sequence[Any]) -> Tensor:
        """Numbers in their own unit -> (N, T) float32, standardised."""
        import torch

        numbers = torch.tensor(targets, dtype=torch.float64).reshape(len(targets), -1)
        mean, std = (torch.tensor(given, dtype=torch.float64) for given in (self.mean, self.std))
        return ((numbers - mean) / std).float()

    def decode(self, outputs: Tensor) -> Tensor:
        """Standardised (N, T) -> the targets' own unit, float64: of 1,000,000 +- 1 float32 would leave one digit."""
        import torch

        wide = torch.float32 if outputs.device.type == "mps" else torch.float64  # Apple's devices have no float64
        mean, std = (torch.tensor(given, dtype=wide, device=outputs.device) for given in (self.mean, self.std))
        return outputs.to(wide) * std + mean

    def undecode(self, decoded: Tensor) -> Tensor:
        """Return standardised numbers."""
        import torch

        mean, std = (decoded.new_tensor(value, dtype=torch.float64) for value in (self.mean, self.std))
        return (decoded - mean) / std

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in the targets' own unit."""
        return self.decode(outputs), self.decode(targets)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return how far an image is off, a mean over targets."""
        return (self.decode(outputs) - self.decode(targets)).abs().mean(dim=1)

    def average(self, outputs: Tensor, shares: Tensor) -> Tensor:
        """Average numbers as they are."""
        return (shares[:, None, None] * outputs).sum(0)

    def align(self, outputs: Tensor, own: Regression) -> Tensor:
        """Put the targets into this order and this standardisation."""
        import torch

        outputs = outputs[:, [own.names.index(name) for name in self.names]]
        theirs = {name: (mean, std) for name, mean, std in zip(own.names, own.mean, own.std, strict=True)}
        pairs = [(*theirs[name], mean, std) for name, mean, std in zip(self.names, self.mean, self.std, strict=True)]
        scale = torch.tensor([std / wanted for _, std, _, wanted in pairs], device=outputs.device)
        shift = torch.tensor([(mean - wanted) / std for mean, _, wanted, std in pairs], device=outputs.device)
        return outputs * scale + shift

    def move(self, target: Any, places: Sequence[int | None]) -> tuple[float, ...]:
        """Put the numbers into this order."""
        row = [0.0] * self.outputs
        for place, value in zip(places, target, strict=True):
            if place is not None:
                row[place] = value
        return tuple(row)

    def cells(self, prediction: Prediction) -> list[str]:
        """Spell each number with the digits that its spread over the training split gives a meaning."""
        each = zip(self.names, self.mean, self.std, strict=True)
        return [f"{prediction.values[name]:.{significant_digits(mean, std)}g}" for name, mean, std in each]

    def spell(self, target: Any) -> str:
        """Spell the numbers."""
        return ", ".join(f"{value:g}" for value in (target if isinstance(target, tuple) else (target,)))

    def legend(self, things: str) -> Table:
        """Say what each output is standardised with."""
        del things
        each = zip(self.names, self.mean, self.std, strict=True)
        rows = tuple((name, f"{mean:g}", f"{std:g}") for name, mean, std in each)
        said = "A prediction is the output times the standard deviation, plus the mean."
        return Table(said, ("name", "mean", "standard deviation"), rows)


def significant_digits(mean: float, std: float) -> int:
    """Return with how many digits to spell a target so that six of them are within its spread, 15 at most."""
    return 6 + min(max(0, math.floor(math.log10(max(abs(mean), std) / std))), 9)


class RegressionTask:
    """Numbers, one or several per image; see `Regression`."""

    @hookimpl
    def make_task(self, name: str) -> type[Task] | None:
        """Answer for its name."""
        return Regression if name == Regression.name else None
