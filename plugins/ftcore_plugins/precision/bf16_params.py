"""Parameters in bfloat16, half the memory, with updates that are not lost to its eight bits."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from ftcore import Placement, Precision, UserError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Generator

    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from ftcore import RunConfig


@frozen
class PureBf16Config:
    """Options of `bf16_pure`.

    Attributes:
        update: updates are often too small for bfloat16, so ``"stochastic"`` rounds them up or down at
            random, correct on average and without more memory (Zamirai et al. 2021, arXiv:2010.06192); ``"master"``
            keeps a float32 copy of each trainable parameter.
    """

    update: Literal["stochastic", "master"] = "stochastic"


class PureBf16:
    """Network, activations and gradients in bfloat16; the optimizer's arithmetic and its state in float32.

    Running statistics are in bfloat16 too, so they stop within about 3 % of their limit.
    """

    Config = PureBf16Config

    def __init__(self, config: PureBf16Config) -> None:
        self.config = config

    @hookimpl(wrapper=True, specname="wrap_devices")
    def convert_parameters(self, model: nn.Module) -> Generator[None, Placement, Placement]:
        """Convert the network before it is wrapped."""
        import torch

        model.to(torch.bfloat16)
        return (yield)

    @hookimpl
    def precision_context(self, placement: Placement) -> Precision:
        """Answer always; refuse a GPU that would only emulate it."""
        import torch

        if placement.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(f"bf16_pure: {torch.cuda.get_device_name(placement.device)} has no bfloat16; use fp32")
        context = partial(torch.autocast, placement.device.type, dtype=torch.bfloat16)  # inputs are float32
        return Precision("pure bf16", context, torch.amp.GradScaler(enabled=False))

    @hookimpl(wrapper=True)
    def make_optimizer(self, config: RunConfig) -> Generator[None, Optimizer, Optimizer]:
        """Let any optimizer work on float32 copies, and round what comes out; refuse one whose step runs no hooks."""
        optimizer = yield
        if not getattr(type(optimizer).step, "hooked", False):  # as torch marks those that run them
            raise UserError(f"bf16_pure does not work with {type(optimizer).__name__}, whose step runs no hooks")
        for state in optimizer.state.values():  # of those that make it in advance, in the parameters' dtype
            state.update({key: value.float() for key, value in state.items() if _is_half(value)})
        halves: dict[Tensor, nn.Parameter] = {}
        optimizer.register_step_pre_hook(partial(_to_fp32, halves))
        optimizer.register_step_post_hook(partial(_to_bf16, halves, self.config.update, config.train.seed))
        return optimizer


def _is_half(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.dtype is torch.bfloat16


def _to_fp32(halves: dict[Tensor, nn.Parameter], optimizer: Optimizer, *_: Any) -> None:
    """Put a float32 copy in the place of each parameter that has a gradient, and note whose copy it is.

    The parameter itself keeps its dtype: with another, it would lose the hooks that add its gradient up over ranks.
    """
    for group in optimizer.param_groups:
        for place, half in enumerate(group["params"]):
            if half.grad is not None:
                state = optimizer.state.pop(half, {})
                wide = state.pop("master", None)
                wide = half.detach().float() if wide is None else wide
                wide.grad = half.grad.float()
                _give(optimizer, wide, state)
                group["params"][place], halves[wide] = wide, half


def _to_bf16(halves: dict[Tensor, nn.Parameter], update: str, seed: int, optimizer: Optimizer, *_: Any) -> None:
    """Put the parameters back with what the step made of them, and keep the float32 copies where they are wanted."""
    generator = _generator(halves, seed, optimizer)
    for group in optimizer.param_groups:
        for place, wide in enumerate(group["params"]):
            if wide in halves:
                half, wide.grad = halves.pop(wide), None
                half.detach().copy_(wide if update == "master" else stochastically_rounded(wide, generator))
                kept = {"master": wide} if update == "master" else {}
                _give(optimizer, half, {**optimizer.state.pop(wide, {}), **kept})
                group["params"][place] = half


def _generator(halves: dict[Tensor, nn.Parameter], seed: int, optimizer: Optimizer) -> torch.Generator:
    """Return what the rounding of a step draws from: a function of (seed, step), the same on all ranks."""
    import torch

    group = optimizer.param_groups[0]
    group["roundings"] = group.get("roundings", 0) + 1
    device = next((wide.device for wide in halves), torch.device("cpu"))
    return torch.Generator(device).manual_seed(Random(f"{seed} {group['roundings']}").getrandbits(63))


def _give(optimizer: Optimizer, parameter: Tensor, state: dict[str, Any]) -> None:
    """Let an optimizer have a state; an empty one is none, for some ask whether there is one."""
    if state:
        optimizer.state[parameter] = state


def stochastically_rounded(wide: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 to one of the two nearest bfloat16, each with the probability that makes the mean exact.

    bfloat16 is the upper half of float32's bits: random bits are added to the lower half, which is then cut off. What
    is not finite stays as it is.
    """
    import torch

    noise = torch.randint(1 << 16, wide.shape, generator=generator, device=wide.device, dtype=torch.int32)
    rounded = (wide.view(torch.int32) + noise).bitwise_and_(-(1 << 16)).view(torch.float32)
    return torch.where(torch.isfinite(wide), rounded, wide).to(torch.bfloat16)
