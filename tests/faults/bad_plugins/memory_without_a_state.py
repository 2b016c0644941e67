from itertools import count

from ftcore import Loss, Task, hookimpl
from ftcore_plugins.tasks import Classification


@hookimpl
def make_loss(task: Task) -> Loss | None:
    if not isinstance(task, Classification):
        return None
    from torch.nn.functional import cross_entropy

    calls = count(1)
    return Loss(lambda outputs, targets: cross_entropy(outputs, targets) * min(1.0, next(calls) / 8))
