"""What a network gave for inputs that anybody can make again, saved with it: whoever loads it must get the same."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch.nn.modules.module import register_module_forward_hook

from ftcore.types.model import InputSpec, TokenSpec

from .freezing import named_tensors
from .shape_inference import as_tuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import Tensor, nn


TOLERANCE = 1e-3
"""Most that outputs may differ by, relative to their norm, where all was computed in float32."""


@frozen
class ReferenceOutputs:
    """Outputs of a network in eval mode, without autocast where that is possible.

    Attributes:
        values: (2, K), the first output for `reference_inputs`.
        eps: of the coarsest dtype that a module gave, as `torch.finfo` has it.
    """

    values: tuple[tuple[float, ...], ...]
    eps: float

    @property
    def tolerance(self) -> float:
        """Most that outputs may differ by, relative to their norm."""
        return max(TOLERANCE, 16 * self.eps)

    def difference(self, other: ReferenceOutputs) -> float:
        """Return by how much the outputs of another network differ, relative to the norm of these."""
        ours, theirs = torch.tensor(self.values).double(), torch.tensor(other.values).double()
        distance = float((ours - theirs).norm())
        return distance / max(float(ours.norm()), torch.finfo(torch.float32).tiny) if distance else 0.0


def reference_inputs(spec: InputSpec) -> Tensor:
    """Return two inputs, the same on every machine: waves (2, C, H, W) float32, or token ids (2, L) int64."""
    if isinstance(spec, TokenSpec):
        return (torch.arange(2 * spec.length) * 7919 % spec.vocabulary).reshape(2, spec.length)
    (height, width), rows = spec.size, torch.arange(1.0, 3.0, dtype=torch.float64).reshape(2, 1, 1, 1)
    channels, down, across = (
        torch.arange(count, dtype=torch.float64).reshape(shape)
        for count, shape in ((spec.channels, (1, -1, 1, 1)), (height, (1, 1, -1, 1)), (width, (1, 1, 1, -1)))
    )
    waves = (0.11 * rows * across + channels).sin() + (0.07 * rows * down + 0.23 * across).cos()
    return waves.float()


@torch.inference_mode()
def reference_outputs(
    module: nn.Module, spec: InputSpec, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> ReferenceOutputs | None:
    """Return what a network gives for `reference_inputs`, wrapped or not; None where it is not finite.

    Compiled networks run as they were before: a program for these inputs would take longer than it is worth.

    Args:
        module: the network.
        spec: of its inputs.
        autocast: of its run, without which a network whose parameters are in half precision takes no float32.
    """
    tensors = named_tensors(module).values()
    device = next(iter(tensors)).device
    halved = any(tensor.dtype in {torch.bfloat16, torch.float16} for tensor in tensors)
    dtypes: set[torch.dtype] = set()

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        dtypes.update(one.dtype for one in as_tuple(output) if isinstance(one, torch.Tensor))

    modes = {child: child.training for child in module.modules()}
    exact = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    handle = register_module_forward_hook(note)
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        with torch.compiler.set_stance("force_eager"), autocast() if halved else nullcontext():
            outputs = as_tuple(module.eval()(reference_inputs(spec).to(device)))[0].float()
    finally:
        handle.remove()
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = exact
        for child, mode in modes.items():
            child.training = mode
    if not outputs.isfinite().all():
        return None
    eps = max((torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point), default=0.0)
    return ReferenceOutputs(tuple(map(tuple, outputs.tolist())), eps)
