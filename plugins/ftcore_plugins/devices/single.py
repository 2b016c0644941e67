"""Where the network runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from ftcore import Placement, UserError, hookimpl

if TYPE_CHECKING:
    import torch
    from torch import nn


@frozen
class OneDeviceConfig:
    """Options of `one_device`.

    Attributes:
        device: ``cuda``, ``cuda:1``, ``mps`` or ``cpu``; by default the first available of cuda, mps and cpu.
    """

    device: str | None = None


class SingleDevice:
    """The network on one device: cuda, mps or cpu."""

    Config = OneDeviceConfig

    def __init__(self, config: OneDeviceConfig) -> None:
        self.config = config

    @hookimpl
    def wrap_devices(self, model: nn.Module) -> Placement:
        """Answer always."""
        device = resolve_device(self.config.device, "one_device.device")
        return Placement(device=device, model=model.to(device), unwrap=lambda wrapped: wrapped)


class DataParallel:
    """`torch.nn.DataParallel` over every CUDA device of this process."""

    @hookimpl
    def wrap_devices(self, model: nn.Module) -> Placement:
        """Answer always."""
        import torch
        from torch import nn

        device = resolve_device(None, "")
        wrapped = nn.DataParallel(model.to(device))
        count = torch.cuda.device_count()
        split = (
            f"each batch is split over {count} GPUs" if count > 1 else "fewer than two GPUs, so batches are not split"
        )
        note = f"DataParallel: {split}; slower than one process per GPU (ddp)"
        return Placement(device=device, model=wrapped, unwrap=lambda _: model, note=note)


def resolve_device(name: str | None, option: str) -> torch.device:
    """Return the device of that name, which an option gave; by default the first available of cuda, mps and cpu.

    Raises:
        UserError: there is none of that name.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        return torch.device(next(kind for kind, is_there in there.items() if is_there))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{option} = {name!r} is not a device; use cuda, cuda:1, mps or cpu") from None
    present = [kind for kind, is_there in there.items() if is_there]
    if device.type not in present or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"{option} = {name!r} does not exist on this machine; available: {', '.join(present)}")
    return device
