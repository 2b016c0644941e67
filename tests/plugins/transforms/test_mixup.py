"""Mixup and cutmix, as a run sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from ftcore.testing import invoke
from ftcore_plugins.transforms.mixup import CutMix, CutMixConfig, MixConfig, MixUp

if TYPE_CHECKING:
    from pathlib import Path


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 16, 16, generator=generator), torch.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]


def test_mixup_equals_the_formula_with_the_ratio_that_the_targets_show() -> None:
    images, targets = batch()
    torch.manual_seed(3)

    (mix,) = MixUp(MixConfig(alpha=0.4)).batch_transforms()
    mixed, soft = mix(images, targets)

    ratio = float(soft[0, 0])
    assert 0 < ratio < 1
    torch.testing.assert_close(mixed, ratio * images + (1 - ratio) * images.roll(1, 0))
    torch.testing.assert_close(soft, ratio * targets + (1 - ratio) * targets.roll(1, 0))


def test_cutmix_targets_are_the_shares_of_the_area() -> None:
    images, targets = batch()
    torch.manual_seed(5)

    (mix,) = CutMix(CutMixConfig()).batch_transforms()
    mixed, soft = mix(images, targets)

    own = (mixed == images).all(dim=1).double().mean(dim=(1, 2))
    assert 0 < float(own[0]) < 1
    torch.testing.assert_close(soft[:, :].max(dim=1).values.double(), torch.maximum(own, 1 - own))


def test_a_batch_is_mixed_as_often_as_the_probability_says() -> None:
    images, targets = batch()
    (mix,) = MixUp(MixConfig(alpha=1.0, probability=0.25)).batch_transforms()
    torch.manual_seed(0)

    mixed = sum(mix(images, targets)[0] is not images for _ in range(400))

    assert 70 < mixed < 130


def trained(folder: Path, *plugins: str, sets: tuple[str, ...] = (), data: str = "digits:5-6") -> bytes:
    texts = [f"run.folder={folder}", "train.epochs=2", *sets]
    words = [word for text in texts for word in ("--set", text)]
    words += [word for plugin in plugins for word in ("--plugin", plugin)]
    result = invoke("run", "--data", data, "--model", "digits/cnn", *words)
    assert result.code == 0, result.err
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on two cores
@pytest.mark.slow
def test_augmented_and_mixed_runs_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    plugins = ("augment", "mixup", "cutmix", "balanced_sampling", "weighted_ce")
    sets = ("augment.preset=heavy", "mixup.probability=0.5")

    found = {
        trained(tmp_path / f"{workers}", *plugins, sets=(*sets, f"train.workers={workers}")) for workers in range(4)
    }

    assert len(found) == 1


@pytest.mark.parametrize("plugin", ["mixup", "cutmix", "augment", "balanced_sampling"])
def test_each_of_them_changes_the_run(tmp_path: Path, plugin: str) -> None:
    assert trained(tmp_path / "with", plugin) != trained(tmp_path / "without")


def test_a_mix_of_images_with_themselves_trains_as_without(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks.py"
    hooks.write_text(
        "from ftcore import hookimpl\n\n\n"
        "@hookimpl\ndef batch_transforms():\n    return [lambda images, targets: (images, targets)]\n"
    )
    for extra in ((), ("weighted_ce",)):
        name = "-".join(extra)
        soft = trained(tmp_path / f"soft{name}", str(hooks), *extra)
        hard = trained(tmp_path / f"hard{name}", *extra)
        from safetensors.torch import load

        for key, tensor in load(hard).items():
            torch.testing.assert_close(load(soft)[key], tensor, rtol=0, atol=1e-5)


ALONE = """
import torch
from ftcore import BatchImageTransform, hookimpl

@hookimpl
def batch_transforms(spec):
    assert spec.mean == (0.3,)
    return [BatchImageTransform(lambda images: images + 0.1 * torch.rand(images.shape))]

@hookimpl
def make_loss():
    return torch.nn.CrossEntropyLoss()  # of classes alone, for all that the run knows
"""


def test_what_changes_images_alone_leaves_classes_to_any_loss(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks.py"
    hooks.write_text(ALONE)

    changed = trained(tmp_path / "changed", str(hooks))

    assert changed == trained(tmp_path / "again", str(hooks))
    assert changed != trained(tmp_path / "without")


def test_a_loss_that_takes_no_soft_targets_is_refused_by_name(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks.py"
    hooks.write_text(
        "import torch\nfrom ftcore import hookimpl\n\n\n@hookimpl\ndef make_loss():\n    return torch.nn.NLLLoss()\n"
    )

    result = invoke("run", "--plugin", "mixup", "--plugin", hooks)

    assert result.code == 2
    assert "mixup makes soft targets, but make_loss of hooks takes class indices only" in result.err
