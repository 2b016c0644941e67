"""What a person at a terminal sees: what was decided, a progress bar, a line an epoch, the result."""

from __future__ import annotations

import sys
from datetime import timedelta
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ftcore import BatchEvaluated, EpochEnded, RunEnded, RunFailed, RunStarted, RunStopped, StepLogged, hookimpl
from ftcore.console import console, print_key_values, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from ftcore import Event, Observer


class ProgressBar:
    """Prints one line per epoch and, in a terminal, a progress bar, to standard error."""

    @hookimpl
    def make_observers(self) -> Sequence[Observer]:
        """Answer always."""
        return [_ConsoleObserver().observe]


class _ConsoleObserver:
    def __init__(self) -> None:
        self.out = console(sys.stderr)
        self.bars: _ProgressBars | None = None
        self.epochs, self.seconds = 0, [0.0]

    def observe(self, event: Event) -> None:
        match event:
            case RunStarted():
                self.start(event)
            case EpochEnded():
                self.end_epoch(event)
            case RunEnded(report=report):
                self.stop()
                self.end(report)
            case RunFailed() | RunStopped():
                self.stop()
            case _:
                pass
        if self.bars:
            self.bars.observe(event)

    def start(self, event: RunStarted) -> None:
        self.epochs, self.seconds = event.epochs, []
        print_key_values(self.out, event.summary)
        for table in event.tables:
            print_table(self.out, table)
        if self.out.is_terminal:
            self.bars = _ProgressBars(self.out, event)

    def end_epoch(self, event: EpochEnded) -> None:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in event.val.items() if isinstance(value, float))
        star = " *" if event.best else ""
        skipped = f", {event.skipped} of {event.updates + event.skipped} updates skipped" if event.skipped else ""
        terms = "".join(f" + {name} {value:.4f}" for name, value in event.train.items() if name != "loss")
        self.out.print(
            f"epoch {event.epoch:>3}  train loss {event.train['loss']:.4f}{terms}  val {scores}  "
            f"{event.seconds:.1f} s, {event.samples_per_second:.0f} images/s{self.left(event)}{skipped}{star}",
            soft_wrap=True,
        )

    def left(self, event: EpochEnded) -> str:
        """Say how long the epochs that are left will take, by the mean of those so far."""
        self.seconds.append(event.seconds)
        seconds = round((self.epochs - event.epoch) * sum(self.seconds) / len(self.seconds))
        return f", {timedelta(seconds=seconds)} left" if seconds > 0 else ""

    def stop(self) -> None:
        if self.bars:
            self.bars.live.stop()
            self.bars = None

    def end(self, report: Any) -> None:
        best, monitor = report["best"], report["monitor"]
        if report["stopped_early"]:
            self.out.print(f"stopped: {monitor} has not improved for train.patience epochs")
        found = f"{best[monitor]:.4f} in epoch {best['epoch']}" if best else "none, it was never finite"
        self.out.print(
            f"best {monitor} {found} of {report['epochs']}, "
            f"{report['seconds']:.1f} s; results saved to {report['folder']}",
            soft_wrap=True,
        )
        if test := report.get("test"):
            ends = test["intervals"]["metrics"]
            shown = [f"{name} {test[name]:.4f}{_interval(ends[name])}" for name in ends]
            self.out.print(
                f"test {', '.join(shown)} of {test['images']} images; validation chose the epoch, test did not",
                soft_wrap=True,
            )
        run, split = quote(report["folder"]), " --split test" if report["images"]["test"] else ""
        following = f"ftcore predict {run} IMAGES, ftcore evaluate {run}{split}, ftcore report {run} --open"
        self.out.print(f"next: {following}", soft_wrap=True)


def _interval(ends: Sequence[float] | None) -> str:
    return f" [{ends[0]:.4f}, {ends[1]:.4f}]" if ends else ""


class _ProgressBars:
    """At a terminal: how far the run and its epoch are, and below, in the lines that it takes, what was logged last."""

    def __init__(self, out: Console, run: RunStarted) -> None:
        self.run, self.best = run, ""
        place = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress, self.note = Progress(*place, console=out), Text(style="dim")
        steps = run.epochs * run.steps_per_epoch
        self.whole = self.progress.add_task(f"{run.epochs} epochs", total=steps, completed=run.step)
        self.epoch = self.progress.add_task("")
        self.train(run.epoch + 1, run.step - run.epoch * run.steps_per_epoch)
        self.live = Live(Group(self.progress, self.note), console=out, transient=True)
        self.live.start()

    def observe(self, event: Event) -> None:
        match event:
            case StepLogged():
                done = (event.epoch - 1) * self.run.steps_per_epoch + event.step
                self.progress.update(self.whole, completed=done)
                self.progress.update(self.epoch, completed=event.step)
                self.note.plain = f"{_step(event)}, {_memory()}{self.best}"
            case BatchEvaluated() if self.run.val is not None:
                if not int(event.indices[0]):
                    self.progress.reset(self.epoch, total=len(self.run.val), description="validation")
                self.progress.update(self.epoch, advance=len(event.indices))
            case EpochEnded():
                if event.best:
                    self.best = f", best {event.monitor} {event.val[event.monitor]:.4f} in epoch {event.epoch}"
                self.progress.update(self.whole, completed=event.epoch * self.run.steps_per_epoch)
                self.train(event.epoch + 1)
            case _:
                pass

    def train(self, epoch: int, done: int = 0) -> None:
        self.progress.reset(
            self.epoch,
            total=self.run.steps_per_epoch,
            completed=done,
            description=f"epoch {min(epoch, self.run.epochs)}",
        )


def _step(event: StepLogged) -> str:
    rates = "/".join(f"{rate:.2g}" for rate in sorted(set(event.lr), reverse=True))
    terms = "".join(f" + {name} {value:.4f}" for name, value in event.loss_terms.items())
    speed = f"{event.samples_per_second:.0f} images/s, {event.data_wait:.0%} of the time waiting for data"
    return f"loss {event.loss:.4f}{terms}, lr {rates}, {speed}"


def _memory() -> str:
    """Say how much memory was taken at most: of the graphics card if one is used, otherwise by this process."""
    import resource

    import torch

    cuda: Any = torch.cuda
    if cuda.is_initialized():
        return f"{cuda.max_memory_allocated() / 1e9:.1f} GB peak GPU memory"
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte / 1e9:.1f} GB peak memory"
