"""What is frozen does not change by a bit, and what is not frozen learns."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file
from torch import nn

from ftcore import FreezePlan, UserError, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.model.freezing import (
    apply_requires_grad,
    ever_trainable_parameters,
    is_submodule_of,
    set_frozen_eval,
    unfrozen_names,
)
from ftcore.runs.prepared import prepare
from ftcore.testing import image_folder, invoke
from ftcore.training.loop import fit
from ftcore.training.state import Progress, TrainingParts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

SMALL = ("model.weights=none", "model.image_size=32", "train.epochs=2", "train.batch_size=5", "adamw.lr=0.01")


def build(folder: Path, *sets: str, model: str, plugins: tuple[str, ...]) -> TrainingParts:
    source = str(image_folder(folder / "data"))
    return prepare(load_config(None, CliOverrides(model, source, plugins=plugins, sets=(*SMALL, *sets)))).assembly.parts


def hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of every parameter and buffer."""
    return {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in tensors.items()}


def changed(parts: TrainingParts) -> set[str]:
    before = hashes(parts.network.state_dict())
    fit(parts, Progress(), lambda _: None)
    after = hashes(parts.network.state_dict())
    return {name for name in before if before[name] != after[name]}


def test_a_runs_checkpoint_has_the_frozen_backbone_that_its_seed_built(tmp_path: Path) -> None:
    before = hashes(
        build(tmp_path, model="timm/test_resnet", plugins=("freeze_backbone", "adamw")).network.state_dict()
    )
    options = [word for text in (*SMALL, f"run.folder={tmp_path / 'run'}") for word in ("--set", text)]
    plugins = ["--plugin", "freeze_backbone", "--plugin", "adamw"]
    result = invoke("run", "--data", tmp_path / "data", "--model", "timm/test_resnet", *plugins, *options)
    assert result.code == 0, result.err

    after = hashes(load_file(max((tmp_path / "run" / "checkpoints").glob("step-*")) / "model.safetensors"))

    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("model", "head"),
    [
        ("timm/test_resnet", {"fc.weight", "fc.bias"}),
        ("torchvision/squeezenet1_0", {"classifier.1.weight", "classifier.1.bias"}),
        ("torchvision/mobilenet_v3_small", {"classifier.3.weight", "classifier.3.bias"}),
    ],
)
def test_freezing_the_backbone_leaves_every_bit_outside_the_head(tmp_path: Path, model: str, head: set[str]) -> None:
    parts = build(tmp_path, model=model, plugins=("freeze_backbone", "adamw"))

    assert changed(parts) == head


def test_all_of_a_new_head_with_layers_learns_on_a_frozen_backbone(tmp_path: Path) -> None:
    parts = build(tmp_path, model="timm/test_resnet", plugins=("freeze_backbone", "mlp_head", "adamw"))

    assert changed(parts) == {f"fc.{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")}


def test_without_freezing_everything_changes_running_statistics_too(tmp_path: Path) -> None:
    parts = build(tmp_path, model="timm/test_resnet", plugins=("adamw",))

    assert changed(parts) == set(parts.network.state_dict())


def test_freezing_a_type_leaves_its_modules_and_their_statistics(tmp_path: Path) -> None:
    sets = 'freeze_modules.types=["BatchNorm2d"]'
    parts = build(tmp_path, sets, model="timm/test_resnet", plugins=("freeze_modules", "adamw"))
    norms = [name for name, module in parts.network.named_modules() if isinstance(module, nn.BatchNorm2d)]

    assert changed(parts) == {name for name in parts.network.state_dict() if not is_submodule_of(name, norms)}


def test_only_what_ever_learns_is_in_the_optimizer(tmp_path: Path) -> None:
    parts = build(tmp_path, model="timm/test_resnet", plugins=("freeze_backbone", "adamw"))

    held = {id(p) for group in parts.optimization.optimizer.param_groups for p in group["params"]}

    assert held == {id(p) for p in parts.network.get_submodule("fc").parameters()}


@pytest.mark.parametrize(
    ("name", "roots", "expected"),
    [
        ("layer1", ["layer1"], True),
        ("layer1.0.conv", ["layer1"], True),
        ("layer10", ["layer1"], False),
        ("layer10.0", ["layer1"], False),
        ("a.layer1", ["layer1"], False),
        ("layer1", ["layer1.0"], False),
        ("anything", [""], True),
        ("anything", [], False),
    ],
)
def test_a_name_is_under_whole_segments(name: str, roots: list[str], expected: bool) -> None:  # noqa: FBT001 - a table
    assert is_submodule_of(name, roots) is expected


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2), nn.Dropout()), nn.Linear(2, 2))


LATER = FreezePlan(frozenset({"0.weight", "0.bias", "1.0.weight"}), frozenset({"0", "1"}), {2: frozenset({"1"})})


def test_a_plan_releases_names_from_their_epoch_on() -> None:
    assert [unfrozen_names(LATER, epoch) for epoch in (0, 1, 2, 9)] == [set(), set(), {"1"}, {"1"}]


def test_requires_grad_follows_the_plan_in_both_directions() -> None:
    model = net()
    frozen = []
    for epoch in (2, 1):
        apply_requires_grad(model, LATER, epoch)
        frozen.append({name for name, p in model.named_parameters() if not p.requires_grad})

    assert frozen == [{"0.weight", "0.bias"}, {"0.weight", "0.bias", "1.0.weight"}]


def test_held_modules_are_in_eval_mode_until_they_are_released() -> None:
    model = net()
    block = model.get_submodule("1")
    training = []
    for epoch in (1, 2):
        model.train()
        set_frozen_eval(model, LATER, epoch)
        training.append([module.training for module in (model[0], block, *block.children(), model[2])])

    assert training == [[False, False, False, False, True], [False, True, True, True, True]]


def test_what_is_released_later_is_among_what_ever_learns() -> None:
    assert set(ever_trainable_parameters(net(), LATER)) == {"1.0.weight", "1.0.bias", "2.weight", "2.bias"}


class FreezesAll:
    """Nothing could learn."""

    @hookimpl
    def freeze(self, model: nn.Module) -> FreezePlan:
        return FreezePlan(frozenset(name for name, _ in model.named_parameters()))


class FreezesStrangers:
    """Names that do not exist."""

    @hookimpl
    def freeze(self) -> FreezePlan:
        return FreezePlan(frozenset({"layer1.0.wieght"}))


def test_a_plan_that_freezes_everything_is_an_error() -> None:
    flags = CliOverrides("digits/cnn", "digits:5-6", plugins=(f"{__name__}:FreezesAll",))

    with pytest.raises(UserError, match=r"freezes_all.freeze .* freezes every parameter, so nothing is trainable"):
        prepare(load_config(None, flags))


def test_a_plan_with_a_name_that_does_not_exist_is_an_error_with_the_nearest() -> None:
    flags = CliOverrides("digits/cnn", "digits:5-6", plugins=(f"{__name__}:FreezesStrangers",))

    with pytest.raises(UserError, match=r"do not exist: layer1.0.wieght; did you mean 'layer1.0.weight'"):
        prepare(load_config(None, flags))
