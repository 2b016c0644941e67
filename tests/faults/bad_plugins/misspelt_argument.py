from ftcore import Loss, Task, hookimpl
from ftcore_plugins.tasks import Classification


@hookimpl
def make_loss(tsk: Task) -> Loss | None:
    from torch.nn.functional import cross_entropy

    return Loss(cross_entropy) if isinstance(tsk, Classification) else None
