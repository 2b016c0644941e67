"""Train on mixtures of pictures: mixup and cutmix, from torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen, validators

from ftcore import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from ftcore import BatchTransform


@frozen
class MixConfig:
    """Options of `mixup` and `cutmix`.

    Attributes:
        alpha: parameter parameter of the Beta(alpha, alpha) distribution of the mixing ratio, > 0; small values mix
            little.
        probability: probability to mix a batch, in [0, 1]; with both plugins, each decides independently.
    """

    alpha: float = field(default=0.2, validator=validators.gt(0))
    probability: float = field(default=1.0, validator=[validators.ge(0), validators.le(1)])


@frozen
class CutMixConfig(MixConfig):
    """Options of `cutmix`; see `MixConfig`."""

    alpha: float = field(default=1.0, validator=validators.gt(0))


class MixUp:
    """MixUp: blends each image and its target with another of the batch (Zhang et al. 2018, arXiv:1710.09412)."""

    Config: type[MixConfig] = MixConfig
    name = "MixUp"

    def __init__(self, config: MixConfig) -> None:
        self.config = config

    @hookimpl
    def batch_transforms(self) -> list[BatchTransform]:
        """Answer always."""
        from torchvision.transforms import v2

        return [RandomApply(getattr(v2, self.name)(alpha=self.config.alpha), self.config.probability)]


class CutMix(MixUp):
    """CutMix: pastes a part of another image into each; targets by area (Yun et al. 2019, arXiv:1905.04899)."""

    Config = CutMixConfig
    name = "CutMix"


@frozen
class RandomApply:
    """Applies a batch transform with a probability.

    Attributes:
        transform: images (N, C, H, W) and targets (N, K) float32 -> both.
        probability: in [0, 1].
    """

    transform: Any
    probability: float

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Transform a batch, or return it as it is."""
        import torch

        if float(torch.rand(())) >= self.probability:
            return images, targets
        mixed: tuple[Tensor, Tensor] = self.transform(images, targets)
        return mixed
