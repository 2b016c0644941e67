"""What a step takes of memory, by what takes it, on one device and on several."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from attrs import frozen
from torch import Tensor

from ftcore.model import freezing
from ftcore.model.shape_inference import as_tuple
from ftcore.plugins.discovery import load_defaults
from ftcore.types.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ftcore.training.state import TrainingParts


PROBE_IMAGES = 2
"""Images of the pass in which activations are counted; batch norm wants more than one."""


@frozen
class MemoryEstimate:
    """Bytes on the device.

    Attributes:
        parameters: of the network.
        buffers: likewise.
        gradients: of all that ever learns.
        optimizer: its state, after a step.
        average: the second network, if there is one.
        activations: that a forward pass keeps for the backward one, for each image: those are estimated, for what the
            passes need for a while is not counted.
        batch: images that go through the network at a time, of all processes together.
    """

    parameters: int
    buffers: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    batch: int

    def total(self, devices: int, *, spread: bool = False) -> int:
        """Add it all up for one process of several.

        Args:
            devices: how many there are.
            spread: whether they share the network, too, and not the images alone.
        """
        return sum(self.per_device(devices, spread=spread).values())

    def per_device(self, devices: int, *, spread: bool = False) -> dict[str, int]:
        """Return the bytes of one process of several, by what takes them; see `total`."""
        parts = -devices if spread else -1  # // rounds up with it
        return {
            "parameters": -(self.parameters // parts),
            "buffers": self.buffers,
            "gradients": -(self.gradients // parts),
            "optimizer state": -(self.optimizer // parts),
            "average": -(self.average // parts),
            "activations (estimate)": self.activations * self.share(devices),
        }

    def share(self, devices: int) -> int:
        """Return how many images of a batch a process has at most."""
        return -(-self.batch // devices)


def measure(parts: TrainingParts) -> MemoryEstimate:
    """Count the memory of a run's parts; takes a step with gradients of zero, so the parts are of no use afterwards.

    Activations are those of the last epoch, in which nothing is frozen that is ever released.
    """
    network, last = parts.network, parts.train_config.epochs - 1
    learning = [p for group in parts.optimization.optimizer.param_groups for p in group["params"]]
    parameters, buffers = list(network.parameters()), list(network.buffers())
    own = [*parameters, *buffers]
    parts.placement.model.train()
    freezing.apply_requires_grad(network, parts.plan, last)
    freezing.set_frozen_eval(network, parts.plan, last)
    activations = _saved_activation_bytes(parts, own) // PROBE_IMAGES
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    parts.optimization.optimizer.step()
    return MemoryEstimate(
        parameters=_bytes(parameters),
        buffers=_bytes(buffers),
        gradients=_bytes(learning),
        optimizer=_bytes(tensor for state in parts.optimization.optimizer.state.values() for tensor in state.values()),
        average=_bytes(
            [*parts.optimization.average.network.parameters(), *parts.optimization.average.network.buffers()]
        )
        if parts.optimization.average
        else 0,
        activations=activations,
        batch=parts.train_config.batch_size,
    )


def _saved_activation_bytes(parts: TrainingParts, own: Iterable[Tensor]) -> int:
    """Return the bytes that a forward pass with the loss keeps, each piece of memory once and the network's own not."""
    images, _, _ = next(iter(parts.data.train.epoch(0)))
    images = (
        images[:PROBE_IMAGES] if len(images) >= PROBE_IMAGES else images.repeat(PROBE_IMAGES, *[1] * (images.ndim - 1))
    )
    with _track_saved_tensors() as kept, parts.precision.autocast():
        outputs = as_tuple(parts.placement.model(images))
        sum(output.float().square().mean() for output in outputs)
    for tensor in own:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values())


@contextmanager
def _track_saved_tensors() -> Iterator[dict[int, int]]:
    """Note what autograd keeps: where memory begins -> bytes."""
    found: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no memory is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def _bytes(tensors: Iterable[object]) -> int:
    """Add up the memory of tensors, each once."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)}
    return sum(found.values())


def table(found: MemoryEstimate, devices: int) -> Table:
    """Show it for one process; and for each of several, which share the images alone, or the network too."""
    columns = {f"one device, {found.share(1)} images": found.per_device(1)}
    if devices > 1:
        images = f"{found.share(devices)} images"
        for plugin, spread in load_defaults().DISTRIBUTED_PLUGINS.items():
            columns[f"{plugin}, each of {devices}, {images}"] = found.per_device(devices, spread=spread)
    rows = {name: [column[name] for column in columns.values()] for name in found.per_device(1)}
    rows["all"] = [sum(column.values()) for column in columns.values()]
    shown = tuple((name, *map(_megabytes, numbers)) for name, numbers in rows.items() if any(numbers))
    return Table("memory", ("", *columns), shown)


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"
