"""The arithmetic: float32, or autocast to half precision."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen, validators

from ftcore import Precision, UserError, hookimpl

if TYPE_CHECKING:
    import torch

    from ftcore import Placement


class Fp32:
    """Everything in float32, including convolutions on a GPU, where torch's default is `tf32`."""

    @hookimpl
    def precision_context(self, placement: Placement) -> Precision:
        """Answer always."""
        import torch

        _allow_tf32(placement.device, allowed=False)
        return _autocast("fp32", placement.device, torch.float32, torch.amp.GradScaler(enabled=False))


def _allow_tf32(device: torch.device, *, allowed: bool) -> None:
    """Say for this process whether CUDA may round the factors of products to TensorFloat-32."""
    import torch

    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed


class Tf32:
    """Everything in float32, but matrix products and convolutions with TensorFloat-32's 10 bits of mantissa.

    For CUDA devices of compute capability 8.0 and above; faster and less precise than `fp32`.
    """

    @hookimpl
    def precision_context(self, placement: Placement) -> Precision:
        """Allow it for this process; refuse a device that has none."""
        import torch

        device = placement.device
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
            raise UserError(
                f"tf32: {name} has no TensorFloat-32, which needs an NVIDIA GPU from 2020 on; use fp32 or bf16"
            )
        precision = evolve(Fp32().precision_context(placement), name="tf32")
        _allow_tf32(device, allowed=True)
        return precision


class Bf16:
    """Autocast to bfloat16, which has float32's range and needs no scaling."""

    @hookimpl
    def precision_context(self, placement: Placement) -> Precision:
        """Answer always; refuse a GPU that would only emulate it."""
        import torch

        if placement.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(f"bf16: {torch.cuda.get_device_name(placement.device)} has no bfloat16; use fp16 or fp32")
        return _autocast("bf16", placement.device, torch.bfloat16, torch.amp.GradScaler(enabled=False))


@frozen
class Fp16Config:
    """Options of `fp16`.

    Attributes:
        init_scale: initial loss scale, > 0.
        growth_interval: steps without overflow after which the scale doubles, > 0.
    """

    init_scale: float = field(default=65536.0, validator=validators.gt(0))
    growth_interval: int = field(default=2000, validator=validators.gt(0))


class Fp16:
    """Autocast to float16 with a gradient scaler, because small gradients underflow."""

    Config = Fp16Config

    def __init__(self, config: Fp16Config) -> None:
        self.config = config

    @hookimpl
    def precision_context(self, placement: Placement) -> Precision:
        """Answer always."""
        import torch

        scaler = torch.amp.GradScaler(
            placement.device.type,
            init_scale=self.config.init_scale,
            growth_interval=self.config.growth_interval,
        )
        return _autocast("fp16", placement.device, torch.float16, scaler)


def _autocast(name: str, device: torch.device, dtype: torch.dtype, scaler: torch.amp.GradScaler) -> Precision:
    import torch

    enabled = dtype is not torch.float32
    context = partial(torch.autocast, device.type, dtype=dtype if enabled else None, enabled=enabled)
    return Precision(name, context, scaler)
