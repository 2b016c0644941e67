"""structlog for a run: every event to ``log.jsonl``, warnings to standard error too. Configured by the CLI alone."""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog
from attrs import asdict, define, field

from .events import BatchEvaluated, RunStarted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from structlog.typing import EventDict, WrappedLogger

    from .events import Event
    from .ranks import Ranks


_LOUD = frozenset({"warning", "error", "critical"})


@define
class RunLog:
    """Keeps events until the run folder exists, then appends them to its log.

    Attributes:
        path: of the log; None before the run starts.
        early: lines that came before.
    """

    path: Path | None = None
    early: list[str] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                self.write,
            ],
            logger_factory=structlog.ReturnLoggerFactory(),
            cache_logger_on_first_use=False,
        )

    def write(self, _logger: WrappedLogger, level: str, event: EventDict) -> str:
        """Write one event; the last processor of the chain."""
        line = json.dumps(dict(event), default=str)
        if level in _LOUD:
            print(f"ftcore: {level}: {sentence(event)}", file=sys.stderr)  # noqa: T201 - the one place for warnings
        if self.path is None or not self.path.parent.is_dir():  # once a run is over, its folder may be gone
            self.early.append(line)
            return line
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{text}\n" for text in [*self.early, line])
        self.early.clear()
        return line

    def observe(self, event: Event) -> None:
        """Log what a run tells its observers, but for batches, and for objects that an event leaves out of its repr."""
        if isinstance(event, BatchEvaluated):
            return
        if isinstance(event, RunStarted):
            self.path = event.folder / "log.jsonl"
        structlog.get_logger().info(
            type(event).__name__, **asdict(event, filter=lambda attribute, _: attribute.repr is True)
        )


@define
class Heard:
    """What the processes of a run warn of: the others hand it over to the first, which says it once.

    Attributes:
        ranks: the processes.
        said: sentences that were said.
        numbers: how many warnings of each process were handed over.
    """

    ranks: Ranks
    said: set[str] = field(factory=set)
    numbers: Counter[int] = field(factory=Counter)

    def __call__(self, _logger: WrappedLogger, level: str, event: EventDict) -> EventDict:
        """Note what is said, or hand it over; a processor of structlog."""
        if self.ranks.leads:
            self.said.add(sentence(event))
            return event
        if level in _LOUD:
            self.ranks.store.set(self._next(self.ranks.rank), json.dumps([level, dict(event)], default=str))
        raise structlog.DropEvent

    def listen(self, store: Any) -> None:
        """Say what the others have handed over to a store since the last time."""
        for rank in range(1, self.ranks.world_size if self.ranks.leads else 0):
            while store.check([f"warning/{rank}/{self.numbers[rank]}"]):
                level, event = json.loads(store.get(self._next(rank)))
                if sentence(event) not in self.said:
                    self.said.add(sentence(event))
                    getattr(structlog.get_logger(), level)(event.pop("event"), **event, rank=rank)

    def _next(self, rank: int) -> str:
        self.numbers[rank] += 1
        return f"warning/{rank}/{self.numbers[rank] - 1}"


@contextmanager
def shared(ranks: Ranks) -> Iterator[Heard]:
    """Let the first process say what the others warn of."""
    before, heard = structlog.get_config()["processors"], Heard(ranks)
    structlog.configure(processors=[heard, *before])
    try:
        yield heard
    finally:
        structlog.configure(processors=before)


def warnings_of(path: Path) -> list[tuple[str, str]]:
    """Read when what was warned of, oldest first, from the log of a run; none where there is no log."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines if any(f'"level": "{level}"' in line for level in _LOUD)]
    return [(event["timestamp"], sentence(event)) for event in found if event.get("level") in _LOUD]


def sentence(event: Mapping[str, Any]) -> str:
    """Spell an event out, with what was said beside it."""
    hidden = {"event", "level", "timestamp"}
    details: list[Any] = [f"{key}={value}" for key, value in event.items() if key not in hidden]
    return f"{event['event']} ({', '.join(details)})" if details else str(event["event"])
