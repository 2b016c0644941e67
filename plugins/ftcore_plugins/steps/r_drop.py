"""What an optimizer step does beside the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve, field, frozen, validators

from ftcore import Step, UserError, hookimpl
from ftcore_plugins.tasks import Classification, Multilabel, built_in_name

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor, nn

    from ftcore import ForwardPass, Task


@frozen
class RDropConfig:
    """Options of `r_drop`.

    Attributes:
        alpha: factor on the divergence, > 0.
    """

    alpha: float = field(default=1.0, validator=validators.gt(0))


class RDrop:
    """R-Drop: penalises different outputs of two dropout masks (Liang et al. 2021, arXiv:2106.14448, eq. 2).

    The paper sums the cross-entropies of both passes, the authors' code averages them; here that of the first pass is
    used, which has the same expectation as the mean.
    """

    Config = RDropConfig

    def __init__(self, config: RDropConfig) -> None:
        self.config = config

    @hookimpl(wrapper=True)
    def make_step(self, model: nn.Module, task: Task) -> Generator[None, Step, Step]:
        """Add alpha/2 (KL(p1 || p2) + KL(p2 || p1)), over classes, or over each label and its absence."""
        step = yield
        kind = built_in_name(task)
        if kind not in {Classification.name, Multilabel.name}:
            raise UserError(f"r_drop compares probabilities, but a {task.name} task has none")
        if not any(_is_random(module) for module in model.modules()):
            raise UserError(
                "r_drop: the network has no dropout and no stochastic depth, so both passes would be equal; set "
                "timm.drop_path or mlp_head.dropout, or disable r_drop"
            )
        alpha = self.config.alpha

        def term(seen: ForwardPass) -> Tensor:
            return alpha * symmetric_kl(seen.outputs, seen.forward(seen.images), kind)

        return evolve(step, terms={**step.terms, "r_drop": term})


def _is_random(module: nn.Module) -> bool:
    """Whether a module drops something in train mode, as torch, torchvision and timm name the probability."""
    kind = type(module).__name__.lower()
    own = ("p", "prob") if "drop" in kind or "stochastic" in kind else ()  # elsewhere these mean other things
    names = (*own, "drop_prob", "drop_rate", "dropout", "attention_dropout")
    chances = [getattr(module, name, 0) for name in names]
    return any(isinstance(chance, int | float) and chance > 0 for chance in chances)


def symmetric_kl(first: Tensor, second: Tensor, kind: str) -> Tensor:
    """Return the symmetric Kullback-Leibler divergence of two outputs, (KL(p || q) + KL(q || p)) / 2.

    Args:
        first: (N, K) float32, logits.
        second: as `first`.
        kind: ``classification``, a softmax over K; or ``multilabel``, the mean over K pairs (p, 1 - p).

    Returns:
        A scalar, the mean over samples.
    """
    import torch
    from torch.nn.functional import logsigmoid

    if kind == "multilabel":
        logs = [torch.stack([logsigmoid(x), logsigmoid(-x)], dim=-1).flatten(0, 1) for x in (first, second)]
    else:
        logs = [x.log_softmax(dim=1) for x in (first, second)]
    log_p, log_q = logs
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1).mean() / 2
