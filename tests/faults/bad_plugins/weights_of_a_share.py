from ftcore import Loss, Task, hookimpl


@hookimpl
def make_loss(task: Task) -> Loss:
    import torch

    return Loss(torch.nn.CrossEntropyLoss(weight=torch.linspace(1, 10, task.outputs)))
