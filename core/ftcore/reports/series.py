"""Several runs of one configuration, with other seeds or other folds held out, and what they have in common."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import asdict, evolve

from ftcore.checkpoints import atomic, to_json
from ftcore.config.schema import SECTIONS
from ftcore.errors import UserError
from ftcore.runs.prepared import choose_folder
from ftcore.runs.run import fit, resume
from ftcore.system.files import read_json
from ftcore.types.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ftcore.config.schema import RunConfig
    from ftcore.types.events import Observer


FILE = "series.json"
"""In the folder of the runs: what was asked for, and what came out."""

Settings = dict[str, int]
"""``section.key`` -> value."""


def of_seeds(config: RunConfig, count: int) -> dict[str, Settings]:
    """Name so many runs that differ in their seed, counted from the configuration's own."""
    first = config.train.seed
    return {f"seed-{seed}": {"train.seed": seed} for seed in range(first, first + count)}


def of_folds(config: RunConfig, k: int, repeats: int) -> dict[str, Settings]:
    """Name k runs that each hold another fold out; again for so many ways to cut the images into folds."""
    split = config.data.split_seed or 0
    return {
        f"fold-{fold}" if repeats == 1 else f"repeat-{again}-fold-{fold}": {
            "data.folds": k,
            "data.fold": fold,
            "data.split_seed": split + again,
        }
        for again in range(repeats)
        for fold in range(k)
    }


def train_series(
    config: RunConfig, runs: Mapping[str, Settings], observe: Callable[[], Observer]
) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Train runs one after the other; those that are there already are resumed, or only read if they have ended.

    Args:
        config: of all; ``run.folder`` is the folder above them, by default a new one.
        runs: name of each, its folder -> what is different in it.
        observe: makes what is told what happens in one run.

    Returns:
        The folder, and name -> report of each run.

    Raises:
        UserError: what a run raises; or the folder holds runs of another configuration.
    """
    folder = _open(config, runs)
    reports = {}
    for name, settings in runs.items():
        path = folder / name
        if (path / "manifest.json").is_file():
            reports[name] = resume(path, observers=[observe()])
        else:
            reports[name] = fit(_with(config, settings, path), [observe()])
    _write(folder, {"asked": _asked(config, runs), "runs": reports, "summary": summarise(reports)})
    return folder, reports


def _open(config: RunConfig, runs: Mapping[str, Settings]) -> Path:
    """Make the folder of the runs, or find in it what was asked for before."""
    from pathlib import Path

    folder, asked = Path(config.run.folder or choose_folder(config)), _asked(config, runs)
    file = folder / FILE
    if not file.is_file():
        folder = choose_folder(config)
        with atomic.wrap_write_errors(folder):
            atomic.makedirs_fsync(folder)
            _write(folder, {"asked": asked})
        return folder
    if not any(path.is_dir() for path in folder.iterdir()):  # no run of it was ever begun
        _write(folder, {"asked": asked})
        return folder
    try:
        before = read_json(file)["asked"]
    except (LookupError, TypeError) as error:
        raise UserError(f"cannot read {file}: {type(error).__name__}: {error}") from None
    if before != asked:
        changed = [key for key in asked if before.get(key) != asked[key]]
        raise UserError(
            f"{folder} holds runs of another configuration ({', '.join(changed)} differ); choose another --out, or "
            "repeat the command that made them"
        )
    return folder


def _asked(config: RunConfig, runs: Mapping[str, Settings]) -> dict[str, Any]:
    """Say what decides the runs, as it comes back from JSON."""
    sections = {name: asdict(getattr(config, name)) for name in SECTIONS if name not in {"run", "observers"}}
    plugins = [reference.text for reference in config.plugins]
    options = {name: dict(values) for name, values in config.options.items()}
    more = {"plugins": plugins, "without": config.without, "options": options, "hooks": dict(config.hooks)}
    found: dict[str, Any] = json.loads(to_json({**sections, **more, "runs": dict(runs)}, default=str))
    return found


def _with(config: RunConfig, settings: Settings, path: Path) -> RunConfig:
    """Set what is different in one run."""
    origins = dict(config.origins)
    for key, value in settings.items():
        section, _, name = key.partition(".")
        config = evolve(config, **{section: evolve(getattr(config, section), **{name: value})})
        origins[key] = f"run {path.name} of {path.parent}"
    return evolve(config, run=evolve(config.run, folder=str(path)), origins=origins)


def _write(folder: Path, value: Mapping[str, Any]) -> None:
    with atomic.wrap_write_errors(folder):
        atomic.write_file(folder / FILE, lambda aside: atomic.write_json(aside, value))


def summarise(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean, standard deviation (ddof 1), least and largest of each number of the best epochs, and of test.

    The standard deviation is how far runs differ. Of folds it is no standard error of the mean, for their training
    images overlap (Bengio and Grandvalet 2004).
    """
    found: dict[str, Any] = {}
    for split, key in (("val", "best"), ("test", "test")):
        values = [report[key] for report in reports.values() if report.get(key)]
        names = [name for name, value in (values[0] if values else {}).items() if isinstance(value, float)]
        for name in names:
            numbers = np.array([value[name] for value in values if isinstance(value.get(name), float)])
            spread = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
            described = {"mean": numbers.mean(), "std": spread, "min": numbers.min(), "max": numbers.max()}
            found.setdefault(split, {})[name] = {k: v if v is None else float(v) for k, v in described.items()}
    return found


def tables(reports: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Show the runs, and what they have in common."""
    monitors = [report["monitor"] for report in reports.values()]
    rows = []
    for (name, report), monitor in zip(reports.items(), monitors, strict=True):
        best, test = report["best"], report.get("test") or {}
        rows.append((name, str(best.get("epoch", "-")), _six(best.get(monitor)), _six(test.get(monitor))))
    summary = [
        (split, name, *(_six(numbers[key]) for key in ("mean", "std", "min", "max")))
        for split, metrics in summarise(reports).items()
        for name, numbers in metrics.items()
        if not name.startswith("train_")
    ]
    return [
        Table("runs", ("run", "best epoch", f"val {monitors[0]}", f"test {monitors[0]}"), tuple(rows)),
        Table(f"of {len(reports)} runs", ("split", "metric", "mean", "std", "min", "max"), tuple(summary)),
    ]


def _six(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
