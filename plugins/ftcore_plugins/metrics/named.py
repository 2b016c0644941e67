"""Metrics that a configuration names: ``metrics = ["auroc", "recall[tumor]", "top5"]``."""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import frozen
from torchmetrics import Metric

from ftcore import UserError
from ftcore_plugins.tasks import Classification, Multilabel, Regression

from . import class_scores, label_scores, number_scores
from .aliases import ALIASES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from ftcore import Task


_AVERAGES = ("macro", "micro", "weighted", "samples")

_TOP = re.compile(r"top_?([1-9]\d{0,5})(_accuracy)?")

_FORM = re.compile(r"(?P<base>[^\[@]+)(\[(?P<of>.+)\])?(@(?P<point>[a-z]+)=(?P<value>[0-9.e-]+))?")

_DOWN = {"nll", "brier", "ece", "ece_mass", "mce", "hamming", "error", "coverage_error", "ranking_loss"}
"""Lower is better; of a regression, the keys of `number_scores.ERRORS` and `pinball`."""

_OPPOSITE = {
    ("specificity", "sensitivity"),
    ("recall", "specificity"),
    ("recall", "precision"),
    ("precision", "recall"),
}
"""What may be asked for at at least so much of the other; sensitivity is recall."""


@frozen
class _Name:
    """What a name asks for.

    Attributes:
        text: as it was written.
        base: of the catalogue, without what follows.
        how: ``macro`` ...; None where no average was named.
        place: of the class, label or target in brackets, if any.
        point: what is in front of ``=``, if anything, and its value.
    """

    text: str
    base: str
    how: str | None
    place: int | None
    point: tuple[str, float] | None


class NamedMetric(Metric):
    """Keeps the outputs and targets of a split, and computes one number from all of them."""

    full_state_update = False
    higher_is_better: bool | None = True
    outputs: list[Tensor]
    targets: list[Tensor]

    def __init__(self, score: Callable[[Any, Any], Any], task: Task, *, per_class: bool = False) -> None:
        """Take what computes the number from arrays, and whether it needs images of each class or label."""
        super().__init__()
        self.score, self.task, self.per_class = score, task, per_class
        self.add_state("outputs", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: outputs (N, K), targets (N,) or (N, K), of numbers in their own unit."""
        self.outputs.append(outputs.detach())
        self.targets.append(targets.detach())

    def compute(self) -> Tensor:
        """Return () float64, NaN where there is no value."""
        from torchmetrics.utilities import dim_zero_cat

        outputs, targets = (dim_zero_cat(rows).cpu().double().numpy() for rows in (self.outputs, self.targets))
        if not np.isfinite(outputs).all():
            return torch.tensor(torch.nan, dtype=torch.float64)
        return torch.tensor(float(self.score(outputs, targets)), dtype=torch.float64)

    def undefined_for(self, targets: Tensor) -> list[int]:
        """Return the classes or labels that a number of each class cannot be computed for; see the hook."""
        if not self.per_class:
            return []
        columns = targets[:, None] == torch.arange(self.task.outputs) if targets.ndim == 1 else targets > 0.5
        there, others = columns.any(dim=0), (~columns).any(dim=0)
        return [place for place in range(self.task.outputs) if not (there[place] and others[place])]


class _Proportion(NamedMetric):
    is_proportion = True


class _LowerIsBetter(NamedMetric):
    higher_is_better = False


class _Unmonitored(NamedMetric):
    higher_is_better = None


def make_named(names: Sequence[str], monitor: str | None, task: Task, there: Mapping[str, Any]) -> dict[str, Metric]:
    """Make the metrics of some names that a task does not have already.

    Args:
        names: as the configuration has them.
        monitor: ``train.monitor``: made, too, if it is a name of the catalogue.
        task: of the run.
        there: metrics of the task by default.

    Raises:
        UserError: there is no such metric for the task.
    """
    made: dict[str, Metric] = {}
    for text in dict.fromkeys(names):
        if text not in there:
            key, metric = _make(text, task)
            made[key] = metric
    if monitor and monitor not in {*there, *made, "loss"} and _base(monitor) in _known(task):
        made[monitor] = _make(monitor, task)[1]
    return made


def _kind(task: Task) -> str:
    """Return the built-in task that a task is, or is derived from."""
    return next(kind.name for kind in (Classification, Multilabel, Regression) if isinstance(task, kind))


def _base(text: str) -> str:
    """Return the name of the catalogue in a text, or what stands for it."""
    word = re.split(r"[\[@]", text)[0].strip().lower().replace("-", "_").replace(" ", "_")
    word = ALIASES.get(word, word).split("@")[0]
    for how in _AVERAGES:
        word = word.removesuffix(f"_{how}")
    word = ALIASES.get(word, word)
    return "top" if _TOP.fullmatch(word) else word


def _parse(text: str, task: Task) -> _Name:
    spelled = text.strip()
    word = re.split(r"[\[@]", spelled)[0]
    rest, word = spelled[len(word) :], word.strip().lower().replace("-", "_").replace(" ", "_")
    if word in ALIASES and "@" in ALIASES[word]:
        word, _, meant = ALIASES[word].partition("@")
        rest = f"{rest}@{meant}"
    matched = _FORM.fullmatch(word + rest)
    if not matched or _base(text) not in _known(task):
        raise _unknown(text, task)
    how = next((how for how in _AVERAGES if word.endswith(f"_{how}") and word not in ALIASES), None)
    place = None
    if matched["of"] is not None:
        if matched["of"] not in task.names:
            near = get_close_matches(matched["of"], task.names, 3, 0.0)
            raise UserError(f"metrics: {text!r}: there is no {matched['of']!r}; near: {', '.join(near)}")
        place = task.names.index(matched["of"])
    point = (matched["point"], float(matched["value"])) if matched["point"] else None
    return _Name(spelled, _base(text), how, place, point)


def _unknown(text: str, task: Task) -> UserError:
    names = sorted({*_known(task), *(name for name, meant in ALIASES.items() if meant.split("@")[0] in _known(task))})
    near = ", ".join(get_close_matches(text.lower(), names, 3, 0.0))
    return UserError(
        f"metrics: no metric {text!r} for {_kind(task)}; nearest: {near}; all: {', '.join(sorted(_known(task)))}"
    )


def _make(text: str, task: Task) -> tuple[str, Metric]:
    """Make one metric, and the name under which it is shown."""
    name = _parse(text, task)
    build: Callable[[_Name, Task], Any] = {
        "classification": _of_classes,
        "multilabel": _of_labels,
        "regression": _of_numbers,
    }[_kind(task)]
    score = build(name, task)
    if score is None:
        raise UserError(f"metrics: {text!r} is not a form of {name.base!r}; {_forms(name.base, task)}")
    if name.base == "top" and _count(text) > task.outputs:
        return f"{text} (of {task.outputs} classes: top{task.outputs})", _Unmonitored(score, task)
    down = name.base in _DOWN or name.base in number_scores.ERRORS or name.base == "pinball"
    per_class = name.base in {"auroc", "average_precision"} and name.place is None and name.how != "micro"
    right = name.base in {"accuracy", "exact_match", "top"} and (name.base, _kind(task)) != ("accuracy", "multilabel")
    kind = _LowerIsBetter if down else _Proportion if right else NamedMetric
    return text, kind(score, task, per_class=per_class)


def _forms(base: str, task: Task) -> str:
    if base in _UNITS:
        return f"of several targets, name one: {base}[{task.names[0]}]"
    averages = ", ".join(f"{base}_{how}" for how in _AVERAGES)
    return f"use {base}, {averages}, {base}[{task.names[0]}], or NAME@OTHER=VALUE of two classes or one"


def _count(text: str) -> int:
    matched = _TOP.fullmatch(text.strip().lower().replace("-", "_").replace(" ", "_"))
    assert matched
    return int(matched[1])


def _known(task: Task) -> frozenset[str]:
    own = {
        "classification": class_scores.PLAIN,
        "multilabel": label_scores.PLAIN,
        "regression": {**number_scores.ERRORS, **number_scores.AGREEMENT},
    }
    shared = {"pinball"} if isinstance(task, Regression) else {*_AVERAGED, "auroc", "average_precision"}
    return frozenset({*own[_kind(task)], *shared, *({"top"} if isinstance(task, Classification) else ())})


_AVERAGED = {"precision": "precision", "recall": "recall", "f1": "f1", "fbeta": "fbeta", "jaccard": "jaccard"}

_RANKED = {"auroc": class_scores.auroc, "average_precision": class_scores.average_precision}

_UNITS = {"mae", "max_error", "median_ae", "mse", "rmse", "pinball"}
"""In the target's own unit, so that there is no mean over targets."""


def _of_classes(name: _Name, task: Task) -> Any:
    if name.base == "top":
        plain: Any = class_scores.top(min(_count(name.text), task.outputs))
    elif name.point and name.point[0] != "beta":
        plain = _operating_point(name, task)
    elif name.base == "specificity" and name.place is not None:
        plain = partial(_of_place, class_scores.specificity, name.place)
    else:
        plain = _averaged(name, class_scores, class_scores.PLAIN)
    return plain and (lambda outputs, targets: plain(class_scores.Classified(outputs, targets.astype(np.int64))))


def _of_place(function: Callable[[Any], Any], place: int, data: Any) -> Any:
    return function(data)[place]


def _operating_point(name: _Name, task: Task) -> Any:
    point, value = name.point or ("", 0.0)
    if (name.base, point) not in _OPPOSITE or (task.outputs > 2 and name.place is None):
        return None
    wanted = "sensitivity" if (name.base, point) == ("recall", "specificity") else name.base
    return class_scores.operating_point(wanted, point, value, 1 if name.place is None else name.place)


def _averaged(name: _Name, scores: Any, plain: Mapping[str, Any]) -> Any:
    """What classes and labels share: averages of counts and of ranks."""
    beta = name.point[1] if name.point else 1.0
    if name.base in _AVERAGED and (name.base == "fbeta") == bool(name.point):
        return scores.average(name.base, name.how or "macro", name.place, beta)
    if name.base in _RANKED and not name.point and name.how != "samples":
        return scores.ranked(_RANKED[name.base], name.how or "macro", name.place)
    return plain.get(name.base) if name.place is None and not name.point and not name.how else None


def _of_labels(name: _Name, _task: Task) -> Any:
    plain = _averaged(name, label_scores, label_scores.PLAIN)
    return plain and (lambda outputs, targets: plain(label_scores.Labelled(outputs, targets)))


def _of_numbers(name: _Name, task: Task) -> Any:
    if name.base == "pinball":
        one: Any = number_scores.pinball(name.point[1]) if name.point and name.point[0] == "q" else None
    else:
        one = None if name.point else {**number_scores.ERRORS, **number_scores.AGREEMENT}[name.base]
    if one is None or name.how or (task.outputs > 1 and name.place is None and name.base in _UNITS):
        return None
    places = range(task.outputs) if name.place is None else (name.place,)
    return lambda outputs, targets: np.mean([one(outputs[:, place], targets[:, place]) for place in places])
