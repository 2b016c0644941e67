"""A run folder is never permission: the code that its files name is loaded where the user names or trusts it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.core.inference.training import run

import ftcore
from ftcore import UserError
from ftcore.plugins import trust
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOOKS = """
from ftcore import hookimpl
open({trace!r}, "a").close()
@hookimpl(wrapper=True)
def make_transforms():
    return (yield)
"""
READERS = (
    "predict",
    "evaluate",
    "export",
    "compare",
    "report",
    "resume",
    "replay",
    "from",
    "soup",
    "ensemble",
    "serve",
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of somebody else's, without code."""
    folder = tmp_path_factory.mktemp("foreign")
    image_folder(folder / "pictures", ("a", "b"), per_class=6)
    model = ("--model", "timm/test_resnet", "--set", "model.weights=none", "--set", "model.image_size=16")
    return run(folder / "run", "--data", str(folder / "pictures"), *model)


@pytest.fixture
def foreign(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, with a hooks file beside it; the working folder is where both are."""
    path = list(sys.path)
    shutil.copytree(own, tmp_path / "run")
    (tmp_path / "evilp.py").write_text(HOOKS.format(trace=str(tmp_path / "trace")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield tmp_path / "run"
    sys.path[:] = path
    for name in ("evilp", "acme_wrapping"):
        sys.modules.pop(name, None)


def naming(run: Path, text: str) -> Path:
    """Let the files of a run name a plugin."""
    file = run / "model" / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"plugins": [text]}))
    config = run / "config.toml"
    config.write_text(config.read_text().replace("plugins = []", f"plugins = [{json.dumps(text)}]"))
    return run


def command(reader: str, run: Path, *more: str) -> tuple[str | Path, ...]:
    picture = next((run.parent / "run").parent.rglob("*.jpg"), None) or "picture.jpg"
    commands: dict[str, tuple[str | Path, ...]] = {
        "predict": ("predict", run, picture),
        "export": ("export", run, "--format", "torch", "--out", run.parent / "exported.pt"),
        "compare": ("compare", run, run),
        "from": ("run", "--from", run, "--allow-drift", "--out", run.parent / "again"),
        "soup": ("soup", run, "--out", run.parent / "soup"),
        "ensemble": ("ensemble", run, run, "--out", run.parent / "ensemble"),
    }
    return (*commands.get(reader, (reader, run)), *more)


SPELLINGS: dict[str, Callable[[Path], str]] = {
    "its whole path": lambda folder: str(folder / "evilp.py"),
    "beside the run": lambda _: "../evilp.py",
    "above the model": lambda _: "../../evilp.py",
    "a path over /proc": lambda _: "/proc/self/cwd/evilp.py",
    "a path over /dev/fd": lambda _: "/dev/fd/../cwd/evilp.py",
    "two slashes": lambda folder: f"/{folder}//./evilp.py",
    "up and down again": lambda folder: f"{folder}/run/../evilp.py",
    "a link": lambda folder: str(_linked(folder)),
    "a class in it": lambda folder: f"{folder}/evilp.py:Evil",
    "a module": lambda _: "evilp",
    "a class of a module": lambda _: "evilp:Evil",
    "a module of the standard library": lambda _: "antigravity",
    "a module of an installed package": lambda _: "ftcore_plugins.losses:Focal",
}


def _linked(folder: Path) -> Path:
    (folder / "link.py").symlink_to(folder / "evilp.py")
    return folder / "link.py"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_code_that_a_run_names_is_not_loaded_however_it_is_spelt(foreign: Path, spelling: str) -> None:
    naming(foreign, SPELLINGS[spelling](foreign.parent))
    sys.path.insert(0, str(foreign.parent))

    found = [invoke(*command(reader, foreign)) for reader in ("predict", "evaluate")]

    sys.path.remove(str(foreign.parent))
    assert [one.code for one in found] == [2, 2]
    assert not (foreign.parent / "trace").exists()


@pytest.mark.parametrize("reader", READERS)
def test_no_command_that_reads_a_run_loads_its_code(foreign: Path, reader: str) -> None:
    naming(foreign, str(foreign.parent / "evilp.py"))

    found = invoke(*command(reader, foreign))

    assert not (foreign.parent / "trace").exists()
    if reader != "ensemble":  # which builds no network of several that are alike
        assert found.code == 2
        assert "is not trusted: code that a file names is loaded only if you name it" in found.err
        assert f"--plugin {foreign.parent / 'evilp.py'}" in found.err


def test_a_config_that_lies_in_a_run_folder_is_one_of_a_run(foreign: Path) -> None:
    naming(foreign, "../evilp.py")

    found = invoke("run", foreign / "config.toml", "--out", "again")

    assert found.code == 2
    assert "is not trusted" in found.err


@pytest.mark.parametrize("start", ["-m", "-P -m"])
def test_the_working_folder_is_none_of_the_places_where_code_is_found(foreign: Path, start: str) -> None:
    for name in ("timm", "structlog"):
        (foreign.parent / f"{name}.py").write_text(f"open({str(foreign.parent / 'trace')!r}, 'a').close()\n")
    brought = foreign.parent / "ftcore-99.0.dist-info"
    brought.mkdir()
    (brought / "METADATA").write_text("Metadata-Version: 2.1\nName: ftcore\nVersion: 99.0\n")
    (brought / "entry_points.txt").write_text("[ftcore.defaults]\ndefaults = evilp\n[ftcore.plugins]\nsgd = evilp\n")

    done = subprocess.run(
        [sys.executable, *start.split(), "ftcore", "predict", str(foreign), "x.jpg"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2, done.stderr
    assert not (foreign.parent / "trace").exists()


def test_distributions_in_the_working_folder_are_none(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brought = foreign.parent / "evil-1.0.dist-info"
    brought.mkdir()
    (brought / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (brought / "entry_points.txt").write_text("[ftcore.plugins]\nevil = evilp\n")
    for path in ("", ".", str(foreign.parent)):
        monkeypatch.syspath_prepend(path)

    found = invoke(*command("predict", naming(foreign, "evil")))

    assert found.code == 2
    assert "no plugin named 'evil'" in found.err
    assert not (foreign.parent / "trace").exists()


def test_an_entry_point_is_that_of_the_distribution_in_the_manifest(
    foreign: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path_factory.mktemp("site")
    (site / "acme-1.0.dist-info").mkdir()
    (site / "acme-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (site / "acme-1.0.dist-info" / "entry_points.txt").write_text("[ftcore.plugins]\nacme_wrap = acme_wrapping\n")
    (site / "acme_wrapping.py").write_text(HOOKS.format(trace=str(foreign.parent / "trace")))
    monkeypatch.syspath_prepend(site)
    naming(foreign, "acme_wrap")
    manifest = json.loads((foreign / "manifest.json").read_text())

    def recorded(source: str) -> int:
        plugins = [*manifest["plugins"], {"name": "acme_wrap", "source": source, "origin": "x"}]
        (foreign / "manifest.json").write_text(json.dumps(manifest | {"plugins": plugins}))
        return invoke(*command("predict", foreign)).code

    assert [invoke(*command("predict", foreign)).code, recorded("other 2.0"), recorded("/a/file.py")] == [2, 2, 2]
    assert not (foreign.parent / "trace").exists()
    pictures = image_folder(foreign.parent / "new", ("a",), per_class=1)
    assert recorded("acme 1.0") == 0
    assert pictures.exists()
    assert (foreign.parent / "trace").exists()


def test_the_users_own_file_takes_the_place_of_the_one_that_the_run_names(foreign: Path) -> None:
    pictures = image_folder(foreign.parent / "new", ("a",), per_class=1)
    mine = foreign.parent / "mine" / "evilp.py"
    mine.parent.mkdir()
    mine.write_text(HOOKS.format(trace=str(foreign.parent / "mine" / "trace")))
    naming(foreign, "/home/of/somebody/evilp.py")

    found = invoke("predict", foreign, pictures, "--plugin", "mine/evilp.py")

    assert found.code == 0, found.err
    assert found.err.splitlines() == [f"executes the hooks file {mine}"]
    assert (mine.parent / "trace").exists()
    assert not (foreign.parent / "trace").exists()
    assert invoke("predict", foreign, pictures).code == 2  # it was the permission of that command
    assert len(ftcore.load(foreign, plugins=[str(mine)]).predict(next(pictures.rglob("*.jpg")))) == 1


def test_a_run_is_trusted_with_its_files_as_they_are(foreign: Path) -> None:
    pictures = image_folder(foreign.parent / "new", ("a",), per_class=1)
    evil = foreign.parent / "evilp.py"
    naming(foreign, "/proc/self/cwd/evilp.py")
    expected = hashlib.sha256(evil.read_bytes()).hexdigest()

    shown = invoke("trust", foreign, "--show", "--json")
    assert [(row["file"], row["SHA-256, of a package that of all its files"]) for row in _rows(shown.out)] == [
        (str(evil), expected)
    ]
    assert invoke("predict", foreign, pictures).code == 2

    assert invoke("trust", foreign).code == 0
    assert not (foreign.parent / "trace").exists()
    assert invoke("predict", foreign, pictures).code == 0
    assert (foreign.parent / "config" / "ftcore" / "trusted.jsonl").stat().st_mode & 0o777 == 0o600

    evil.write_text(evil.read_text() + "\n")
    changed = invoke("predict", foreign, pictures)
    assert changed.code == 2
    assert "has changed since it was trusted" in changed.err


def _rows(text: str) -> list[dict[str, Any]]:
    (rows,) = json.loads(text).values()
    return list(rows)


def test_a_run_of_ones_own_is_used_without_ceremony(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = image_folder(foreign.parent / "new", ("a", "b"), per_class=6)
    again = foreign.parent / "again"

    made = run(again, "--data", str(pictures), "--model", "digits/cnn", "--plugin", "./evilp.py")

    assert invoke("predict", made, next(pictures.rglob("*.jpg"))).code == 0
    assert invoke("evaluate", made).code == 0
    assert invoke("run", "--from", made, "--out", "copy", "--plugin", "./evilp.py").code == 0
    monkeypatch.setenv("XDG_CONFIG_HOME", str(foreign.parent / "another user"))
    assert invoke("predict", made, next(pictures.rglob("*.jpg"))).code == 2


def test_what_lies_beside_a_trusted_file_is_not_executed_in_its_place(foreign: Path) -> None:
    naming(foreign, str(foreign.parent / "evilp.py"))
    assert invoke("trust", foreign).code == 0
    package = foreign.parent / "evilp"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(foreign.parent / 'other')!r}, 'a').close()\n")

    found = invoke(*command("predict", foreign))

    assert found.code == 2
    assert "that name is already" in found.err
    assert not (foreign.parent / "other").exists()


@pytest.mark.parametrize("text", ["", "[]\n", "{}\n", "\x00\n", "[" * 100_000, '{"path": 3}\n', "\xff"])
def test_a_list_that_cannot_be_read_trusts_nothing(foreign: Path, text: str) -> None:
    naming(foreign, str(foreign.parent / "evilp.py"))
    assert invoke("trust", foreign).code == 0
    file = trust.trust_file()
    assert file
    file.write_text(text, encoding="latin-1")

    assert invoke(*command("predict", foreign)).code == 2
    assert not (foreign.parent / "trace").exists()


def test_the_list_is_not_written_through_a_link(foreign: Path) -> None:
    naming(foreign, str(foreign.parent / "evilp.py"))
    file = trust.trust_file()
    assert file
    file.parent.mkdir(parents=True)
    file.symlink_to(foreign.parent / "victim")

    assert invoke("trust", foreign).code == 2
    assert not (foreign.parent / "victim").exists()


def test_a_relative_folder_of_configuration_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "config")
    monkeypatch.setenv("HOME", str(tmp_path))

    file = trust.trust_file()

    assert file
    assert file.is_relative_to(tmp_path)


def test_what_the_user_names_is_not_checked(foreign: Path) -> None:
    with pytest.raises(UserError, match="is not trusted"):
        ftcore.load(naming(foreign, str(foreign.parent / "evilp.py")))


@pytest.mark.parametrize("words", [("check",), ("explain", "--static")])
def test_looking_at_a_config_of_others_executes_nothing(foreign: Path, words: tuple[str, ...]) -> None:
    data = image_folder(foreign.parent / "new", ("a", "b"))
    config = foreign.parent / "foreign.toml"
    config.write_text(f'plugins = ["./evilp.py"]\n[data]\nsource = "{data}"\n')

    found = invoke(*words, config)

    assert found.code == 2
    assert "is not trusted: code that a file names is loaded only if you name it" in found.err
    assert not (foreign.parent / "trace").exists()
    named = invoke(*words, config, "--plugin", "evilp.py")
    assert named.code == 0, named.err
    assert f"executes the hooks file {foreign.parent / 'evilp.py'}" in named.err.splitlines()
    assert invoke("trust", config).code == 0
    assert invoke(*words, config).code == 0
