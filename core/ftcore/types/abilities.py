"""Optional abilities of a task; a command that needs one reports an error for a task without it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from ftcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from torch import Tensor

    from .task import Task

    Numbers = np.ndarray[Any, np.dtype[Any]]


class Averaged(ABC):
    """A task whose outputs can be averaged, over networks or over an image and its mirror image."""

    gives: ClassVar[str] = "a mean of several outputs"

    @abstractmethod
    def average(self, outputs: Tensor, shares: Tensor) -> Tensor:
        """Outputs (M, N, K) float32 and shares (M,), which add up to 1 -> (N, K) that say what all do on average."""

    @abstractmethod
    def align(self, outputs: Tensor, own: Any) -> Tensor:
        """Outputs (N, K) as another task of this kind, over the same names, means them -> as this one does."""

    def join(self, tasks: Sequence[Any], shares: Sequence[float]) -> Self:
        """Return this task, the first of several, with what is the mean over all."""
        del tasks, shares
        return self


class Counted(ABC):
    """A task with names that an image has or does not have.

    Attributes:
        counts: images with each, in the training split; empty if unknown.
    """

    gives: ClassVar[str] = "images to count of each name"
    counts: tuple[int, ...]

    @abstractmethod
    def count(self, targets: Numbers) -> Numbers:
        """Targets of a split, as `Fitted` has them -> images of each name, (K,) int64."""


class Invertible(ABC):
    """A task that knows outputs for what they say."""

    gives: ClassVar[str] = "a way back from what a file says to outputs"

    @abstractmethod
    def undecode(self, decoded: Tensor) -> Tensor:
        """What `Task.decode` returns -> outputs that say so, (N, K) float32."""


class Matched(ABC):
    """A task that takes targets of data whose names have another order, or are fewer.

    Attributes:
        needs_all: whether such data must have all names.
    """

    gives: ClassVar[str] = "targets that can be put into the order of other names"
    needs_all: ClassVar[bool] = False

    @abstractmethod
    def move(self, target: Any, places: Sequence[int | None]) -> Any:
        """Put a target of other data into the order of this task.

        Args:
            target: of a sample.
            places: for each name of the other data, its place among those of this task; None: no sample has it.
        """


class Parsed(ABC):
    """A task whose targets can be cells of a table."""

    gives: ClassVar[str] = "a way to read cells of a table"

    @classmethod
    @abstractmethod
    def parse(cls, cells: Sequence[str]) -> Any:
        """Cells of the target columns in a row -> that image's value in `SourceTargets.values`.

        Raises:
            ValueError: they are none; what is wrong, for people.
        """


class Scored(ABC):
    """A task that says how good the answer for one image is.

    Attributes:
        score_name: what a score is.
        higher_is_better: of two scores.
    """

    gives: ClassVar[str] = "a score of each image"
    score_name: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs (N, K) and targets, as the loss takes them -> (N,) float."""


class Softened:
    """A task whose targets can be mixed.

    Attributes:
        hard: whether targets have another form before, as class indices have, so that a loss must take both.
    """

    gives: ClassVar[str] = "targets that can be mixed"
    hard: ClassVar[bool] = False

    def soften(self, targets: Tensor) -> Tensor:
        """Targets, as the loss takes them -> (N, K) float32."""
        return targets


_Ability = TypeVar("_Ability")


def require(task: Task | type[Task], ability: Callable[..., _Ability], asker: str) -> _Ability:
    """Return a task, or its class, that has an ability.

    Raises:
        UserError: it has not; says who asked.
    """
    kind: Any = ability
    if issubclass(task if isinstance(task, type) else type(task), kind):
        return task  # type: ignore[return-value]
    raise UserError(f"{asker} needs {kind.gives}, and a task {task.name!r} has none (ftcore.{kind.__name__})")
