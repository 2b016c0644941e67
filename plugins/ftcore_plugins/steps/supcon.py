"""Supervised contrastive learning beside the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen, validators

from ftcore import Step, UserError, hookimpl
from ftcore_plugins.tasks import Classification

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor, nn

    from ftcore import Backbone, ForwardPass, HeadSlot, Task


@frozen
class SupConConfig:
    """Options of `supcon`.

    Attributes:
        strength: factor on the contrastive term, > 0.
        temperature: > 0.
    """

    strength: float = field(default=0.5, validator=validators.gt(0))
    temperature: float = field(default=0.1, validator=validators.gt(0))


class SupCon:
    """Supervised contrastive loss on the features, added to the loss (Gunel et al. 2021).

    arXiv:2011.01403, on normalised features; the term is that of Khosla et al. 2020
    (arXiv:2004.11362, eq. 2). Pairs are formed within a micro-batch: it must contain several images of a class,
    and `train.accumulate` adds no pairs.
    """

    Config = SupConConfig

    def __init__(self, config: SupConConfig) -> None:
        self.config = config

    @hookimpl(wrapper=True)
    def make_step(self, model: nn.Module, backbone: Backbone, task: Task) -> Generator[None, Step, Step]:
        """Watch what the head sees, and add the term."""
        step = yield
        if not isinstance(task, Classification):
            raise UserError(f"supcon needs classes, but this is a {task.name} task")
        import torch

        slot, strength, temperature = backbone.heads[0], self.config.strength, self.config.temperature
        seen_by_head: list[Tensor] = []

        def watch(head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if head.training:
                seen_by_head[:] = [features(inputs[0], slot)]

        # A compiled network would run it while it is traced, and not again.
        unseen: Any = torch.compiler.disable(watch)  # type: ignore[no-untyped-call]
        model.get_submodule(slot.path).register_forward_pre_hook(unseen)

        def term(seen: ForwardPass) -> Tensor:
            return strength * supervised_contrastive(_take_features(seen_by_head, seen), seen.targets, temperature)

        return evolve(step, terms={**step.terms, "supcon": term}, soft_targets=False)


def _take_features(watched: list[Tensor], seen: ForwardPass) -> Tensor:
    """Return the features of a pass; they are incomplete where a wrapper splits the batch."""
    if not watched or len(watched[0]) != len(seen.images):
        raise UserError(
            f"supcon received the features of {len(watched[0]) if watched else 0} of {len(seen.images)} images; it "
            f"does not work "
            "with dp, which splits a batch within a process"
        )
    return watched.pop()


def features(inputs: Tensor, slot: HeadSlot) -> Tensor:
    """Return (N, C) float32 from what a head sees: (N, C), (N, ..., C), or (N, C, H, W) before a convolution."""
    if slot.convolutional:
        return inputs.float().flatten(2).mean(2)
    return inputs.float().flatten(1, -2).mean(1) if inputs.ndim > 2 else inputs.float()


def supervised_contrastive(vectors: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Mean over the samples i that share their class with another of -1/|P(i)| sum_p log softmax_a(z_i.z_a / t)[p].

    Args:
        vectors: (N, C) float32; normalised here.
        targets: (N,) int64.
        temperature: > 0.

    Returns:
        A scalar; 0 where no two samples share a class.
    """
    import torch
    from torch.nn.functional import normalize

    z = normalize(vectors, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (targets[:, None] == targets[None, :]) & ~itself
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    log_p = logits.log_softmax(dim=1).masked_fill(~positive, 0.0)
    counts = positive.sum(dim=1)
    each = -log_p.sum(dim=1) / counts.clamp(min=1)
    return each.sum() / (counts > 0).sum().clamp(min=1)
