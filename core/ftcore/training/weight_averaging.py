"""A second network that follows the first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ftcore.model import freezing

if TYPE_CHECKING:
    from torch import nn

    from .state import Progress, TrainingParts


def update_average(parts: TrainingParts, progress: Progress, per: str) -> None:
    """Let the average follow the network, if it does so after a step, or after an epoch."""
    average = parts.optimization.average
    if average and per == average.interval and progress.epoch >= average.start:
        average.update(parts.network, progress.averages)
        progress.averages += 1


def initial_share(parts: TrainingParts, progress: Progress) -> float:
    """Return how much of what is evaluated after this epoch is still the network of the average's first update."""
    average = parts.average_at(progress.epoch)
    return average.initial_share(progress.averages) if average and average.initial_share else 0.0


def model_for_evaluation(parts: TrainingParts, epoch: int) -> nn.Module:
    """Return the network to evaluate after an epoch (from 0): the average where there is one, or that which learns."""
    average = parts.average_at(epoch)
    if average is None:
        return parts.placement.model
    if average.recompute_bn:
        recompute_bn_statistics(average.network, parts, epoch)
    return parts.to_trained_module(average.network)


@torch.no_grad()
def recompute_bn_statistics(network: nn.Module, parts: TrainingParts, epoch: int) -> None:
    """Measure the running statistics of the batch norms that learn anew, as means over all training batches.

    As `torch.optim.swa_utils.update_bn`, but what is frozen keeps its statistics and dropout is off.
    """
    network.train()
    freezing.set_frozen_eval(network, parts.plan, epoch)
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
    for batch in parts.data.train.epoch(epoch) if norms else ():
        with parts.precision.autocast():
            parts.to_trained_module(network)(batch.images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        statistics: list[Any] = [norm.running_mean, norm.running_var]
        for statistic in statistics:
            statistic.copy_(parts.placement.reduce(statistic) / parts.placement.world_size)
