"""Observers are told what happens; what one of them raises costs no run, or ends it saved."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from attrs import define, field

from ftcore.errors import UserError
from ftcore.types.events import RunEnded, RunFailed, RunStopped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ftcore.types.events import Event, Observer


@define(eq=False)
class GuardedObservers:
    """All observers of a run as one, which raises nothing itself.

    Attributes:
        observers: told in this order.
        origin: observer -> who returned it, for people.
        stops: whether an error of one ends the run (``observers.on_error``).
        failures: place of an observer -> how often it failed.
        error: what is to end the run once it is saved, or None.
    """

    observers: Sequence[Observer]
    origin: Callable[[Observer], str]
    stops: bool = False
    failures: Counter[int] = field(factory=Counter)
    error: BaseException | None = None

    def __call__(self, event: Event) -> None:
        """Tell each observer; its first error is a warning with its traceback, the others are counted."""
        for place, observe in enumerate(self.observers):
            try:
                observe(event)
            except Exception as error:  # noqa: BLE001 - whatever it is, the run is worth more
                self._failed(place, event, error)
            except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt, SystemExit: raised once the run is saved
                self.error = self.error or error
        if isinstance(event, RunEnded | RunFailed | RunStopped):
            for place, times in self.failures.items():
                if times > 1:
                    self._log(
                        "warning", f"an observer failed {times} times in total; {self.origin(self.observers[place])}"
                    )

    def raise_error(self) -> None:
        """End a run that is saved, if an observer is to end it.

        Raises:
            UserError: what an observer raised; it names the plugin.
            BaseException: KeyboardInterrupt and SystemExit, as an observer raised them.
        """
        if self.error is not None:
            raise self.error

    def _failed(self, place: int, event: Event, error: Exception) -> None:
        self.failures[place] += 1
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        text = f"an observer failed at {type(event).__name__}: {what}; {self.origin(self.observers[place])}"
        stops = self.stops and not isinstance(event, RunFailed | RunStopped)  # why those are matters more
        if stops and self.error is None:
            self.error = UserError(f"{text}; observers.on_error = 'stop' stops the run after saving a checkpoint")
        if self.failures[place] == 1:
            self._log("info" if stops else "warning", text if stops else f"{text}; the run continues", exc_info=error)

    @staticmethod
    def _log(level: str, text: str, **more: object) -> None:
        with suppress(OSError):  # of the log: it may be what cannot be written
            getattr(structlog.get_logger(), level)(text, **more)
