from ftcore import Loss, Task, hookimpl
from ftcore_plugins.tasks import Classification


@hookimpl
def make_loss(task: Task) -> Loss | None:
    if not isinstance(task, Classification):
        return None
    import torch

    return Loss(torch.nn.CrossEntropyLoss(weight=torch.linspace(1, 10, task.outputs)))
