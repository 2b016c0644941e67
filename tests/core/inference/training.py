"""Runs whose models are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftcore.testing import Result, image_folder, invoke

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DIGITS = ("--data", "digits:5-6", "--model", "digits/cnn")
TEXTS = ("--plugin", "tests.core.types.test_model:Texts", "--data", "letters", "--model", "own/bag")


def train(folder: Path, *sets: str, source: Path | None = None, plugins: Sequence[str] = ()) -> Path:
    """Train a tiny network on pictures, and return the run folder."""
    data = source or image_folder(folder / "data")
    options = [word for text in (f"run.folder={folder / 'run'}", "train.epochs=1", *sets) for word in ("--set", text)]
    options += [word for text in plugins for word in ("--plugin", text)]
    result = invoke("run", "--data", data, "--model", "digits/cnn", *options)
    assert result.code == 0, result.err
    return folder / "run"


def run(folder: Path, *arguments: str) -> Path:
    sets = ("train.epochs=1", "train.threads=1", f"run.folder={folder}")
    result = invoke("run", *(word for text in sets for word in ("--set", text)), *arguments)
    assert result.code == 0, result.err
    return folder


def exported(run: Path, kind: str, file: Path) -> Result:
    result = invoke("export", run, "--format", kind, "--out", file)
    assert result.code == 0, result.err
    return result


def table(folder: Path, labels: list[str]) -> Path:
    pictures = image_folder(folder / "pictures", ("a", "b"), per_class=8)
    rows = [
        f"{path.relative_to(folder)},{label}"
        for path, label in zip(sorted(pictures.rglob("*.jpg")), labels * 8, strict=True)
    ]
    names = ["first", "second"][: 1 + labels[0].count(",")]
    (folder / "table.csv").write_text("\n".join([f"path,{','.join(names)}", *rows]))
    return folder / "table.csv"
