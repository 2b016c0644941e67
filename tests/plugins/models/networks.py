"""Networks of any provider, with weights of their own or those of the shared folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from ftcore.config.load import CliOverrides, load_config
from ftcore.model.build import Network, build_network
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore.testing import Result, invoke
from ftcore_plugins.tasks import Classification

if TYPE_CHECKING:
    from torch import nn

SHARED = Path(__file__).parents[4] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder with real pictures is not here")
TASK = Classification(("a", "b", "c"), (1, 1, 1))


def network(name: str, *sets: str, weights: str | Path = "none") -> Network:
    host = activate(load_config(None, CliOverrides(name, "digits", sets=(f"model.weights={weights}", *sets))))
    return build_network(host.config, HookCalls(host), TASK)


def outputs(made: Network, images: int = 2) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = made.module.eval()(torch.randn(images, made.spec.channels, *made.spec.size))
    return found


def saved(name: str, folder: Path, **options: Any) -> tuple[nn.Module, Path]:
    """A network with weights of its own, and the file that holds them."""
    torch.manual_seed(7)
    provider, _, network_name = name.partition("/")
    make = timm.create_model if provider == "timm" else torchvision.models.get_model
    model: nn.Module = make(network_name, **options)
    save_file(model.state_dict(), folder / "weights.safetensors")
    return model, folder / "weights.safetensors"


def differing(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> set[str]:
    assert found.keys() == wanted.keys()
    return {k for k in wanted if found[k].shape != wanted[k].shape or not torch.equal(found[k], wanted[k])}


def few_pictures(folder: Path, per_class: int = 10) -> Path:
    for source in sorted(path for path in (SHARED / "trashnet").iterdir() if path.is_dir()):
        (folder / source.name).mkdir(parents=True)
        for picture in sorted(source.glob("*.jpg"))[:per_class]:
            shutil.copyfile(picture, folder / source.name / picture.name)
    return folder


def real_run(tmp_path: Path, model: str, weights: str, *sets: str) -> Result:
    plugins = ("freeze_backbone", "weighted_ce", "adamw")
    size = ("model.image_size=96", "train.epochs=3", "train.batch_size=8", "data.val_fraction=0.4", "adamw.lr=0.01")
    given = (f"model.weights={SHARED / 'weights' / weights}", f"run.folder={tmp_path / 'run'}", *size, *sets)
    flags = [flag for plugin in plugins for flag in ("--plugin", plugin)]
    flags += [flag for text in given for flag in ("--set", text)]
    return invoke("run", "--model", model, "--data", few_pictures(tmp_path / "data"), *flags, "--json")
