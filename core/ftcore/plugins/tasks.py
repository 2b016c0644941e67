"""The class of a task by its name, and whether a task can be read again with the model."""

from __future__ import annotations

import json
from typing import Any

from ftcore.errors import UserError, did_you_mean
from ftcore.types.task import Task


def find_task(host: Any, name: str) -> type[Task]:
    """Ask `make_task` for the class of a task; who answered stays on record when another task is asked for.

    Args:
        host: `ftcore.plugins.host.Host`, which imports this.
        name: of the task.

    Raises:
        UserError: no plugin knows it, or what one returned is none.
    """
    before = host.record.get("make_task")
    answer = host.call("make_task", name=name)
    record = host.record["make_task"]
    if answer is None:
        known = [plugin.name for plugin in record.passed]
        origin = f" ({host.config.origin('data.task')})" if host.config.data.task == name else ""
        raise UserError(
            f"no plugin supplies make_task for a task {name!r}{origin}{did_you_mean(name, known)}; "
            f"called: {', '.join(known) or 'nobody'}"
        )
    if not (isinstance(answer, type) and issubclass(answer, Task) and answer.name == name):
        expected = f"ftcore.Task, or one derived from it, whose name is {name!r}"
        raise _fault(host, f" returned {type(answer).__name__} {answer!r:.80}; expected {expected}")
    for plugin, earlier in zip(before.answered, before.answers, strict=True) if before else ():
        if plugin not in record.answered:
            record.answered.append(plugin)
            record.answers.append(earlier)
    return answer


def check_task(host: Any, task: Task) -> None:
    """Refuse a task that was not asked for, or that could not be read again with the model.

    Raises:
        UserError: ``data.task`` names another, or it is not what its class reads from its own state.
    """
    if not isinstance(task, Task):
        raise UserError(f"Data.task is {task!r:.80}, a {type(task).__name__}; expected an ftcore.Task")
    kind, asked = find_task(host, task.name), host.config.data.task
    if asked not in {None, task.name}:
        origin, data = host.config.origin("data.task"), " and ".join(map(str, host.contributors("build_data")))
        raise UserError(f"data.task = {asked!r} ({origin}), and {data} gives a task {task.name!r}")
    if host.config.measuring:
        return
    try:
        same = kind.read(json.loads(json.dumps(task.state(), allow_nan=False))) == task
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = f": {kind.__name__}.read does not take what state() gives: {type(error).__name__}: {error}"
        raise _fault(host, wrong) from error
    if not same:
        raise _fault(host, f": {kind.__name__}.read(state()) is not equal to the task, {task!r:.200}")


def _fault(host: Any, wrong: str) -> UserError:
    maker = host.record["make_task"].answered[0]
    where = " and ".join(maker.location(impl) for impl in maker.hooks if impl.hook == "make_task")
    return UserError(f"{where}{wrong}", faulty_plugins=[maker.name])
