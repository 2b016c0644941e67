"""structlog for a run: every event to ``log.jsonl``, warnings to standard error too. Configured by the CLI alone."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import structlog
from attrs import asdict, define, field

from .events import RunEnded, RunFailed, RunStarted, RunStopped

if TYPE_CHECKING:
    from pathlib import Path

    from structlog.typing import EventDict, WrappedLogger

    from .events import Event


@define
class RunLog:
    """Keeps events until the run folder exists, then appends them to its log.

    Attributes:
        path: of the log; None before the run starts and once it is over.
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
        if level in {"warning", "error", "critical"}:
            print(f"ftcore: {level}: {_sentence(event)}", file=sys.stderr)  # noqa: T201 - the one place for warnings
        if self.path is None:
            self.early.append(line)
            return line
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{text}\n" for text in [*self.early, line])
        self.early.clear()
        return line

    def observe(self, event: Event) -> None:
        """Log what a run tells its observers."""
        if isinstance(event, RunStarted):
            self.path = event.folder / "log.jsonl"
        structlog.get_logger().info(type(event).__name__, **asdict(event))
        if isinstance(event, RunEnded | RunFailed | RunStopped):
            self.path = None  # what comes now is of no run; the folder may be gone


def _sentence(event: EventDict) -> str:
    hidden = {"event", "level", "timestamp"}
    details: list[Any] = [f"{key}={value}" for key, value in event.items() if key not in hidden]
    return f"{event['event']} ({', '.join(details)})" if details else str(event["event"])
