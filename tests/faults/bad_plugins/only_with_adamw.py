from torch.optim import Optimizer

from ftcore import Schedule, hookimpl


@hookimpl
def make_schedule(optimizer: Optimizer) -> Schedule:
    from torch.optim.lr_scheduler import LambdaLR

    first = optimizer.param_groups[0]["betas"][0]
    return Schedule(LambdaLR(optimizer, lambda step: first**step), interval="step")
