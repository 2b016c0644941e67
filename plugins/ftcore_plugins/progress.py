"""What a person at a terminal sees: what was decided, a progress bar, a line an epoch, the result."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ftcore import EpochEnded, RunEnded, RunFailed, RunStarted, RunStopped, StepLogged, hookimpl
from ftcore.console import console, show_facts, show_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftcore import Event, Observer


class ProgressBar:
    """Writes to standard error; where that is no terminal, there is no bar."""

    @hookimpl
    def make_observers(self) -> Sequence[Observer]:
        """Answer always."""
        return [_Screen().observe]


class _Screen:
    def __init__(self) -> None:
        self.out = console(sys.stderr)
        self.bar: Progress | None = None
        self.steps = 0

    def observe(self, event: Event) -> None:
        match event:
            case RunStarted():
                self.start(event)
            case StepLogged():
                self.step(event)
            case EpochEnded():
                self.end_epoch(event)
            case RunEnded(report=report):
                self.stop()
                self.end(report)
            case RunFailed() | RunStopped():
                self.stop()
            case _:
                pass

    def start(self, event: RunStarted) -> None:
        show_facts(self.out, event.facts)
        for table in event.tables:
            show_table(self.out, table)
        self.steps = event.steps_per_epoch
        if self.out.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.out, transient=True)
            self.bar.add_task("", total=event.epochs * event.steps_per_epoch, completed=event.step, note="")
            self.bar.start()

    def step(self, event: StepLogged) -> None:
        if self.bar:
            rates = "/".join(f"{rate:.2g}" for rate in sorted(set(event.lr), reverse=True))
            terms = "".join(f" + {name} {value:.4f}" for name, value in event.terms.items())
            note = f"loss {event.loss:.4f}{terms}, lr {rates}, {event.samples_per_second:.0f} images/s"
            done = (event.epoch - 1) * self.steps + event.step
            self.bar.update(self.bar.task_ids[0], description=f"epoch {event.epoch}", completed=done, note=note)

    def end_epoch(self, event: EpochEnded) -> None:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in event.val.items() if isinstance(value, float))
        star = " *" if event.best else ""
        terms = "".join(f" + {name} {value:.4f}" for name, value in event.train.items() if name != "loss")
        self.out.print(
            f"epoch {event.epoch:>3}  train loss {event.train['loss']:.4f}{terms}  val {scores}  "
            f"{event.seconds:.1f} s, {event.samples_per_second:.0f} images/s{star}",
            soft_wrap=True,
        )
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=event.epoch * self.steps)

    def stop(self) -> None:
        if self.bar:
            self.bar.stop()

    def end(self, report: Any) -> None:
        best, monitor = report["best"], report["monitor"]
        if report["stopped_early"]:
            self.out.print(f"stopped: {monitor} has not been better for train.patience epochs")
        self.out.print(
            f"best {monitor} {best[monitor]:.4f} in epoch {best['epoch']} of {report['epochs']}, "
            f"{report['seconds']:.1f} s; everything is in {report['folder']}",
            soft_wrap=True,
        )
