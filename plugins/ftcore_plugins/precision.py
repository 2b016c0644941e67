"""The arithmetic: float32, or autocast to half precision."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from attrs import field, frozen, validators

from ftcore import Precision, UserError, hookimpl

if TYPE_CHECKING:
    import torch

    from ftcore import Placement


class Fp32:
    """Everything in float32."""

    @hookimpl
    def precision_context(self, placement: Placement) -> Precision:
        """Answer always."""
        import torch

        return _autocast("fp32", placement.device, torch.float32, torch.amp.GradScaler(enabled=False))


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
        init_scale: first factor on the loss, > 0.
        growth_interval: steps without overflow after which the factor doubles, > 0.
    """

    init_scale: float = field(default=65536.0, validator=validators.gt(0))
    growth_interval: int = field(default=2000, validator=validators.gt(0))


class Fp16:
    """Autocast to float16 with a gradient scaler, for small gradients would vanish in it."""

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
