"""What is frozen is the same, bit for bit, at the end of every epoch; or the run fails and names what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ftcore import FreezePlan, StepLogged, UserError, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.model.freezing import (
    check_frozen_modules_in_eval,
    check_unchanged,
    frozen_tensors,
    modules_holding_only,
    named_tensors,
    tensor_digests,
)
from ftcore.runs.run import fit
from ftcore.testing import image_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path


class Meddler:
    """Gets hold of the network and does something to it while the epoch goes."""

    do: Callable[[nn.Module], Any]

    @hookimpl(wrapper=True)
    def freeze(self, model: nn.Module) -> Generator[None, FreezePlan, FreezePlan]:
        self.model = model
        return (yield)

    @hookimpl
    def make_observers(self) -> list[Callable[[object], None]]:
        def observe(event: object) -> None:
            if isinstance(event, StepLogged):
                type(self).do(self.model)

        return [observe]


class PutsInTrainMode(Meddler):
    do = staticmethod(lambda model: model.train())


class PutsInTrainModeAndBack(Meddler):
    """Runs a picture through the network in train mode, and leaves every mode as it was."""

    @staticmethod
    def do(model: nn.Module) -> None:
        modes = {module: module.training for module in model.modules()}
        model.train()(torch.ones(2, 3, 32, 32))
        for module, mode in modes.items():
            module.training = mode


class MovesAWeight(Meddler):
    @staticmethod
    def do(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter("conv1.0.weight")[0, 0, 0, 0] += 1e-6


class DoesNothing(Meddler):
    do = staticmethod(lambda _model: None)


def train(folder: Path, *plugins: str, model: str = "timm/test_resnet", sets: tuple[str, ...] = ()) -> dict[str, Any]:
    data = folder / "data"
    source = str(data if data.exists() else image_folder(data))
    small = ("model.weights=none", "model.image_size=32", "train.epochs=2", "train.batch_size=5", "train.log_every=1")
    flags = CliOverrides(model, source, plugins, sets=(*small, f"run.folder={folder / 'run'}", *sets))
    return fit(load_config(None, flags))


def test_a_run_that_keeps_the_contract_says_how_much_it_kept(tmp_path: Path) -> None:
    report = train(tmp_path, "freeze_backbone", f"{__name__}:DoesNothing")

    assert report["frozen_tensors"] == 90
    assert report["epochs"] == 2


def test_nothing_frozen_is_nothing_to_keep(tmp_path: Path) -> None:
    assert train(tmp_path, "adamw")["frozen_tensors"] == 0


def test_a_plugin_that_puts_the_network_in_train_mode_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"frozen modules were put in train mode in epoch 1: conv1, conv1\.0"):
        train(tmp_path, "freeze_backbone", f"{__name__}:PutsInTrainMode")

    assert not (tmp_path / "run").exists()


def test_statistics_that_moved_in_between_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"of \d+ frozen tensors changed in epoch 1: .*running_mean"):
        train(tmp_path, "freeze_backbone", f"{__name__}:PutsInTrainModeAndBack")


def test_one_weight_that_moved_a_little_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 90 frozen tensors changed in epoch 1: conv1\.0\.weight; an observer"):
        train(tmp_path, "freeze_backbone", f"{__name__}:MovesAWeight")


def test_what_is_not_frozen_may_be_moved(tmp_path: Path) -> None:
    names = 'freeze_modules.names=["layer1"]'

    assert train(tmp_path, "freeze_modules", f"{__name__}:MovesAWeight", sets=(names,))["frozen_tensors"]


def test_a_part_that_is_released_may_move_from_then_on(tmp_path: Path) -> None:
    at = ('gradual_unfreeze.at={0 = "head", 1 = "conv1"}',)

    with pytest.raises(UserError, match=r"1 of 90 frozen tensors changed in epoch 1: conv1\.0\.weight"):
        train(tmp_path, "gradual_unfreeze", f"{__name__}:MovesAWeight", sets=at)

    report = train(tmp_path, "gradual_unfreeze", sets=(*at, "train.epochs=3"))
    assert 0 < report["frozen_tensors"] < 90


class CountsItsCalls(nn.Module):
    """Keeps a mean of what it saw, in eval mode too."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + 0.1 * images.detach().mean((0, 2, 3)).to(self.mean.device)
        return images


class Statistics:
    """Networks of layers that keep something for themselves."""

    @hookimpl
    def build_model(self, name: str | None) -> nn.Module | None:
        if name is None or not name.startswith("own/"):
            return None
        layers: list[nn.Module] = [
            spectral_norm(nn.Conv2d(3, 4, 3)),
            nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
            nn.BatchNorm2d(4),
            nn.Dropout(0.5),
        ]
        layers += [CountsItsCalls()] if name == "own/counting" else []
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


OWN = f"{__name__}:Statistics"


def test_spectral_norm_and_both_kinds_of_running_statistics_are_under_the_contract(tmp_path: Path) -> None:
    report = train(tmp_path, "freeze_backbone", OWN, model="own/plain")

    assert report["frozen_tensors"] == 14


def test_a_buffer_that_moves_in_eval_mode_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 15 frozen tensors changed in epoch 1: 4\.mean"):
        train(tmp_path, "freeze_backbone", OWN, model="own/counting")


def test_without_holding_statistics_do_move() -> None:
    model = Statistics().build_model("own/plain")
    assert model is not None
    plan = FreezePlan(frozenset({name for name, _ in model.named_parameters()}))
    before = tensor_digests(dict(model.named_buffers()))

    model.train()(torch.randn(2, 3, 8, 8))

    assert not frozen_tensors(model, plan, 0).keys() & before.keys()
    assert {n for n, d in tensor_digests(dict(model.named_buffers())).items() if d != before[n]} == {
        "0.parametrizations.weight.0._u",
        "0.parametrizations.weight.0._v",
        *(f"{norm}.{what}" for norm in (1, 2) for what in ("running_mean", "running_var")),
        "2.num_batches_tracked",
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_a_digest_is_that_of_the_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    one = torch.ones(shape).to(dtype)
    other = one.clone()
    other.view(-1)[-1] = 0

    assert tensor_digests({"a": one}) == tensor_digests({"a": one.clone()})
    assert tensor_digests({"a": one}) != tensor_digests({"a": other})


def test_a_digest_does_not_depend_on_the_layout() -> None:
    one = torch.arange(24.0).reshape(2, 3, 4)

    assert tensor_digests({"a": one.mT.contiguous().mT}) == tensor_digests({"a": one})


def test_zeros_of_both_signs_differ() -> None:
    with pytest.raises(UserError, match=r"1 of 1 frozen tensors changed in epoch 4: a;"):
        check_unchanged(tensor_digests({"a": torch.tensor(0.0)}), {"a": torch.tensor(-0.0)}, epoch=3)


def test_modes_are_checked_below_what_is_held() -> None:
    model = nn.Sequential(nn.Sequential(nn.Dropout()), nn.Linear(2, 2)).train()
    model[0].eval()
    plan = FreezePlan(eval_modules=frozenset({"0"}))
    check_frozen_modules_in_eval(model, plan, 0)

    model.get_submodule("0.0").train()

    with pytest.raises(UserError, match=r"put in train mode in epoch 1: 0\.0;"):
        check_frozen_modules_in_eval(model, plan, 0)


def test_a_module_is_within_what_all_its_tensors_are_in() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.ReLU(), nn.Linear(2, 2))
    statistics = {"0.1.running_mean", "0.1.running_var", "0.1.num_batches_tracked"}

    assert modules_holding_only(model, {"0.0.weight", "0.0.bias"}) == {"0.0"}
    assert modules_holding_only(model, {"0.1.weight", "0.1.bias"}) == set()
    assert modules_holding_only(model, {"0.1.weight", "0.1.bias", *statistics}) == {"0.1"}
    assert modules_holding_only(model, {f"0.{n}" for n, _ in model[0].named_parameters()} | statistics) == {
        "0",
        "0.0",
        "0.1",
    }


def test_tensors_are_listed_in_the_order_of_the_modules_and_shared_ones_once() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].weight = model[1].weight

    norm = [f"0.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    assert list(named_tensors(model)) == [*norm, "1.weight", "1.bias", "2.bias"]


class KeepsAMean(nn.Module):
    """Owns a buffer above the head, which it changes in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(3, 2)
        self.register_buffer("center", torch.zeros(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images)
        self.center = features.detach().mean(0)
        outputs: torch.Tensor = self.fc(features)
        return outputs


class Means:
    @hookimpl
    def build_model(self, name: str | None) -> nn.Module | None:
        return KeepsAMean() if name == "own/mean" else None


def test_a_buffer_of_the_network_itself_is_under_the_contract_of_a_frozen_backbone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 1 frozen tensors changed in epoch 1: center"):
        train(tmp_path, "freeze_backbone", f"{__name__}:Means", model="own/mean")


def test_a_frozen_tensor_that_is_new_has_changed() -> None:
    with pytest.raises(UserError, match=r"1 of 1 frozen tensors changed in epoch 1: grid"):
        check_unchanged({}, {"grid": torch.zeros(2)}, epoch=0)
