"""Hears what happens in a run, and writes the page."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ftcore import (
    BatchEvaluated,
    CheckpointSaved,
    EpochEnded,
    RunEnded,
    RunFailed,
    RunStarted,
    RunStopped,
    StepLogged,
    UserError,
)
from ftcore.runs import write_file

from . import record
from .page import page

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import structlog
    from PIL.Image import Image

    from ftcore import Event

    from .accumulators import Measured


FILE = "report.html"


class Reporter:
    """Keeps what a page is drawn from, and draws it after each epoch and at the end.

    Whatever goes wrong with it is a warning: a page is not worth a run.
    """

    def __init__(self, pictures: int, log: structlog.typing.FilteringBoundLogger) -> None:
        """Take the number of pictures to show, and where to warn."""
        self.pictures, self.log = pictures, log
        self.started: RunStarted | None = None
        self.record = record.Record()
        self.epochs: list[dict[str, Any]] = []
        self.measured: Measured | None = None

    def observe(self, event: Event) -> None:
        """Hear an event."""
        try:
            self.hear(event)
        except Exception as error:  # noqa: BLE001 - a page is not worth a run
            self.measured = None
            with suppress(OSError):  # of the log, on a disk that is full
                self.log.warning("report.html is not up to date", reason=f"{type(error).__name__}: {error}")

    def hear(self, event: Event) -> None:
        """Note an event, and write what follows from it."""
        match event:
            case RunStarted():
                self.start(event)
            case StepLogged() if self.started:
                self.record.step(event, self.started.steps_per_epoch)
            case BatchEvaluated():
                self.add(event)
            case EpochEnded():
                self.end_epoch(event)
            case CheckpointSaved() if self.epochs:
                self.write_record()
            case RunEnded(report=result):
                kept = ("epochs", "stopped_early", "seconds", "updates", "skipped_steps", "test")
                self.record.result = {name: result[name] for name in kept}
                self.end("finished")
            case RunFailed(error=text) | RunStopped(message=text):
                self.end(text)
            case _:
                pass

    def start(self, event: RunStarted) -> None:
        """Read what is known of a run that is gone on with."""
        self.started = event
        self.record = record.read(event.folder)
        self.record.start(event)
        self.epochs = record.read_epochs(event.folder)

    def add(self, event: BatchEvaluated) -> None:
        """Count a validation batch."""
        if self.measured:
            self.measured.add(event)
        elif self.started and self.started.task and not int(event.indices[0]):
            from .statistics import measured

            self.measured = measured(self.started.task, self.pictures or 1)
            if self.measured:
                self.measured.add(event)

    def end_epoch(self, event: EpochEnded) -> None:
        """Note an epoch, with the pictures of what went worst if it is the best; write the page."""
        measured, self.measured = self.measured, None
        evaluation = measured.result() if measured else {}
        if evaluation and event.best and self.started and self.started.val is not None:
            from .thumbnails import choose, show

            choose(evaluation, self.pictures)
            show(evaluation, self.started.val)
        elif evaluation:
            evaluation |= {"confident": [], "worst": []}
        self.record.end_epoch(event, evaluation)
        line = {"epoch": event.epoch, "step": event.step, "train": event.train, "val": event.val}
        speed = {name: getattr(event, name) for name in ("seconds", "training_seconds", "samples_per_second")}
        self.epochs.append(record.epoch_of(line | speed))
        self.write()

    def end(self, how: str) -> None:
        """Note how the run ended; say so in the page, if there is one."""
        if self.started:
            self.record.end(how)
            if self.epochs:
                self.write()

    def write(self) -> None:
        """Write the record and the page."""
        assert self.started
        self.write_record()
        write_aside(self.started.folder / FILE, page(self.started.folder, self.record, self.epochs))

    def write_record(self) -> None:
        """Write the record."""
        assert self.started
        write_aside(self.started.folder / record.FILE, record.as_json(self.record))

    def redraw(self, folder: Path, heat: Callable[[int, str, str], Image] | None = None) -> Path:
        """Write the page of a run again, from its folder alone, and return its path.

        Args:
            folder: of the run.
            heat: what draws where the run's model sees something, if wanted; see `ftcore.reports.rewrite_reports`.

        Raises:
            UserError: the folder has no record of the run, or the page cannot be written.
        """
        if not (folder / record.FILE).is_file():
            raise UserError(f"there is no {folder / record.FILE}, which the plugin report writes during a run")
        kept = record.read(folder)
        if heat:
            from .thumbnails import explain

            explain(kept.best_evaluation, heat)
        try:
            if heat:
                write_aside(folder / record.FILE, record.as_json(kept))
            write_aside(folder / FILE, page(folder, kept, record.read_epochs(folder)))
        except OSError as error:
            raise UserError(f"cannot write {folder / FILE}: {error.strerror or error}") from None
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{folder / record.FILE} is damaged, so no report can be written ({reason})") from None
        return folder / FILE


def write_aside(path: Path, text: str) -> None:
    """Write a file so that it is there whole, or as it was; not fsynced, for it can be written again."""
    content = text.encode("utf-8", "backslashreplace")  # a file name may hold what is no UTF-8
    write_file(path, lambda aside: aside.write_bytes(content))
