"""The test split, measured once: by the best network of a run, when it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve

from ftcore.checkpoints import atomic
from ftcore.data.dataset import ImageSplit
from ftcore.errors import UserError
from ftcore.system.files import read_json
from ftcore.training import evaluation, resume_state
from ftcore.training.intervals import MeasuredOutputs, intervals
from ftcore.types.events import BatchEvaluated

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ftcore.distributed.ranks import ProcessInfo
    from ftcore.training.state import Progress, TrainingParts
    from ftcore.types.events import Event


FILE = "test.json"
"""In the run folder: ``run``, what the run measured; ``evaluations``, how often the test split was measured since."""


def measure_test(
    folder: Path, parts: TrainingParts, progress: Progress, ranks: ProcessInfo, on_boundary: Callable[[], None]
) -> dict[str, Any] | None:
    """Measure the network in ``model/`` on the test split, unless that was done; by all processes of a run.

    The network of the run is that one afterwards.

    Args:
        folder: of the run.
        parts: of the run.
        progress: of the run.
        ranks: the processes of the run.
        on_boundary: see `ftcore.training.loop.fit`.

    Returns:
        ``epoch``, ``images``, ``loss``, each metric, and ``intervals``, see `ftcore.training.intervals.intervals`; None
        where there is no test split.
    """
    if parts.data.test is None:
        return None
    epoch = progress.best.get("epoch", progress.epoch)
    known = read_test(folder)
    if ranks.broadcast("test", lambda: "known" if known.get("run", {}).get("epoch") == epoch else "") == "known":
        return known.get("run")
    resume_state.restore_network(parts, parts.network, atomic.resolve_current(folder / "model"), "model")
    seen = MeasuredOutputs()

    def keep(event: Event) -> None:
        if isinstance(event, BatchEvaluated):
            seen.add(event.outputs, event.targets)

    measuring = evolve(parts, data=evolve(parts.data, val=parts.data.test), observers=(keep,))
    values = evaluation.evaluate(measuring, on_boundary=on_boundary)
    samples = parts.data.test.samples
    groups = samples.groups if isinstance(samples, ImageSplit) else None
    found = {"epoch": epoch, "images": len(seen), **values}
    found["intervals"] = intervals(parts.evaluation.metrics, values, seen, groups)
    if ranks.is_main:
        with atomic.wrap_write_errors(folder):
            _write(folder, {"evaluations": known.get("evaluations", 0), "run": found})
    return found


def read_test(folder: Path) -> dict[str, Any]:
    """Return what is known of the test split of a run folder; nothing where that cannot be read."""
    try:
        found = read_json(folder / FILE)
    except (OSError, UserError):
        return {}
    return found if isinstance(found, dict) else {}


def count_evaluation(folder: Path) -> None:
    """Note that the test split was measured once more, where the run folder can be written."""
    known = read_test(folder)
    if known:
        with atomic.wrap_write_errors(folder):
            _write(folder, known | {"evaluations": known.get("evaluations", 0) + 1})


def _write(folder: Path, value: dict[str, Any]) -> None:
    atomic.write_file(folder / FILE, lambda aside: atomic.write_json(aside, value))
