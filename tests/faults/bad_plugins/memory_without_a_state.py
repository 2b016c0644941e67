from itertools import count

from ftcore import Loss, hookimpl


@hookimpl
def make_loss() -> Loss:
    from torch.nn.functional import cross_entropy

    calls = count(1)
    return Loss(lambda outputs, targets: cross_entropy(outputs, targets) * min(1.0, next(calls) / 8))
