"""Weights files fit a network exactly, or the message says where they do not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.faults.killing import run_python
from torch import nn

from ftcore import HeadSlot, UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.model.weights import _check_torch, is_weights_file, load_weights, read_weights
from ftcore.runs.prepared import prepare
from ftcore_plugins.data.digits import WEIGHTS

HEAD = (HeadSlot("head", 6),)


class Net(nn.Module):
    """A body, a norm layer and a head."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, classes)
        self.header = nn.Linear(2, 2)


@pytest.fixture
def _forked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Read .pth files in a process that has imported everything; one test of each outcome runs the real command."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        code = "from ftcore.model.safe_unpickle import main; main()"
        return run_python(code, *command[command.index("ftcore.model.safe_unpickle") + 1 :], folder=tmp_path)

    ours = SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL)  # of that module alone
    monkeypatch.setattr("ftcore.model.weights.subprocess", ours)


def saved(file: Path, state: dict[str, Any]) -> Path:
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return file


def outside_head(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}


@pytest.mark.usefixtures("_forked")
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.pt", "weights.bin"])
def test_a_file_of_tensors_is_loaded_bit_for_bit(tmp_path: Path, name: str) -> None:
    given, model = Net(), Net()
    file = saved(tmp_path / name, given.state_dict())

    load_weights(model, file)

    torch.testing.assert_close(dict(model.state_dict()), dict(given.state_dict()), rtol=0, atol=0)


def test_a_state_dict_inside_a_checkpoint_is_found(tmp_path: Path) -> None:
    given, model = Net(), Net()

    load_weights(model, saved(tmp_path / "epoch.pth", {"state_dict": given.state_dict(), "epoch": 3}))

    torch.testing.assert_close(outside_head(model), outside_head(given), rtol=0, atol=0)


def test_the_old_heads_are_neither_loaded_nor_missed(tmp_path: Path) -> None:
    given, model = Net(classes=1000), Net()
    head = model.head.weight.detach().clone()

    load_weights(model, saved(tmp_path / "all.safetensors", given.state_dict()), HEAD)
    load_weights(model, saved(tmp_path / "body.safetensors", outside_head(given)), HEAD)

    torch.testing.assert_close(outside_head(model), outside_head(given), rtol=0, atol=0)
    assert torch.equal(model.head.weight, head)


def test_a_module_whose_name_only_starts_like_the_head_is_loaded(tmp_path: Path) -> None:
    given, model = Net(), Net()

    load_weights(model, saved(tmp_path / "w.safetensors", given.state_dict()), HEAD)

    assert torch.equal(model.header.weight, given.header.weight)


def test_a_head_of_another_shape_is_an_error_where_it_is_not_replaced(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.safetensors", Net(classes=1000).state_dict())

    with pytest.raises(UserError, match=r"2 different shape: head.bias is \(1000,\), the network's is \(4,\)"):
        load_weights(Net(), file)


def test_every_key_that_does_not_fit_is_reported_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = Net().state_dict()
    state["body.wieght"] = state.pop("body.weight")
    state["norm.bias"] = torch.zeros(7)
    model = Net()
    before = model.body.bias.detach().clone()

    with pytest.raises(UserError, match="do not fit Net") as caught:
        load_weights(model, saved(tmp_path / "w.safetensors", state), HEAD)

    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines == [
        "1 missing: body.weight",
        "1 not in the network: body.wieght",
        "1 different shape: norm.bias is (7,), the network's is (6,)",
    ]
    assert torch.equal(model.body.bias, before)


def test_a_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UserError, match=r"weights file not found: nowhere.safetensors \(looked at .*nowhere"):
        read_weights(Path("nowhere.safetensors"))


@pytest.mark.usefixtures("_forked")
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_a_damaged_file_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(UserError, match=rf"weights .*{name}"):
        read_weights(tmp_path / name)


def test_a_cut_off_file_is_an_error(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", Net().state_dict())
    file.write_bytes(file.read_bytes()[:-200])

    with pytest.raises(UserError, match=r"weights .*w\.pth"):
        read_weights(file)


class Malice:
    """Would run a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", {"body.weight": Malice(tmp_path / "trace")})

    with pytest.raises(UserError, match="contain more than tensors, which ftcore does not load"):
        read_weights(file)

    assert not (tmp_path / "trace").exists()


@pytest.mark.usefixtures("_forked")
@pytest.mark.parametrize("content", [[torch.zeros(1)], {"epoch": 3}])
def test_a_file_of_anything_but_named_tensors_is_an_error(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")

    with pytest.raises(UserError, match="not a mapping of names to tensors"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("default", False),
        ("none", False),
        ("IMAGENET1K_V2", False),
        ("w.safetensors", True),
        ("w.pth", True),
        ("./weights", True),
        ("folder/weights", True),
    ],
)
def test_the_form_says_whether_weights_are_a_file(weights: str, expected: bool) -> None:  # noqa: FBT001 - a table
    assert is_weights_file(weights) is expected


@pytest.mark.usefixtures("_forked")
@pytest.mark.parametrize("weights", ["default", "file"])
def test_a_run_starts_from_the_pre_trained_tensors_bit_for_bit_outside_the_head(tmp_path: Path, weights: str) -> None:
    shipped = read_weights(WEIGHTS)
    if weights == "file":
        shipped = {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in shipped.items()}
        weights = str(saved(tmp_path / "given.pth", shipped))
    flags = CliOverrides("digits/cnn", "digits:5-7", sets=(f"model.weights={weights}",))

    network = prepare(load_config(None, flags)).assembly.parts.network

    torch.testing.assert_close(
        outside_head(network), {k: v for k, v in shipped.items() if "head" not in k}, rtol=0, atol=0
    )
    assert network.get_parameter("head.weight").shape == (3, 64)
    assert shipped["head.weight"].shape == (5, 64)


@pytest.mark.parametrize("version", ["2.6.0", "2.9.1+cpu", "1.13.1", "2.9.0a0+git1"])
def test_a_pickled_file_is_refused_where_torch_could_be_made_to_execute_it(version: str) -> None:
    with pytest.raises(UserError, match=r"CVE-2026-24747.*torch>=2\.10.*safetensors"):
        _check_torch(version, Path("weights.pth"))


@pytest.mark.parametrize("version", ["2.10.0", "2.10.0rc1+cu128", "2.15.0", "3.0"])
def test_a_pickled_file_is_read_where_torch_has_the_fix(version: str) -> None:
    _check_torch(version, Path("weights.pth"))


def test_the_reader_of_a_pickled_file_can_open_nothing_more(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.pth")
    code = """
import errno, pickle, socket, subprocess, sys
import torch
from pathlib import Path
from ftcore.model import safe_unpickle

def hostile(*_, **__):
    for attempt in (
        lambda: open("/etc/hostname"),
        lambda: open("written", "w"),
        lambda: socket.socket(),
        lambda: subprocess.run(["touch", "written"]),
    ):
        try:
            attempt()
        except OSError as error:
            print(errno.errorcode[error.errno])
    return {"weight": torch.ones(2)}

torch_load, calls = torch.load, []
def load(*given, **named):
    calls.append(given)
    return hostile() if len(calls) == 3 else torch_load(*given, **named)
torch.load = load
print(repr(safe_unpickle.convert(Path("a.pth"), Path("b.safetensors"))))
"""
    done = run_python(code, folder=tmp_path)

    assert done.stdout.split() == ["EMFILE", "EMFILE", "EMFILE", "EMFILE", "''"], done.stderr
    assert not (tmp_path / "written").exists()
    assert (tmp_path / "b.safetensors").exists()
