"""Warnings of every process, logged by the first."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog
from attrs import define, field

from ftcore.system.logging import _CONSOLE_LEVELS, format_event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import EventDict, WrappedLogger

    from .ranks import ProcessInfo


@define
class RankWarningForwarder:
    """What the processes of a run warn of: the others hand it over to the first, which says it once.

    Attributes:
        ranks: the processes.
        said: sentences that were said.
        numbers: how many warnings of each process were handed over.
    """

    ranks: ProcessInfo
    said: set[str] = field(factory=set)
    numbers: Counter[int] = field(factory=Counter)

    def __call__(self, _logger: WrappedLogger, level: str, event: EventDict) -> EventDict:
        """Note what is said, or hand it over; a processor of structlog."""
        if self.ranks.is_main:
            self.said.add(format_event(event))
            return event
        if level in _CONSOLE_LEVELS:
            self.ranks.store.set(self._next(self.ranks.rank), json.dumps([level, dict(event)], default=str))
        raise structlog.DropEvent

    def listen(self, store: Any) -> None:
        """Say what the others have handed over to a store since the last time."""
        for rank in range(1, self.ranks.world_size if self.ranks.is_main else 0):
            while store.check([f"warning/{rank}/{self.numbers[rank]}"]):
                level, event = json.loads(store.get(self._next(rank)))
                if format_event(event) not in self.said:
                    self.said.add(format_event(event))
                    getattr(structlog.get_logger(), level)(event.pop("event"), **event, rank=rank)

    def _next(self, rank: int) -> str:
        self.numbers[rank] += 1
        return f"warning/{rank}/{self.numbers[rank] - 1}"


@contextmanager
def forward_warnings_to_rank_zero(ranks: ProcessInfo) -> Iterator[RankWarningForwarder]:
    """Let the first process say what the others warn of."""
    before, heard = structlog.get_config()["processors"], RankWarningForwarder(ranks)
    structlog.configure(processors=[heard, *before])
    try:
        yield heard
    finally:
        structlog.configure(processors=before)
