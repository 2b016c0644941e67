"""What logged events look like to a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


_CONSOLE_LEVELS = frozenset({"warning", "error", "critical"})


def format_event(event: Mapping[str, Any]) -> str:
    """Spell an event out, with what was said beside it."""
    hidden = {"event", "level", "timestamp", "exception"}  # a traceback is for the log
    details: list[Any] = [f"{key}={value}" for key, value in event.items() if key not in hidden]
    return f"{event['event']} ({', '.join(details)})" if details else str(event["event"])
