"""Sharpness-aware minimisation: the gradient at the worst point nearby."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen, validators

from ftcore import Step, hookimpl
from ftcore_plugins._norms import preserve_running_stats

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    import torch
    from torch import nn


@frozen
class SamConfig:
    """Options of `sam`.

    Attributes:
        rho: radius of the neighbourhood, > 0.
        adaptive: whether the neighbourhood is scaled by each parameter's size (Kwon et al. 2021,
            arXiv:2102.11600, eq. 3), which needs a larger `rho`, such as 0.5.
    """

    rho: float = field(default=0.05, validator=validators.gt(0))
    adaptive: bool = False


class Sam:
    """Sharpness-aware minimisation: the gradient at w + rho g / |g| (Foret et al. 2021, arXiv:2010.01412, eq. 2, 3).

    Two passes per step, so twice the time. Both use the same dropout, and running statistics are updated once. It works
    with every optimizer, precision and schedule because it only changes the gradient.
    """

    Config = SamConfig

    def __init__(self, config: SamConfig) -> None:
        self.config = config

    @hookimpl(wrapper=True)
    def make_step(self, model: nn.Module) -> Generator[None, Step, Step]:
        """Go round the gradient of the step that another plugin makes."""
        step = yield
        rho, adaptive = self.config.rho, self.config.adaptive

        def gradient(inner: Callable[[], Any]) -> Any:
            return step.run_backward(lambda: sam_gradient(inner, model, rho, adaptive=adaptive))

        return evolve(step, wrap_backward=gradient)


def sam_gradient(gradient: Callable[[], Any], model: nn.Module, rho: float, *, adaptive: bool) -> Any:
    """Leave the gradient at the ascended point in the parameters, which end where they were, bit for bit.

    Args:
        gradient: adds the gradient of a step to the parameters.
        model: whose parameters are meant.
        rho: > 0.
        adaptive: see `SamConfig`.

    Returns:
        What `gradient` returns at the parameters' own place.
    """
    import torch

    with _same_randomness(model):
        terms = gradient()
    params = [p for p in model.parameters() if p.grad is not None]
    own = [p.detach().clone() for p in params]
    try:
        with torch.no_grad():
            for p, step in zip(params, _ascent(params, rho, adaptive=adaptive), strict=True):
                p.add_(step)
                p.grad = None
        with preserve_running_stats(model):
            gradient()
    finally:  # also where memory does not suffice, for the step may be tried again
        with torch.no_grad():
            for p, before in zip(params, own, strict=True):
                p.copy_(before)
    return terms


def _ascent(params: list[nn.Parameter], rho: float, *, adaptive: bool) -> list[torch.Tensor]:
    """Return rho T^2 g / |T g| for each parameter, where T is its absolute value or 1."""
    import torch

    grads = [p.grad for p in params if p.grad is not None]
    scales = [p.abs() if adaptive else torch.ones_like(p) for p in params]
    norm = torch.nn.utils.get_total_norm([scale * grad for scale, grad in zip(scales, grads, strict=True)])
    return [rho * scale**2 * grad / (norm + 1e-12) for scale, grad in zip(scales, grads, strict=True)]


@contextmanager
def _same_randomness(model: nn.Module) -> Iterator[None]:
    """Let what comes behind draw the same random numbers as what is inside."""
    import torch

    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
