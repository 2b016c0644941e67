"""structlog for a run: every event to ``log.jsonl``, warnings to standard error too. Configured by the CLI alone."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from attrs import asdict, define, field

from ftcore.checkpoints.strict_json import to_json
from ftcore.system.files import open_text
from ftcore.system.logging import _CONSOLE_LEVELS, format_event, warn
from ftcore.system.text import printable
from ftcore.types.events import BatchEvaluated, RunStarted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from structlog.typing import EventDict, WrappedLogger

    from ftcore.types.events import Event

T = TypeVar("T")


@define
class RunLog:
    """Keeps events until the run folder exists, then appends them to its log.

    Attributes:
        path: of the log; None before the run starts.
        buffered: lines that came before.
    """

    path: Path | None = None
    buffered: list[str] = field(factory=list)

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
        line = to_json(dict(event), default=str)
        if level in _CONSOLE_LEVELS:
            print(f"ftcore: {level}: {printable(format_event(event), lines=True)}", file=sys.stderr)  # noqa: T201 - the one place for warnings
        if self.path is None or not self.path.parent.is_dir():  # once a run is over, its folder may be gone
            self.buffered.append(line)
            return line
        with open_text(self.path, "a") as file:
            file.writelines(f"{text}\n" for text in [*self.buffered, line])
        self.buffered.clear()
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


def read_warnings(path: Path) -> list[tuple[str, str]]:
    """Read when what was warned of, oldest first, from the log of a run; none where there is no log."""
    levels = tuple(f'"level": "{level}"' for level in _CONSOLE_LEVELS)
    return [warning for warning in read_lines(path, _as_warning, levels) if warning]


def _as_warning(event: dict[str, Any]) -> tuple[str, str] | None:
    return (str(event["timestamp"]), format_event(event)) if event.get("level") in _CONSOLE_LEVELS else None


_damaged: set[Path] = set()
"""Files of which that has been said."""


def read_lines(path: Path, convert: Callable[[dict[str, Any]], T], having: tuple[str, ...] = ("",)) -> list[T]:
    """Read a file of JSON objects, one a line; lines that are damaged are left out, with a warning.

    Args:
        path: of the file; where there is none, there are no lines.
        convert: an object as it was written -> what it means; an error of it says that the line is damaged.
        having: texts; lines without any of them are passed over, damaged or not.
    """
    found, damaged = [], 0
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not any(text in line for text in having):
                continue
            try:
                found.append(convert(json.loads(line)))
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                damaged += 1
    if damaged and path not in _damaged:
        _damaged.add(path)
        warn("damaged lines are ignored", file=str(path), lines=damaged)
    return found
