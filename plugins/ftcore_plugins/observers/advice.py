"""Warnings where the numbers of a run say that something is wrong, each said once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field

from ftcore import EpochEnded, RunEnded, RunStarted, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import structlog

    from ftcore import Context, Event, Observer, Task


CHANCE_TOLERANCE = 0.01
"""How near the loss of guessing a loss is that says that nothing is learnt, as a share of it."""

MAX_DATA_WAIT = 0.5
"""Share of an epoch's training in which images are waited for that is worth a word."""

MIN_EPOCH_SECONDS = 10.0
"""Seconds of an epoch below which it is not."""

OVERFIT_RATIO = 1.5
"""How many times its lowest a validation loss is that has risen."""

MIN_EPOCHS = 3
"""Epochs after which a class must have been predicted."""

SHOWN = 5
"""Classes that are named, at most."""


class Advice:
    """Warns about chance-level loss, slow data loading, overfitting and classes that are never predicted.

    A class that is never predicted, and an accuracy that one class always said would have. In the log, and so in
    ``report.html``, too.
    """

    @hookimpl
    def make_observers(self, ctx: Context) -> Sequence[Observer]:
        """Answer always."""
        return [TrainingAdvisor(ctx.log).observe]


@define
class TrainingAdvisor:
    """Looks at each epoch.

    Attributes:
        log: where to warn.
        started: the run.
        epochs: that ended, since it began or went on; of the validation only the loss.
        said: names of the warnings that were said.
    """

    log: structlog.typing.FilteringBoundLogger
    started: RunStarted | None = None
    epochs: list[EpochEnded] = field(factory=list)
    said: set[str] = field(factory=set)

    def observe(self, event: Event) -> None:
        """Hear an event."""
        match event:
            case RunStarted():
                self.started, self.epochs = event, []
            case EpochEnded() if self.started and self.started.task:
                self.epochs.append(evolve(event, val={"loss": event.val["loss"]}))  # and no matrix of each epoch
                last = event.epoch >= min(MIN_EPOCHS, self.started.epochs)
                self.warn(check_losses(self.started.task, self.epochs))
                self.warn(check_waiting(self.epochs))
                self.warn(check_classes(self.started.task, event.val) if last else iter(()))
            case RunEnded(report=report) if self.started and self.started.task:
                self.warn(check_accuracy(self.started.task, report["best"]))
            case _:
                pass

    def warn(self, found: Iterator[tuple[str, str]]) -> None:
        """Say what was not said."""
        for name, text in found:
            if name not in self.said:
                self.said.add(name)
                self.log.warning(text)


def check_losses(task: Task, epochs: Sequence[EpochEnded]) -> Iterator[tuple[str, str]]:
    """Yield what the losses of all epochs say: a name, and a sentence."""
    guess, formula = chance_level_loss(task)
    losses = [epoch.train["loss"] for epoch in epochs]
    if len(losses) > 1 and all(abs(loss - guess) < CHANCE_TOLERANCE * guess for loss in losses[-2:]):
        yield (
            "guessing",
            f"the training loss, {losses[-1]:.4f}, stays at {formula} = {guess:.4f}, that of guessing: nothing is "
            "learnt; `ftcore find lr` looks for a learning rate, `ftcore inspect` says what is frozen, `ftcore check` "
            "what is wrong with the data",
        )
    best = min(epochs, key=lambda epoch: epoch.val["loss"])
    lowest, now = best.val["loss"], epochs[-1].val["loss"]
    if now > OVERFIT_RATIO * lowest > 0 and losses[-1] < best.train["loss"] and epochs[-1].epoch > best.epoch + 1:
        yield (
            "by heart",
            f"the validation loss, {now:.4f}, is {now / lowest:.1f} times that of epoch {best.epoch}, {lowest:.4f}, "
            f"while the training loss went from {best.train['loss']:.4f} to {losses[-1]:.4f}: pictures are learnt by "
            "heart; train.patience=3 stops there; `augment`, `mixup`, weight decay or a frozen backbone help",
        )


def chance_level_loss(task: Task) -> tuple[float, str]:
    """Return the loss of a network that holds all answers for equally likely, and how it is spelt; nan for numbers."""
    if task.kind == "regression":
        return math.nan, ""
    answers = task.outputs if task.kind == "classification" else 2
    return math.log(answers), f"ln({answers})"


def check_waiting(epochs: Sequence[EpochEnded]) -> Iterator[tuple[str, str]]:
    """Yield what the time of the last epoch says; the first starts the workers."""
    last = epochs[-1]
    if len(epochs) > 1 and last.data_wait > MAX_DATA_WAIT and last.seconds >= MIN_EPOCH_SECONDS:
        yield (
            "waiting",
            f"{last.data_wait:.0%} of the training of epoch {last.epoch} was spent waiting for images: more processes "
            "read them with train.workers, and data.cache=ram or disk reads them once",
        )


def check_classes(task: Task, val: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield which classes are in the validation split and were never predicted."""
    matrix = _matrix(task, val)
    predicted = [sum(column) for column in zip(*matrix, strict=True)]
    missing = [
        f"{name!r} ({sum(row):,.0f} images)"
        for name, row, times in zip(task.names, matrix, predicted, strict=False)
        if sum(row) and not times
    ]
    if missing:
        named = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
        yield (
            "classes",
            f"never predicted on validation: {named}; `weighted_ce` weighs rare classes, `balanced_sampling` draws "
            "them more often",
        )


def check_accuracy(task: Task, best: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield whether one class, always said, would be right as often."""
    matrix = _matrix(task, best)
    images, right = [sum(row) for row in matrix], sum(row[place] for place, row in enumerate(matrix))
    if images and right <= max(images) < sum(images):
        most = task.names[images.index(max(images))]
        yield (
            "accuracy",
            f"accuracy {right / sum(images):.4f} in the best epoch is no better than {max(images) / sum(images):.4f}, "
            f"that of always saying {most!r}",
        )


def _matrix(task: Task, metrics: Mapping[str, Any]) -> Sequence[Sequence[float]]:
    """Return the confusion matrix, (K, K), rows: true; empty where there is none, or another plugin's of that name."""
    found: Any = metrics.get("confusion_matrix")
    square = isinstance(found, list) and all(isinstance(row, list) and len(row) == len(found) for row in found)
    return found if square and len(found) == len(task.names) else ()
