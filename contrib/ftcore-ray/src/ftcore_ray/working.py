"""What a worker does: it becomes a rank of `ftcore run`, in a process of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ftcore import UserError
from ftcore.cli import main

if TYPE_CHECKING:
    from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
"""prctl(2)."""


def folder_of(arguments: Sequence[str], here: Path) -> Path:
    """Return the run folder that arguments of `ftcore run` name, or one below ``runs/``; absolute.

    Raises:
        UserError: it exists, or the arguments go on with another run.
    """
    given = cast("Any", main.commands["run"]).make_context("ftcore run", [*arguments]).params
    if given["resumed"] or given["source"]:
        raise UserError("--resume and --from are for ftcore alone; name config, data and plugins")
    sets = dict(text.partition("=")[::2] for text in given["sets"])
    named = sets.get("run.folder", "")
    folder = here / (named or f"runs/{time.strftime('%Y%m%d-%H%M%S')}")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; `ftcore resume {folder}` resumes a run")
    return folder


def train(arguments: Sequence[str], folder: Path, *, workers: int, use_gpu: bool, max_failures: int) -> None:
    """Let Ray start the workers, and start them again where one fails.

    Raises:
        UserError: it failed more often than it may.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        work,
        train_loop_config={"arguments": list(arguments), "folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.with_name(f"{folder.name}.ray")),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
        torch_config=TorchConfig(backend="gloo"),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray wraps what happened in a worker in errors of its own
        raise UserError(f"the run failed: {str(error).strip().splitlines()[-1]}") from error


def work(config: dict[str, Any]) -> None:
    """Be one rank: what Ray calls in each worker."""
    import ray.train
    import torch
    from torch import distributed

    context, folder = ray.train.get_context(), Path(config["folder"])
    told = torch.zeros(2, dtype=torch.int64)
    if context.get_world_rank() == 0:
        told = torch.tensor([_free_port(), (folder / "manifest.json").is_file()], dtype=torch.int64)
    distributed.broadcast(told, 0)  # by the group that Ray has made, which its processes need no longer
    distributed.destroy_process_group()
    port, is_begun = told.tolist()
    rank = {
        "RANK": context.get_world_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "MASTER_PORT": port,
    }
    words = ["resume", str(folder)] if is_begun else ["run", *config["arguments"], "--set", f"run.folder={folder}"]
    environment = os.environ | {name: str(value) for name, value in rank.items()}
    process = subprocess.Popen([sys.executable, "-m", "ftcore", *words], env=environment, preexec_fn=_die_with_parent)  # noqa: PLW1509 - one call into libc
    try:
        code = process.wait()
    finally:
        process.kill()
    if code:
        raise RuntimeError(f"rank {context.get_world_rank()} ended with exit code {code}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """Let the kernel end this process when Ray's worker is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
