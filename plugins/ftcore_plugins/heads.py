"""New heads: one linear layer, or a small multi-layer perceptron."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from attrs import field, frozen, validators

from ftcore import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from ftcore import HeadSlot, Task


RECTIFIED_BIAS = 20.0
"""Bias of a new layer under a ReLU. Softmax does not see what all classes share, and a ReLU passes on what is above
zero: so the layer starts as one without a ReLU would, and a step of usual size puts no class out for good. On the
features of SqueezeNet, whose norm is near 300, SGD with a rate of 0.001 moves outputs by some 40 in one step. With
dropout, two of six runs on two classes ended with a dead class for a bias of 1, two for 10 and none for 30; without,
none of five for 20, which ended with losses of 0.2 to 0.6, and one of three for 30 ended above 1."""

RECTIFIED_STD = 0.01
"""Least standard deviation of its weights where it has no bias, as in torchvision's own SqueezeNet."""


def _small_last_layer(slot: HeadSlot, features: int, outputs: int, std: float) -> nn.Module:
    """Make the last layer with normal weights of `std` and zero bias, or none where the old head had none.

    Under a ReLU the bias is `RECTIFIED_BIAS`; without one, weights are random: a ReLU passes nothing at zero.
    With the default, 0, as in BiT (arXiv:1912.11370) and big_vision, the first loss is exactly that of guessing,
    whatever the scale of the features: the libraries' own initial values are off by orders of magnitude in some
    families, from which a short run on a frozen network does not recover.
    """
    from torch import nn

    last: nn.Linear | nn.Conv2d = (
        nn.Conv2d(features, outputs, 1, bias=slot.bias)
        if slot.convolutional
        else nn.Linear(features, outputs, bias=slot.bias)
    )
    nn.init.normal_(last.weight, std=std if slot.bias or not slot.rectifier else max(std, RECTIFIED_STD))
    if slot.bias:
        nn.init.constant_(cast("nn.Parameter", last.bias), RECTIFIED_BIAS if slot.rectifier else 0.0)
    return last


@frozen
class LinearConfig:
    """Options of `linear`.

    Attributes:
        std: standard deviation of the initial weights, >= 0.
    """

    std: float = field(default=0.0, validator=validators.ge(0))


class LinearHead:
    """One linear layer (a 1x1 convolution if the old head was a convolution)."""

    Config = LinearConfig

    def __init__(self, config: LinearConfig) -> None:
        self.config = config

    @hookimpl
    def build_head(self, slot: HeadSlot, task: Task) -> nn.Module:
        """Answer for every slot."""
        return _small_last_layer(slot, slot.in_features, task.outputs, self.config.std)


@frozen
class MlpHeadConfig:
    """Options of `mlp_head`.

    Attributes:
        hidden: widths of the hidden layers, each > 0; at least one.
        dropout: dropout probability after each hidden layer, in [0, 1).
        std: standard deviation of the last layer's initial weights, >= 0.
    """

    hidden: tuple[int, ...] = field(
        default=(256,),
        validator=[validators.min_len(1), validators.deep_iterable(validators.gt(0))],
    )
    dropout: float = field(default=0.5, validator=[validators.ge(0), validators.lt(1)])
    std: float = field(default=0.0, validator=validators.ge(0))


class MlpHead:
    """Hidden layers with ReLU and dropout, then a linear layer."""

    Config = MlpHeadConfig

    def __init__(self, config: MlpHeadConfig) -> None:
        self.config = config

    @hookimpl
    def build_head(self, slot: HeadSlot, task: Task) -> nn.Module:
        """Answer for every slot."""
        from torch import nn

        layers: list[nn.Module] = []
        features = slot.in_features
        for width in self.config.hidden:
            layers.append(nn.Conv2d(features, width, 1) if slot.convolutional else nn.Linear(features, width))
            layers += [nn.ReLU(), nn.Dropout(self.config.dropout)]
            features = width
        return nn.Sequential(*layers, _small_last_layer(slot, features, task.outputs, self.config.std))
