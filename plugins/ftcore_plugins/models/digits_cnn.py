"""The network of the digits: small enough to ship, with batch norm and pooling like its big relatives."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def make_cnn(classes: int) -> nn.Sequential:
    """Images (N, 1, H, W) float32 -> (N, classes)."""
    return nn.Sequential(
        OrderedDict(
            layer1=_block(1, 32),
            layer2=nn.Sequential(_block(32, 64), nn.MaxPool2d(2)),
            layer3=_block(64, 64),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            head=nn.Linear(64, classes),
        )
    )


def _block(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )
