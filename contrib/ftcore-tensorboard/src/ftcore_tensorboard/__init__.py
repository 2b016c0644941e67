"""TensorBoard for ftcore: ``--plugin tensorboard`` writes event files into the run folder.

torch and tensorboard are imported inside functions, so that naming the plugin costs no more than reading its options.
"""

from __future__ import annotations

import time
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import structlog
from attrs import Attribute, field, frozen
from ftcore import EpochEnded, RunEnded, RunFailed, RunStarted, RunStopped, StepLogged, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ftcore import Event, Observer
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoard", "TensorBoardConfig"]

_TAKEN = frozenset({"checkpoints", "model", "nonfinite"})


def _is_below_the_run(_config: object, option: Attribute[str], value: str) -> None:
    path = PurePath(value)
    if not path.parts or path.is_absolute() or ".." in path.parts or path.parts[0] in _TAKEN:
        raise ValueError(f"'{option.name}' must be a folder inside the run folder, none of {', '.join(sorted(_TAKEN))}")


@frozen
class TensorBoardConfig:
    """Options of `tensorboard`.

    Attributes:
        folder: where the event files are, inside the run folder and relative to it.
    """

    folder: str = field(default="tensorboard", validator=_is_below_the_run)


class TensorBoard:
    """Writes every number that a run tells its observers, against optimizer steps in the whole run."""

    Config = TensorBoardConfig

    def __init__(self, config: TensorBoardConfig) -> None:
        self.config = config

    @hookimpl
    def make_observers(self) -> Sequence[Observer]:
        """Answer always."""
        return [EventFiles(self.config.folder).observe]


class EventFiles:
    """Two folders of event files: ``steps`` for what is logged now and then, ``epochs`` for what an epoch ends with.

    They are apart because a run may be resumed behind the last step of an epoch that is still to be evaluated: what is
    to be dropped of the one and of the other differs.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.steps_per_epoch = 0
        self.writers: dict[str, SummaryWriter] = {}

    def observe(self, event: Event) -> None:
        """Write an event down."""
        match event:
            case RunStarted():
                self.start(event)
            case StepLogged():
                self.write("steps", (event.epoch - 1) * self.steps_per_epoch + event.step, step_scalars(event))
            case EpochEnded():
                self.write("epochs", event.step, epoch_scalars(event))
            case RunEnded() | RunFailed() | RunStopped():
                for writer in self.writers.values():
                    writer.close()
            case _:
                pass

    def start(self, event: RunStarted) -> None:
        """Open new files, which say that everything behind where the run is counts no more."""
        from torch.utils.tensorboard import SummaryWriter

        self.steps_per_epoch = event.steps_per_epoch
        done = {"steps": event.step, "epochs": event.epoch * event.steps_per_epoch}
        for name, step in done.items():
            folder = event.folder / self.folder / name
            wait_for_a_later_name(folder)
            self.writers[name] = SummaryWriter(str(folder), purge_step=step + 1)
        self.writers["steps"].add_text("run", as_markdown(event.summary), event.step)

    def write(self, name: str, step: int, scalars: Mapping[str, float]) -> None:
        """Write numbers, and hand them to the operating system: a run that is killed loses none."""
        writer: Any = self.writers[name]
        for tag, value in scalars.items():
            writer.add_scalar(tag, value, step)
        writer.flush()


def wait_for_a_later_name(folder: Path) -> None:
    """Let the second of the newest event file pass: TensorBoard reads files in the order of their names.

    A name begins with the second that the file was made in. What follows, the number of a process, has no order.
    """
    seconds = [int(file.name.split(".")[3]) for file in folder.glob("events.out.tfevents.*")]
    missing = max(seconds, default=0) + 1 - time.time()
    time.sleep(min(max(missing, 0.0), 1.0))
    if missing > 1:
        message = f"{folder} has event files of {missing:.0f} s from now: TensorBoard reads those of this run first"
        structlog.get_logger().warning(message)


def step_scalars(event: StepLogged) -> dict[str, float]:
    """Tag -> number: the loss and what was added to it, the learning rate of each group, the speed."""
    rates = {f"lr/group {place}": rate for place, rate in enumerate(event.lr)}
    terms = {f"train/{name}": value for name, value in event.loss_terms.items()}
    return {"train/loss": event.loss, **terms, **rates, "speed/images per second": event.samples_per_second}


def epoch_scalars(event: EpochEnded) -> dict[str, float]:
    """Tag -> number: means over the epoch, and every metric that is a single number."""
    train = {f"train/{name}": value for name, value in event.train.items()}
    val = {f"val/{name}": value for name, value in event.val.items() if isinstance(value, float)}
    return {**train, **val, "speed/seconds an epoch": event.seconds}


def as_markdown(facts: Mapping[str, str]) -> str:
    """Show what was decided as a table."""
    rows = [f"| {name} | {' '.join(text.replace('|', '&#124;').split())} |" for name, text in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])
