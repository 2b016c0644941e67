"""The supervised contrastive term."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftcore import Backbone, EpochEnded, HeadSlot, InputSpec, UserError, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.prepared import prepare
from ftcore.training.loop import backward, fit
from ftcore.training.state import Progress
from ftcore_plugins.steps.supcon import supervised_contrastive

if TYPE_CHECKING:
    from torch import Tensor

    from ftcore import Event
    from ftcore.training.state import TrainingParts


def build(*sets: str, plugins: tuple[str, ...] = (), model: str = "digits/cnn") -> TrainingParts:
    """290 images to train on, a head that is not zero, and plain gradient descent."""
    usual = ("train.epochs=1", "sgd.momentum=0", "sgd.lr=0.1", "linear.std=0.1")
    flags = CliOverrides(model, "digits:5-6", plugins=("sgd", "constant", *plugins), sets=(*usual, *sets))
    return prepare(load_config(None, flags)).assembly.parts


def naive(vectors: Tensor, targets: Tensor, temperature: float) -> float:
    """Equation 2 of arXiv:2004.11362, sample by sample; those without a positive are left out."""
    z = [vector / vector.norm() for vector in vectors.double()]
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if targets[p] == targets[i]]
        below = sum(torch.exp(z[i] @ z[a] / temperature) for a in others)
        logs = [torch.log(torch.exp(z[i] @ z[p] / temperature) / below) for p in positives]
        if logs:
            losses.append(-float(sum(logs)) / len(logs))
    return sum(losses) / len(losses) if losses else 0.0


@given(rows=st.integers(1, 9), classes=st.integers(1, 5), temperature=st.floats(0.05, 2), seed=st.integers(0, 999))
def test_supervised_contrast_is_equation_2(rows: int, classes: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = (3 * torch.randn(rows, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(classes, (rows,), generator=generator)

    found = supervised_contrastive(vectors, targets, temperature)
    found.backward()  # type: ignore[no-untyped-call]

    assert float(found.detach()) == pytest.approx(naive(vectors.detach(), targets, temperature), rel=1e-6, abs=1e-9)
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


class Nhwc(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.drop, self.head = nn.Conv2d(1, 6, 3), nn.Dropout(0.2), nn.Linear(6, 9)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.drop(self.stem(images).movedim(1, -1))).mean((1, 2))
        return outputs


class Networks:
    """A head on (N, C), on (N, C, H, W) and on (N, H, W, C)."""

    @hookimpl
    def build_model(self, name: str) -> Backbone | None:
        stem, pool, drop = nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2)
        networks = {
            "my/vector": (nn.Sequential(stem, pool, nn.Flatten(), drop, nn.Linear(6, 9)), HeadSlot("4", 6)),
            "my/map": (
                nn.Sequential(stem, drop, nn.Conv2d(6, 9, 1), pool, nn.Flatten()),
                HeadSlot("2", 6, convolutional=True),
            ),
            "my/nhwc": (Nhwc(), HeadSlot("head", 6)),
        }
        if name not in networks:
            return None
        module, slot = networks[name]
        return Backbone(module, (slot,), InputSpec((8, 8), 1, (0.3,), (0.4,)))


def stem_features(network: nn.Module, images: Tensor) -> Tensor:
    """What the head sees on average over places, (N, 6); dropout is off."""
    seen: Tensor = next(network.children())(images).mean((2, 3))
    return seen


@pytest.mark.parametrize("network", ["my/vector", "my/map", "my/nhwc"])
def test_supcon_sees_what_the_head_sees(network: str) -> None:
    sets = ("supcon.strength=0.7", "supcon.temperature=0.3", "train.batch_size=8", "train.accumulate=2")
    parts = build(*sets, plugins=("supcon", f"{__name__}:Networks"), model=network)
    epoch = parts.data.train.epoch(0)
    window = [next(epoch), next(epoch)]
    model = copy.deepcopy(parts.network)
    expected = sum(supervised_contrastive(stem_features(model, b.images), b.targets, 0.3) for b in window) / 2
    assert isinstance(expected, torch.Tensor)
    (0.7 * expected).backward()  # type: ignore[no-untyped-call]
    without = build(*sets[2:], plugins=(f"{__name__}:Networks",), model=network)
    without.network.load_state_dict(parts.network.state_dict())
    for module in [*parts.network.train().modules(), *without.network.train().modules()]:
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    terms = backward(parts, Progress(), window, 16)
    backward(without, Progress(), window, 16)

    assert float(terms["supcon"]) == pytest.approx(0.7 * float(expected.detach()), rel=1e-5)
    stems = [next(net.parameters()).grad for net in (parts.network, without.network, model)]
    torch.testing.assert_close(stems[0] - stems[1], stems[2], rtol=1e-4, atol=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize("steps", [("supcon", "r_drop"), ("r_drop", "supcon"), ("supcon", "r_drop", "sam")])
@pytest.mark.parametrize("average", ["ema", "swa"])
@pytest.mark.parametrize("network", ["my/vector", "my/map", "my/nhwc"])
def test_supcon_works_with_other_steps_and_averages(network: str, average: str, steps: tuple[str, ...]) -> None:
    plugins = (*steps, average, f"{__name__}:Networks")
    parts = build("train.epochs=2", "train.accumulate=2", plugins=plugins, model=network)
    events: list[Event] = []

    fit(attrs.evolve(parts, observers=(events.append,)), Progress(), lambda _: None)

    for event in events:
        if isinstance(event, EpochEnded):
            assert event.train.keys() == {"loss", "supcon", "r_drop"}
            assert all(term > 0 for term in event.train.values())


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_supcon_is_refused_with_mixed_pictures(mixing: str) -> None:
    with pytest.raises(UserError, match=f"{mixing} makes soft targets, but make_step of .*supcon takes class indices"):
        build(plugins=("supcon", mixing))


def test_supcon_is_refused_for_numbers() -> None:
    with pytest.raises(UserError, match="supcon needs classes, but this is a regression task"):
        build("data.task=regression", plugins=("supcon",))
