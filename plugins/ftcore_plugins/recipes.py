"""Ways to fine-tune: each names other plugins and sets their options, and does nothing itself.

``ftcore explain --plugin lp_ft`` shows what a recipe chose, and any of it can be set otherwise.
"""

from __future__ import annotations

from typing import Any

from attrs import field, frozen, validators

from ftcore import Recipe

_positive: Any = validators.gt(0)

_share: Any = validators.and_(validators.gt(0), validators.le(1))


@frozen
class LinearProbeConfig:
    """Options of `linear_probe`.

    Attributes:
        lr: learning rate of `adamw`, > 0; training only the head allows a higher rate than training all layers.
    """

    lr: float = field(default=0.01, validator=_positive)


class LinearProbe:
    """Linear probe: trains only the new head on a frozen network."""

    Config = LinearProbeConfig

    def __init__(self, config: LinearProbeConfig) -> None:
        self.config = config

    def recipe(self) -> Recipe:
        """Name `freeze_backbone` and `adamw`."""
        return Recipe(
            ("freeze_backbone", "adamw"), {"adamw.lr": self.config.lr, "adamw.weight_decay": 0.0}, {"adamw.lr": "lr"}
        )


@frozen
class LpFtConfig:
    """Options of `lp_ft`.

    Attributes:
        probe_epochs: epochs in which only the head is trained, > 0; fewer than `train.epochs`.
        lr: learning rate of the head in these epochs, > 0.
        factor: learning rate of all layers afterwards, relative to `lr`, in (0, 1].
    """

    probe_epochs: int = field(default=3, validator=_positive)
    lr: float = field(default=0.01, validator=_positive)
    factor: float = field(default=0.1, validator=_share)


class LpFt:
    """A linear probe, then all layers at a lower learning rate (Kumar et al. 2022, arXiv:2202.10054).

    A fitted head sends smaller gradients into the network, which preserves more of the pre-trained features.
    """

    Config = LpFtConfig

    def __init__(self, config: LpFtConfig) -> None:
        self.config = config

    def recipe(self) -> Recipe:
        """Name `gradual_unfreeze`, `phases` and `adamw`."""
        config = self.config
        given = {"adamw.lr": "lr", "gradual_unfreeze.at": "probe_epochs", "phases.epochs": "probe_epochs"}
        settings = _two_phases(config.probe_epochs, config.lr, (1.0, config.factor), warmup=(0.05, 0.1), div=(1e3, 1e3))
        return Recipe(_TWO_PHASES, settings, given | {"phases.peak": "factor"})


@frozen
class FineTuneConfig:
    """Options of `fine_tune`.

    Attributes:
        freeze_epochs: epochs in which only the head is trained, > 0; fewer than `train.epochs`.
        base_lr: peak learning rate of the first phase, > 0; the second has half of it.
        backbone: learning rate of the backbone relative to the head, in (0, 1].
    """

    freeze_epochs: int = field(default=1, validator=_positive)
    base_lr: float = field(default=2e-3, validator=_positive)
    backbone: float = field(default=0.1, validator=_share)


class FineTune:
    """Both phases of fastai's `fine_tune`: the head, then all layers, each on a one-cycle schedule.

    Howard and Gugger 2020 (arXiv:2002.04688, section 2). There the rate decays geometrically from the head to
    the input, down to a hundredth; here the backbone has one rate, or `groups.layer_decay` if you set it.
    """

    Config = FineTuneConfig

    def __init__(self, config: FineTuneConfig) -> None:
        self.config = config

    def recipe(self) -> Recipe:
        """Name `gradual_unfreeze`, `phases` and `adamw`."""
        config = self.config
        given = {"adamw.lr": "base_lr", "gradual_unfreeze.at": "freeze_epochs", "phases.epochs": "freeze_epochs"}
        settings = _two_phases(config.freeze_epochs, config.base_lr, (1.0, 0.5), warmup=(0.99, 0.3), div=(25.0, 5.0))
        settings["groups.backbone_lr"] = config.backbone
        return Recipe(_TWO_PHASES, settings, given | {"groups.backbone_lr": "backbone"})


_TWO_PHASES = ("gradual_unfreeze", "phases", "adamw")


def _two_phases(
    first: int, lr: float, peak: tuple[float, float], *, warmup: tuple[float, float], div: tuple[float, float]
) -> dict[str, Any]:
    return {
        "gradual_unfreeze.at": {"0": "head", str(first): "all"},
        "adamw.lr": lr,
        "phases.epochs": [first],
        "phases.peak": list(peak),
        "phases.warmup": list(warmup),
        "phases.div": list(div),
    }


@frozen
class SurgicalConfig:
    """Options of `surgical`.

    Attributes:
        stage: the trainable stage: 0 is the stem, -1 the last. Early stages suit
            images that look different (noise, weather), late stages classes with another meaning.
    """

    stage: int = -1


class Surgical:
    """One stage and the head; everything else is frozen (Lee et al. 2023, arXiv:2210.11466)."""

    Config = SurgicalConfig

    def __init__(self, config: SurgicalConfig) -> None:
        self.config = config

    def recipe(self) -> Recipe:
        """Name `freeze_backbone`."""
        return Recipe(
            ("freeze_backbone",), {"freeze_backbone.stages": [self.config.stage]}, {"freeze_backbone.stages": "stage"}
        )


class BitFit:
    """Biases and the head; everything else is frozen (Ben Zaken et al. 2022, arXiv:2106.10199)."""

    def recipe(self) -> Recipe:
        """Name `freeze_backbone`."""
        return Recipe(("freeze_backbone",), {"freeze_backbone.but": ["bias"]})


class NormTune:
    """Norm layers and the head; everything else is frozen (Frankle et al. 2021, arXiv:2003.00152)."""

    def recipe(self) -> Recipe:
        """Name `freeze_backbone`."""
        return Recipe(("freeze_backbone",), {"freeze_backbone.but": ["norm"]})
