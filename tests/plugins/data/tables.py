"""A table of pictures, and what is read from it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.config.load import CliOverrides, load_config
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftcore import Data

HEADER = ("path", "label", "age", "split", "who")
ROWS = [
    (f"{n}.png", ("cat", "dog", "owl")[n % 3], f"{n / 2}", ("train", "train", "val")[n // 3 % 3], f"p{n // 3}")
    for n in range(18)
]
LABEL = "table.target=label"


def write(file: Path, rows: Sequence[Sequence[str]] = ROWS, header: Sequence[str] = HEADER, cut: str = ",") -> Path:
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened, delimiter=cut).writerows([header, *rows])
    return file


def index(file: Path, *sets: str) -> Data:
    host = activate(load_config(None, CliOverrides("digits/cnn", str(file), sets=sets)))
    return HookCalls(host).build_data(host.config.data.source)


def splits(data: Data) -> list[list[tuple[str, Any]]]:
    """Name and target of every sample, split by split."""
    return [[(Path(s.name(i)).name, s[i][1]) for i in range(len(s))] for s in (data.train, data.val)]


def targets(data: Data) -> dict[str, Any]:
    return {name: target for split in splits(data) for name, target in split}


def meaning(data: Data) -> dict[str, Any]:
    return {name: data.task.names[target] for name, target in targets(data).items()}
