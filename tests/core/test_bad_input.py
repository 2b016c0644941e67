from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ftcore.testing import Result, image_folder, invoke
from ftcore_plugins.models.digits_cnn import make_cnn

if TYPE_CHECKING:
    from pathlib import Path


class Malicious:
    """What unpickling turns into a call."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of everything that a run cannot use, and of pictures that it can."""
    root = tmp_path_factory.mktemp("bad")
    write_files(root)
    write_pictures(root)
    write_weights(root)
    return root


def write_files(root: Path) -> None:
    (root / "failing_import.py").write_text("raise OSError('no licence')\n", encoding="utf-8")
    (root / "sloppy_hooks.py").write_text("def freeze(): ...\n", encoding="utf-8")
    (root / "typo.toml").write_text("[train]\nepoch = 3\n", encoding="utf-8")
    (root / "wrong_type.toml").write_text("[plugin.groups]\ndecay_all = 'false'\n", encoding="utf-8")
    (root / "garbled.toml").write_text("[train\n", encoding="utf-8")
    (root / "table.xyz").write_text("", encoding="utf-8")
    (root / "no_classes").mkdir()


def write_pictures(root: Path) -> None:
    image_folder(root / "photos")
    image_folder(root / "one_class", ("cat",))
    image_folder(root / "val_only" / "train", ("cat", "dog"))
    image_folder(root / "val_only" / "val", ("cat", "dog", "owl"))
    image_folder(root / "no_train" / "val", ("cat", "dog"))
    image_folder(root / "lonely")
    for picture in list((root / "lonely" / "red").iterdir())[1:]:
        picture.unlink()
    (image_folder(root / "empty_class") / "yellow").mkdir()
    (image_folder(root / "no_picture") / "red" / "7.jpg").write_text("<html>not found</html>", encoding="utf-8")
    damaged = image_folder(root / "damaged") / "red" / "3.jpg"
    Image.effect_noise((100, 80), 50).save(damaged)
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    beheaded = image_folder(root / "beheaded") / "red" / "3.jpg"
    beheaded.write_bytes(beheaded.read_bytes()[:100])


def write_weights(root: Path) -> None:
    state = make_cnn(classes=5).state_dict()
    del state["layer1.0.weight"]
    state["layer9.weight"] = torch.zeros(3)
    state["layer3.1.bias"] = torch.zeros(7)
    save_file(state, root / "misfit.safetensors")
    (root / "truncated.safetensors").write_bytes((root / "misfit.safetensors").read_bytes()[:-10])
    (root / "garbled.pth").write_bytes(b"no weights at all")
    torch.save({"numbers": [1, 2]}, root / "numbers.pth")
    torch.save({"state_dict": Malicious(root / "executed")}, root / "malicious.pth")
    torch.save(Malicious(root / "executed"), root / "malicious.pt", _use_new_zipfile_serialization=False)


CHEAP = {
    "unknown plugin": (
        ["--plugin", "wieghted_ce"],
        r"no plugin named 'wieghted_ce'; did you mean 'weighted_ce'\?",
    ),
    "plugin of another distribution": (["--plugin", "sgd@acme"], "plugin 'sgd' is not in distribution 'acme'"),
    "plugin in no form": (["--plugin", "a b"], r"cannot parse plugin 'a b' \(--plugin a b\)"),
    "missing hooks file": (["--plugin", "{bad}/missing.py"], r"plugin file not found: .*missing\.py"),
    "failing import": (
        ["--plugin", "{bad}/failing_import.py"],
        r"plugin 'failing_import' \(from .*failing_import\.py\) failed to import failing_import: OSError: no licence",
    ),
    "plugin that is wrong": (["--plugin", "{bad}/sloppy_hooks.py"], r"cannot be used:\n  freeze: has a hook's name"),
    "two answers": (
        ["--plugin", "sgd", "--plugin", "adam"],
        r"2 plugins implement make_optimizer(.*\n)*.*make_optimizer = \[\"sgd\", \"adam\"\]",
    ),
    "plugin named twice": (["--plugin", "sgd", "--plugin", "sgd"], "plugin 'sgd' is enabled twice"),
    "unknown plugin to leave out": (["--without", "progres"], r"--without progres: .*did you mean 'progress'\?"),
    "missing config": (["{bad}/missing.toml"], r"config file not found: .*missing\.toml"),
    "garbled config": (["{bad}/garbled.toml"], r"cannot read .*garbled\.toml"),
    "unknown key": (["{bad}/typo.toml"], r"unknown option 'train\.epoch'; did you mean 'epochs'\? \(.*typo\.toml"),
    "unknown key of a flag": (["--set", "train.epoch=3"], r"unknown option 'train\.epoch'.*\(--set train\.epoch=3"),
    "unknown section of a flag": (["--set", "trian.epochs=3"], r"'trian' is neither .*did you mean 'train'\?"),
    "wrong type": (["--set", "train.epochs=0.9"], r"train\.epochs: expected an integer, got '0\.9'"),
    "wrong type of a plugin": (["{bad}/wrong_type.toml"], r"groups\.decay_all: expected true or false, got 'fal"),
    "value out of range": (["--set", "train.batch_size=0"], r"'batch_size' must be > 0: 0"),
    "malformed flag": (["--set", "epochs"], "--set epochs: expected SECTION.KEY=VALUE"),
    "unknown hook to order": (["--set", 'hooks.make_los=["sgd"]'], r"no such hook 'make_los'"),
    "order of a plugin that is not there": (
        ["--set", 'hooks.make_loss=["sgd"]'],
        "names 'sgd', which is not an enabled",
    ),
    "options that nobody reads": (["--set", "sgd.lr=0.1"], "plugin 'sgd' has options but is not enabled"),
    "model without data": (["--model", "digits/cnn"], r"data\.source is not set: --data FOLDER"),
    "missing data": (
        ["--model", "digits/cnn", "--data", "{bad}/missing"],
        r"data\.source = '.*missing' \(.*missing does not exist\)",
    ),
    "data in an unknown form": (["--data", "{bad}/table.xyz"], "exists, but no plugin can read it"),
    "folder without classes": (["--data", "{bad}/no_classes"], r"no_classes has no class folders"),
    "one class": (["--data", "{bad}/one_class"], "at least two classes; the data has cat"),
    "class in validation alone": (["--data", "{bad}/val_only"], "class 'owl' is in validation but not in training"),
    "no training": (["--data", "{bad}/no_train"], "no_train: no training split; expected one called train"),
    "class with one picture": (["--data", "{bad}/lonely"], "class 'red' has one image"),
    "class folder without pictures": (["--data", "{bad}/empty_class"], r"class folder .*yellow has no images"),
    "no room for validation": (["--data", "{bad}/photos", "--set", "data.val_fraction=0.01"], "val_fraction = 0.01"),
    "file that is no picture": (["--data", "{bad}/no_picture"], r"cannot read image .*red/7\.jpg"),
    "picture without its header": (["--data", "{bad}/beheaded"], r"cannot read image .*red/3\.jpg"),
    "empty range of digits": (["--data", "digits:9-5"], "'digits:9-5': the range is empty"),
}
"""Found before torch is imported: arguments of run, and what the message must hold."""

DIGITS = ["--model", "digits/cnn", "--data", "digits:5-9"]
PHOTOS = ["--model", "digits/cnn", "--data", "{bad}/photos", "--set", "train.epochs=1"]
DAMAGED = ["--model", "digits/cnn", "--data", "{bad}/damaged", "--set", "train.epochs=1"]

OTHERS = {
    "network without provider": (["--model", "resnet50", "--data", "digits"], "expected PROVIDER/NETWORK"),
    "unknown network": (
        ["--model", "digits/vit", "--data", "digits"],
        "digits has no network 'digits/vit'; it has digits/cnn",
    ),
    "unknown timm network": (["--model", "timm/resnet18x", "--data", "digits"], r"nearest: timm/resnet18\b"),
    "unknown weights": ([*DIGITS, "--set", "model.weights=best"], "digits/cnn has no weights 'best'"),
    "missing weights": (
        [*DIGITS, "--set", "model.weights={bad}/missing.pth"],
        r"weights file not found: .*missing\.pth",
    ),
    "weights that do not fit": (
        [*DIGITS, "--set", "model.weights={bad}/misfit.safetensors"],
        r"do not fit Sequential:\n  1 missing: layer1\.0\.weight\n  1 not in the network: layer9\.weight\n"
        r"  1 different shape: layer3\.1\.bias is \(7,\), the network's is \(64,\)",
    ),
    "truncated weights": (
        [*DIGITS, "--set", "model.weights={bad}/truncated.safetensors"],
        r"cannot read weights .*truncated\.safetensors",
    ),
    "garbled weights": ([*DIGITS, "--set", "model.weights={bad}/garbled.pth"], r"weights .*garbled\.pth"),
    "weights that are none": ([*DIGITS, "--set", "model.weights={bad}/numbers.pth"], "not a mapping of names to tenso"),
    "malicious weights": ([*DIGITS, "--set", "model.weights={bad}/malicious.pth"], "contain more than tensors"),
    "old malicious weights": ([*DIGITS, "--set", "model.weights={bad}/malicious.pt"], "contain more than tensors"),
    "unknown metric to watch": ([*DIGITS, "--set", "train.monitor=acuracy"], "did you mean 'accuracy'"),
    "unknown class to weigh": (
        [*DIGITS, "--plugin", "weighted_ce", "--set", "weighted_ce.weights={{cat = 2}}"],
        "no class 'cat'; there are: 5, 6, 7, 8, 9",
    ),
    "plugin that answers nothing": (
        [*DIGITS, "--plugin", "mse"],
        "mse .* was enabled but supplies nothing in this run",
    ),
    "labels that are no numbers": ([*PHOTOS, "--set", "data.task=regression"], "needs numbers as labels, got '"),
    "device that is not there": (
        [*DIGITS, "--set", "one_device.device=cuda:77"],
        "'cuda:77' does not exist on this machine",
    ),
    "damaged picture": ([*DAMAGED, "--set", "train.workers=0"], r"cannot read image .*damaged/red/3\.jpg: "),
    "damaged picture in a worker": (
        [*DAMAGED, "--set", "train.workers=2"],
        r"cannot read image .*damaged/red/3\.jpg: ",
    ),
}
"""Found later, with torch."""


def filled(arguments: list[str], bad: Path) -> list[str]:
    return [argument.format(bad=bad) for argument in arguments]


def assert_one_message(result: Result, message: str) -> None:
    assert result.code == 2, result
    assert result.out == ""
    assert re.search(message, result.err), result.err
    assert "Traceback" not in result.err
    assert [line.startswith("ftcore: ") for line in result.err.splitlines()].count(True) == 1, result.err


@pytest.mark.parametrize("case", [*CHEAP, *OTHERS])
def test_bad_input_gives_one_message_and_leaves_nothing_behind(case: str, bad: Path, tmp_path: Path) -> None:
    arguments, message = {**CHEAP, **OTHERS}[case]

    result = invoke("run", *filled(arguments, bad), "--set", f"run.folder={tmp_path / 'runs' / 'new'}")

    assert_one_message(result, message)
    assert not (tmp_path / "runs" / "new").exists()
    assert not (bad / "executed").exists()


def test_the_malicious_weights_would_execute_something_if_they_were_trusted(tmp_path: Path) -> None:
    file = tmp_path / "malicious.pth"
    torch.save({"state_dict": Malicious(tmp_path / "executed")}, file)

    torch.load(file, weights_only=False)

    assert (tmp_path / "executed").is_dir()


def test_the_damaged_picture_has_a_sound_header(bad: Path) -> None:
    with Image.open(bad / "damaged" / "red" / "3.jpg") as image:
        assert image.size == (100, 80)
        with pytest.raises(OSError, match="truncated"):
            image.load()


def test_cheap_mistakes_are_found_before_torch_is_imported(bad: Path) -> None:
    cases = {name: filled(arguments, bad) for name, (arguments, _) in CHEAP.items()}
    program = (
        "import json, sys\nfrom ftcore.testing import invoke\n"
        "for name, arguments in json.loads(sys.argv[1]).items():\n"
        "    code = invoke('run', *arguments).code\n"
        "    print(json.dumps([name, code, 'torch' in sys.modules]))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(cases)], check=True, capture_output=True, text=True
    )

    assert [json.loads(line) for line in done.stdout.splitlines()] == [[name, 2, False] for name in CHEAP]


@pytest.mark.parametrize("command", [("explain",), ("plugins",), ("models",), ("inspect", "digits/cnn")])
def test_the_other_commands_refuse_bad_input_in_the_same_way(command: tuple[str, ...]) -> None:
    assert_one_message(invoke(*command, "--plugin", "wieghted_ce"), "no plugin named 'wieghted_ce'")


@pytest.mark.parametrize("command", [("explain",), ("inspect", "digits/cnn")])
def test_the_commands_that_take_options_refuse_unknown_ones(command: tuple[str, ...]) -> None:
    assert_one_message(invoke(*command, "--set", "train.epoch=3"), "unknown option 'train.epoch'")


def test_an_unknown_flag_is_an_error_of_use() -> None:
    result = invoke("run", "--pluginn", "sgd")

    assert result.code == 2
    assert "No such option" in result.err


def test_a_run_folder_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")

    result = invoke("run", "--set", f"run.folder={tmp_path}")

    assert_one_message(result, rf"run\.folder {tmp_path} exists and is not empty \(--set run\.folder={tmp_path}\)")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("mine", encoding="utf-8")

    assert_one_message(invoke("run", "--set", f"run.folder={file}"), r"run\.folder .*run exists and is not empty")
    assert file.read_text(encoding="utf-8") == "mine"


def test_a_run_that_fails_in_an_empty_folder_leaves_nothing_in_it(bad: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()

    result = invoke("run", *filled(DAMAGED, bad), "--set", f"run.folder={folder}")

    assert_one_message(result, "cannot read image")
    assert list(folder.rglob("*")) == []


def test_predict_refuses_a_folder_that_is_no_run(bad: Path, tmp_path: Path) -> None:
    result = invoke("predict", tmp_path, bad / "photos")

    assert_one_message(result, rf"{tmp_path} is not a run folder with a model: it has no .*model\.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"cannot read .*model\.json: JSONDecodeError"),
        ("[]", r"cannot read .*model\.json: TypeError"),
        ("{}", r"cannot read .*model\.json: KeyError"),
        ('{"format": 999}', r"model\.json has format 999; this ftcore reads formats 1 and 2"),
        ('{"format": 1}', r"model\.json"),
    ],
)
def test_predict_refuses_a_model_that_it_cannot_read(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text(text, encoding="utf-8")

    assert_one_message(invoke("predict", tmp_path, tmp_path), message)


LONE = """
from torch import nn
from ftcore import InputSpec, Backbone, HeadSlot, hookimpl

@hookimpl
def build_model():
    layers = nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
    return Backbone(nn.Sequential(*layers), (HeadSlot("3", 8),), InputSpec((8, 8), channels=1, mean=(0.5,), std=(0.5,)))
"""


@pytest.mark.parametrize("freeze_norm", [False, True])
def test_batches_of_one_image_are_refused_where_batch_norm_learns(tmp_path: Path, *, freeze_norm: bool) -> None:
    (tmp_path / "lone.py").write_text(LONE, encoding="utf-8")
    words = ["--plugin", str(tmp_path / "lone.py"), *(["--plugin", "freeze_norm"] if freeze_norm else [])]
    sets = ("train.batch_size=1", "train.epochs=1", f"run.folder={tmp_path / 'run'}")
    flags = [word for text in sets for word in ("--set", text)]

    result = invoke("run", "--model", "own/lone", "--data", "digits:5-6", *words, *flags)

    if freeze_norm:
        assert result.code == 0
    else:
        assert result.code == 2
        assert "ftcore: train.batch_size = 1: batch norm cannot be trained on a batch of one image" in result.err
        assert "train.batch_size=2, freeze_norm or a network without batch norm helps" in result.err
