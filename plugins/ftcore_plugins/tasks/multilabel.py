"""Any number of labels per image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from attrs import evolve, field, frozen

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
from ftcore_plugins.data.cells import parse_binary

from .vocabulary import check_learnable, count_table, find_names, read_count, read_names, read_numbers, top_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from torch import Tensor

    from ftcore import SourceTargets

    Numbers = np.ndarray[Any, np.dtype[Any]]


@frozen
class Multilabel(Task, Averaged, Counted, Invertible, Matched, Parsed, Scored, Softened):
    """Any number of labels per image; a target has 0 or 1 for each.

    Attributes:
        names: of the labels.
        counts: images with each label in the training split.
        images: in the training split.
        thresholds: probability from which a label counts; chosen on the validation split, one half if empty.
    """

    name: ClassVar[str] = "multilabel"
    noun: ClassVar[tuple[str, str]] = ("label", "labels")
    ranked: ClassVar[bool] = True
    output_name: ClassVar[str] = "probabilities"
    score_name: ClassVar[str] = "labels right"
    names: tuple[str, ...]
    counts: tuple[int, ...] = ()
    images: int = 0
    thresholds: tuple[float, ...] = field(default=(), kw_only=True)

    @classmethod
    def fit(cls, given: SourceTargets) -> Fitted:
        """Take the labels of the training images, or the names that the source gives to columns of 0 and 1."""
        import numpy as np

        if given.names:
            names, rows, targets = given.names, given.rows, np.asarray(given.values)
        else:
            names, rows = find_names(given, cls.noun[0], lambda labels: labels)
            targets = _matrix(given.values, {name: place for place, name in enumerate(names)})
        learnt = np.concatenate([*rows.values()]) if given.measuring else rows["train"]
        task = cls(names, images=len(learnt))
        counts = task.count(targets[learnt])
        task = evolve(task, counts=tuple(counts.tolist()))
        if given.measuring:
            return Fitted(task, targets, rows)
        check_learnable(cls.name, "two labels", names, counts)
        title = f"images with each label, of {len(learnt)} and {len(rows['val'])}"
        table = count_table(title, cls.noun[0], names, counts, task.count(targets[rows["val"]]))
        return Fitted(task, targets, rows, (table,))

    @classmethod
    def parse(cls, cells: Sequence[str]) -> tuple[float, ...]:
        """Read 0 or 1 in each cell."""
        return tuple(map(parse_binary, cells))

    @classmethod
    def read(cls, state: Mapping[str, Any]) -> Self:
        """Read names, counts and thresholds."""
        names = read_names(state, "counts", "thresholds")
        counts, thresholds = (read_numbers(state, key, names, 0) for key in ("counts", "thresholds"))
        return cls(names, counts, read_count(state), thresholds=thresholds)

    def state(self) -> dict[str, Any]:
        """Return names, counts, and thresholds if there are any."""
        chosen = {"thresholds": list(self.thresholds)} if self.thresholds else {}
        return {"names": list(self.names), "counts": list(self.counts), "images": self.images, **chosen}

    def meaning(self) -> dict[str, Any]:
        """Return the names alone."""
        return {"names": self.names}

    def after(self, metrics: Mapping[str, Any]) -> Self:
        """Take the thresholds."""
        found = {"thresholds": metrics.get("thresholds", list(self.thresholds))}
        return evolve(self, thresholds=read_numbers(found, "thresholds", self.names, 0))

    def check(self, target: Any) -> tuple[Any, ...]:
        """Take 0 or 1 for each label."""
        row = target if isinstance(target, list | tuple) else [target]
        if len(row) == self.outputs and all(isinstance(there, int | float) and there in {0, 1} for there in row):
            return tuple(row)
        raise ValueError(f"labels must be {self.outputs} numbers, each 0 or 1")

    def collate(self, targets: Sequence[Any]) -> Tensor:
        """Rows of 0 and 1 -> (N, K) float32."""
        import torch

        return torch.tensor(targets, dtype=torch.float32)

    def decode(self, outputs: Tensor) -> Tensor:
        """Return probabilities."""
        return outputs.sigmoid()

    def undecode(self, decoded: Tensor) -> Tensor:
        """Return the outputs whose sigmoid they are."""
        return decoded.logit(eps=1e-7)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the share of labels that are right."""
        return ((outputs > 0) == (targets > 0.5)).float().mean(dim=1)

    def count(self, targets: Numbers) -> Numbers:
        """Count images with each label."""
        import numpy as np

        found: Numbers = targets.sum(axis=0, dtype=np.int64)
        return found

    def average(self, outputs: Tensor, shares: Tensor) -> Tensor:
        """Average probabilities p, and return log p - log(1 - p)."""
        from torch.nn.functional import logsigmoid

        weights = shares[:, None, None].log()
        there, absent = ((logsigmoid(scores) + weights).logsumexp(0) for scores in (outputs, -outputs))
        return there - absent

    def align(self, outputs: Tensor, own: Task) -> Tensor:
        """Put the labels into this order."""
        return outputs[:, [own.names.index(name) for name in self.names]]

    def join(self, tasks: Sequence[Multilabel], shares: Sequence[float]) -> Multilabel:
        """Take the mean of the thresholds."""
        chosen = [dict(zip(one.names, one.least, strict=True)) for one in tasks]
        mean = (sum(share * by[name] for share, by in zip(shares, chosen, strict=True)) for name in self.names)
        return evolve(self, thresholds=tuple(mean))

    @property
    def least(self) -> tuple[float, ...]:
        """The threshold of each label."""
        return self.thresholds or (0.5,) * self.outputs

    def move(self, target: Any, places: Sequence[int | None]) -> tuple[float, ...]:
        """Put the labels into this order; one that the data does not know counts as absent."""
        row = [0.0] * self.outputs
        for place, value in zip(places, target, strict=True):
            if place is not None:
                row[place] = value
        return tuple(row)

    def predictions(self, decoded: Tensor) -> list[Prediction]:
        """Name the most probable label first, and those that reach their thresholds."""
        return [self._prediction(list(zip(self.names, row, strict=True))) for row in decoded.tolist()]

    def _prediction(self, pairs: list[tuple[str, float]]) -> Prediction:
        labels = [name for (name, value), least in zip(pairs, self.least, strict=True) if value >= least]
        return Prediction(None, dict(sorted(pairs, key=lambda pair: -pair[1])), tuple(labels))

    def columns(self) -> tuple[str, ...]:
        """Return what is predicted, and a column a label."""
        return ("prediction", *self.names)

    def cells(self, prediction: Prediction) -> list[str]:
        """Name the labels, with semicolons between, and spell the probability of each."""
        return [";".join(prediction.labels), *(f"{prediction.values[name]:.6g}" for name in self.names)]

    def words(self, prediction: Prediction, top: int | None) -> list[str]:
        """Name the labels that are there, or the most probable ones."""
        if top:
            return top_words(prediction.values, top)
        return [f"{name} {prediction.values[name]:.4f}" for name in prediction.labels]

    def data(self, prediction: Prediction, top: int | None) -> dict[str, Any]:
        """Add the labels that are there."""
        return {**super().data(prediction, top), "labels": list(prediction.labels)}

    def spell(self, target: Any) -> str:
        """Name the labels."""
        return ", ".join(name for name, value in zip(self.names, target, strict=True) if value)

    def legend(self, things: str) -> Table:
        """Say how many training images each label has, and from where it counts."""
        each = zip(self.names, self.counts, self.least, strict=True)
        rows = tuple((name, f"{count:,}", f"{least:.4g}") for name, count, least in each)
        return Table("", ("name", f"training {things}", "threshold"), rows)


def _matrix(values: Sequence[Any] | Numbers, code: Mapping[str, int]) -> Numbers:
    import numpy as np

    matrix = np.zeros((len(values), len(code)), dtype=np.uint8)
    for row, labels in enumerate(values):
        matrix[row, [code[label] for label in labels if label in code]] = 1
    return matrix


class MultilabelTask:
    """Any number of labels per image; see `Multilabel`."""

    @hookimpl
    def make_task(self, name: str) -> type[Task] | None:
        """Answer for its name."""
        return Multilabel if name == Multilabel.name else None
