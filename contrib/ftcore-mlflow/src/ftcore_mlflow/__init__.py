"""MLflow for ftcore: ``--plugin mlflow`` records a run on a tracking server.

mlflow is imported inside functions, so that naming the plugin costs no more than reading its options.
"""

from __future__ import annotations

import os
import re
import sys
import time
import tomllib
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import structlog
from attrs import frozen
from ftcore import EpochEnded, RunEnded, RunFailed, RunStarted, RunStopped, StepLogged, UserError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ftcore import Event, Observer
    from mlflow import MlflowClient
    from mlflow.entities import Metric

__all__ = ["FILE", "MLflow", "MLflowConfig"]

BATCH = 1000
"""Metrics that a server takes at a time."""
PAUSE = 60.0
"""Seconds between two tries to reach a server that was lost."""
FILE = "mlflow_run_id"
"""In the run folder: the id of the MLflow run, which `ftcore resume` goes on with."""


@frozen
class MLflowConfig:
    """Options of `mlflow`.

    Attributes:
        uri: of the tracking server, ``http://HOST:PORT`` for one; empty for what MLFLOW_TRACKING_URI says.
        experiment: is made if there is none of this name; empty for what MLFLOW_EXPERIMENT_NAME says, or ``Default``.
        model: whether ``model/``, the best network, is uploaded when the run is over.
    """

    uri: str = ""
    experiment: str = ""
    model: bool = False


class MLflow:
    """Records config, numbers and files of a run on a tracking server of MLflow."""

    Config = MLflowConfig

    def __init__(self, config: MLflowConfig) -> None:
        self.config = config

    @hookimpl
    def make_observers(self) -> Sequence[Observer]:
        """Answer always.

        Raises:
            UserError: nothing says where the server is.
        """
        uri = self.config.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            raise UserError("mlflow.uri is not set, nor is MLFLOW_TRACKING_URI; as a server: http://localhost:5000")
        experiment = self.config.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        return [Recorder(uri, experiment, model=self.config.model).observe]


class Recorder:
    """One run of MLflow for one run folder.

    What a resumed run does again is not recorded again: of each step, the server keeps what came first. Numbers wait
    here while the server cannot be reached.
    """

    client: MlflowClient

    def __init__(self, uri: str, experiment: str, *, model: bool) -> None:
        self.uri = uri
        self.experiment = experiment
        self.model = model
        self.run = ""
        self.last = {"steps": 0, "epochs": 0}
        self.waiting: list[Metric] = []
        self.lost_until = 0.0

    def observe(self, event: Event) -> None:
        """Record an event.

        Raises:
            UserError: the server does not begin the run, or refuses what it is told: a warning, unless
                ``observers.on_error`` is ``stop``.
        """
        from mlflow.exceptions import MlflowException

        try:
            self.record(event)
        except (MlflowException, OSError, ImportError) as error:  # an import: of what the server's kind needs
            raise UserError(f"MLflow at {self.uri}: {error}") from None

    def record(self, event: Event) -> None:
        """See `observe`; nothing is said of a run that the server never began."""
        match event:
            case RunStarted():
                with impatient():
                    self.start(event)
            case StepLogged() if self.run:
                step = (event.epoch - 1) * self.steps_per_epoch + event.step
                self.log("steps", step, step_metrics(event))
            case EpochEnded() if self.run:
                self.log("epochs", event.step, epoch_metrics(event))
            case RunEnded() if self.run:
                self.finish()
            case RunFailed() | RunStopped() if self.run:
                with impatient():
                    self.end("FAILED" if isinstance(event, RunFailed) else "KILLED")
            case _:
                pass

    def start(self, event: RunStarted) -> None:
        """Begin a run of MLflow, or go on with the one of the run folder."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.folder, self.steps_per_epoch = event.folder, event.steps_per_epoch
        self.client = MlflowClient(self.uri)
        self.run = self.known() or self.new()
        self.last = {"steps": self.newest("step/loss"), "epochs": self.newest("val/loss")}
        config = tomllib.loads((self.folder / "config.toml").read_text(encoding="utf-8"))
        self.client.log_batch(self.run, params=[Param(key, value) for key, value in flat(config)])
        for name in ("config.toml", "manifest.json"):
            self.client.log_artifact(self.run, str(self.folder / name))

    def known(self) -> str:
        """Return the id of the run that was begun before, which runs again; empty if there is none."""
        file = self.folder / FILE
        if not file.exists():
            return ""
        run = file.read_text(encoding="utf-8").strip()
        self.client.update_run(run, status="RUNNING")
        return run

    def new(self) -> str:
        """Return the id of a new run, which is written down."""
        experiment = experiment_id(self.client, self.experiment)
        run = str(self.client.create_run(experiment, run_name=self.folder.name).info.run_id)
        (self.folder / FILE).write_text(run + "\n", encoding="utf-8")
        return run

    def newest(self, key: str) -> int:
        """Return the last step at which a metric was recorded, or 0."""
        return max((metric.step for metric in self.client.get_metric_history(self.run, key)), default=0)

    def log(self, what: str, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers of a step that the server does not have."""
        from mlflow.entities import Metric

        if step <= self.last[what]:
            return
        now = time.time_ns() // 1_000_000
        self.waiting += [Metric(key, value, now, step) for key, value in metrics.items()]
        if time.monotonic() >= self.lost_until:
            self.send()

    def send(self) -> bool:
        """Send what waits; return False, and say so once, if the server cannot be reached."""
        from mlflow.exceptions import MlflowException, RestException

        while self.waiting:
            try:
                with impatient():
                    self.client.log_batch(self.run, metrics=self.waiting[:BATCH])
            except RestException:  # it answers, and says no
                raise
            except (MlflowException, OSError) as error:
                if not self.lost_until:
                    structlog.get_logger().warning(f"MLflow at {self.uri} is lost, its numbers wait: {error}")
                self.lost_until = time.monotonic() + PAUSE
                return False
            del self.waiting[:BATCH]
        self.lost_until = 0.0
        return True

    def finish(self) -> None:
        """Upload what the run was for, where that is wanted; the run itself is over, whatever the server says."""
        if not self.send():
            structlog.get_logger().warning(f"MLflow at {self.uri} was not told the last {len(self.waiting)} numbers")
            return
        if self.model:
            self.client.log_artifacts(self.run, str(self.folder / "model"), "model")
        self.end("FINISHED")

    def end(self, status: str) -> None:
        """Say how the run ended."""
        with redirect_stdout(sys.stderr):  # MLflow prints where to look at it; stdout is the report's
            self.client.set_terminated(self.run, status)


@contextmanager
def impatient() -> Iterator[None]:
    """Have MLflow give up on a server that does not answer: it would try for minutes. What the user has set stays."""
    hasty = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    mine = {name: value for name, value in hasty.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del os.environ[name]


def experiment_id(client: MlflowClient, name: str) -> str:
    """Return the id of the experiment of this name, which is made if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(name)
    except MlflowException:  # it is there already, maybe since a moment ago
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def step_metrics(event: StepLogged) -> dict[str, float]:
    """Key -> number: the loss and what was added to it, the learning rate of each group, the speed."""
    terms = {f"step/{name}": value for name, value in event.loss_terms.items()}
    rates = {f"lr/group {place}": rate for place, rate in enumerate(event.lr)}
    return {"step/loss": event.loss, **terms, **rates, "speed/images per second": event.samples_per_second}


def epoch_metrics(event: EpochEnded) -> dict[str, float]:
    """Key -> number: means over the epoch, and every metric that is a single number."""
    train = {f"train/{name}": value for name, value in event.train.items()}
    val = {f"val/{name}": value for name, value in event.val.items() if isinstance(value, float)}
    return {**train, **val, "speed/seconds an epoch": event.seconds}


def flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield ``("train.epochs", "10")`` and so on; what MLflow takes in no key becomes ``_``."""
    for key, value in table.items():
        name = before + re.sub(r"[^\w. /-]", "_", key)
        if isinstance(value, dict):
            yield from flat(value, f"{name}.")
        else:
            yield name, str(value)
