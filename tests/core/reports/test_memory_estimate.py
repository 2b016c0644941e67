"""What a step takes of memory: counted exactly where it can be, and beside what a real step takes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ftcore.config.load import CliOverrides, load_config
from ftcore.reports.memory_estimate import MemoryEstimate, measure, table
from ftcore.runs.prepared import prepare
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PARAMETERS, HEAD = 56_229 * 4, 325 * 4
REAL = """
import gc, sys
import torch
from ftcore.tuning import trial
from ftcore.config.load import CliOverrides, load_config
from ftcore.reports.memory_estimate import measure
from ftcore.training.loop import train_step
from ftcore.system.memory import DeviceMemory, rss
from ftcore.runs.prepared import prepare
from ftcore.training.state import Progress

torch.set_num_threads(1)
model, data, *plugins = sys.argv[1:]


def parts_of(name):
    sets = ("model.weights=none", "model.image_size=64", "train.batch_size=4", "train.workers=0", "train.threads=1")
    return prepare(load_config(None, CliOverrides(name, data, plugins=plugins, sets=sets))).assembly.parts


def trained(parts):
    trial.start_first_epoch(parts)
    batches, progress = trial.batches(parts), Progress()
    for _ in range(2):
        train_step(parts, next(batches), progress)
    batches.close()


trained(parts_of("timm/test_resnet"))  # imports all that is
gc.collect()
before = rss()
parts = parts_of(model)
with DeviceMemory(parts.placement.device).peak() as peak:
    trained(parts)
print(peak.bytes - before, measure(parts_of(model)).total(1))
"""


def counted(*sets: str, plugins: Sequence[str] = ()) -> MemoryEstimate:
    config = load_config(None, CliOverrides("digits/cnn", "digits:5-9", plugins=plugins, sets=sets))
    return measure(prepare(config).assembly.parts)


def test_each_part_is_counted() -> None:
    found = counted()

    assert found.parameters == PARAMETERS
    assert 0 < found.buffers < 3000  # of batch norm
    assert found.gradients == PARAMETERS
    steps = 11 * 4  # a float32 a tensor
    assert found.optimizer == 2 * PARAMETERS + steps
    assert found.average == 0
    assert found.batch == 32


@pytest.mark.parametrize(
    ("sets", "plugins", "optimizer"),
    [
        ((), ("sgd",), PARAMETERS),
        (("sgd.momentum=0",), ("sgd",), 0),
        ((), ("freeze_backbone",), 2 * HEAD + 2 * 4),
    ],
    ids=["momentum", "no momentum", "frozen"],
)
def test_the_state_is_that_of_the_optimizer_and_of_what_learns(
    sets: Sequence[str], plugins: Sequence[str], optimizer: int
) -> None:
    found = counted(*sets, plugins=plugins)

    assert found.optimizer == optimizer
    assert found.gradients == (HEAD if "freeze_backbone" in plugins else PARAMETERS)


def test_what_is_frozen_keeps_little_for_the_backward_pass() -> None:
    assert counted(plugins=("freeze_backbone",)).activations < counted().activations / 5


def test_an_average_is_a_second_network() -> None:
    found = counted(plugins=("ema",))

    assert found.average == found.parameters + found.buffers


def test_what_is_released_in_the_end_counts_from_the_beginning() -> None:
    found = counted("train.epochs=5", plugins=("lp_ft",))

    assert found.gradients == PARAMETERS
    assert found.activations == counted().activations


def test_several_devices_share_the_images_and_where_they_are_told_to_the_network() -> None:
    found = MemoryEstimate(parameters=90, buffers=10, gradients=100, optimizer=201, average=0, activations=10, batch=9)

    assert [found.total(devices) for devices in (1, 2, 4, 20)] == [491, 451, 431, 411]
    assert [found.total(devices, spread=True) for devices in (1, 4)] == [491, 10 + 23 + 25 + 51 + 30]
    columns = ("", "one device, 9 images", "ddp, each of 4, 3 images", "fsdp, each of 4, 3 images")
    assert table(found, 4).columns == columns
    assert "average" not in {row[0] for row in table(found, 4).rows}
    assert len(table(found, 1).columns) == 2


@pytest.mark.slow
@pytest.mark.machine
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("plugin", ["adamw", "sgd"])
def test_a_real_step_takes_as_much(plugin: str, tmp_path: Path) -> None:
    """Of a network whose parameters are most of it."""
    data = image_folder(tmp_path / "pictures")

    command = [sys.executable, "-c", REAL, "torchvision/resnet50", str(data), plugin]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    measured, said = map(int, done.stdout.split())
    assert said == pytest.approx(measured, rel=0.15)


def test_the_command_shows_it_where_it_is_asked_for() -> None:
    words = ("explain", "--data", "digits:5-9", "--model", "digits/cnn", "--json")

    shown, not_asked = (json.loads(invoke(*words, *more).out) for more in (("--devices", "2"), ()))
    refused = invoke(*words, "--static", "--devices", "2")

    assert shown["memory"][-1][""] == "all"
    columns = {"", "one device, 32 images", "ddp, each of 2, 16 images", "fsdp, each of 2, 16 images"}
    assert set(shown["memory"][0]) == columns
    assert "memory" not in not_asked
    assert "which --static does not build" in refused.err
