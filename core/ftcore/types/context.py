"""The parts of the run that a hook may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from ftcore.distributed.ranks import ProcessInfo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import structlog

    from .task import Task


def _no_task(name: str) -> type[Task]:
    raise LookupError(name)


@frozen
class Context:
    """The parts of the run that a hook may use.

    Attributes:
        folder: the run folder; it exists once training starts, not before.
        log: a structlog logger bound to the plugin and the hook; its events are written to ``log.jsonl``.
        ranks: the processes of the run.
        named: whether the user or a recipe enabled the plugin; False for a default plugin.
        make_task: name of a task, as ``data.task`` has it -> its class, which a plugin gave.
        on_boundary: call it regularly during a long step: it saves the run, or stops it with an exception, if a
            signal was received. The weights must be those from the start of the step.
    """

    folder: Path
    log: structlog.typing.FilteringBoundLogger
    ranks: ProcessInfo = field(factory=ProcessInfo)
    named: bool = True
    on_boundary: Callable[[], None] = lambda: None
    make_task: Callable[[str], type[Task]] = _no_task
