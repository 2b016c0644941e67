"""ftcore commands that can be killed: in processes forked from one that has imported everything, computed nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sklearn.datasets
import timm.utils.model_ema
import torch
import torchmetrics.classification

import ftcore.assemble
import ftcore.cli
import ftcore.loop
import ftcore.run
import ftcore.runfolder

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

ROOT = Path(__file__).parents[2]
LOADED = (sklearn.datasets, timm.utils.model_ema, torchmetrics.classification, ftcore.assemble, ftcore.loop, ftcore.run)
TIMES = {"seconds", "samples_per_second"}


def start(*arguments: object, log: Path) -> ForkServerProcess:
    """Start an ftcore command in a new session; what it prints is appended to a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))  # where the fork server finds this module
    process = context.Process(target=_command, args=([str(argument) for argument in arguments], str(log)))
    process.start()
    return process


def _command(arguments: list[str], log: str) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of a process of its own, not of one from a fork server
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    torch.set_num_threads(1)
    ftcore.cli.main(arguments)


def end(process: ForkServerProcess, seconds: float = 120) -> int | None:
    """Wait for the end of a command; return its exit code, negative for a signal."""
    process.join(seconds)
    return process.exitcode


def result(folder: Path) -> dict[str, Any]:
    """Return everything that a run left, but for times, in a form to compare."""
    newest = max((folder / "checkpoints").iterdir())
    state = json.loads((newest / "state.json").read_text())
    for counter in (state["progress"], state["progress"]["current"]):
        counter.update(dict.fromkeys(counter.keys() & {"seconds", "training_seconds"}))
    state.pop("metrics_bytes")
    files = [*newest.glob("*.safetensors"), *(folder / "model").glob("*")]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "state": state,
        "metrics": [{key: value for key, value in line.items() if key not in TIMES} for line in lines],
        "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
        **{str(file.relative_to(folder)): file.read_bytes() for file in files},
    }
