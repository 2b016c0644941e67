"""What runs there are in a folder, and how each of them stands."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, frozen

from ftcore.checkpoints import atomic
from ftcore.errors import UserError, did_you_mean
from ftcore.system.files import open_regular, read_json, read_text
from ftcore.types.table import Table

from .lock import is_locked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


END_STATES = {"RunEnded": "finished", "RunFailed": "failed", "RunStopped": "stopped"}
"""Event -> how a run stands behind it."""

LOG_TAIL_BYTES = 1 << 16
"""Bytes of a log in which its end is looked for."""


@frozen
class Run:
    """A run in a folder.

    Attributes:
        folder: where it is.
        state: ``running``, ``finished``, ``stopped`` (by a signal), ``failed``, or ``killed`` if it says nothing of its
            end; all but the first two can be gone on with. ``damaged`` if its files cannot be read.
        epochs: done.
        monitor: name of the metric that decides which epoch is best; empty before the first is done. Of a damaged run,
            what is wrong.
        best: its value in that epoch.
        config: ``section.key`` -> value, as in the manifest.
        plugins: that it used, defaults left out.
    """

    folder: Path
    state: str
    epochs: int
    monitor: str
    best: float | None
    config: Mapping[str, Any]
    plugins: tuple[str, ...]

    @property
    def filter_values(self) -> dict[str, str]:
        """What a filter can ask for: name -> value."""
        own = {"state": self.state, "plugins": ",".join(self.plugins), "folder": str(self.folder)}
        return {**own, **{key: str(value) for key, value in self.config.items()}}


def find(root: Path, where: Sequence[str] = ()) -> list[Run]:
    """Return the runs in a folder, and in folders below it, by name.

    Args:
        root: the folder, which may be that of a run itself.
        where: ``KEY=PATTERN``, all of which must hold: a key of the config, ``state``, ``plugins`` or ``folder``, and a
            glob; a name of ``plugins`` is enough.

    Raises:
        UserError: there is no such folder, or a filter is none.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root} (looked at {root.absolute()})")
    wanted = [_filter(text) for text in where]
    return [run for run in _all(root) if all(_matches(run, key, pattern) for key, pattern in wanted)]


def _filter(text: str) -> tuple[str, str]:
    key, equals, pattern = text.partition("=")
    if not equals:
        raise UserError(f"--where {text}: expected KEY=PATTERN, e.g. model.name=timm/* or state=finished")
    return key, pattern


def _matches(run: Run, key: str, pattern: str) -> bool:
    values = run.filter_values
    if run.state == "damaged" and key not in values:
        return False
    if key not in values:
        raise UserError(f"--where {key}={pattern}: {run.folder} has no {key!r}{did_you_mean(key, values)}")
    return any(fnmatchcase(value, pattern) for value in [values[key], *(run.plugins if key == "plugins" else ())])


def _all(root: Path) -> Iterator[Run]:
    for name, folders, files in os.walk(root):
        folders.sort()
        if {"config.toml", "manifest.json"} <= set(files):
            folders.clear()  # what is in a run folder is no run
            yield _read(Path(name))


def _read(folder: Path) -> Run:
    """Read what a run says of itself."""
    try:
        manifest = read_json(folder / "manifest.json")
        model = atomic.resolve_current(folder / "model") / "model.json"
        best = read_json(model) if os.path.lexists(model) else None
        value = best["metrics"][best["monitor"]] if best else None
        return Run(
            folder=folder,
            state="running" if is_locked(folder) else _state(folder / "log.jsonl"),
            epochs=read_text(folder / "metrics.jsonl").count("\n") if best else 0,
            monitor=str(best["monitor"]) if best else "",
            best=None if value is None else float(value),
            config=dict(manifest["config"]),
            plugins=tuple(str(plugin["name"]) for plugin in manifest["plugins"] if plugin["origin"] != "default"),
        )
    except UserError as error:
        return Run(folder, "damaged", 0, str(error), None, {}, ())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Run(folder, "damaged", 0, f"{type(error).__name__}: {error}", None, {}, ())


def _state(log: Path) -> str:
    """Say how a run that nobody works on has ended."""
    with os.fdopen(open_regular(log), "rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        for event, state in END_STATES.items():
            if f'"event": "{event}"' in line:
                return state
        if '"event": "RunStarted"' in line:
            break
    return "killed"


def to_dict(run: Run) -> dict[str, Any]:
    """Return what `ftcore runs --json` prints of a run."""
    return {**asdict(run), "folder": str(run.folder)}


def table(runs: Sequence[Run]) -> Table:
    """Show runs, one a row."""
    rows = [
        (
            str(run.folder),
            run.state,
            f"{run.epochs} of {run.config.get('train.epochs', '?')}",
            run.monitor if run.best is None else f"{run.monitor} {run.best:.4f}",
            str(run.config.get("model.name", "")),
            str(run.config.get("data.source", "")),
            ", ".join(run.plugins),
        )
        for run in runs
    ]
    return Table("runs", ("folder", "state", "epochs", "best", "network", "data", "plugins"), tuple(rows))
