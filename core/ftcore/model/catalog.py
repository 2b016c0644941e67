"""The networks that there are: what they weigh, what they see, and how long they take on this machine."""

from __future__ import annotations

import hmac
import json
import math
import statistics
import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen

from ftcore.errors import UserError, suggestions
from ftcore.system.user_cache import cache_folder, read_all, seal, warn_unusable, write_all
from ftcore.types.table import Table

from .shape_inference import on_meta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from torch import nn

    from ftcore.types.model import ModelInfo


_MAX_CACHE_BYTES = 10**7
"""Of the file of counts, a line of 50 bytes for each network."""

_FACTORS = {"k": 1e3, "m": 1e6, "b": 1e9}


@frozen
class ModelRow:
    """A network with what was found out about it.

    Attributes:
        info: as its provider describes it.
        parameters: how many it has, with its own head; None where nobody counted yet.
        milliseconds: median time of a forward pass with one image; None where it was not measured.
    """

    info: ModelInfo
    parameters: int | None = None
    milliseconds: float | None = None


def filter_models(known: Sequence[ModelInfo], pattern: str) -> list[ModelInfo]:
    """Return the networks whose name, with or without the provider, matches a glob; or holds a word that is none.

    Raises:
        UserError: there are none.
    """
    glob = (pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*").lower()
    names = {info.name: info.name.lower() for info in known}
    found = [i for i in known if fnmatchcase(names[i.name], glob) or fnmatchcase(names[i.name].partition("/")[2], glob)]
    if not found:
        near = suggestions(pattern.lower(), {name.partition("/")[2] for name in names})
        raise UserError(f"no network matches {pattern!r}; nearest: {near}")
    return found


def parse_count(text: str) -> float:
    """``10M`` -> 1e7; k, M and B are thousands, millions and billions.

    Raises:
        UserError: it is no such number.
    """
    try:
        number = float(text[:-1]) * _FACTORS[text[-1].lower()] if text[-1:].lower() in _FACTORS else float(text)
    except ValueError:
        number = 0
    if not 0 < number < math.inf:
        raise UserError(f"--max-params {text}: expected a number such as 10M, 1.5B or 250000")
    return number


def rows_from_cache(found: Sequence[ModelInfo]) -> list[ModelRow]:
    """Make rows with the parameters that were counted before, on this machine and for these versions."""
    counts = read_cache()
    return [ModelRow(info, counts.get(_key(info))) for info in found]


def count_parameters(rows: Sequence[ModelRow], track: Callable[[list[ModelRow]], Iterable[ModelRow]]) -> list[ModelRow]:
    """Count the parameters that are not known yet, about 0.15 s a network, and remember them.

    Args:
        rows: the networks.
        track: goes through a list, and may show how far it is.
    """
    counts = {_key(row.info): row.parameters for row in rows if row.parameters is not None}
    try:
        for row in track([row for row in rows if row.parameters is None]):
            counts[_key(row.info)] = sum(p.numel() for p in _built(row.info).parameters())
    finally:
        _write_cache(counts)
    return [evolve(row, parameters=counts[_key(row.info)]) for row in rows]


def _built(info: ModelInfo) -> nn.Module:
    try:
        return on_meta(info.build)
    except Exception as error:
        raise UserError(f"{info.name} of {info.library} cannot be built: {type(error).__name__}: {error}") from error


def measure_latency(row: ModelRow, seconds: float = 2.0) -> ModelRow:
    """Time forward passes of one image with random weights, after two to warm up; the median of those in `seconds`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = row.info.build().to(device).eval()
    images = torch.zeros(1, row.info.channels, *row.info.size, device=device)
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(2):
            module(images)
        until = time.monotonic() + seconds
        while len(times) < 3 or time.monotonic() < until:
            started = time.perf_counter()
            module(images).sum().item()  # waits for the device
            times.append(time.perf_counter() - started)
    return evolve(row, milliseconds=1000 * statistics.median(times))


def sort_by_size(rows: Sequence[ModelRow]) -> list[ModelRow]:
    """Smallest first; what nobody counted comes last, by name."""
    return sorted(rows, key=lambda row: (row.parameters is None, row.parameters or 0, row.info.name))


def table(rows: Sequence[ModelRow]) -> Table:
    """Show networks as people read them."""
    columns = ["network", "parameters", "input", "library", "weights"]
    cells = [[row.info.name, _millions(row), _input(row), row.info.library, _weights(row)] for row in rows]
    if any(row.milliseconds is not None for row in rows):
        columns.append("ms per image")
        cells = [[*line, f"{row.milliseconds:.1f}"] for line, row in zip(cells, rows, strict=True)]
    return Table(f"{len(rows)} network{'s' if len(rows) != 1 else ''}", tuple(columns), tuple(map(tuple, cells)))


def to_dict(row: ModelRow) -> dict[str, Any]:
    """Show a network as programs read it."""
    return {
        "name": row.info.name,
        "parameters": row.parameters,
        "size": list(row.info.size),
        "library": row.info.library,
        "weights": list(row.info.weights),
        "milliseconds": row.milliseconds,
    }


def _millions(row: ModelRow) -> str:
    return "?" if row.parameters is None else f"{row.parameters / 1e6:.2f}M"


def _input(row: ModelRow) -> str:
    return " x ".join(map(str, row.info.size))


def _weights(row: ModelRow) -> str:
    names = row.info.weights
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "") or "none"


def _key(info: ModelInfo) -> str:
    return f"{info.name} of {info.library}"


def _cache() -> Path | None:
    folder = cache_folder()
    return folder and folder / "parameters-2.json"


def read_cache() -> dict[str, int]:
    """Return what was counted before; nothing where the file is missing or damaged, for it can be counted again."""
    file = _cache()
    if file is None or not file.exists():
        return {}
    try:
        sealed, _, text = read_all(file, _MAX_CACHE_BYTES).partition(b"\n")
        _check_seal(file, sealed, _seal(text))
        return {str(name): int(count) for name, count in json.loads(text).items()}
    except OSError as error:
        warn_unusable(file, error)
        return {}


def _check_seal(file: Path, found: bytes, right: bytes) -> None:
    if not hmac.compare_digest(found, right):
        raise OSError(f"{file} was changed by another program")


def _write_cache(counts: dict[str, int]) -> None:
    file = _cache()
    if file is None:
        return
    text = json.dumps(read_cache() | counts, allow_nan=False).encode()
    try:
        write_all(file, _seal(text) + b"\n" + text)
    except OSError as error:
        warn_unusable(file, error)


def _seal(text: bytes) -> bytes:
    return seal(b"parameters", text).hex().encode()
