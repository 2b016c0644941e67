import random

from ftcore import Loss, hookimpl

random.seed(0)


@hookimpl
def make_loss() -> Loss:
    from torch.nn.functional import cross_entropy

    return Loss(cross_entropy)
