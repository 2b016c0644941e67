"""When a run is saved: every so often, when a signal asks for it, and at its end."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from .config import EVERY
from .events import CheckpointSaved
from .signals import Stopped

if TYPE_CHECKING:
    from .runfolder import RunFolder
    from .signals import Flags
    from .state import Parts, Progress


@frozen
class Every:
    """How often a run is saved.

    Attributes:
        number: of steps, minutes or epochs.
        unit: ``step``, ``minute`` or ``epoch``.
    """

    number: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> Every:
        """Read `run.save_every`."""
        matched = EVERY.fullmatch(text)
        assert matched  # the config has checked it
        return cls(int(matched[1]), matched[2])

    def due(self, progress: Progress, seconds: float) -> bool:
        """Whether it is time, so many seconds after the last time."""
        if self.unit == "minute":
            return seconds >= 60 * self.number
        if self.unit == "step":
            return not progress.current.trained and progress.step % self.number == 0
        return progress.current.step == 0 and progress.epoch % self.number == 0


@define
class Keeper:
    """Saves a run between its steps; called by the loop at each moment at which it can be left.

    Attributes:
        folder: of the run.
        parts: of the run, with its observers.
        progress: of the run.
        every: how often.
        flags: what signals have asked for.
        saved: where the run was when it was last saved.
        since: when that was, on the monotonic clock.
        saves: checkpoints that were written.
        seconds: that it took to write them.
    """

    folder: RunFolder
    parts: Parts
    progress: Progress
    every: Every
    flags: Flags
    saved: tuple[int, int, bool] | None = None
    since: float = field(factory=time.monotonic)
    saves: int = 0
    seconds: float = 0.0

    def __call__(self) -> None:
        """Save the run if it is time.

        Raises:
            Stopped: a signal has asked for the end.
        """
        flags = self.flags
        if flags.ending or flags.saving or self.every.due(self.progress, time.monotonic() - self.since):
            self.save()
        if flags.ending and self.progress.epoch < self.parts.settings.epochs:
            raise Stopped(
                f"stopped by {signal.Signals(flags.ending).name} after step {self.progress.step}, in epoch "
                f"{self.progress.epoch + 1}; `ftcore resume {self.folder.path}` goes on",
                flags.ending,
            )

    def save(self) -> None:
        """Save the run, unless that was done where it is."""
        self.flags.saving, self.since = False, time.monotonic()
        if self.where() == self.saved:
            return
        path = self.folder.save(self.progress)
        took = time.monotonic() - self.since
        self.saved, self.saves, self.seconds = self.where(), self.saves + 1, self.seconds + took
        self.parts.tell(CheckpointSaved(path, self.progress.step, took))

    def where(self) -> tuple[int, int, bool]:
        """Return where the run is."""
        return self.progress.epoch, self.progress.step, self.progress.current.trained
