"""Everything that changes while a run goes, taken from its parts and put back into others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attrs import asdict

from ftcore.checkpoints import checkpoint, manifest
from ftcore.checkpoints.sharded import LazyTensor, ShardedReader
from ftcore.distributed.dtensor import is_sharded, local_tensor
from ftcore.errors import UserError
from ftcore.model import freezing

from .monitoring import comparable
from .state import EpochProgress, Progress

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from attrs import Attribute
    from torch import nn

    from ftcore.checkpoints.checkpoint import CapturedState

    from .state import TrainingParts


RENAMED = {
    1: {
        "scales": "scale_history",
        "pieces": "micro_batch_splits",
        "stale": "epochs_since_best",
        "mark": "best_value",
    }
}
"""Format of a checkpoint -> name of an attribute of `Progress` there -> its name now."""

ADDED = ("overflows", "unmeasured_epochs")
"""Attributes of `Progress` that a checkpoint of an older version has not, and that are 0 then."""


def capture(parts: TrainingParts, progress: Progress, *, copy: bool = False, **more: Any) -> CapturedState:
    """Take the state of a run between two optimizer steps.

    Args:
        parts: of the run.
        progress: of the run.
        copy: see `ftcore.checkpoints.checkpoint.capture`.
        more: goes beside it.
    """
    return checkpoint.capture(networks_to_save(parts, progress), state_to_save(parts, progress) | more, copy=copy)


def state_to_save(parts: TrainingParts, progress: Progress) -> dict[str, Any]:
    """Return the state of a run between two optimizer steps, but for its networks.

    Random generators are not in it: the order of samples, augmentation and dropout are functions of the seed and of
    where the run is.
    """
    return {
        "progress": asdict(progress, filter=_is_saved),
        "learning": trainable_names(parts, progress.epoch),
        "optimizer": optimizer_state(parts.network, parts.optimization.optimizer),
        "schedule": _scheduler_state(parts.optimization.schedule.scheduler),
        "warmup": _scheduler_state(parts.optimization.schedule.warmup) if parts.optimization.schedule.warmup else None,
        "scaler": parts.precision.scaler.state_dict(),
        "plugins": {name: owner.state_dict() for name, owner in parts.stateful.items()},
    }


def networks_to_save(parts: TrainingParts, progress: Progress) -> dict[str, nn.Module]:
    """Return the network that learns, and the average once it has begun."""
    averages = (
        {"average": parts.optimization.average.network} if parts.optimization.average and progress.averages else {}
    )
    return {"model": parts.network, **averages}


def trainable_names(parts: TrainingParts, epoch: int) -> dict[str, list[str]]:
    """Return the names of the parameters that learn in an epoch (from 0), and of the modules held in eval mode."""
    released = freezing.unfrozen_names(parts.plan, epoch)
    names = [name for name, _ in parts.network.named_parameters() if freezing.is_trainable(parts.plan, name, released)]
    held = [name for name, _ in parts.network.named_modules() if freezing.stays_in_eval(parts.plan, name, released)]
    return {"learns": names, "held": held}


def restore_state(parts: TrainingParts, folder: Path) -> Progress:
    """Bring the parts of a run to the state of a checkpoint, and return where it is.

    Raises:
        UserError: the checkpoint is of other parts; the message names the first difference.
    """
    distributed = parts.placement.sharding is not None
    state = checkpoint.load_state(folder, later=distributed)
    try:
        names = RENAMED.get(manifest.read_format(folder), {})
        progress = _progress({names.get(name, name): value for name, value in state["progress"].items()})
        monitor, up = parts.evaluation.monitor, parts.higher_is_better
        if comparable(progress.best.get(monitor), higher_is_better=up) == -math.inf:  # as older versions took it
            progress.best = {}
        _check_learning(state["learning"], trainable_names(parts, progress.epoch), folder)
        freezing.apply_requires_grad(parts.network, parts.plan, progress.epoch)
        for name, network in networks_to_save(parts, progress).items():
            restore_network(parts, network, folder, name)
        load_optimizer(parts.network, parts.optimization.optimizer, state["optimizer"], folder)
        _load_scheduler(parts.optimization.schedule.scheduler, state["schedule"])
        if parts.optimization.schedule.warmup:
            _load_scheduler(parts.optimization.schedule.warmup, state["warmup"])
        if parts.precision.scaler.is_enabled():
            parts.precision.scaler.load_state_dict(state["scaler"])
        _load_plugins(parts.stateful, state["plugins"], folder)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{folder} does not fit this run: {type(error).__name__}: {error}") from None
    return progress


def _progress(state: Mapping[str, Any]) -> Progress:
    state = {**dict.fromkeys(ADDED, 0), **state, "current": {"skipped": 0, **state["current"]}}
    for fresh, saved in ((Progress(), state), (EpochProgress(), state["current"])):
        for name, value in asdict(fresh, recurse=False, filter=_is_saved).items():
            if isinstance(value, int | float | dict) and not isinstance(saved[name], type(value)):
                raise TypeError(f"progress.{name} is {saved[name]!r:.40}")
    return Progress(**{**state, "current": EpochProgress(**state["current"])})


def _is_saved(attribute: Attribute[Any], _value: object) -> bool:
    return attribute.init


def _check_learning(then: Mapping[str, list[str]], now: Mapping[str, list[str]], folder: Path) -> None:
    for key, what in (("learns", "trainable parameters"), ("held", "modules kept in eval mode")):
        other = sorted(set(then[key]) ^ set(now[key]))
        if other:
            raise UserError(f"{folder} has other {what} than this run: {', '.join(other[:5])}")


def restore_network(parts: TrainingParts, network: nn.Module, folder: Path, name: str) -> None:
    """Give a network of a run, spread over processes or not, the weights of that name in a folder.

    Raises:
        UserError: they cannot be read, or are of another network.
    """
    if parts.placement.sharding is not None or checkpoint.is_sharded(folder):
        ShardedReader(folder, name).fill(network.state_dict())
    else:
        _load_network(network, folder / f"{name}.safetensors")


def _load_network(network: nn.Module, file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ftcore.model.weights import load_state_dict

    try:
        load_state_dict(network, load_file(file))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{file} does not fit the network of this run: {error}") from None


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state by parameter *name*, and the settings of its groups."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    groups = [{**group, "params": [names[parameter] for parameter in group["params"]]} for group in _groups(optimizer)]
    return {"state": {names[parameter]: state for parameter, state in optimizer.state.items()}, "groups": groups}


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], folder: Path) -> None:
    """Give an optimizer the state and the settings that another one had.

    Not by its own `load_state_dict`, which goes by numbers and gives every tensor the dtype of its parameter.

    Raises:
        UserError: the groups hold other parameters.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer.state.clear()
    for place, (group, old) in enumerate(zip(_groups(optimizer), saved["groups"], strict=True)):
        if [names[parameter] for parameter in group["params"]] != old["params"]:
            raise UserError(f"group {place} of the optimizer in {folder} has other parameters than in this run")
        group.update({key: value for key, value in old.items() if key != "params"})
        for parameter in group["params"]:
            if names[parameter] in saved["state"]:
                state = saved["state"][names[parameter]]
                optimizer.state[parameter] = {
                    key: _move_state_tensor(v, key, parameter, group) for key, v in state.items()
                }


def _groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = optimizer.param_groups
    return groups


def _move_state_tensor(value: Any, key: str, parameter: nn.Parameter, group: Mapping[str, Any]) -> Any:
    """Move a tensor of the state to its parameter; a count of steps is there only for kernels that want it so."""
    import torch

    if isinstance(value, LazyTensor):
        value = value.materialise_like(parameter)
        if is_sharded(value):
            return value
    moves = key != "step" or group.get("fused") or group.get("capturable")
    return value.to(parameter.device) if isinstance(value, torch.Tensor) and moves else value


def _scheduler_state(scheduler: Any) -> dict[str, Any]:
    """Return the state of a scheduler without the functions that its options stand for."""
    return {key: value for key, value in scheduler.state_dict().items() if not key.startswith("lr_lambda")}


def _load_scheduler(scheduler: Any, saved: Mapping[str, Any]) -> None:
    fresh = scheduler.state_dict()
    if strange := sorted(saved.keys() - fresh.keys()):
        raise ValueError(f"{type(scheduler).__name__} has no {', '.join(strange)}")
    scheduler.load_state_dict({**fresh, **saved})


def _load_plugins(owners: Mapping[str, Any], saved: Mapping[str, Any], folder: Path) -> None:
    other = sorted(owners.keys() ^ saved.keys())
    if other:
        raise UserError(f"{folder} has states of other plugins than this run: {', '.join(other)}")
    for name, owner in owners.items():
        owner.load_state_dict(saved[name])


def nonfinite_parameters(parts: TrainingParts) -> list[str]:
    """Return the names of the parameters that hold a number that is not finite."""
    import torch

    parameters = dict(parts.network.named_parameters())
    wrong = torch.stack([~torch.isfinite(local_tensor(tensor)).all() for tensor in parameters.values()]).float()
    if parts.placement.sharding:
        wrong = parts.placement.reduce(wrong)
    return [name for name, number in zip(parameters, wrong.tolist(), strict=True) if number]
