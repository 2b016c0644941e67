"""Learn from a teacher, a network that knows the classes already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen, validators

from ftcore import Step, TokenSpec, UserError, format_names, hookimpl
from ftcore.config import ModelConfig
from ftcore_plugins.tasks import Regression, built_in_name

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import torch
    from torch import Tensor, nn

    from ftcore import Backbone, ForwardPass, InputSpec, Placement, Precision, RunConfig, Task


@frozen
class DistillConfig:
    """Options of `distill`.

    Attributes:
        teacher: a run folder (also of an ensemble or soup), or a network, ``timm/resnet50.a1_in1k``, whose
            classes must be those of the data in the same order.
        strength: factor on the distillation term, > 0.
        temperature: softmax temperature of both outputs, > 0; by default 2. Not for regression.
        weights: weights of a teacher given by name, like `model.weights`; by default its pre-trained ones.
    """

    teacher: str | None = None
    strength: float = field(default=1.0, validator=validators.gt(0))
    temperature: float | None = field(default=None, validator=validators.optional(validators.gt(0)))
    weights: str | None = None


class Distill:
    """Knowledge distillation: adds T^2 KL(teacher || student) (Hinton et al. 2015, arXiv:1503.02531, section 2).

    The teacher gets the same images, including augmentation and mixing, at its own size and normalisation. Several
    labels: the mean over labels of the two-sided KL; regression: the mean squared difference.
    """

    Config = DistillConfig

    def __init__(self, config: DistillConfig) -> None:
        self.config = config

    @hookimpl(wrapper=True)
    def make_step(
        self, backbone: Backbone, task: Task, placement: Placement, precision: Precision, config: RunConfig
    ) -> Generator[None, Step, Step]:
        """Load the teacher, and add the term."""
        step = yield
        if self.config.teacher is None:
            raise UserError("distill needs a teacher: --set distill.teacher=runs/big, a run folder, or timm/NAME")
        if isinstance(backbone.input, TokenSpec):
            raise UserError(f"distill needs an image network, but {config.model.name} takes texts")
        ask = self._teacher(self.config.teacher, backbone.input, task, config, placement.device)
        _check(ask, backbone.input, placement.device)
        strength, temperature = self.config.strength, self.config.temperature or 2.0
        kind = built_in_name(task)
        if not kind:
            raise UserError(f"distill compares probabilities or numbers, and a task {task.name!r} has neither")
        if kind == Regression.name and self.config.temperature is not None:
            raise UserError("distill.temperature has no effect in regression, where outputs are compared directly")

        def term(seen: ForwardPass) -> Tensor:
            import torch

            with torch.no_grad(), precision.autocast():
                wanted = ask(seen.images).float()
            return strength * distillation_loss(seen.outputs, wanted, kind, temperature)

        return evolve(step, terms={**step.terms, "distill": term})

    def _teacher(
        self, name: str, spec: InputSpec, task: Task, config: RunConfig, device: torch.device
    ) -> Callable[[Tensor], Tensor]:
        """Return images as the student sees them -> outputs of the teacher, as the student's task means them."""
        provider = _provider(name)
        if provider is None:
            if self.config.weights is not None:
                raise UserError("distill.weights is for a network by name; a run folder has its own weights")
            return _from_folder(Path(name), spec, task, device)
        asked = evolve(config, model=ModelConfig(name=name))
        found = provider(provider.Config()).build_model(name, self.config.weights or "default", asked)
        return _by_name(name, found, spec, task, device)


def _provider(name: str) -> Any:
    from ftcore_plugins.models.timm import Timm
    from ftcore_plugins.models.torchvision import Torchvision

    return {"timm": Timm, "torchvision": Torchvision}.get(name.partition("/")[0])


def _by_name(
    name: str, teacher: Backbone, spec: InputSpec, task: Task, device: torch.device
) -> Callable[[Tensor], Tensor]:
    module = _ready(teacher.module, device)

    def ask(images: Tensor) -> Tensor:
        outputs: Tensor = module(renormalise_and_resize(images, spec, teacher.input))
        if outputs.shape[1] != task.outputs:
            raise UserError(
                f"distill.teacher = {name!r} has {outputs.shape[1]} classes, the data has {task.outputs} "
                f"({format_names(task.names)}); fine-tune it on this data first and use its run folder"
            )
        return outputs

    return ask


def _from_folder(folder: Path, spec: InputSpec, task: Task, device: torch.device) -> Callable[[Tensor], Tensor]:
    from ftcore import load

    teacher = load(folder)
    if (teacher.task.name, sorted(teacher.task.names)) != (task.name, sorted(task.names)):
        raise UserError(
            f"distill.teacher {folder} knows the {teacher.task.name} {format_names(teacher.task.names)}; this is the "
            f"{task.name} {format_names(task.names)}"
        )
    for member in teacher.members:
        _ready(member.module, device)
    together = evolve(teacher, task=task)  # its outputs in this task's order and standardisation

    def ask(images: Tensor) -> Tensor:
        return together.outputs(
            [renormalise_and_resize(images, spec, member.network.spec) for member in together.members]
        )

    return ask


def _check(ask: Callable[[Tensor], Tensor], spec: InputSpec, device: torch.device) -> None:
    """Ask a teacher about black images, so that one that does not fit is refused before the first step."""
    import torch

    with torch.no_grad():
        ask(torch.zeros(2, spec.channels, *spec.size, device=device))


def _ready(module: nn.Module, device: torch.device) -> nn.Module:
    return module.to(device).eval().requires_grad_(requires_grad=False)


def renormalise_and_resize(images: Tensor, student: InputSpec, teacher: InputSpec) -> Tensor:
    """Change images (N, C, H, W) float32 that are normalised and sized for one network into those for another."""
    from torch.nn.functional import interpolate

    if student.channels != teacher.channels:
        raise UserError(f"distill: the teacher takes {teacher.channels} channels, the student {student.channels}")
    mean, std, wanted_mean, wanted_std = (
        images.new_tensor(values)[:, None, None] for values in (student.mean, student.std, teacher.mean, teacher.std)
    )
    changed = images * (std / wanted_std) + (mean - wanted_mean) / wanted_std  # exactly as they were, if both agree
    if images.shape[2:] == tuple(teacher.size):
        return changed
    return interpolate(changed, size=teacher.size, mode="bilinear", antialias=True)


def distillation_loss(outputs: Tensor, wanted: Tensor, kind: str, temperature: float) -> Tensor:
    """Return how far outputs are from a teacher's.

    Args:
        outputs: (N, K) float32, of the student.
        wanted: (N, K) float32, of the teacher.
        kind: of the task.
        temperature: T > 0.

    Returns:
        A scalar: T^2 sum_k p_k (log p_k - log q_k) over classes, the mean over samples, p of the teacher and q of the
        student at temperature T; the mean over labels of the same for (p, 1 - p); or the mean squared difference.
    """
    import torch
    from torch.nn.functional import kl_div, logsigmoid, mse_loss

    if kind == "regression":
        return mse_loss(outputs, wanted)
    pair = (outputs / temperature, wanted / temperature)
    if kind == "multilabel":
        log_q, log_p = (torch.stack([logsigmoid(x), logsigmoid(-x)], dim=-1).flatten(0, 1) for x in pair)
    else:
        log_q, log_p = (x.log_softmax(dim=1) for x in pair)
    return kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2
