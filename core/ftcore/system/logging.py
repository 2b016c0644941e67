"""What logged events look like to a person."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping


_CONSOLE_LEVELS = frozenset({"warning", "error", "critical"})


def format_event(event: Mapping[str, Any]) -> str:
    """Spell an event out, with what was said beside it."""
    hidden = {"event", "level", "timestamp", "exception"}  # a traceback is for the log
    details: list[Any] = [f"{key}={value}" for key, value in event.items() if key not in hidden]
    return f"{event['event']} ({', '.join(details)})" if details else str(event["event"])


def warn(event: str, **details: Any) -> None:
    """Warn in the log, or on standard error in a command that has none; standard output is for what was asked for."""
    if structlog.is_configured():
        structlog.get_logger().warning(event, **details)
    else:
        print(f"ftcore: warning: {format_event({'event': event, **details})}", file=sys.stderr)  # noqa: T201
