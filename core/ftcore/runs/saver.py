"""When a run is saved: every so often, when a signal asks for it, and at its end."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import structlog
import torch
from attrs import define, evolve, field, frozen

from ftcore.checkpoints.checkpoint import checkpoint_dir
from ftcore.config.validators import SAVE_INTERVAL
from ftcore.errors import UserError
from ftcore.system.signals import StoppedBySignal
from ftcore.types.events import CheckpointSaved

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ftcore.system.signals import SignalFlags
    from ftcore.training.state import Progress, TrainingParts

    from .folder import RunFolder
    from .observers import GuardedObservers


POLL_INTERVAL_S = 0.2
"""Seconds, about, after which the processes of a run ask each other whether one was told to save or to end."""

THREAD = "ftcore-save"
"""How the name of the thread begins that writes while a run goes on."""


@frozen
class SaveInterval:
    """How often a run is saved.

    Attributes:
        number: of steps, minutes or epochs.
        unit: ``step``, ``minute`` or ``epoch``.
    """

    number: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> SaveInterval:
        """Read `run.save_every`."""
        matched = SAVE_INTERVAL.fullmatch(text)
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
class CheckpointSaver:
    """Saves a run between its steps; called by the loop at each moment at which it can be left.

    Attributes:
        folder: of the run.
        parts: of the run, with its observers.
        progress: of the run.
        every: how often.
        flags: what signals have asked for.
        observers: of the run, one of which may end it.
        saved: where the run was when it was last saved.
        since: when that was, on the monotonic clock.
        background: whether the run goes on while it is saved.
        writing: when it is there, and what is said then, of the checkpoint that is being written.
        saved_count: checkpoints that were written.
        seconds: that the run waited for them.
        calls: since the processes of the run have last asked each other.
        next: at which of them they do so.
        asked: when they did, on the monotonic clock.
    """

    folder: RunFolder
    parts: TrainingParts
    progress: Progress
    every: SaveInterval
    flags: SignalFlags
    observers: GuardedObservers
    saved: tuple[int, int, bool] | None = None
    since: float = field(factory=time.monotonic)
    background: bool = False
    writing: tuple[Future[None], CheckpointSaved] | None = None
    saved_count: int = 0
    seconds: float = 0.0
    calls: int = 0
    next: int = 1
    asked: float = field(factory=time.monotonic)

    def __call__(self) -> None:
        """Save the run if it is time.

        Raises:
            StoppedBySignal: a signal has asked for the end.
            UserError: an observer is to end the run.
        """
        if self.writing and self.writing[0].done():
            self.wait_pending()
        due = self.progress.step > 0 and self.every.due(self.progress, time.monotonic() - self.since)
        asked = self.flags.saving or due or self.observers.error is not None
        ending, wanted = self.any_rank_wants(self.flags.ending, asked)
        if ending or wanted or (due and self.every.unit != "minute"):  # steps and epochs are the same for all
            self.save()
        if self.observers.error is not None and self.position() == self.saved:
            self.wait_pending()
            self.observers.raise_error()
        if ending:
            self.wait_pending()
        if ending and self.progress.epoch < self.parts.train_config.epochs:
            raise StoppedBySignal(
                f"stopped by {signal.Signals(ending).name} after step {self.progress.step}, in epoch "
                f"{self.progress.epoch + 1}; resume with: ftcore resume {self.folder.path}",
                ending,
            )

    def any_rank_wants(self, ending: int, wanted: bool) -> tuple[int, bool]:  # noqa: FBT001 - both are what flags say
        """Return what any process of the run wants: all do it at the same step.

        They ask each other a few times a second, and agree after how many steps they do so again.
        """
        placement = self.parts.placement
        if placement.world_size == 1:
            return ending, wanted
        self.calls += 1
        if self.calls < self.next:
            return 0, False
        now = time.monotonic()
        steps = round(self.calls * POLL_INTERVAL_S / max(now - self.asked, 1e-3))
        wishes = placement.gather(torch.tensor([ending, wanted, steps], device=placement.device)).amax(dim=0).tolist()
        self.calls, self.next, self.asked = 0, wishes[2], now
        return wishes[0], bool(wishes[1])

    def save(self) -> None:
        """Save the run, or begin to, unless that was done where it is; one at a time."""
        self.flags.saving, self.since = False, time.monotonic()
        if self.position() == self.saved:
            return
        self.wait_pending()
        began = time.monotonic()
        target = checkpoint_dir(self.folder.checkpoints, self.progress.step)
        captured = self.folder.capture(self.progress, copy=self.background)
        self.saved = self.position()
        saved = CheckpointSaved(target, self.progress.step, time.monotonic() - began)
        if self.background:
            thread = ThreadPoolExecutor(1, THREAD)
            self.writing = thread.submit(self.folder.write, captured, target), saved
            thread.shutdown(wait=False)  # it ends with what it writes, for which the interpreter waits
        else:
            self.folder.write(captured, target)
            self._count(evolve(saved, seconds=time.monotonic() - began))

    def wait_pending(self) -> None:
        """Wait until what is being written is there, and say so.

        Raises:
            UserError: it cannot be written.
        """
        if self.writing is None:
            return
        (written, saved), self.writing, began = self.writing, None, time.monotonic()
        written.result()
        self._count(evolve(saved, seconds=saved.seconds + time.monotonic() - began))

    def _count(self, saved: CheckpointSaved) -> None:
        self.saved_count, self.seconds = self.saved_count + 1, self.seconds + saved.seconds
        self.parts.notify(saved)

    def wait_pending_after_failure(self) -> None:
        """Wait for what is being written where the run has failed already: what is wrong with it is only logged."""
        try:
            self.wait_pending()
        except UserError as error:
            structlog.get_logger().warning(str(error))

    def position(self) -> tuple[int, int, bool]:
        """Return where the run is."""
        return self.progress.epoch, self.progress.step, self.progress.current.trained
