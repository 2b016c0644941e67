"""The outputs that a network gives beside its first, in train mode, count as much as its authors say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn import functional

from ftcore import Backbone, HeadSlot, UserError, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.model.shape_inference import as_tuple
from ftcore.runs.prepared import prepare
from ftcore.training.evaluation import evaluate
from ftcore.training.loop import fit, total_loss
from ftcore.training.state import Progress

if TYPE_CHECKING:
    from ftcore.training.state import TrainingParts


class Branched(nn.Module):
    """Two classifiers in train mode, one in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.main, self.aux = nn.Linear(4, 9), nn.Linear(4, 9)

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        features = self.body(images)
        return (self.main(features), self.aux(features)) if self.training else self.main(features)


class Provider:
    @hookimpl
    def build_model(self, name: str | None) -> Backbone | None:
        slots = (HeadSlot("main", 4), HeadSlot("aux", 4))
        return Backbone(Branched(), slots, aux_loss_weights=(0.4,) if name == "own/declared" else ())


def parts_of(model: str, *sets: str, plugins: tuple[str, ...] = (f"{__name__}:Provider",)) -> TrainingParts:
    digits = ("model.weights=none", "model.image_size=8", "model.channels=1", "model.mean=0.5", "model.std=0.5")
    flags = CliOverrides(model, "digits:5-6", plugins, sets=(*digits, "linear.std=1", *sets))
    return prepare(load_config(None, flags)).assembly.parts


def test_the_loss_is_the_sum_with_the_providers_factors() -> None:
    parts, targets = parts_of("own/declared"), torch.tensor([0, 1, 1])
    main, aux = torch.randn(3, 2), torch.randn(3, 2)

    found = total_loss(parts, (main, aux), targets)

    wanted = functional.cross_entropy(main, targets) + 0.4 * functional.cross_entropy(aux, targets)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        total_loss(parts_of("digits/cnn", plugins=()), (main,), targets),
        functional.cross_entropy(main, targets),
        rtol=0,
        atol=0,
    )


def test_every_head_learns_and_the_first_is_what_is_measured() -> None:
    parts = parts_of("own/declared", "train.epochs=1")
    before = {name: p.detach().clone() for name, p in parts.network.named_parameters()}

    fit(parts, Progress(), lambda _: None)

    assert all(not torch.equal(before[name], p) for name, p in parts.network.named_parameters())
    batch = next(parts.data.val.epoch(0))
    model = parts.network.eval()
    assert isinstance(model, Branched)
    with torch.no_grad():
        model.aux.weight.fill_(float("nan"))  # nobody looks at it
        assert torch.isfinite(model(batch.images)).all()
    assert torch.isfinite(torch.tensor(evaluate(parts)["loss"]))


def test_outputs_that_no_provider_declared_are_refused_before_the_first_step() -> None:
    message = r"returns \[\(2, 2\), \(2, 2\)\] for 2 images in train mode, not \[\(2, 2\)\]; `aux_loss_weights`"
    with pytest.raises(UserError, match=message):
        parts_of("own/silent")


@pytest.mark.parametrize(("model", "weights"), [("googlenet", (0.3, 0.3)), ("inception_v3", (0.4,)), ("resnet18", ())])
def test_torchvisions_auxiliary_classifiers_count_as_in_their_papers(model: str, weights: tuple[float, ...]) -> None:
    flags = CliOverrides(f"torchvision/{model}", "digits:5-6", sets=("model.weights=none",))

    parts = prepare(load_config(None, flags)).assembly.parts

    assert parts.objective.aux_loss_weights == weights
    outputs = parts.network.train()(torch.zeros(2, 3, 299, 299))
    assert total_loss(parts, as_tuple(outputs), torch.tensor([0, 1])).item() == pytest.approx(
        (1 + sum(weights)) * 0.693147
    )
