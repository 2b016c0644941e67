"""Warnings where the numbers of a run say that something is wrong, each said once.

What is advised is what the run does not do yet. What the run is going through is no fault: an average that has hardly
moved is no judge of classes, and epochs are compared with those in which the same learnt.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field

from ftcore import Counted, EpochEnded, RunEnded, RunStarted, hookimpl
from ftcore.data import ImageSplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import structlog

    from ftcore import Context, Event, Observer, RunConfig, Task


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

RARE = 0.5
"""Share of the mean number of images a class below which it is rare."""

MAX_INITIAL_SHARE = 0.5
"""How much of an average may be the network of its first update before its metrics say something of the training."""

SHOWN = 5
"""Classes that are named, at most."""


class Advice:
    """Warns about chance-level loss, slow data loading, overfitting and classes that are never predicted.

    Also warns about an accuracy at the majority-class baseline, and a weight average that hardly changed. The warnings
    are in the log and in ``report.html``.
    """

    @hookimpl
    def make_observers(self, config: RunConfig, ctx: Context) -> Sequence[Observer]:
        """Answer always."""
        return [TrainingAdvisor(ctx.log, config).observe]


@define
class TrainingAdvisor:
    """Looks at each epoch.

    Attributes:
        log: where to warn.
        config: of the run.
        started: the run.
        epochs: completed since the start or resume; of the validation only the loss.
        said: names of the warnings already given.
    """

    log: structlog.typing.FilteringBoundLogger
    config: RunConfig
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
                self.look(self.started, event)
            case RunEnded(report=report) if self.started and self.started.task:
                if not self.epochs or judges(self.epochs[-1]):
                    self.warn(check_accuracy(self.started.task, report["best"]))
            case _:
                pass

    def look(self, started: RunStarted, event: EpochEnded) -> None:
        """Look at an epoch, and at those before it in which the same learnt."""
        began = max((epoch for epoch in started.releases if epoch <= event.epoch), default=1)
        alike = [epoch for epoch in self.epochs if epoch.epoch >= began]
        self.warn(check_chance(started, self.epochs))
        self.warn(check_overfitting(started, self.config, [epoch for epoch in alike if judges(epoch)]))
        self.warn(check_waiting(started, self.config, alike))
        self.warn(check_average(event))
        if judges(event) and event.epoch >= min(MIN_EPOCHS, started.epochs):
            self.warn(check_classes(started, event.val))

    def warn(self, found: Iterator[tuple[str, str]]) -> None:
        """Say what was not said."""
        for name, text in found:
            if name not in self.said:
                self.said.add(name)
                self.log.warning(text)


def judges(epoch: EpochEnded) -> bool:
    """Whether the metrics of an epoch say something of what was learnt, and not of the start of an average."""
    return epoch.initial_share <= MAX_INITIAL_SHARE


def check_chance(started: RunStarted, epochs: Sequence[EpochEnded]) -> Iterator[tuple[str, str]]:
    """Yield whether the losses stay where a network is that holds all answers for equally likely."""
    guess, last = started.chance_level, epochs[-2:]
    if guess is None or len(last) < 2:
        return
    losses = [epoch.train["loss"] for epoch in last]
    stays = all(abs(loss - guess) < CHANCE_TOLERANCE * guess for loss in losses)
    if stays and min(epoch.val["loss"] for epoch in last) > (1 - CHANCE_TOLERANCE) * guess:  # mixtures are hard to fit
        frozen = ", `ftcore inspect` shows what is frozen" if _freezes(started) else ""
        yield (
            "guessing",
            f"the training loss, {losses[-1]:.4f}, stays at {guess:.4f}, chance level: the model is not learning; "
            f"`ftcore find lr` suggests a learning rate{frozen}, `ftcore check` checks the data",
        )


def check_overfitting(
    started: RunStarted, config: RunConfig, epochs: Sequence[EpochEnded]
) -> Iterator[tuple[str, str]]:
    """Yield whether the validation loss rises while the training loss falls, in epochs in which the same learnt."""
    if not epochs:
        return
    best, last = min(epochs, key=lambda epoch: epoch.val["loss"]), epochs[-1]
    lowest, now = best.val["loss"], last.val["loss"]
    if now > OVERFIT_RATIO * lowest > 0 and last.train["loss"] < best.train["loss"] and last.epoch > best.epoch + 1:
        help_by = {
            "train.patience=3 stops early": not config.train.patience,
            "`augment` adds augmentation": not started.augmented and not started.reads_text,
            "`freeze_backbone` trains fewer parameters": not _freezes(started) and config.model.weights != "none",
        }
        ways = [way for way, unused in help_by.items() if unused] or ["use more samples or a smaller network"]
        yield (
            "overfitting",
            f"the validation loss, {now:.4f}, is {now / lowest:.1f} times that of epoch {best.epoch}, {lowest:.4f}, "
            f"while the training loss went from {best.train['loss']:.4f} to {last.train['loss']:.4f}: the model is "
            f"overfitting; {', '.join(ways)}",
        )


def _freezes(started: RunStarted) -> bool:
    """Whether something does not learn, or did not at first."""
    return bool(started.releases) or started.trainable_parameters < started.total_parameters


def check_waiting(started: RunStarted, config: RunConfig, epochs: Sequence[EpochEnded]) -> Iterator[tuple[str, str]]:
    """Yield what the time of the last epoch says; the first, in which workers start, says nothing."""
    last = epochs[-1]
    if len(epochs) > 1 and last.data_wait > MAX_DATA_WAIT and last.seconds >= MIN_EPOCH_SECONDS:
        help_by = {
            "increase train.workers": (config.train.workers or 0) < (os.cpu_count() or 1),
            "set data.cache=ram or disk": not config.data.cache and isinstance(started.val, ImageSplit),
        }
        ways = [way for way, unused in help_by.items() if unused] or ["use smaller files"]
        yield (
            "waiting",
            f"{last.data_wait:.0%} of the training time of epoch {last.epoch} was spent waiting for data: "
            + ", and ".join(ways),
        )


def check_average(epoch: EpochEnded) -> Iterator[tuple[str, str]]:
    """Yield whether what was evaluated is an average that has hardly moved."""
    if not judges(epoch):
        yield (
            "average",
            f"{epoch.initial_share:.0%} of the average that was evaluated after epoch {epoch.epoch} is still the "
            f"initial "
            "network, so its metrics do not show progress yet: lower ema.decay or set ema.warmup=true",
        )


def check_classes(started: RunStarted, val: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield which classes are in the validation split and were never predicted."""
    task = started.task
    assert task
    matrix = _matrix(task, val)
    predicted = [sum(column) for column in zip(*matrix, strict=True)]
    missing = [place for place, row in enumerate(matrix) if sum(row) and not predicted[place]]
    if missing:
        each = [f"{task.names[place]!r} ({sum(matrix[place]):,.0f} images)" for place in missing]
        named = ", ".join(each[:SHOWN]) + (f" and {len(each) - SHOWN} more" if len(each) > SHOWN else "")
        yield "classes", f"never predicted on validation: {named}{_for_rare_classes(started, task, missing)}"


def _for_rare_classes(started: RunStarted, task: Task, missing: Sequence[int]) -> str:
    """Say what helps if all these classes are rare in training, and nothing is done about it."""
    counts = task.counts if isinstance(task, Counted) else ()
    few = RARE * sum(counts) / task.outputs
    if started.rebalanced or not counts or any(counts[place] >= few for place in missing):
        return ""
    sampled = ", `balanced_sampling` samples them more often" if isinstance(started.val, ImageSplit) else ""
    return f"; the loss `weighted_ce` weights rare classes{sampled}"


def check_accuracy(task: Task, best: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield whether one class, always said, would be right as often."""
    matrix = _matrix(task, best)
    images, right = [sum(row) for row in matrix], sum(row[place] for place, row in enumerate(matrix))
    if images and right <= max(images) < sum(images):
        most = task.names[images.index(max(images))]
        yield (
            "accuracy",
            f"accuracy {right / sum(images):.4f} in the best epoch is no better than {max(images) / sum(images):.4f}, "
            f"the majority-class baseline ({most!r}",
        )


def _matrix(task: Task, metrics: Mapping[str, Any]) -> Sequence[Sequence[float]]:
    """Return the confusion matrix, (K, K), rows: true; empty where there is none, or another plugin's of that name."""
    found: Any = metrics.get("confusion_matrix")
    square = isinstance(found, list) and all(isinstance(row, list) and len(row) == len(found) for row in found)
    return found if square and len(found) == len(task.names) else ()
