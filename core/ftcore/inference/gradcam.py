"""Where in a picture a network saw what it says: heat maps by Grad-CAM, for networks of feature maps and of tokens."""

from __future__ import annotations

import math
import re
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import frozen
from PIL import Image
from torch import nn

from ftcore.checkpoints.atomic import wrap_write_errors
from ftcore.errors import UserError
from ftcore.types.model import TokenSpec

from .colormap import INFERNO

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from ftcore.data.pixels import Channels
    from ftcore.types.task import Prediction

    from .model import Member, Model


MIN_SIDE, OPACITY, MAX_PREFIX_TOKENS = 256, 0.55, 5
"""Pixels of the shorter side of a drawing, at least; how much the heat covers; tokens before those of the grid."""


@frozen(eq=False)
class HeatMap:
    """Where a network saw something.

    Attributes:
        map: (h, w) float32 in [0, 1], the largest is 1; all 0 where nothing speaks for it.
        module: whose output it is of, by name.
        view: (H, W, 3) uint8, what the network was shown.
    """

    map: Tensor
    module: str
    view: np.ndarray[Any, Any]

    def side_by_side(self) -> Image.Image:
        """Draw what the network was shown, and beside it the same under the heat."""
        picture, heat = self.input_image(), self.overlay()
        drawn = Image.new("RGB", (2 * picture.width, picture.height))
        drawn.paste(picture, (0, 0))
        drawn.paste(heat, (picture.width, 0))
        return drawn

    def input_image(self) -> Image.Image:
        """Draw what the network was shown."""
        height, width = self.view.shape[:2]
        scale = max(1, math.ceil(MIN_SIDE / min(height, width)))
        return Image.fromarray(self.view).resize((width * scale, height * scale), Image.Resampling.NEAREST)

    def overlay(self) -> Image.Image:
        """Draw the heat over what the network was shown."""
        picture = self.input_image()
        heat = Image.fromarray((self.map.numpy() * 255).astype(np.uint8))
        spread = np.asarray(heat.resize(picture.size, Image.Resampling.BICUBIC))
        return Image.blend(picture, Image.fromarray(INFERNO[spread]), OPACITY)


def explain_prediction(model: Model, picture: Any, name: str, *, channels: Channels = "rgb") -> HeatMap:
    """Ask why a class, a label or a number is what it is.

    Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2): with the feature maps A_k of a module and the
    output y, ReLU(sum_k a_k A_k), where a_k is the mean of dy/dA_k over all places. The module is the last one whose
    output has places that the output depends on: the last feature map; in a network of tokens whose head reads one
    token, what the last attention reads. y is the score before softmax or sigmoid.

    Args:
        model: with one network, which sees pictures.
        picture: in any form that `ftcore.inference.model.Model.predict` takes.
        name: one of the task's names.
        channels: order of the colours in an array; see there.

    Raises:
        UserError: the model is an ensemble, reads texts, or has no such module.
        DataError: the file cannot be read.
    """
    from .predict import prepare_input

    if len(model.members) != 1:
        raise UserError(f"--why needs one network, but an ensemble has {len(model.members)}; use one of its runs")
    (member,) = model.members
    if isinstance(member.network.spec, TokenSpec):
        raise UserError("--why needs images, but this network takes texts")
    _, (shown,) = prepare_input(model, picture, channels)
    images = member.transforms.on_device(shown[None]).requires_grad_()
    with torch.enable_grad(), _outputs_of(member.module, images.shape[-2:]) as outputs:
        score = member.outputs(images, model.task)[0, model.task.names.index(name)]
        wanted = [kept for _, kept, _ in outputs]
        gradients: Sequence[Tensor | None] = torch.autograd.grad(score, wanted, allow_unused=True) if wanted else ()
    for (module, kept, layout), gradient in zip(reversed(outputs), reversed(gradients), strict=True):
        if gradient is not None and bool(_as_maps(gradient, layout).any()):
            maps = _as_maps(kept.detach(), layout)
            return HeatMap(grad_cam(maps, _as_maps(gradient, layout)), module, _view(images, member))
    raise UserError("no module of this network has a spatial output, so Grad-CAM is not possible")


def grad_cam(maps: Tensor, gradients: Tensor) -> Tensor:
    """Feature maps (C, h, w) and gradients of the same shape -> (h, w) in [0, 1]; see `explain_prediction`."""
    heat = (gradients.mean(dim=(1, 2), keepdim=True) * maps).sum(dim=0).relu()
    return heat / heat.max() if float(heat.max()) > 0 else heat


@contextmanager
def _outputs_of(network: nn.Module, size: torch.Size) -> Iterator[list[tuple[str, Tensor, tuple[int, ...]]]]:
    """Note the outputs that have places, in the order in which they come: module, output, layout."""
    found: list[tuple[str, Tensor, tuple[int, ...]]] = []

    def note(module: nn.Module, _input: object, output: object) -> None:
        if not isinstance(output, torch.Tensor) or not output.requires_grad:
            return
        layout = _layout(output.shape, size)
        if layout and (output.ndim == 4 or _is_between_blocks(module)):
            found.append((names[module], output, layout))

    names = {module: name for name, module in network.named_modules() if name}
    handles = [module.register_forward_hook(note) for module in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _is_between_blocks(module: nn.Module) -> bool:
    """Whether the tokens that come out are those that blocks hand on, and not a step within one, as queries are."""
    return next(module.children(), None) is not None or "norm" in type(module).__name__.lower()


def _layout(shape: torch.Size, size: torch.Size) -> tuple[int, ...]:
    """Say where the places of an output are: (axis of channels, height, width), or nothing.

    Feature maps come as (1, C, h, w), in some networks as (1, h, w, C), and tokens as (1, T, C) with a few before those
    of the grid. The proportions are those of the picture; half its size at most, so attention's (T, T) is no map.
    """
    height, width = size

    def fits(h: int, w: int) -> bool:
        return h * w > 1 and h <= height // 2 and abs(h * width - w * height) < max(height, width)

    if len(shape) == 4:
        for channels, h, w in ((1, 2, 3), (3, 1, 2)):
            if fits(shape[h], shape[w]):
                return (channels, shape[h], shape[w])
    if len(shape) == 3:
        for prefix in range(MAX_PREFIX_TOKENS + 1):
            h = math.isqrt(max((shape[1] - prefix) * height // width, 0))
            w = (shape[1] - prefix) // h if h else 0
            if h * w == shape[1] - prefix and fits(h, w):
                return (2, h, w)
    return ()


def _as_maps(output: Tensor, layout: tuple[int, ...]) -> Tensor:
    """Output of one picture -> (C, h, w)."""
    channels, h, w = layout
    if output.ndim == 3:
        return output[0, -h * w :].T.reshape(-1, h, w)
    return output[0].movedim(channels - 1, 0)


def _view(images: Tensor, member: Member) -> np.ndarray[Any, Any]:
    """Undo the normalisation of one picture: (1, C, H, W) -> (H, W, 3) uint8."""
    spec: Any = member.network.spec
    mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (spec.mean, spec.std))
    seen = ((images[0].detach() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = (seen if len(seen) == 3 else seen[:1]).expand(3, -1, -1)
    return pixels.permute(1, 2, 0).numpy()


class HeatMapWriter:
    """Heat maps of predictions, a PNG file each, in a folder that must be new or empty."""

    def __init__(self, model: Model, folder: Path) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is not empty and will not be overwritten; choose a new folder with --why")
        self.model, self.folder, self.names = model, folder, Counter[str]()
        with wrap_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def draw(self, found: Prediction) -> None:
        """Draw why the most probable name, or the first number, is what it is: ``STEM-NAME.png``."""
        assert found.path
        best = next(iter(found.values))
        name = f"{found.path.stem}-" + re.sub(r"[^\w.-]", "_", best)
        self.names[name] += 1
        again = f"-{self.names[name]}" if self.names[name] > 1 else ""
        with wrap_write_errors(self.folder):
            explain_prediction(self.model, found.path, best).side_by_side().save(self.folder / f"{name}{again}.png")
