"""How the same arithmetic is carried out: memory format, compilation, activations kept or computed again.

Each goes round `wrap_devices` and changes the network before it is moved or wrapped, so all combine with each other,
with every precision and with every wrapper that they do not refuse.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from ftcore import Placement, UserError, hookimpl
from ftcore_plugins._norms import preserve_running_stats

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import AbstractContextManager

    from torch import nn

    from ftcore import Backbone


class ChannelsLast:
    """Channels-last memory format for convolutions: same arithmetic, often faster."""

    @hookimpl(wrapper=True)
    def wrap_devices(self, model: nn.Module) -> Generator[None, Placement, Placement]:
        """Change the layout of all weights (N, C, H, W)."""
        import torch

        if not any(parameter.ndim == 4 for parameter in model.parameters()):
            raise UserError("channels_last: the network has no convolutions, so the memory format does not matter")
        model.to(memory_format=torch.channels_last)
        return (yield)


@frozen
class CompileConfig:
    """Options of `compile`, as in `torch.compile`.

    Attributes:
        mode: as in `torch.compile`, for `inductor`.
        backend: e.g. ``inductor``, ``aot_eager``, ``eager``.
        dynamic: whether to compile for any batch size; by default the network is compiled for the first size, and
            recompiled for all sizes at the second.
        fullgraph: whether code that cannot be compiled is an error.
    """

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = None
    backend: str = "inductor"
    dynamic: bool | None = None
    fullgraph: bool = False

    def __attrs_post_init__(self) -> None:
        if self.mode is not None and self.backend != "inductor":
            raise ValueError(f'mode is for backend = "inductor", not {self.backend!r}')


class Compile:
    """Compiles the network with `torch.compile`; parameter names stay the same."""

    Config = CompileConfig

    def __init__(self, config: CompileConfig) -> None:
        self.config = config

    @hookimpl(wrapper=True)
    def wrap_devices(self, model: nn.Module) -> Generator[None, Placement, Placement]:
        """Compile at the first batch; refuse `nn.DataParallel`, which copies the network at each step."""
        import torch

        config = self.config
        backends = torch.compiler.list_backends(exclude_tags=())
        if config.backend not in backends:
            raise UserError(f"compile.backend = {config.backend!r} is not one of {', '.join(backends)}")
        # Programs are kept by class and not guarded on hooks: an earlier network would lend its own to this one.
        torch.compiler.reset()
        model.compile(mode=config.mode, backend=config.backend, dynamic=config.dynamic, fullgraph=config.fullgraph)
        placement = yield
        if isinstance(placement.model, torch.nn.DataParallel):
            raise UserError("compile does not work with dp, which copies the network at each step; disable one of them")
        if config.backend == "eager" and any(isinstance(module, _Checkpointed) for module in model.modules()):
            raise UserError("compile.backend = 'eager' does not work with checkpointing; use aot_eager or inductor")
        return placement


class Checkpointing:
    """Activation checkpointing: recomputes blocks in the backward pass; less memory, about a third more time.

    Gradient and dropout are the same, and running statistics are updated once (Chen et al. 2016, arXiv:1604.06174).
    """

    @hookimpl(wrapper=True)
    def wrap_devices(
        self, model: nn.Module, heads: tuple[str, ...], backbone: Backbone
    ) -> Generator[None, Placement, Placement]:
        """Wrap the forward of each block of the architecture."""
        from ftcore.model import block_modules

        names = block_modules(model, backbone.blocks, heads)
        if not names:
            raise UserError("checkpointing: no blocks were found in this network")
        for name in names:
            _checkpoint_block(model.get_submodule(name))
        return (yield)


class _Checkpointed:
    """Marks the classes that `_checkpoint_block` makes."""


def _checkpoint_block(block: Any) -> None:
    """Let a module's forward keep its input alone while it learns.

    By a class of its own: copies of the module, as averages and `nn.DataParallel` make them, then run themselves and
    not the original.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    plain: Any = type(block)

    def forward(self: Any, *inputs: Any, **named: Any) -> Any:
        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), preserve_running_stats(self)

        # a compiled program updates running statistics once, whatever it computes again
        options: Any = {} if torch.compiler.is_compiling() else {"context_fn": contexts}
        return checkpoint(partial(plain.forward, self), *inputs, use_reentrant=False, **options, **named)

    members = {"forward": forward, "__module__": plain.__module__}
    block.__class__ = type(plain.__name__, (_Checkpointed, plain), members)
