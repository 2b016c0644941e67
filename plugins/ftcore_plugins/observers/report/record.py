"""What a page is drawn from, kept while a run goes: ``report.json``, and of each epoch a line of ``metrics.jsonl``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attrs import asdict, define, field

from ftcore.runs import read_lines, to_json
from ftcore_plugins.tasks import built_in_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ftcore import EpochEnded, RunStarted, StepLogged


FILE = "report.json"

POINTS = 600
"""Logged steps that are kept, evenly thinned out."""


@define
class Record:
    """What happened in a run.

    Attributes:
        facts: what was decided.
        tables: title, columns and rows of the tables of data and loss.
        learning: likewise, of what learns and of the parameter groups.
        groups: names of the parameter groups.
        trainable_parameters: see `ftcore.RunStarted`; 0 in the record of an older version, as is the next.
        total_parameters: likewise.
        heads: likewise; empty in the record of an older version, as is the next.
        releases: [epoch, names that start to learn there], in order.
        kind: the built-in task that this one is, or is derived from; empty if it is none.
        names: of classes, labels or targets.
        mean: of regression, else empty.
        std: likewise.
        epochs: that are to be trained.
        monitor: name of the metric that decides which epoch is best.
        best: epochs that were better than all before.
        starts: when the run was begun and gone on with (``at``, ``step``, ``epoch``), and how that ended (``until``,
            ``end``).
        steps: [step in the whole run, loss, learning rates, norm of the gradient].
        stride: of the logged steps, every so many is kept.
        logged: how many there were.
        best_evaluation: counts of the best epoch, with its number as ``epoch``.
        last_evaluation: of the last, likewise.
        result: what the run reported; empty before it ended.
    """

    facts: dict[str, str] = field(factory=dict)
    tables: list[Any] = field(factory=list)
    learning: list[Any] = field(factory=list)
    groups: list[str] = field(factory=list)
    trainable_parameters: int = 0
    total_parameters: int = 0
    heads: list[str] = field(factory=list)
    releases: list[Any] = field(factory=list)
    kind: str = "classification"
    names: list[str] = field(factory=list)
    mean: list[float] = field(factory=list)
    std: list[float] = field(factory=list)
    epochs: int = 0
    monitor: str = "loss"
    best: list[int] = field(factory=list)
    starts: list[dict[str, Any]] = field(factory=list)
    steps: list[Any] = field(factory=list)
    stride: int = 1
    logged: int = 0
    best_evaluation: dict[str, Any] = field(factory=dict)
    last_evaluation: dict[str, Any] = field(factory=dict)
    result: dict[str, Any] = field(factory=dict)

    def start(self, event: RunStarted) -> None:
        """Note that the run begins, or goes on where it was; what came behind that is trained again."""
        assert event.task
        self.facts = dict(event.summary)
        self.tables, self.learning = ([asdict(t) for t in tables] for tables in (event.tables, event.trainable_tables))
        self.groups, self.epochs, self.result = list(event.groups), event.epochs, {}
        self.trainable_parameters, self.total_parameters = event.trainable_parameters, event.total_parameters
        self.heads = list(event.heads)
        self.releases = [[epoch, list(names)] for epoch, names in event.releases.items()]
        task = event.task
        self.kind, self.names = built_in_name(task), list(task.names)
        self.mean, self.std = (list(getattr(task, which, ())) for which in ("mean", "std"))
        self.best = [epoch for epoch in self.best if epoch <= event.epoch]
        self.steps = [point for point in self.steps if point[0] <= event.step]
        self.logged = len(self.steps) * self.stride
        for name in ("best_evaluation", "last_evaluation"):
            if getattr(self, name).get("epoch", 0) > event.epoch:
                setattr(self, name, {})
        self.starts.append({"at": _now(), "step": event.step, "epoch": event.epoch, "until": None, "end": None})

    def step(self, event: StepLogged, steps_per_epoch: int) -> None:
        """Note a step."""
        if self.logged % self.stride == 0:
            step = (event.epoch - 1) * steps_per_epoch + event.step
            self.steps.append([step, event.loss, list(event.lr), event.gradient_norm])
        self.logged += 1
        if len(self.steps) > POINTS:
            self.steps, self.stride = self.steps[::2], 2 * self.stride

    def end_epoch(self, event: EpochEnded, evaluation: dict[str, Any]) -> None:
        """Note an epoch, with the counts of its evaluation."""
        evaluation = plain(evaluation | {"epoch": event.epoch}) if evaluation else {}
        self.monitor, self.last_evaluation = event.monitor, evaluation
        if event.best:
            self.best.append(event.epoch)
            self.best_evaluation = evaluation

    def end(self, how: str) -> None:
        """Note that the run, or what was gone on with of it, ended."""
        self.starts[-1] |= {"until": _now(), "end": how}


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def read(folder: Path) -> Record:
    """Read what is known of a run; nothing is known where the file is not there, or is of another version."""
    try:
        return Record(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return Record()


def as_json(record: Record) -> str:
    """Spell a record as JSON; a number that is not finite becomes null."""
    return to_json(asdict(record, recurse=False))


def plain(value: Any) -> Any:
    """Return plain data with None for each number that is not finite, as it comes back from JSON."""
    return json.loads(to_json(value))


def epoch_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a page shows of a line of ``metrics.jsonl``: its single numbers, and the thresholds of labels."""
    val = {name: value for name, value in line["val"].items() if not isinstance(value, list) or name == "thresholds"}
    same = {name: line[name] for name in ("epoch", "step", "train", "seconds", "samples_per_second")}
    same["training_seconds"] = line.get("training_seconds", 0.0)  # which no older version wrote down
    shown: dict[str, Any] = plain(same | {"val": val})
    return shown


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """Read the epochs of a run, oldest first; lines that are damaged are left out, with a warning."""
    return read_lines(folder / "metrics.jsonl", epoch_of)
