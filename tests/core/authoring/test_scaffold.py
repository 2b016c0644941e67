"""What `ftcore plugins new` writes works as it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from ftcore.authoring import scaffold
from ftcore.hooks import HOOK_ARGUMENTS
from ftcore.testing import Result, invoke

ROOT = Path(__file__).parents[3]
ITS_NETWORK = ("--data", "digits:5-6", "--model", "acme_demo/small", "--set", "model.weights=none")
OWN = {
    "make_task": ("--data", "digits:5-9", "--model", "digits/cnn", "--set", "data.task=acme_demo"),
    "build_data": ("--data", "acme_demo", "--model", "digits/cnn"),
    "build_model": ITS_NETWORK,
    "list_models": ITS_NETWORK,
}
"""What a run names beside the plugin, for hooks that answer only what is their own."""


def run(folder: Path, *arguments: str) -> Result:
    return invoke("run", *arguments, "--set", "train.epochs=1", "--set", f"run.folder={folder / 'run'}", "--json")


@pytest.mark.parametrize("hook", HOOK_ARGUMENTS)
def test_a_hooks_file_for_each_hook_answers_it_at_once(
    hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = invoke("plugins", "new", "acme_demo", "--hook", hook, "--in-house")
    (tmp_path / "hooks.py").rename(tmp_path / "acme_demo_hooks.py")

    result = run(tmp_path, "--plugin", "./acme_demo_hooks.py:AcmeDemo", *OWN.get(hook, ()))

    assert (written.code, written.out) == (0, "hooks.py\n")
    assert result.code == 0, result.err
    answers = result.report["hooks"].get(hook, ["acme_demo"])  # a run asks `list_models` only for near names
    assert "acme_demo" in ([answers] if isinstance(answers, str) else answers)


@pytest.mark.parametrize("hook", HOOK_ARGUMENTS)
def test_each_option_that_is_written_is_read(hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    invoke("plugins", "new", "acme_demo", "--hook", hook, "--in-house")
    (tmp_path / "hooks.py").rename(tmp_path / "acme_demo_hooks.py")
    shown = json.loads(invoke("plugins", "show", "./acme_demo_hooks.py:AcmeDemo", "--json").out)["options"]

    others = {"int": "30", "float": "0.5", "bool": "true", "str": "cpu"}
    sets = [f"acme_demo.{row['option']}={others[row['type']]}" for row in shown]
    if hook == "make_observers":
        sets = ["acme_demo.epochs_only=false"]
    flags = [flag for text in sets for flag in ("--set", text)]
    result = run(tmp_path, "--plugin", "./acme_demo_hooks.py:AcmeDemo", *OWN.get(hook, ()), *flags)

    assert shown
    assert all(row["meaning"] for row in shown)
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    "hooks", [[hook] for hook in HOOK_ARGUMENTS] + [list(HOOK_ARGUMENTS)], ids=lambda hooks: "+".join(hooks)[:24]
)
def test_what_is_written_is_formatted_and_has_the_imports_that_it_needs(hooks: list[str], tmp_path: Path) -> None:
    files = [str(path) for path in scaffold.write_package("acme_demo", hooks, tmp_path) if path.suffix == ".py"]
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--isolated", "--no-cache", "--line-length", "120"]

    checks = ["--select", "E,F,W,I,UP,B,TC", "--config", 'lint.isort.known-first-party=["acme_demo"]']
    linted = subprocess.run([*ruff, "check", *options, *checks, *files], capture_output=True, text=True, check=False)
    formatted = subprocess.run(
        [*ruff, "format", "--diff", *options, *files], capture_output=True, text=True, check=False
    )

    assert linted.returncode == 0, linted.stdout
    assert formatted.returncode == 0, formatted.stdout


def test_no_placeholder_is_left_in_a_package(tmp_path: Path) -> None:
    written = scaffold.write_package("acme_demo", list(HOOK_ARGUMENTS), tmp_path)

    assert {str(path.relative_to(tmp_path)) for path in written} == {
        "acme_demo/pyproject.toml",
        "acme_demo/README.md",
        "acme_demo/.github/workflows/check.yml",
        "acme_demo/src/acme_demo/__init__.py",
        "acme_demo/src/acme_demo/py.typed",
        "acme_demo/tests/test_acme_demo.py",
    }
    assert [path.name for path in written if "$" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Acme", "is not a valid plugin name: use lower-case words"),
        ("acme__focal", "is not a valid plugin name"),
        ("acme_", "is not a valid plugin name"),
        ("acme_2", "is not a valid plugin name"),
        ("model", "_, no Python keyword and none of data, hooks, model"),
        ("lambda", "no Python"),
        ("weighted_ce", "'weighted_ce' is already used by ftcore "),
        ("json", "'json' is already used by a module of that name"),
        ("torch", "'torch' is already used by a module of that name"),
    ],
)
def test_a_name_that_a_plugin_cannot_have_is_refused(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("plugins", "new", name, "--hook", "make_loss")

    assert result.code == 2
    assert reason in result.err
    assert not any(tmp_path.iterdir())


def test_an_unknown_hook_shows_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("plugins", "new", "acme_demo", "--hook", "make_los")

    assert result.code == 2
    assert "no hook 'make_los'; did you mean 'make_loss'?: --hook takes one of build_data, " in result.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [(), ("--in-house",)])
def test_nothing_is_overwritten(flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = invoke("plugins", "new", "acme_demo", "--hook", "make_loss", *flags)
    again = invoke("plugins", "new", "acme_demo", "--hook", "make_loss", *flags)

    assert (first.code, again.code) == (0, 2)
    assert "already exists and will not be overwritten" in again.err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_packages_for_every_hook_install_pass_their_tests_and_are_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two packages: one for a hook alone, and one for all hooks."""
    monkeypatch.chdir(tmp_path)
    packages = {"acme_demo": ["make_loss"], "acme_all": list(HOOK_ARGUMENTS)}
    for name, hooks in packages.items():
        made = invoke("plugins", "new", name, *(flag for hook in hooks for flag in ("--hook", hook)))
        assert made.code == 0, made.err
    site = tmp_path / "site"
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def call(*command: str, folder: str = ".") -> str:
        done = subprocess.run(
            command, cwd=tmp_path / folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    installed = [f"./{name}" for name in packages]
    call("uv", "pip", "install", "-q", "--python", sys.executable, "--no-deps", "--target", str(site), *installed)
    sources = [f"{name}/src/{name}" for name in packages]
    call(sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache" / "new"), *sources)
    for name, hooks in packages.items():
        flags = ("-q", "-p", "no:cacheprovider", "-p", "no:randomly")
        assert "2 passed" in call(sys.executable, "-m", "pytest", *flags, folder=name)
        ftcore = ("-c", "from ftcore.cli import main; main()", "plugins")
        rows = json.loads(call(sys.executable, *ftcore, "--json"))
        (row,) = [row for row in rows if row["name"] == name]
        assert row["hooks"] == ", ".join(sorted(hooks))


def test_its_workflow_names_actions_by_the_hash_of_a_commit_and_may_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("plugins", "new", "acme_demo", "--hook", "make_loss").code == 0
    ours = ROOT / ".github" / "workflows" / "ci.yml"

    for file in (tmp_path / "acme_demo" / ".github" / "workflows" / "check.yml", ours):
        workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {}
        for job in workflow["jobs"].values():
            assert job["permissions"] == {"contents": "read"}
            used = [step for step in job["steps"] if "uses" in step]
            assert used
            assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"]) for step in used)
            assert used[0]["with"]["persist-credentials"] is False
