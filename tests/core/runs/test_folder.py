"""What a run leaves behind is enough to know it and to do it again."""

from __future__ import annotations

import hashlib
import json
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ftcore import RunStarted, UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.run import fit
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from ftcore.testing import Result

HOOKS = """
from ftcore import hookimpl
from torch.nn.functional import cross_entropy


@hookimpl
def make_loss():
    return lambda outputs, targets: cross_entropy(outputs, targets, label_smoothing=0.1)
"""


def train(folder: Path, *arguments: str | Path, sets: tuple[str, ...] = ()) -> Result:
    options = [word for text in (f"run.folder={folder}", *sets) for word in ("--set", text)]
    result = invoke("run", *arguments, *options)
    assert result.code == 0, result.err
    return result


def digits(folder: Path, *arguments: str | Path, sets: tuple[str, ...] = ("train.epochs=2",)) -> Result:
    return train(folder, "--data", "digits:5-6", "--model", "digits/cnn", *arguments, sets=sets)


def weights(folder: Path) -> bytes:
    return max(folder.glob("checkpoints/step-*/model.safetensors")).read_bytes()


def read(file: Path) -> Any:
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with a hooks file and options."""
    folder = tmp_path_factory.mktemp("runfolder")
    (folder / "smooth_loss.py").write_text(HOOKS)
    plugins: list[str | Path] = ["--plugin", "sgd", "--plugin", folder / "smooth_loss.py"]
    digits(folder / "run", *plugins, sets=("train.epochs=2", "sgd.lr=0.05"))
    return folder / "run"


def test_a_run_folder_has_these_files(run: Path) -> None:
    names = {path.name for path in run.iterdir()}

    assert names >= {"config.toml", "manifest.json", "log.jsonl", "metrics.jsonl", "checkpoints", "model"}


def test_the_resolved_config_says_where_each_value_was_set(run: Path) -> None:
    lines = (run / "config.toml").read_text().splitlines()

    assert "epochs = 2 # --set train.epochs=2" in lines
    assert "batch_size = 32 # default" in lines
    assert "lr = 0.05 # --set sgd.lr=0.05" in lines
    assert "momentum = 0.9 # default" in lines
    assert 'source = "digits:5-6" # --data digits:5-6' in lines


def test_the_resolved_config_has_every_option_of_the_plugins_that_were_used(run: Path) -> None:
    config = tomllib.loads((run / "config.toml").read_text())

    assert config["plugins"][0] == "sgd"
    sgd = {"lr": 0.05, "momentum": 0.9, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}
    assert config["plugin"]["sgd"] == sgd
    assert config["plugin"]["cosine"] == {"warmup": 0.05, "final": 0.0, "cycles": 1, "per": "step"}
    assert "adamw" not in config["plugin"]


def test_the_resolved_config_runs_again_to_the_same_weights(run: Path, tmp_path: Path) -> None:
    train(tmp_path / "again", run / "config.toml")

    assert weights(tmp_path / "again") == weights(run)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--plugin", "weighted_ce", "--set", "weighted_ce.weights={5 = 10}"),
        ("--plugin", "weighted_ce", "--set", "weighted_ce.weights=[1, 2.5]"),
        ("--plugin", "freeze_modules", "--set", 'freeze_modules.names=["layer1"]'),
        ("--plugin", "mlp_head", "--set", "mlp_head.hidden=[8, 4]", "--without", "progress"),
        ("--set", "model.mean=0.5", "--set", "model.std=[0.5]"),
        ("--plugin", "adam", "--plugin", "sgd", "--set", 'hooks.make_optimizer=["sgd", "adam"]'),
    ],
    ids=["table", "list", "names", "without", "model", "hooks"],
)
def test_each_form_of_a_value_survives_the_resolved_config(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    digits(tmp_path / "first", *arguments, sets=("train.epochs=1",))

    train(tmp_path / "again", tmp_path / "first" / "config.toml")

    assert weights(tmp_path / "again") == weights(tmp_path / "first")


def test_the_manifest_says_which_plugin_answered_each_hook(run: Path) -> None:
    hooks = read(run / "manifest.json")["hooks"]

    assert hooks["make_optimizer"] == "sgd"
    assert hooks["make_loss"] == "smooth_loss"
    assert hooks["build_data"] == hooks["build_model"] == "digits"
    assert hooks["make_metrics"] == ["class_metrics"]


def test_the_manifest_identifies_each_plugin_by_version_and_source(run: Path) -> None:
    plugins = {plugin["name"]: plugin for plugin in read(run / "manifest.json")["plugins"]}
    hooks = run.parent / "smooth_loss.py"

    assert plugins["sgd"]["source"] == f"ftcore {metadata.version('ftcore')}"
    assert plugins["sgd"]["origin"] == "--plugin sgd"
    assert plugins["smooth_loss"]["source"] == str(hooks)
    assert plugins["smooth_loss"]["sha256"] == hashlib.sha256(hooks.read_bytes()).hexdigest()
    assert all(len(plugin["sha256"]) == 64 for plugin in plugins.values())


def test_the_manifest_has_the_versions_of_the_libraries(run: Path) -> None:
    libraries = read(run / "manifest.json")["libraries"]

    assert {name: metadata.version(name) for name in ("ftcore", "torch", "torchvision", "timm", "pluggy")}.items() <= (
        libraries.items()
    )


def test_the_manifest_has_the_fingerprint_of_the_data(run: Path, tmp_path: Path) -> None:
    digits(tmp_path / "same", sets=("train.epochs=1",))
    train(tmp_path / "other", "--data", "digits:5-7", "--model", "digits/cnn", sets=("train.epochs=1",))

    data = [read(folder / "manifest.json")["data"] for folder in (run, tmp_path / "same", tmp_path / "other")]

    assert (data[0]["source"], data[0]["train"], data[0]["val"]) == ("digits:5-6", 290, 73)
    assert data[0]["fingerprint"] == data[1]["fingerprint"] != data[2]["fingerprint"]


def test_metrics_have_one_line_an_epoch(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 10), (2, 20)]
    assert all({"loss", "accuracy", "f1", "confusion_matrix"} == set(line["val"]) for line in lines)
    assert all(line["train"]["loss"] > 0 for line in lines)


def test_the_log_is_json_lines_from_the_first_event_to_the_last(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]

    events = [line["event"] for line in lines]
    assert events[0] == "RunStarted"
    assert events[-1] == "RunEnded"
    assert events.count("EpochEnded") == 2
    assert all({"level", "timestamp"} <= line.keys() for line in lines)


def test_with_json_the_last_line_of_standard_output_is_the_report(tmp_path: Path) -> None:
    result = digits(tmp_path / "run", "--json")

    report = json.loads(result.out.splitlines()[-1])
    assert len(result.out.splitlines()) == 1
    assert (report["folder"], report["epochs"], report["monitor"]) == (str(tmp_path / "run"), 2, "accuracy")
    assert report["hooks"]["make_optimizer"] == "adamw"
    assert report["last"]["epoch"] == 2
    assert "epoch   2" in result.err


def test_without_json_everything_is_on_standard_error(tmp_path: Path) -> None:
    result = digits(tmp_path / "run")

    assert result.out == ""
    assert "results saved to" in result.err


def test_the_model_is_that_of_the_best_epoch(tmp_path: Path) -> None:
    report = digits(tmp_path / "run", "--json", sets=("train.epochs=3",)).report

    description = read(tmp_path / "run" / "model" / "model.json")
    steps = 10 * report["best"]["epoch"]
    best = tmp_path / "run" / "checkpoints" / f"step-{steps:08d}" / "model.safetensors"
    assert description["epoch"] == report["best"]["epoch"]
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == best.read_bytes()


def test_the_models_description_has_no_weights_to_fetch(run: Path) -> None:
    description = read(run / "model" / "model.json")

    assert description["model"]["weights"] == "none"
    assert description["task"]["state"]["names"] == ["5", "6"]
    assert description["plugins"] == []


def test_a_folder_that_holds_something_is_refused(run: Path) -> None:
    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", "--set", f"run.folder={run}")

    assert result.code == 2
    assert f"run.folder {run} exists and is not empty (--set run.folder={run}); choose another" in result.err


def test_two_runs_without_a_folder_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", "digits:5-6", "--model", "digits/cnn", "--set", "train.epochs=1", "--json"]

    folders = [Path(invoke("run", *arguments).report["folder"]) for _ in range(2)]

    assert sorted(Path("runs").iterdir()) == sorted(folders)
    assert len(set(folders)) == 2


def test_a_run_that_fails_in_its_first_epoch_leaves_no_folder(tmp_path: Path) -> None:
    damaged = image_folder(tmp_path / "data") / "red" / "0.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-300])
    sets = [f"run.folder={tmp_path / 'run'}", "model.weights=none", "model.image_size=32"]
    options = [word for text in sets for word in ("--set", text)]

    result = invoke("run", "--data", tmp_path / "data", "--model", "timm/test_resnet", *options)

    assert result.code == 2
    assert not (tmp_path / "run").exists()


def test_an_observer_that_cannot_start_ends_a_run_that_is_to_stop_and_the_others_hear_of_it(tmp_path: Path) -> None:
    heard: list[Any] = []

    def refuse(event: Any) -> None:
        if isinstance(event, RunStarted):
            raise UserError("the server does not answer")

    sets = (f"run.folder={tmp_path / 'run'}", "observers.on_error=stop")
    with pytest.raises(UserError, match="the server does not answer"):
        fit(load_config(None, CliOverrides("digits/cnn", "digits:5-6", sets=sets)), [heard.append, refuse])

    assert [type(event).__name__ for event in heard] == ["RunStarted", "RunFailed"]
    assert not (tmp_path / "run").exists()
