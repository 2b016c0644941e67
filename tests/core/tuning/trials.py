"""Runs to try something on, plugins that note or spoil it, and all that a step can change."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ftcore import hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.tuning.trial import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from ftcore import BatchTransform, Placement
    from ftcore.runs.prepared import PreparedRun
    from ftcore.training.state import TrainingParts

SIZES, STOPS = f"{__name__}:Sizes", f"{__name__}:Stops"


def ready(*plugins: str, sets: tuple[str, ...] = (), data: str = "digits:5-6") -> PreparedRun:
    """290 images of two digits to train on."""
    return prepare(load_config(None, CliOverrides("digits/cnn", data, plugins=plugins, sets=sets)))


def flat(value: Any) -> Iterator[bytes]:
    """Spell nested plain values and tensors as bytes."""
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)} {value.requires_grad}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield repr(key).encode()
            yield from flat(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from flat(inner)
    elif isinstance(value, np.ndarray):
        yield value.tobytes()
    else:
        yield repr(value).encode()


def network_state(network: nn.Module) -> Any:
    modes = {name: module.training for name, module in network.named_modules()}
    grads = {name: p.grad for name, p in network.named_parameters()}
    tensors = [*network.named_parameters(), *network.named_buffers()]
    places = {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors}
    return [modes, grads, places, dict(network.named_parameters()), dict(network.named_buffers())]


def state_of(parts: TrainingParts) -> str:
    """SHA-256 of all that a step can change."""
    scheduler: Any = parts.optimization.schedule.scheduler
    warmup: Any = parts.optimization.schedule.warmup
    schedules = [
        {key: value for key, value in each.state_dict().items() if key != "lr_lambdas"}
        for each in (scheduler, warmup)
        if each
    ]
    state = [
        network_state(parts.placement.model),
        network_state(parts.optimization.average.network) if parts.optimization.average else None,
        parts.optimization.optimizer.state_dict(),
        schedules,
        parts.precision.scaler.state_dict(),
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state(),  # noqa: NPY002
        parts.data.train.sampler.epoch,
    ]
    digest = hashlib.sha256()
    for content in flat(state):
        digest.update(content)
    return digest.hexdigest()


class Stops:
    """Ends in an error in the middle of a step: after so many passes through the network."""

    after = 7
    error: ClassVar[Exception] = ValueError("as wished")

    @hookimpl(wrapper=True)
    def wrap_devices(self, model: nn.Module) -> Generator[None, Placement, Placement]:
        answer = yield
        calls: list[int] = []

        def stop(*_: Any) -> None:
            calls.append(1)
            if len(calls) > self.after:
                raise self.error

        model.get_submodule("head").register_forward_hook(stop)
        return answer


class Sizes:
    """Notes the sizes of all batches."""

    seen: ClassVar[list[int]] = []
    fit: Callable[[int, int], bool] = staticmethod(lambda size, times: True)

    @hookimpl
    def batch_transforms(self) -> list[BatchTransform]:
        self.seen.clear()

        def note(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            self.seen.append(len(images))
            if not self.fit(len(images), self.seen.count(len(images))):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return images, targets

        return [note]
