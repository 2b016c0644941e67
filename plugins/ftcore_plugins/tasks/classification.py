"""One class per image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from attrs import frozen

from ftcore import (
    Averaged,
    Counted,
    Fitted,
    Invertible,
    Matched,
    Parsed,
    Prediction,
    Scored,
    Softened,
    Table,
    Task,
    hookimpl,
)
from ftcore_plugins.data.cells import is_missing

from .vocabulary import check_learnable, count_table, find_names, read_count, read_names, read_numbers, top_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from torch import Tensor

    from ftcore import SourceTargets

    Numbers = np.ndarray[Any, np.dtype[Any]]


@frozen
class Classification(Task, Averaged, Counted, Invertible, Matched, Parsed, Scored, Softened):
    """One class per image; a target is its place among the names.

    Attributes:
        names: of the classes: sorted, by their value where all are numbers.
        counts: images of each class in the training split.
        images: in the training split.
    """

    name: ClassVar[str] = "classification"
    noun: ClassVar[tuple[str, str]] = ("class", "classes")
    ranked: ClassVar[bool] = True
    crosses_zero: ClassVar[bool] = False  # classes are told apart by differences, which a ReLU leaves
    output_name: ClassVar[str] = "probabilities"
    score_name: ClassVar[str] = "accuracy"
    hard: ClassVar[bool] = True
    names: tuple[str, ...]
    counts: tuple[int, ...] = ()
    images: int = 0

    @classmethod
    def fit(cls, given: SourceTargets) -> Fitted:
        """Take the classes of the training images."""
        import numpy as np

        names, rows = find_names(given, cls.noun[0], lambda value: (value,))
        code = {name: place for place, name in enumerate(names)}
        targets = np.fromiter((code.get(value, 0) for value in given.values), np.int64, len(given.values))
        learnt = np.concatenate([*rows.values()]) if given.measuring else rows["train"]
        counts = np.bincount(targets[learnt], minlength=len(names))
        task = cls(names, tuple(counts.tolist()), len(learnt))
        if given.measuring:
            return Fitted(task, targets, rows)
        check_learnable(cls.name, "at least two classes", names, counts)
        table = count_table("images", cls.noun[0], names, counts, task.count(targets[rows["val"]]))
        return Fitted(task, targets, rows, (table,))

    @classmethod
    def strata(cls, values: Sequence[Any] | Numbers) -> Sequence[Any]:
        """Split class by class."""
        return list(values)

    @classmethod
    def parse(cls, cells: Sequence[str]) -> str:
        """Take the one cell as it is."""
        (cell,) = cells
        if is_missing(cell):
            raise ValueError("a class is missing")
        return cell

    @classmethod
    def read(cls, state: Mapping[str, Any]) -> Self:
        """Read names and counts."""
        names = read_names(state, "counts")
        return cls(names, read_numbers(state, "counts", names, 0), read_count(state))

    def state(self) -> dict[str, Any]:
        """Return names and counts."""
        return {"names": list(self.names), "counts": list(self.counts), "images": self.images}

    def meaning(self) -> dict[str, Any]:
        """Return the names alone."""
        return {"names": self.names}

    def check(self, target: Any) -> int:
        """Take a whole number."""
        if isinstance(target, int) and 0 <= target < self.outputs:
            return int(target)
        raise ValueError(f"a class must be an integer from 0 to {self.outputs - 1}")

    def collate(self, targets: Sequence[Any]) -> Tensor:
        """Places of classes -> (N,) int64."""
        import torch

        return torch.tensor(targets, dtype=torch.int64)

    def decode(self, outputs: Tensor) -> Tensor:
        """Return probabilities."""
        return outputs.softmax(dim=1)

    def undecode(self, decoded: Tensor) -> Tensor:
        """Return the logarithm, whose softmax they are."""
        import torch

        return decoded.clamp(min=torch.finfo(decoded.dtype).tiny).log()

    def soften(self, targets: Tensor) -> Tensor:
        """Places of classes -> one-hot."""
        from torch.nn.functional import one_hot

        return one_hot(targets, self.outputs).float()

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Say whether the class is right."""
        return (outputs.argmax(dim=1) == targets).float()

    def count(self, targets: Numbers) -> Numbers:
        """Count images of each class."""
        import numpy as np

        return np.bincount(targets, minlength=self.outputs)

    def average(self, outputs: Tensor, shares: Tensor) -> Tensor:
        """Average probabilities, and return their logarithm."""
        return (outputs.log_softmax(-1) + shares[:, None, None].log()).logsumexp(0)

    def align(self, outputs: Tensor, own: Task) -> Tensor:
        """Put the classes into this order."""
        return outputs[:, [own.names.index(name) for name in self.names]]

    def move(self, target: Any, places: Sequence[int | None]) -> int | None:
        """Return the place of the class here."""
        place: int | None = places[target]
        return place

    def predictions(self, decoded: Tensor) -> list[Prediction]:
        """Name the most probable class first."""
        rows = [zip(self.names, row, strict=True) for row in decoded.tolist()]
        return [Prediction(None, dict(sorted(row, key=lambda pair: -pair[1]))) for row in rows]

    def columns(self) -> tuple[str, ...]:
        """Return what is predicted, and a column a class."""
        return ("prediction", *self.names)

    def cells(self, prediction: Prediction) -> list[str]:
        """Name the class, and spell the probability of each."""
        return [next(iter(prediction.values)), *(f"{prediction.values[name]:.6g}" for name in self.names)]

    def words(self, prediction: Prediction, top: int | None) -> list[str]:
        """Name the most probable classes, by default one."""
        return top_words(prediction.values, top or 1)

    def spell(self, target: Any) -> str:
        """Name the class."""
        return str(self.names[target])

    def legend(self, things: str) -> Table:
        """Say how many training images each class has."""
        rows = tuple((name, f"{count:,}") for name, count in zip(self.names, self.counts, strict=True))
        return Table("", ("name", f"training {things}"), rows)


class ClassificationTask:
    """One class per image; see `Classification`."""

    @hookimpl
    def make_task(self, name: str) -> type[Task] | None:
        """Answer for its name."""
        return Classification if name == Classification.name else None
