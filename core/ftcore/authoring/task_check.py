"""Does a plugin leave a task that it cannot know to others?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftcore.types.task import Task

from .plugin_under_test import CheckFailedError, NotApplicableError

if TYPE_CHECKING:
    from .plugin_under_test import PluginUnderTest


UNKNOWN: Any = type(
    "UnknownTask", (Task,), {**dict.fromkeys(Task.__abstractmethods__), "name": "unknown", "names": ("one", "other")}
)
"""A task of two numbers that no plugin has seen."""


def check_unknown_task(subject: PluginUnderTest) -> str:
    """A loss or a metric is for tasks that it knows, and leaves others alone."""
    asked = ("make_loss", "make_metrics")
    hooks = [impl.hook for impl in subject.activated.hooks if impl.hook in asked and not impl.wrapper]
    if not hooks:
        raise NotApplicableError("it makes neither a loss nor metrics")
    host = subject.prepared("unknown").host
    for hook in hooks:
        advice = "answer only where `isinstance(task, ...)` says that the task is one you know"
        try:
            host.call(hook, task=UNKNOWN())
        except Exception as error:
            raise CheckFailedError(f"{hook} of an unknown task: {type(error).__name__}: {error}; {advice}") from error
        if any(plugin.name == subject.name for plugin in host.record[hook].answered):
            raise CheckFailedError(f"{hook} answers for a task that it has never seen; {advice}, else return None")
    return f"{' and '.join(hooks)} leave an unknown task to others"
