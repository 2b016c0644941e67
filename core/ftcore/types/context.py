"""What a hook may use of the run around it."""

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
    """What a hook may use of the run around it.

    Attributes:
        folder: the run folder; it exists once training starts, not before.
        log: a structlog logger bound to the plugin and the hook; its events land in ``log.jsonl``.
        ranks: the processes of the run.
        named: whether the user, or a recipe, named the plugin, in whatever form; False for one that answers by default.
        make_task: name of a task, as ``data.task`` has it -> its class, which a plugin gave.
        on_boundary: for what takes long within one step: has the run saved or ended there if a signal wants that, the
            latter by an exception. The weights must be those with which the step began.
    """

    folder: Path
    log: structlog.typing.FilteringBoundLogger
    ranks: ProcessInfo = field(factory=ProcessInfo)
    named: bool = True
    on_boundary: Callable[[], None] = lambda: None
    make_task: Callable[[str], type[Task]] = _no_task
