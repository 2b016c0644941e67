"""Start the processes of a run on this machine, through torch's elastic launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ftcore.errors import UserError
from ftcore.system.cpu import available_cpus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def launch(arguments: Sequence[str], nproc: int, restarts: int) -> int:
    """Run an ftcore command in so many processes, and return the exit code of all.

    Args:
        arguments: of ``ftcore``, without those of this function.
        nproc: processes; each takes the GPU of its number, or its share of the processor's cores.
        restarts: how often all are started again after one has failed; they go on from the last checkpoint.

    Raises:
        UserError: one was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # the launcher's own reports; what happened is said once, by whom it happened to
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // nproc)))
    try:
        with _forward_sigusr1(), TemporaryDirectory(prefix="ftcore-") as scratch:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=nproc,
                run_id=os.urandom(8).hex(),
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                max_restarts=restarts,
                logs_specs=DefaultLogsSpecs(log_dir=scratch),  # which would else be left behind
            )
            elastic_launch(config, sys.executable)("-m", "ftcore", *arguments)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode >= 0:
            return int(failure.exitcode)
        raise UserError(f"rank {rank} (process {failure.pid}) was killed by {failure.signal_name()}") from None
    return 0


@contextmanager
def _forward_sigusr1() -> Iterator[None]:
    """Let the processes save themselves when this one is asked to; the launcher passes on what ends it."""

    def pass_on(number: int, _frame: Any) -> None:
        for child in Path("/proc/self/task").glob("*/children"):
            for pid in child.read_text().split():
                os.kill(int(pid), number)

    before = signal.signal(signal.SIGUSR1, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
