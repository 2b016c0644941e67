from ftcore import Loss, Task, hookimpl


@hookimpl
def make_loss(tsk: Task) -> Loss | None:
    from torch.nn.functional import cross_entropy

    return Loss(cross_entropy) if tsk.kind == "classification" else None
