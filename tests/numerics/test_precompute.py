"""What is frozen is computed once, and nothing but the time that a run takes is another for it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import dropout
from torch.utils.flop_counter import FlopCounterMode

from ftcore import EpochEnded, RunStarted, StepLogged, UserError, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.prepared import prepare
from ftcore.runs.run import fit as fit_run
from ftcore.runs.run import resume
from ftcore.system.signals import StoppedBySignal
from ftcore.testing import invoke
from ftcore.training.frozen_features import features as frozen_features_features
from ftcore.training.frozen_features.features import FrozenFeatures
from ftcore.training.loop import fit
from ftcore.training.state import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from ftcore import Event
    from ftcore.training.state import TrainingParts

HERE = __name__
PROBE = ("linear_probe",)
NO_WEIGHTS = "model.weights=none"
LAST_STAGE = ("freeze_backbone.stages=[-1]",)
UNTIL_EPOCH_2 = ('gradual_unfreeze.at={0 = "head", 2 = "all"}',)


def config(folder: Path, *sets: str, plugins: tuple[str, ...] = PROBE, model: str = "digits/cnn") -> Any:
    settings = ("train.epochs=3", "train.log_every=1", f"run.folder={folder / 'run'}", *sets)
    return load_config(None, CliOverrides(model, "digits:5-6", plugins=plugins, sets=settings))


def built(folder: Path, *sets: str, **given: Any) -> TrainingParts:
    return prepare(config(folder, *sets, **given)).assembly.parts


def trained(parts: TrainingParts) -> tuple[dict[str, Tensor], list[EpochEnded]]:
    """What is saved in the end, and what was told of each epoch."""
    events: list[EpochEnded] = []
    fit(evolve(parts, observers=()), Progress(), events.append)
    return {
        name: value.clone() for name, value in parts.model_at(parts.train_config.epochs - 1).state_dict().items()
    }, events


def count_reads(parts: TrainingParts, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The samples of either split, one entry each time that one is read."""
    reads: list[Any] = []
    cls: Any = type(parts.data.train.dataset)
    original = cls.__getitem__

    def read(self: Any, place: tuple[int, int]) -> Any:
        reads.append((self.seed is None, place[1]))
        return original(self, place)

    monkeypatch.setattr(cls, "__getitem__", read)
    return reads


@pytest.mark.parametrize(
    ("plugins", "sets"),
    [
        (PROBE, ()),
        (PROBE, ("train.accumulate=3", "train.clip_norm=0.1")),
        ((*PROBE, "mlp_head"), ()),
        ((*PROBE, "ema"), ()),
        ((*PROBE, "swa", "mlp_head"), ("swa.start=1", "train.threads=1")),
        ((*PROBE, "balanced_sampling", "weighted_ce", "l2_sp", "sam"), ()),
        (("gradual_unfreeze",), UNTIL_EPOCH_2),
        (("freeze_backbone",), LAST_STAGE),
        (("surgical", "ema", "sam"), ("surgical.stage=-1",)),
        (("freeze_backbone", "swa"), (*LAST_STAGE, "swa.start=1", "train.threads=1")),
        (("gradual_unfreeze",), ('gradual_unfreeze.at={0 = ["head", "layer3"], 2 = "all"}',)),
    ],
    ids=[
        *("probe", "accumulate", "mlp", "ema", "swa", "balanced", "unfreezing"),
        *("last stage", "last stage, ema, sam", "last stage, swa", "last stage, unfreezing"),
    ],
)
def test_a_run_ends_where_it_ends_without(plugins: tuple[str, ...], sets: tuple[str, ...], tmp_path: Path) -> None:
    once, every_time = (
        built(tmp_path, *sets, f"train.precompute={mode}", plugins=plugins) for mode in ("always", "never")
    )
    assert_same_ends(once, every_time)


@pytest.mark.parametrize("model", ["timm/test_vit", pytest.param("timm/test_vit_relpos", marks=pytest.mark.slow)])
def test_a_vision_transformers_run_ends_where_it_ends_without(model: str, tmp_path: Path) -> None:
    few = (NO_WEIGHTS, "train.epochs=2", "train.batch_size=64", "train.threads=1")
    once, every_time = (
        built(tmp_path, *LAST_STAGE, *few, f"train.precompute={mode}", plugins=("freeze_backbone",), model=model)
        for mode in ("always", "never")
    )
    assert_same_ends(once, every_time)


def assert_same_ends(once: TrainingParts, every_time: TrainingParts) -> None:
    """Train both, and compare what is saved and told."""
    (found, events), (expected, others) = trained(once), trained(every_time)

    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
    for event, other in zip(events, others, strict=True):
        assert event.val["loss"] == pytest.approx(other.val["loss"], abs=1e-5)
        assert event.train["loss"] == pytest.approx(other.train["loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("model", "stages", "at"),
    [
        ("timm/test_resnet", "[-1]", "layer4.0"),
        ("torchvision/resnet18", "[-2, -1]", "layer3.0"),
        ("torchvision/mobilenet_v3_small", "[-1]", "features.9.block.0.0"),
        ("timm/convnext_atto", "[-1]", "stages.3.downsample.0"),
        ("torchvision/densenet121", "[-1]", "features.denseblock4"),
        ("timm/test_vit", "[-1]", "blocks.5"),
        ("timm/test_vit_relpos", "[-1]", "blocks.8"),
        ("timm/swin_tiny_patch4_window7_224", "[-1]", "layers.3.downsample.norm"),
    ],
)
def test_a_network_of_which_the_first_blocks_are_frozen_is_cut_where_it_begins_to_learn(
    model: str, stages: str, at: str, tmp_path: Path
) -> None:
    """Also where its blocks are in a list, or tokens get their positions by no module."""
    fixed = ("test_vit" in model, "swin" in model)
    sets = (NO_WEIGHTS, f"freeze_backbone.stages={stages}", *(() if any(fixed) else ("model.image_size=64",)))
    parts = built(tmp_path, *sets, plugins=("freeze_backbone",), model=model)

    once = parts.frozen_features
    assert isinstance(once, FrozenFeatures)
    assert once.split_point.module == at
    with torch.no_grad():  # the head begins with zeros, and would say the same of anything
        parts.network.get_parameter(f"{parts.heads[0]}.weight").normal_()
    batch = next(parts.data.val.sequential(0, 2))
    features = once.val.compute(batch.images)
    with torch.inference_mode():
        expected, found = parts.network.eval()(batch.images), once.split_point.tail(parts.network)(features)
    torch.testing.assert_close(found, expected)
    assert not any("forward" in vars(module) for module in parts.network.modules())


def test_nothing_before_the_cut_computes(tmp_path: Path) -> None:
    parts = built(tmp_path, *LAST_STAGE, NO_WEIGHTS, plugins=("freeze_backbone",), model="timm/test_vit")
    once = parts.frozen_features
    assert isinstance(once, FrozenFeatures)
    features = once.val.compute(next(parts.data.val.sequential(0, 2)).images)
    behind, learning = once.split_point.tail(parts.network), parts.network.get_submodule("blocks.5")

    flops = []
    for module in (behind, learning):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            module(features)
        flops.append(counter.get_total_flops())

    assert flops[0] == pytest.approx(flops[1], rel=0.01)


@pytest.mark.parametrize("model", ["timm/test_vit", "timm/eva02_tiny_patch14_224"])
def test_a_network_is_not_cut_behind_tokens_positions_that_learn(model: str, tmp_path: Path) -> None:
    """They are no module's but the network's own, and what is kept of an image would be another after a step.

    Nor before a list of blocks, which is never called.
    """
    before = ["patch_embed", "blocks.0", *(["rope", "pos_drop"] if "eva" in model else ["pos_drop"])]
    sets, plugins = (NO_WEIGHTS, f"freeze_modules.names={before}"), ("freeze_modules",)

    assert built(tmp_path, *sets, plugins=plugins, model=model).frozen_features is None


class Shares(nn.Sequential):
    """A network whose activation is one module in two places, on both sides of where it begins to learn."""

    def forward(self, images: Tensor) -> Tensor:
        flat, first, act, second, head = self.children()
        outputs: Tensor = head(act(second(act(first(flat(images))))))
        return outputs


class Adds(nn.Module):
    """Takes two tensors in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, branches: list[Tensor]) -> Tensor:
        one, other = branches
        return self.scale * one + other


class Branches(nn.Sequential):
    """A network whose first module that learns sees as many tensors as there are images in the batch that is tried."""

    def forward(self, images: Tensor) -> Tensor:
        flat, first, adds, head = self.children()
        branch = first(flat(images))
        outputs: Tensor = head(adds([branch, branch]))
        return outputs


class BuildsShares:
    """Builds them."""

    @hookimpl
    def build_model(self, name: str) -> nn.Module:
        if name == "own/branches":
            return Branches(nn.Flatten(), nn.Linear(64, 16), Adds(), nn.Linear(16, 4))
        return Shares(nn.Flatten(), nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 16), nn.Linear(16, 4))


def test_a_module_that_is_called_again_behind_the_cut_is_not_passed_over(tmp_path: Path) -> None:
    plugins = (f"{HERE}:BuildsShares", "freeze_modules")
    parts = built(tmp_path, *SIZE, 'freeze_modules.names=["1"]', plugins=plugins, model="own/shares")

    once = parts.frozen_features
    assert isinstance(once, FrozenFeatures)
    assert (once.split_point.module, [*(once.split_point.recorded_outputs or ())]) == ("3", ["0", "1"])


def test_a_network_is_not_cut_where_there_is_more_than_one_tensor(tmp_path: Path) -> None:
    plugins = (f"{HERE}:BuildsShares", "freeze_modules")

    parts = built(tmp_path, *SIZE, 'freeze_modules.names=["1"]', plugins=plugins, model="own/branches")

    assert parts.frozen_features is None


def test_looking_for_a_cut_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    cut, whole = (
        built(tmp_path, *LAST_STAGE, f"train.precompute={mode}", plugins=("freeze_backbone",))
        for mode in ("auto", "never")
    )

    assert (cut.frozen_features is None, whole.frozen_features is None) == (False, True)
    assert [m.training for m in cut.network.modules()] == [m.training for m in whole.network.modules()]
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(cut.network.state_dict()[name], tensor)


def test_each_image_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = built(tmp_path)
    reads = count_reads(parts, monkeypatch)

    trained(parts)

    splits = {False: len(parts.data.train.samples), True: len(parts.data.val.samples)}
    assert sorted(reads) == [(is_val, place) for is_val, count in splits.items() for place in range(count)]


@pytest.mark.parametrize("plugins", [PROBE, ("adamw",)], ids=["computed once", "learnt"])
def test_where_nothing_is_learnt_batches_have_a_size_of_their_own(tmp_path: Path, plugins: tuple[str, ...]) -> None:
    sizes: dict[bool, set[int]] = {True: set(), False: set()}
    parts, expected = (
        built(tmp_path, "train.batch_size=32", *sets, plugins=plugins) for sets in (("train.eval_batch_size=50",), ())
    )

    def count(module: nn.Module, _images: Any, outputs: Tensor) -> None:
        sizes[module.training and torch.is_grad_enabled()].add(len(outputs))

    parts.network.register_forward_hook(count)
    found, events = trained(parts)
    others, _ = trained(expected)

    assert 50 in sizes[False]
    assert max(sizes[True], default=32) == 32
    assert len(events) == 3
    for name, value in others.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_each_view_of_an_augmented_image_is_read_once_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = built(tmp_path, "train.views=2", "train.epochs=5", plugins=(*PROBE, "augment"))
    reads = count_reads(parts, monkeypatch)
    first, second, third = (parts.for_epoch(epoch).data.train for epoch in range(3))

    batches = [next(iter(batches.sequential(epoch))).images for epoch, batches in enumerate((first, second, third))]
    trained(parts)

    assert torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[0], batches[1])
    assert len(reads) == 2 * len(parts.data.train.samples) + len(parts.data.val.samples)


def test_a_view_is_what_the_head_sees_of_the_images_of_that_epoch(tmp_path: Path) -> None:
    parts = built(tmp_path, "train.views=2", plugins=(*PROBE, "augment"))
    features = next(parts.for_epoch(1).data.train.sequential(1)).images

    images = next(parts.data.train.sequential(1)).images
    expected = nn.Sequential(*list(parts.network.eval().children())[:-1])(images)

    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize(
    ("plugins", "sets", "at"),
    [
        (PROBE, (), 0),
        (PROBE, (), 13),
        ((*PROBE, "augment"), ("train.views=2",), 25),
        (("gradual_unfreeze",), UNTIL_EPOCH_2, 5),
    ],
    ids=["before the first step", "probe", "views", "unfreezing"],
)
def test_a_run_that_was_stopped_ends_in_the_same_bits(
    plugins: tuple[str, ...], sets: tuple[str, ...], at: int, tmp_path: Path
) -> None:
    def stopping() -> Callable[[Event], None]:
        steps = iter(range(10**6))

        def observe(event: Event) -> None:
            if isinstance(event, RunStarted | StepLogged) and next(steps) == at:
                os.kill(os.getpid(), signal.SIGTERM)

        return observe

    fit_run(config(tmp_path / "whole", *sets, plugins=plugins))
    with pytest.raises(StoppedBySignal, match=f"after step {at},"):
        fit_run(config(tmp_path / "stopped", *sets, plugins=plugins), [stopping()])
    resume(tmp_path / "stopped" / "run")

    whole, stopped = (
        load_file(max((tmp_path / name / "run" / "checkpoints").glob("step-*")) / "model.safetensors")
        for name in ("whole", "stopped")
    )
    assert all(torch.equal(stopped[name], value) for name, value in whole.items())


def test_features_that_are_too_large_for_memory_are_in_a_file_that_nobody_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = trained(built(tmp_path))
    monkeypatch.setattr(frozen_features_features, "MAX_IN_MEMORY_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    parts = built(tmp_path)

    found, _ = trained(parts)

    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert isinstance(parts.frozen_features, FrozenFeatures)
    assert not parts.frozen_features.train.in_memory
    assert (tmp_path / "cache" / "ftcore").is_dir()
    assert list((tmp_path / "cache" / "ftcore").iterdir()) == []


class GoesOn(nn.Sequential):
    """A network that does something behind its head."""

    def forward(self, images: Tensor) -> Tensor:
        for module in self:
            images = module(images)
        return images * 2


class LooksAgain(nn.Sequential):
    """A network that looks at its images again behind its head."""

    def forward(self, images: Tensor) -> Tensor:
        flat, first, head = self.children()
        outputs: Tensor = head(first(flat(images)))
        return outputs + images.mean((1, 2, 3))[:, None]


class Drops(nn.Sequential):
    """A network that draws before its head, in train mode, by no module."""

    def forward(self, images: Tensor) -> Tensor:
        *before, head = self.children()
        for module in before:
            images = module(images)
        outputs: Tensor = head(dropout(images, 0.1, self.training))
        return outputs


class Networks:
    """Builds them."""

    @hookimpl
    def build_model(self, name: str) -> nn.Module | None:
        kinds: dict[str, Any] = {"goes_on": GoesOn, "again": LooksAgain, "drops": Drops, "linear": nn.Sequential}
        kind = kinds.get(name.removeprefix("own/"))
        return kind and kind(nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 4))


OWN = (f"{HERE}:Networks", "freeze_backbone")
SIZE = ("model.image_size=8", "model.channels=1", "model.mean=0.5", "model.std=0.5")
OBSTACLES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "images are changed in batches": ("digits/cnn", (*PROBE, "mixup"), ()),
    "loss terms need the images: supcon": ("digits/cnn", (*PROBE, "supcon"), ()),
    "the network is wrapped in DataParallel": ("digits/cnn", (*PROBE, "dp"), ()),
    "the network is compiled": ("digits/cnn", (*PROBE, "compile"), ("compile.backend=eager",)),
    "training images are augmented; train.views = K caches": ("digits/cnn", (*PROBE, "augment"), ()),
    "layers follow the head 2": ("own/again", OWN, SIZE),
    "the features of an image are random in train mode": ("own/drops", OWN, SIZE),
}
"""Why nothing is computed once -> model, plugins, settings."""


@pytest.mark.parametrize("reason", OBSTACLES)
def test_what_cannot_be_computed_once_is_not_and_the_run_says_why(reason: str, tmp_path: Path) -> None:
    model, plugins, sets = OBSTACLES[reason]

    assembly = prepare(config(tmp_path, *sets, plugins=plugins, model=model)).assembly

    assert assembly.parts.frozen_features is None
    assert assembly.precompute_reason.startswith(reason)


@pytest.mark.parametrize("reason", OBSTACLES)
def test_who_asks_for_what_cannot_be_computed_once_is_told_why(reason: str, tmp_path: Path) -> None:
    model, plugins, sets = OBSTACLES[reason]

    with pytest.raises(UserError) as caught:
        prepare(config(tmp_path, *sets, "train.precompute=always", plugins=plugins, model=model))

    beginning = "train.precompute = 'always' (--set train.precompute=always), but features cannot be cached: "
    assert str(caught.value).startswith(beginning + reason)


def test_a_network_of_our_own_is_computed_once_too(tmp_path: Path) -> None:
    parts = built(tmp_path, *SIZE, plugins=OWN, model="own/linear")

    assert isinstance(parts.frozen_features, FrozenFeatures)
    assert parts.frozen_features.note == "the input of 2 for each image, 16 numbers, 0.0 MB"


def test_a_network_that_goes_on_behind_its_head_learns_the_same_from_what_that_sees(tmp_path: Path) -> None:
    once, whole = (
        built(tmp_path, *SIZE, f"train.precompute={mode}", plugins=OWN, model="own/goes_on")
        for mode in ("auto", "never")
    )

    assert isinstance(once.frozen_features, FrozenFeatures)
    assert once.frozen_features.split_point.module == "2"
    (found, _), (expected, _) = trained(once), trained(whole)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


def test_nothing_is_said_of_a_network_that_learns(tmp_path: Path) -> None:
    ready = prepare(config(tmp_path, plugins=("adamw",)))

    assert (ready.assembly.parts.frozen_features, ready.assembly.precompute_reason) == (None, "")


@pytest.mark.parametrize(
    ("plugins", "sets", "message"),
    [
        (("adamw",), ("train.views=2",), "layers before the head are trainable from the first epoch on"),
        (PROBE, ("train.views=2",), "training images are not augmented, so all views would be the same"),
        (
            (*PROBE, "augment"),
            ("train.views=2", "train.precompute=never"),
            "views needs feature caching, which precompute",
        ),
    ],
)
def test_views_that_would_do_nothing_are_refused(
    plugins: tuple[str, ...], sets: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(config(tmp_path, *sets, plugins=plugins))


def test_a_run_says_what_is_computed_once(tmp_path: Path) -> None:
    result = invoke("run", "--plugin", "lp_ft", "--data", "digits:5-6", "--model", "digits/cnn", "--set",
                    f"run.folder={tmp_path / 'run'}", "--set", "train.epochs=4")  # fmt: skip

    assert result.code == 0
    assert "feature caching       the input of head for each image, 64 numbers, 0.1 MB, up to epoch 3" in result.err
