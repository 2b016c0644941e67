"""Penalties on the parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen, validators

from ftcore import Regularizer, UserError, hookimpl
from ftcore.model import is_submodule_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn


@frozen
class L1Config:
    """Options of `l1`.

    Attributes:
        strength: factor on the sum of absolute values, > 0.
        vectors: whether to include biases and the scales of norm layers.
    """

    strength: float = field(default=1e-5, validator=validators.gt(0))
    vectors: bool = True


class L1:
    """L1 penalty: the sum of the absolute values of all trainable parameters (Tibshirani 1996)."""

    Config = L1Config

    def __init__(self, config: L1Config) -> None:
        self.config = config

    @hookimpl
    def make_regularizers(self, trainable: Mapping[str, nn.Parameter]) -> list[Regularizer]:
        """Answer always; what is released later counts from then on."""
        strength, params = self.config.strength, [p for p in trainable.values() if self.config.vectors or p.ndim > 1]
        if not params:
            raise UserError("l1.vectors = false leaves nothing to penalise: only vectors are trainable in this run")

        def penalty() -> Tensor:
            return strength * _total(p.float().abs().sum() for p in params if p.requires_grad)

        return [Regularizer("l1", penalty)]


@frozen
class L2SPConfig:
    """Options of `l2_sp`.

    Attributes:
        alpha: strength of the penalty on changes of pre-trained parameters, >= 0.
        beta: strength of the L2 penalty on the new head, >= 0.
    """

    alpha: float = field(default=0.1, validator=validators.ge(0))
    beta: float = field(default=0.01, validator=validators.ge(0))

    def __attrs_post_init__(self) -> None:
        if not (self.alpha or self.beta):
            raise ValueError("alpha and beta are both 0, so nothing is penalised; one of them must be > 0")


class L2SP:
    """L2-SP: keeps weights near the pre-trained ones, alpha/2 |w - w0|^2 + beta/2 |w_head|^2 (Li et al. 2018, eq. 2).

    arXiv:1802.01483. It replaces weight decay, so set the optimizer's weight decay to 0.
    """

    Config = L2SPConfig

    def __init__(self, config: L2SPConfig) -> None:
        self.config = config

    @hookimpl
    def make_regularizers(self, trainable: Mapping[str, nn.Parameter], heads: tuple[str, ...]) -> list[Regularizer]:
        """Answer always; the starting values are those of this moment."""
        new = [p for name, p in trainable.items() if is_submodule_of(name, heads)]
        pairs = [(p, p.detach().float().clone()) for name, p in trainable.items() if not is_submodule_of(name, heads)]
        alpha, beta = self.config.alpha, self.config.beta

        def penalty() -> Tensor:
            moved = [(p.float() - start).square().sum() for p, start in pairs if p.requires_grad]
            grown = [p.float().square().sum() for p in new if p.requires_grad]
            return alpha / 2 * _total(moved) + beta / 2 * _total(grown)

        return [Regularizer("l2_sp", penalty)]


def _total(terms: Iterable[Tensor]) -> Tensor:
    """Add up scalars; there may be none."""
    import torch

    return sum(terms, start=torch.zeros(()))
