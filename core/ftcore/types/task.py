"""What is to be learnt: how targets become tensors, and outputs predictions. Importing this module imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Self

from attrs import frozen

from .table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    Numbers = np.ndarray[Any, np.dtype[Any]]


@frozen
class Prediction:
    """The prediction for one image.

    Attributes:
        path: the image file; None for pixels.
        values: class or label -> probability, most probable first; or target name -> value in its own unit; plain data.
        labels: for a multi-label task, the labels whose probability reaches the threshold of the model.
    """

    path: Path | None
    values: dict[str, Any]
    labels: tuple[str, ...] = ()


@frozen(eq=False)
class SourceTargets:
    """What a source says of its images, as `Task.fit` takes it.

    Attributes:
        values: of each image of the source, as the source has it.
        names: of labels or numbers, where the source names them; else empty.
        rows: places of the images of ``train``, ``val`` and ``test``, (N,) int64 each.
        recorded: names in the order of a run that is read back; empty of one that wrote none; None for a new run.
        measuring: whether the data is only evaluated: the task covers all of `rows`, even a single class.
    """

    values: Sequence[Any] | Numbers
    names: tuple[str, ...]
    rows: Mapping[str, Numbers]
    recorded: tuple[str, ...] | None = None
    measuring: bool = False


@frozen(eq=False)
class Fitted:
    """The answer of `Task.fit`.

    Attributes:
        task: the task.
        targets: of each image of the source, (N, ...); of images in no split they mean nothing.
        rows: see `SourceTargets.rows`; without the images that the task cannot measure.
        tables: shown at the start of the run.
    """

    task: Task
    targets: Numbers
    rows: Mapping[str, Numbers]
    tables: tuple[Table, ...] = ()


class Task(ABC):
    """What the network predicts; a frozen attrs class that hook `make_task` returns. Equal tasks are equal values.

    Optional abilities, which only some commands need, are separate base classes: see `ftcore.types.abilities`.

    Attributes:
        name: what ``data.task`` and ``model.json`` call it: lower case letters, digits and underscores.
        noun: what one of `names` is, and several are.
        ranked: whether the values of a prediction are in an order, so that ``--top`` means something.
        crosses_zero: whether outputs must be able to be below zero, which a ReLU after the head would cut off.
        output_name: what an exported file calls what `decode` returns.
        names: of classes, labels or numbers, in the order of the outputs; empty if there are none.
        images: in the training split.
    """

    name: ClassVar[str]
    noun: ClassVar[tuple[str, str]] = ("output", "outputs")
    ranked: ClassVar[bool] = False
    crosses_zero: ClassVar[bool] = True
    output_name: ClassVar[str] = "values"
    names: tuple[str, ...]
    images: int

    @classmethod
    @abstractmethod
    def fit(cls, given: SourceTargets) -> Fitted:
        """Make the task of what a source says; training images alone decide.

        Raises:
            UserError: they leave nothing to learn.
        """

    @classmethod
    @abstractmethod
    def read(cls, state: Mapping[str, Any]) -> Self:
        """Make the task of what `state` returned, after it was JSON.

        Raises:
            ValueError: it is not that; a KeyError and a TypeError mean the same.
        """

    @classmethod
    def strata(cls, values: Sequence[Any] | Numbers) -> Sequence[Any] | None:
        """`SourceTargets.values` -> the sort of each image, of which a split holds some; None where there are none."""
        del values
        return None

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return what `read` needs, as JSON has it."""

    @abstractmethod
    def collate(self, targets: Sequence[Any]) -> Tensor:
        """Targets of samples, as `check` returns them -> as the loss takes them, (N,) or (N, K)."""

    @abstractmethod
    def decode(self, outputs: Tensor) -> Tensor:
        """Raw outputs (N, K) float32 -> what they say; `torch.export` must be able to trace it."""

    @property
    def outputs(self) -> int:
        """How many numbers the network gives per image, > 0."""
        return len(self.names)

    def after(self, metrics: Mapping[str, Any]) -> Self:
        """Return the task with what it takes from the metrics of the best epoch, such as thresholds."""
        del metrics
        return self

    def check(self, target: Any) -> Any:
        """Return the target of a sample as plain data.

        Raises:
            ValueError: it is none; says what a target is.
        """
        return target

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs (N, K) and targets, as the loss takes them, as metrics take them."""
        return outputs, targets

    def predictions(self, decoded: Tensor) -> Sequence[Prediction]:
        """What `decode` returned -> one prediction each, without its path."""
        return [Prediction(None, dict(zip(self.names, row, strict=True))) for row in decoded.tolist()]

    def columns(self) -> Sequence[str]:
        """Return the header of a table of predictions, after the image column."""
        return self.names

    def cells(self, prediction: Prediction) -> Sequence[str]:
        """Return the row of a prediction below `columns`."""
        return [f"{prediction.values[name]:.6g}" for name in self.names]

    def words(self, prediction: Prediction, top: int | None) -> Sequence[str]:
        """Return what is printed of a prediction; `top` is None unless the task is `ranked`."""
        del top
        return [f"{name}={cell}" for name, cell in zip(self.columns(), self.cells(prediction), strict=True)]

    def data(self, prediction: Prediction, top: int | None) -> dict[str, Any]:
        """Return a prediction as JSON has it, without its path; `top` is as for `words`."""
        return {"values": dict(islice(prediction.values.items(), top))}

    def spell(self, target: Any) -> str:
        """Say what a target is, for people."""
        return str(target)

    def describe(self) -> str:
        """Describe the task in one line."""
        return f"{self.name}: {', '.join(self.names[:12])}{' ...' if len(self.names) > 12 else ''}"

    def meaning(self) -> dict[str, Any]:
        """Return what two networks must share so that their outputs mean the same, each by its name for people."""
        return self.state()

    def legend(self, things: str) -> Table:
        """Return what a model card says of each output; `things` are images or texts, and the title is a sentence."""
        del things
        return Table("", ("name",), tuple((name,) for name in self.names))
