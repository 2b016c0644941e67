"""A network with its new head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from attrs import evolve, frozen

from ftcore.errors import UserError
from ftcore.system.cpu import retain_freed_memory, set_threads
from ftcore.system.seeding import derive_seed, seed_everything
from ftcore.types.model import Backbone, TokenSpec

from .heads import (
    check_backbone,
    check_outputs,
    choose_head,
    derive_backbone,
    drop_rectifiers,
    find_rectifiers,
    head_candidates_message,
    replace_heads,
)
from .stages import derive_stages

if TYPE_CHECKING:
    from torch import nn

    from ftcore.config.schema import ModelConfig, RunConfig
    from ftcore.plugins.calls import HookCalls
    from ftcore.types.data import Transforms
    from ftcore.types.model import InputSpec
    from ftcore.types.task import Task


@frozen(eq=False)
class Network:
    """A network with its new head and the transforms that feed it.

    Attributes:
        backbone: the answer of `build_model`, its module with the new heads in place.
        transforms: PIL image -> tensor.
    """

    backbone: Backbone
    transforms: Transforms

    @property
    def module(self) -> nn.Module:
        """Images (N, C, H, W) float32, normalised -> outputs (N, task.outputs)."""
        return self.backbone.module

    @property
    def heads(self) -> tuple[str, ...]:
        """Paths of the new heads."""
        return tuple(slot.path for slot in self.backbone.heads)

    @property
    def spec(self) -> InputSpec:
        """What the images must look like."""
        return self.backbone.input


def build_network(config: RunConfig, calls: HookCalls, task: Task, spec: InputSpec | None = None) -> Network:
    """Build the pre-trained network, and put the new head in its place.

    Args:
        config: what was asked for.
        calls: the hooks.
        task: what is learnt.
        spec: what the images look like, where that is settled; by default the weights' own, changed by ``[model]``.
    """
    seed_everything(derive_seed("model", config.train.seed))
    set_threads(config.train.threads)
    retain_freed_memory()
    answer = calls.build_model(config.model.name, config.model.weights)
    backbone = answer if isinstance(answer, Backbone) else derive_backbone(answer, config.model.head)
    backbone = choose_head(backbone, config.model.head)
    backbone = evolve(backbone, input=spec or _input(backbone.input, config.model))
    check_backbone(backbone)
    if not (backbone.stages and backbone.blocks):
        stages, layers = derive_stages(backbone.module, [slot.path for slot in backbone.heads])
        backbone = evolve(backbone, stages=backbone.stages or stages, blocks=backbone.blocks or layers)
    transforms = calls.make_transforms(backbone.input, task)
    seed_everything(derive_seed("head", config.train.seed))
    shown = head_candidates_message(backbone.module)
    rectified = find_rectifiers(backbone)
    backbone = drop_rectifiers(rectified, task)
    if backbone.heads != rectified.heads and spec is None:  # said by a run, and not whenever its model is loaded
        structlog.get_logger().warning(
            f"the ReLU after the head is removed: {task.name} needs negative outputs",
            module=rectified.heads[0].rectifier,
        )
    module = replace_heads(backbone, lambda slot: calls.build_head(slot, backbone, task))
    check_outputs(evolve(backbone, module=module), task.outputs, shown)
    return Network(evolve(backbone, module=module), transforms)


def _input(spec: InputSpec, model: ModelConfig) -> InputSpec:
    """Let the ``[model]`` section beat what came with the weights."""
    if isinstance(spec, TokenSpec):
        given = [key for key in ("image_size", "crop", "channels", "mean", "std") if getattr(model, key) is not None]
        if given:
            raise UserError(f"model.{given[0]} is for images, but {model.name} takes texts")
        return spec
    channels = model.channels or spec.channels
    values = {"mean": model.mean, "std": model.std}
    changes: dict[str, Any] = {
        name: (value,) * channels if isinstance(value, float) else value
        for name, value in values.items()
        if value is not None
    }
    if model.crop:
        changes["crop_mode"] = model.crop
    if model.crop in {"squash", "pad"}:  # who asks for the whole picture is to get it
        changes["crop_fraction"] = 1.0
    changed = evolve(spec, size=model.size or spec.size, channels=channels, **changes)
    for name in ("mean", "std"):
        if len(getattr(changed, name)) != channels:
            raise UserError(
                f"model.{name} has {len(getattr(changed, name))} values for {channels} channels: "
                f"{getattr(changed, name)}; set one number, or one per channel"
            )
    if min(changed.std) <= 0:
        raise UserError(f"model.std must be > 0, got {changed.std}")
    return changed
