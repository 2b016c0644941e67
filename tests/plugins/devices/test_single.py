"""Where the network runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ftcore import UserError
from ftcore.testing import invoke
from ftcore_plugins.devices.single import DataParallel, OneDeviceConfig, SingleDevice
from ftcore_plugins.models.digits_cnn import make_cnn

if TYPE_CHECKING:
    from pathlib import Path


def test_the_default_device_is_the_fastest_that_is_there() -> None:
    placement = SingleDevice(OneDeviceConfig()).wrap_devices(nn.Linear(2, 2))

    fastest = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert placement.device.type == fastest
    assert {parameter.device.type for parameter in placement.model.parameters()} == {fastest}


def test_the_device_can_be_named() -> None:
    model = nn.Linear(2, 2)

    placement = SingleDevice(OneDeviceConfig("cpu")).wrap_devices(model)

    assert placement.device == torch.device("cpu")
    assert placement.model is model
    assert placement.unwrap(placement.model) is model
    assert (placement.rank, placement.world_size, placement.reduce(3)) == (0, 1, 3)


@pytest.mark.parametrize("name", ["gpu", "cuda:one", "", "cpu:a"])
def test_a_name_of_no_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"device = '{name}' is not a device; use cuda, cuda:1, mps or cpu"):
        SingleDevice(OneDeviceConfig(name)).wrap_devices(nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["cuda:63", "meta", "xla"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(UserError, match=rf"device = '{name}' does not exist on this machine; available: .*cpu"):
        SingleDevice(OneDeviceConfig(name)).wrap_devices(nn.Linear(2, 2))


def test_data_parallel_unwraps_to_the_network_itself() -> None:
    model = make_cnn(classes=2)

    placement = DataParallel().wrap_devices(model)

    assert isinstance(placement.model, nn.DataParallel)
    assert placement.unwrap(placement.model) is model
    assert "DataParallel" in placement.note


def test_data_parallel_gives_what_the_network_gives() -> None:
    model = make_cnn(classes=2).eval()
    images = torch.randn(6, 1, 8, 8)
    expected = model(images)

    placement = DataParallel().wrap_devices(model)

    torch.testing.assert_close(placement.model(images.to(placement.device)).cpu(), expected, rtol=1e-4, atol=1e-4)


def test_a_run_in_data_parallel_saves_the_networks_own_names(tmp_path: Path) -> None:
    sets = ("--set", "train.epochs=1", "--set", f"run.folder={tmp_path / 'run'}")

    result = invoke("run", "--plugin", "dp", "--data", "digits:5-6", "--model", "digits/cnn", *sets)

    saved = list((tmp_path / "run").rglob("model.safetensors"))
    assert result.code == 0
    assert len(saved) == 2
    assert all(load_file(path).keys() == make_cnn(classes=2).state_dict().keys() for path in saved)
    assert "DataParallel: " in result.err
