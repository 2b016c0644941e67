"""What made a run, and whether another run was made of the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ftcore_plugins
from ftcore import HOOK_API, UserError
from ftcore.plugins.trust import digest
from ftcore.runs.manifest import config_changes, direct_url, read_manifest, version_changes
from ftcore.testing import invoke

if TYPE_CHECKING:
    from collections.abc import Callable

HOOKS = """
from ftcore import hookimpl
import torch


@hookimpl
def make_loss(task):
    return torch.nn.CrossEntropyLoss(label_smoothing={smoothing})
"""


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a hooks file, in `tmp_path` as the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hooks.py").write_text(HOOKS.format(smoothing=0.1), encoding="utf-8")
    sets = ("train.epochs=1", "train.batch_size=64", "adamw.lr=0.002", "run.folder=first")
    flags = [word for text in sets for word in ("--set", text)]
    assert invoke("run", "--plugin", "./hooks.py", "--plugin", "adamw", *flags).code == 0
    return tmp_path / "first"


def plugins(run: Path) -> dict[str, Any]:
    return {plugin["name"]: plugin for plugin in read_manifest(run)["plugins"]}


def test_a_plugin_is_told_apart_by_distribution_version_origin_source_and_options(first: Path) -> None:
    found = plugins(first)

    assert found["hooks"]["source"] == str(first.parent / "hooks.py")
    assert found["hooks"]["direct_url"] is None
    assert found["adamw"]["source"].startswith("ftcore ")
    assert found["adamw"]["origin"] == "--plugin adamw"
    assert found["adamw"]["options"]["lr"] == 0.002
    assert found["adamw"]["option_origins"]["lr"] == "--set adamw.lr=0.002"
    assert found["adamw"]["option_origins"]["eps"] == "default"
    assert len({plugin["sha256"] for plugin in found.values()}) == 2


def test_a_run_repeats_another_to_the_last_digit(first: Path) -> None:
    result = invoke("run", "--from", first, "--json")

    assert result.code == 0, result.err
    again = Path(result.report["folder"])
    assert again.parent.name == "runs"
    lines = [json.loads((run / "metrics.jsonl").read_text(encoding="utf-8")) for run in (first, again)]
    assert lines[0]["train"] == lines[1]["train"]
    assert lines[0]["val"] == lines[1]["val"]


def test_flags_may_change_the_run_that_is_repeated(first: Path) -> None:
    result = invoke("run", "--from", first, "--set", "adamw.lr=0.5", "--set", "run.folder=other", "--json")

    assert result.code == 0, result.err
    assert plugins(first.parent / "other")["adamw"]["options"]["lr"] == 0.5


def test_a_plugin_whose_source_changed_is_refused_unless_drift_is_allowed(first: Path) -> None:
    before = plugins(first)["hooks"]["sha256"]
    (first.parent / "hooks.py").write_text(HOOKS.format(smoothing=0.2), encoding="utf-8")

    assert "has changed since it was trusted" in invoke("run", "--from", first, "--set", "run.folder=second").err
    result = invoke("run", "--from", first, "--plugin", "hooks.py", "--set", "run.folder=second")

    assert result.code == 2
    assert (
        result.err.splitlines()[-2]
        == "ftcore: configuration or environment differ from the original run; --allow-drift repeats it anyway"
    )
    assert result.err.splitlines()[-1].startswith(f"  plugin hooks, sha256: {before} then, ")
    assert not (first.parent / "second").exists()
    named = ("--plugin", "hooks.py", "--set", "run.folder=second")
    assert invoke("run", "--from", first, "--allow-drift", *named).code == 0


CHANGES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("library", lambda m: m["libraries"].update(torch="1.0"), "torch: 1.0 then, 2.* now"),
    ("data", lambda m: m["data"].update(fingerprint="f"), "data fingerprint: f then, [0-9a-f]{64} now"),
    ("api", lambda m: m.update(hook_api=[0, 9]), rf"hook API: \[0, 9\] then, \[{HOOK_API[0]}, {HOOK_API[1]}\] now"),
    ("version", lambda m: m["plugins"][0].update(source="acme 7"), "source: acme 7 then, .* now"),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_what_changed_is_named(first: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    file = first / "manifest.json"
    changed = json.loads(file.read_text(encoding="utf-8"))
    change(changed)
    file.write_text(json.dumps(changed), encoding="utf-8")

    (line,) = [line for line in invoke("run", "--from", first).err.splitlines() if " then, " in line]

    assert re.search(message, line), line


def test_equal_manifests_have_not_drifted(first: Path) -> None:
    assert version_changes(read_manifest(first), read_manifest(first)) == []


def test_a_run_whose_manifest_does_not_describe_its_input_cut_out_the_centre(first: Path) -> None:
    now = read_manifest(first)
    before = {key: value for key, value in now.items() if key != "input"}
    squashed = {**now, "input": {**now["input"], "crop_mode": "squash"}}

    assert config_changes(before, now) == []
    assert config_changes(before, squashed) == ["input crop_mode: center then, squash now"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "nowhere"), "config file not found: nowhere/config.toml"),
        (("--allow-drift",), "--allow-drift needs --from RUN"),
        (("other.toml", "--from", "first"), "--from first already defines the run; remove other.toml"),
    ],
)
def test_what_cannot_be_repeated_is_an_error(first: Path, arguments: tuple[str, ...], message: str) -> None:
    result = invoke("run", *arguments)

    assert result.code == 2
    assert message in result.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read"),
        ("{}", "KeyError: 'format'"),
        ('{"format": 99}', "has format 99; this ftcore reads format 1"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")

    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_a_folder_without_a_manifest_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder: it has no"):
        read_manifest(tmp_path)


def test_the_digest_of_a_package_covers_all_its_modules_and_only_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "acme_digest" / "inner"
    package.mkdir(parents=True)
    for file in (package.parent / "__init__.py", package / "__init__.py", package / "losses.py", package / "other.py"):
        file.write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    digests = [digest(None, "acme_digest.inner.losses")]

    (package / "notes.txt").write_text("not source", encoding="utf-8")
    digests.append(digest(None, "acme_digest.inner.losses"))
    (package / "other.py").write_text("x = 1", encoding="utf-8")
    digests.append(digest(None, "acme_digest.inner.losses"))

    assert digests[0] == digests[1] != digests[2]


def test_what_has_no_source_has_no_digest() -> None:
    assert digest(None, "nowhere.at.all") is None


def test_an_editable_install_says_from_which_folder() -> None:
    found = direct_url("ftcore")

    if found is None:
        pytest.skip("ftcore is installed from an index")
    assert Path(ftcore_plugins.__file__).is_relative_to(found["url"].removeprefix("file://"))
