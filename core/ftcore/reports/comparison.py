"""Runs side by side: differences in settings, and whether their predictions on the same images differ significantly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import frozen
from scipy import stats

from ftcore.errors import UserError
from ftcore.inference import evaluate
from ftcore.runs.manifest import read_manifest
from ftcore.types.abilities import Scored, require
from ftcore.types.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Numbers = np.ndarray[Any, np.dtype[np.float64]]


RESAMPLES = 9_999
"""Of the images for an interval, of the signs for a test."""

MISSING = "-"


@frozen(eq=False)
class RunScores:
    """What a run says of the images that all runs are measured on.

    Attributes:
        folder: of the run.
        images: their names, in order.
        total: number of images in the data.
        measured_on: which of them these are, for people.
        scores: (N,), of each image; see `ftcore.Scored`.
        metrics: of the run's own, those that are one number.
    """

    folder: Path
    images: tuple[str, ...]
    total: int
    measured_on: str
    scores: Numbers
    metrics: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean score."""
        return float(self.scores.mean())


@frozen
class Difference:
    """How the mean score of a run differs from that of the first.

    Attributes:
        mean: of this run, minus that of the first.
        low: lower end of the 95 % interval of that (percentiles of a bootstrap over images, which stay paired).
        high: its upper end.
        p: probability of so large a difference where each image could as well have the scores of the two runs the other
            way round (permutation test, two-sided).
    """

    mean: float
    low: float
    high: float
    p: float


def measure(folder: Path, source: str | None, split: str | None) -> tuple[RunScores, Scored]:
    """Measure a run on what `ftcore.inference.evaluate.prepare` chooses.

    Raises:
        UserError: what `ftcore.inference.evaluate.prepare` raises.
    """
    evaluation = evaluate.prepare(folder, source, split)
    model, scores = evaluation.model, []
    task = require(model.task, Scored, "compare")
    found = evaluate.compute_metrics(evaluation)
    with torch.inference_mode():
        for batches in evaluation.batches():
            with evaluation.precision.autocast():
                outputs = model.outputs([batch.images for batch in batches])
            scores.append(task.score(outputs, batches[0].targets).cpu())
    names = [batches.samples.name(index) for batches in evaluation.loaders[0] for index in range(len(batches.samples))]
    numbers = {name: value for name, value in found.items() if isinstance(value, float)}
    per_image = torch.cat(scores).double().numpy()
    total, measured_on = evaluation.measured.total, evaluation.measured_on
    return RunScores(folder, tuple(names), total, measured_on, per_image, numbers), task


def interval(scores: Numbers) -> tuple[float, float]:
    """Return the 95 % interval of a mean (N,): percentiles of a bootstrap (Efron 1979)."""
    if np.ptp(scores) == 0:
        return float(scores[0]), float(scores[0])
    found = stats.bootstrap((scores,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def difference(one: Numbers, other: Numbers) -> Difference:
    """Compare the scores (N,) of two runs on the same images."""
    differences = other - one
    low, high = interval(differences)
    if not differences.any():
        return Difference(0.0, low, high, 1.0)
    found = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=0, vectorized=True
    )
    return Difference(float(differences.mean()), low, high, float(found.pvalue))


def compare(
    folders: Sequence[Path], source: str | None = None, split: str | None = None
) -> tuple[list[Table], dict[str, Any]]:
    """Compare runs with the first; return tables for people, and the same as values.

    Args:
        folders: at least two runs that know the same classes.
        source: data that all are measured on; by default their own, which must be the same.
        split: see `ftcore.inference.evaluate.prepare`.

    Raises:
        UserError: they cannot be compared.
    """
    if len(folders) < 2:
        raise UserError("compare needs at least two runs")
    found = [measure(folder, source, split) for folder in folders]
    (first, task), *others = found
    for measured, _ in others:
        if measured.images != first.images:
            raise UserError(
                f"{measured.folder} was evaluated on other images than {first.folder}; evaluate all on the same "
                f"images with "
                "--data SOURCE"
            )
    runs = [measured for measured, _ in found]
    against = [None, *(difference(first.scores, run.scores) for run in runs[1:])]
    settings = config_differences(folders)
    values = {
        "score": task.score_name,
        "higher_is_better": task.higher_is_better,
        "images": len(first.images),
        "total": first.total,
        "measured_on": first.measured_on,
        "runs": [_to_dict(run, against_first) for run, against_first in zip(runs, against, strict=True)],
        "differences": settings,
    }
    return [_settings_table(folders, settings), _score_table(runs, against, task)], values


def config_differences(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Return what is not the same in all runs: key -> its value in each."""
    flat = [dict(_flat(read_manifest(folder))) for folder in folders]
    keys = dict.fromkeys(key for values in flat for key in values)
    return {key: row for key in keys if len(set(row := [values.get(key, MISSING) for values in flat])) > 1}


def _flat(manifest: Mapping[str, Any]) -> dict[str, str]:
    plugins = {plugin["name"]: plugin for plugin in manifest["plugins"]}
    options = {f"{name}.{key}": value for name, p in plugins.items() for key, value in (p["options"] or {}).items()}
    sources = {f"plugin {name}": plugin["source"] for name, plugin in plugins.items()}
    data = {f"data {key}": value for key, value in manifest["data"].items()}
    others = {"libraries": manifest["libraries"], "machine": manifest["machine"]}
    rest = {f"{part} {key}": value for part, values in others.items() for key, value in values.items()}
    values = {**manifest["config"], **sources, **options, **data, "initial weights": manifest["weights"], **rest}
    return {key: str(value) for key, value in values.items()}


def _to_dict(run: RunScores, against: Difference | None) -> dict[str, Any]:
    low, high = interval(run.scores)
    compared = {"difference": against.mean, "low": against.low, "high": against.high, "p": against.p} if against else {}
    return {
        "folder": str(run.folder),
        "metrics": dict(run.metrics),
        "score": {"mean": run.mean, "low": low, "high": high},
        "against the first": compared,
    }


def _settings_table(folders: Sequence[Path], settings: Mapping[str, Sequence[str]]) -> Table:
    rows = [(key, *(value[:40] for value in values)) for key, values in settings.items()]
    return Table(
        "settings that differ", ("", *map(str, folders)), tuple(rows) or (("nothing", *("" for _ in folders)),)
    )


def _score_table(runs: Sequence[RunScores], against: Sequence[Difference | None], task: Scored) -> Table:
    names = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    columns = ("run", task.score_name, "95 % interval", "difference", "95 % interval", "p", *names)
    rows = []
    for run, found in zip(runs, against, strict=True):
        low, high = interval(run.scores)
        compared = _format_difference(found) if found else ("", "", "")
        metrics = [f"{run.metrics[name]:.4f}" for name in names]
        rows.append((str(run.folder), f"{run.mean:.4f}", _format_interval(low, high), *compared, *metrics))
    return Table(f"on the same {runs[0].measured_on}", columns, tuple(rows))


def _format_difference(found: Difference) -> tuple[str, str, str]:
    return f"{found.mean:+.4f}", _format_interval(found.low, found.high), f"{found.p:.4f}"


def _format_interval(low: float, high: float) -> str:
    return f"{low:.4f} to {high:.4f}"
