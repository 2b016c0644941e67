"""A trial on the parts of a run that leaves no trace in them."""

from __future__ import annotations

import random
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from ftcore.training.loop import backward
from ftcore.types.training import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftcore.training.state import TrainingParts


@frozen(eq=False)
class _SavedTensor:
    """A parameter or buffer as it was.

    Attributes:
        module: that holds it.
        name: there.
        tensor: the object itself.
        data: its memory, which a step may exchange for other.
        learns: its ``requires_grad``.
        copy: of its content, on the CPU.
    """

    module: nn.Module
    name: str
    tensor: Tensor
    data: Tensor
    learns: bool
    copy: Tensor

    def restore(self) -> None:
        """Put it back, without a gradient; as the same object in the same memory, for others refer to both."""
        if getattr(self.module, self.name) is not self.tensor:
            setattr(self.module, self.name, self.tensor)
        self.tensor.grad = None
        self.tensor.data = self.data
        self.data.copy_(self.copy)
        self.tensor.requires_grad_(self.learns)


def _save_tensors(module: nn.Module) -> list[_SavedTensor]:
    """Keep a module's own parameters and buffers."""
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [
        _SavedTensor(module, name, tensor, tensor.detach(), tensor.requires_grad, tensor.detach().to("cpu", copy=True))
        for name, tensor in tensors
    ]


@contextmanager
def rollback(parts: TrainingParts) -> Iterator[TrainingParts]:
    """Yield the parts for steps after which everything is as it was, bit for bit, also where an error ends them.

    Parameters, buffers, modes, optimizer, scaler, average, random generators and sampler are put back. The schedule
    plays no part in the steps, none is stopped because it is not finite, and none is cut because memory is short.
    """
    modules = _modules(parts)
    modes, kept = [(m, m.training) for m in modules], [tensor for module in modules for tensor in _save_tensors(module)]
    optimizer, scaler = _state(parts.optimization.optimizer), deepcopy(vars(parts.precision.scaler))
    epoch = parts.data.train.sampler.epoch
    with preserve_rng(parts.placement.device):
        try:
            yield _without_schedule(parts)
        finally:
            for tensor in kept:
                tensor.restore()
            for module, mode in modes:
                module.training = mode
            _restore(parts.optimization.optimizer, *optimizer)
            vars(parts.precision.scaler).clear()
            vars(parts.precision.scaler).update(scaler)
            parts.data.train.sampler.epoch = epoch
            parts.data.train.sampler.pending_batches.clear()


def _without_schedule(parts: TrainingParts) -> TrainingParts:
    """Return parts whose steps do not advance the schedule, which an epoch's end would, nor halve their batches."""
    settings = evolve(parts.train_config, on_nonfinite="skip", max_nonfinite=None, on_oom="stop")
    schedule = Schedule(parts.optimization.schedule.scheduler, interval="epoch")
    return evolve(
        parts,
        optimization=evolve(parts.optimization, schedule=schedule),
        objective=evolve(parts.objective, backward=backward),
        train_config=settings,
    )


def _modules(parts: TrainingParts) -> list[nn.Module]:
    """Return the modules of the network and its wrapper, of the average and of the loss, each once."""
    loss = parts.objective.loss.function
    roots = [parts.placement.model, parts.network, *([loss] if isinstance(loss, nn.Module) else [])]
    roots += [parts.optimization.average.network] if parts.optimization.average else []
    return list(dict.fromkeys(chain.from_iterable(root.modules() for root in roots)))


def _state(optimizer: torch.optim.Optimizer) -> tuple[dict[Any, Any], list[dict[str, Any]]]:
    """Copy an optimizer's state, by parameter, and the settings of its groups."""
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return {parameter: deepcopy(state) for parameter, state in optimizer.state.items()}, deepcopy(settings)


def _restore(optimizer: torch.optim.Optimizer, state: dict[Any, Any], settings: list[dict[str, Any]]) -> None:
    optimizer.state.clear()
    optimizer.state.update(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        params = group["params"]
        group.clear()
        group.update({"params": params, **own})


@contextmanager
def preserve_rng(device: torch.device) -> Iterator[None]:
    """Leave the global generators as they are; the steps draw from them, and so do transforms."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 - what other libraries draw from
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
