"""Trials, each `ftcore run` in a process of its own, and the study that draws them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import optuna
from ftcore import UserError
from ftcore.cli import run_config
from ftcore.runs import prepare, to_json
from optuna.trial import TrialState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from optuna.trial import FrozenTrial, Trial

    from .spaces import Space

NAME, EVERY = "ftcore", 0.2
"""Of the study; seconds between two looks at what a trial has written."""


class Search:
    """A folder with a study and a run folder for each trial.

    Attributes:
        folder: where all is.
        arguments: of ``ftcore run``.
        spaces: what is drawn.
        prune: whether trials are stopped that are worse than the others were.
        monitor: the metric that decides.
        study: Optuna's.
    """

    def __init__(
        self, folder: Path, arguments: Sequence[str], spaces: Sequence[Space], *, seed: int = 0, prune: bool = True
    ) -> None:
        self.folder, self.arguments, self.spaces, self.prune = folder, tuple(arguments), spaces, prune
        self.monitor, up = monitored(self.arguments, folder / "never")
        folder.mkdir(parents=True, exist_ok=True)
        self.study = optuna.create_study(
            storage=f"sqlite:///{folder.absolute() / 'study.db'}",
            study_name=NAME,
            pruner=optuna.pruners.MedianPruner(),
            direction="maximize" if up else "minimize",
            load_if_exists=True,
        )
        self._check(up=up)
        self.study.sampler = optuna.samplers.TPESampler(seed=seed + len(self.study.trials))  # to draw other ones

    def _check(self, *, up: bool) -> None:
        """Refuse to go on with a study of something else, and end what was killed."""
        asked = {"arguments": list(self.arguments), "search": {s.key: str(s.distribution) for s in self.spaces}}
        before = self.study.user_attrs or asked
        if before != asked or (self.study.direction.name == "MAXIMIZE") != up:
            raise UserError(f"{self.folder} is a search for something else: {to_json(before)}; name another folder")
        for key, value in asked.items():
            self.study.set_user_attr(key, value)
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            self.study.tell(trial.number, state=TrialState.FAIL)

    @property
    def best(self) -> FrozenTrial:
        """The best trial that went to its end.

        Raises:
            UserError: there is none.
        """
        try:
            return self.study.best_trial
        except ValueError:
            raise UserError(f"no trial of {self.folder} went to its end") from None

    def folder_of(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self.folder / f"trial-{number:04d}"

    def trials(self, number: int) -> Iterator[FrozenTrial]:
        """Make trials until there are so many in all, and yield each.

        Raises:
            UserError: the first one fails, so it is not what was drawn.
        """
        while sum(trial.state != TrialState.WAITING for trial in self.study.trials) < number:
            trial = self.study.ask({space.key: space.distribution for space in self.spaces})
            code, error = self.tried(trial)
            if code and code != 128 + signal.SIGTERM and not self.study.get_trials(states=[TrialState.COMPLETE]):
                raise UserError(f"the first trial failed, with exit code {code}: {error}")
            yield self.study.trials[trial.number]

    def tried(self, trial: Trial) -> tuple[int, str]:
        """Run a trial to its end, or to where it is pruned; return its exit code and what it said last."""
        folder = self.folder_of(trial.number)
        sets = [*(f"{key}={value}" for key, value in trial.params.items()), f"run.folder={folder}"]
        words = [word for text in sets for word in ("--set", text)]
        command = [sys.executable, "-m", "ftcore", "run", *self.arguments, *words, "--quiet", "--json"]
        with (self.folder / "last.log").open("w+", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                pruned = self._watch(trial, process, folder / "metrics.jsonl")
            except BaseException:
                process.terminate()  # saved, so that `ftcore resume` goes on with it
                process.wait()
                self.study.tell(trial, state=TrialState.FAIL)
                raise
            log.seek(0)
            said = log.read().strip()
        reached = json.loads(said.splitlines()[-1])["best"].get(self.monitor) if process.returncode == 0 else None
        if reached is None:  # it failed, or what is monitored was a number in none of its epochs
            self.study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)
        else:
            self.study.tell(trial, reached)
        return process.returncode, said

    def _watch(self, trial: Trial, process: subprocess.Popen[bytes], metrics: Path) -> bool:
        """Tell the study of each epoch until the process ends; return whether it was told to end."""
        told, pruned = 0, False
        while process.poll() is None:
            time.sleep(EVERY)
            for epoch in _epochs(metrics)[told:]:
                told += 1
                if epoch["val"][self.monitor] is not None:  # not finite, so no better than any
                    trial.report(epoch["val"][self.monitor], epoch["epoch"])
                if self.prune and not pruned and trial.should_prune():
                    pruned = True
                    process.send_signal(signal.SIGTERM)
        return pruned


def _epochs(file: Path) -> list[dict[str, Any]]:
    """Read the epochs that are there whole."""
    if not file.is_file():
        return []
    return [
        json.loads(line) for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]


def monitored(arguments: Sequence[str], folder: Path) -> tuple[str, bool]:
    """Return the metric that decides in a run, and whether up is better.

    Raises:
        UserError: the arguments are none of `ftcore run`, or no run.
    """
    parts = prepare(run_config(arguments), folder).assembly.parts
    return parts.evaluation.monitor, parts.higher_is_better


def value_of(trial: FrozenTrial) -> str:
    """Spell the value of a trial; of one that was pruned, the last that it had."""
    last = trial.value if trial.value is not None else next(reversed(trial.intermediate_values.values()), None)
    return "-" if last is None else f"{last:.4f}"
