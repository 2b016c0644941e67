from typing import Any

from ftcore import Loss, Task, hookimpl
from ftcore_plugins.tasks import Classification


@hookimpl
def make_loss(task: Task) -> Loss | None:
    if not isinstance(task, Classification):
        return None
    import torch
    from torch.nn.functional import cross_entropy

    dice = torch.Generator()
    dice.seed()

    def loss(outputs: Any, targets: Any) -> Any:
        return cross_entropy(outputs * (1 + 0.1 * torch.rand((), generator=dice)), targets)

    return Loss(loss)
