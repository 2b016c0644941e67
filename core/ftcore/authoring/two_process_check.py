"""A plugin in two processes that share each batch, as `ddp` has it, and in one that has it whole."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from attrs import evolve

from ftcore.distributed.ranks import PeerFailed, ProcessInfo
from ftcore.distributed.rendezvous import process_session
from ftcore.errors import UserError
from ftcore.plugins.discovery import load_defaults

from .plugin_under_test import CheckFailedError, NotApplicableError, PluginUnderTest, format_exception, run_steps
from .side_effects import rng_states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from torch import Tensor

    from ftcore.training.state import TrainingParts

    from .plugin_under_test import CheckRequest


TOLERANCE = 1e-5
"""How much a weight may differ: a sum of shares is rounded to something else than the sum of a batch."""

STEPS = 8
"""At most; an epoch, if it is over by then, so the last has a smaller batch."""

PATIENCE = 120
"""Seconds that two processes have."""

_NEEDED = (
    "ftcore.training.assemble",
    "ftcore.training.loop",
    "ftcore.runs.run",
    "torch.nn.parallel",
    "torchmetrics.classification",
)

_FORK = multiprocessing.get_context("fork")


def companion_plugins(subject: PluginUnderTest) -> tuple[str, ...]:
    """Name the plugins beside it: `ddp`, and plain gradient descent where that is open, which amplifies no rounding.

    Raises:
        NotApplicableError: it, or one that was named beside it, says where the network runs.
    """
    answers, wanted = subject.ready.host.record, load_defaults().DISTRIBUTED_CHECK
    named = {hook for hook in wanted if not all(plugin.is_default for plugin in answers[hook].answered)}
    if "wrap_devices" in named:
        sharing = wanted["wrap_devices"]
        raise NotApplicableError(
            f"the plugin implements wrap_devices, so {sharing} cannot split batches between processes"
        )
    return tuple(plugin for hook, plugin in wanted.items() if hook not in named)


def prepare_run(subject: PluginUnderTest, others: Sequence[str], ranks: ProcessInfo | None = None) -> TrainingParts:
    """Assemble a run on the CPU, in one process or as one of several."""
    return subject.prepared("shares", *others, sets=load_defaults().DISTRIBUTED_CHECK_SETS, ranks=ranks).assembly.parts


def weights_single_process(subject: PluginUnderTest, others: Sequence[str]) -> tuple[dict[str, Tensor], bool]:
    """Return the `weights` in one process.

    Raises:
        NotApplicableError: the run is refused beside `ddp`.
    """
    try:
        return weights(prepare_run(subject, others))
    except UserError as error:
        if subject.is_fault_of_plugin(error):
            raise
        raise NotApplicableError(f"rejected with {others[0]}: {error}") from None


def weights(parts: TrainingParts) -> tuple[dict[str, Tensor], bool]:
    """Return the weights after some steps, and whether those drew random numbers.

    Batch norms keep their statistics, so that what an image gives does not depend on the others of its share.
    """
    drew = []

    def watched(gradient: Any) -> Any:
        before = rng_states()
        terms = parts.objective.step.run_backward(gradient)
        drew.append(rng_states() != before)
        return terms

    run_steps(
        evolve(parts, objective=evolve(parts.objective, step=evolve(parts.objective.step, wrap_backward=watched))),
        STEPS,
        still=True,
    )
    return {name: value.detach().clone() for name, value in parts.network.state_dict().items()}, any(drew)


@contextmanager
def forkserver() -> Iterator[Connection]:
    """Keep a process that has imported what a run needs and computed nothing: one that used a GPU cannot be forked."""
    for name in _NEEDED:
        import_module(name)
    ours, theirs = _FORK.Pipe()
    process = _FORK.Process(target=_stand_by, args=(theirs, ours))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def _stand_by(pipe: Connection, other_end: Connection) -> None:
    """Wait for one request, or for the end of the process that might make it."""
    other_end.close()
    with suppress(EOFError, OSError):
        asked, folder, others = pipe.recv()
        port = _free_port()
        pipe.send(_codes([partial(_share, asked, folder, others, rank, port) for rank in (0, 1)]))


def _codes(calls: Sequence[Callable[[], None]]) -> list[int | None]:
    """Make calls in processes of their own, and return the exit codes; who has not ended in time is killed."""
    processes = [_FORK.Process(target=call) for call in calls]
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def weights_two_processes(subject: PluginUnderTest, others: Sequence[str]) -> list[dict[str, Tensor]]:
    """Return the weights in each of two processes.

    Raises:
        NotApplicableError: the run is refused in two processes.
        CheckFailedError: it fails in them, or does not end.
    """
    import torch

    subject.helper.send((subject.asked, subject.folder, others))
    codes = subject.helper.recv()
    for name, error in (("refused", NotApplicableError), ("failed", CheckFailedError)):
        for file in subject.folder.glob(f"{name}-*"):
            raise error(f"{name} in two processes: {file.read_text(encoding='utf-8')}")
    if any(codes):
        raise CheckFailedError(
            f"two processes that train with it crash or do not finish within {PATIENCE} s (exit codes {codes}); "
            f"{SAME_ON_ALL_RANKS_HINT}"
        )
    return [torch.load(subject.folder / f"weights-{rank}", weights_only=True) for rank in (0, 1)]


SAME_ON_ALL_RANKS_HINT = "do the same in every process, whatever ctx.ranks.rank is"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _share(asked: CheckRequest, folder: Path, others: Sequence[str], rank: int, port: int) -> None:
    """Be one of the two processes, and leave what came of it in the folder."""
    import torch

    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    subject = PluginUnderTest(asked, folder)
    try:
        with process_session() as ranks:
            torch.save(weights(prepare_run(subject, others, ranks))[0], folder / f"weights-{rank}")
    except PeerFailed:  # which says why
        pass
    except UserError as error:
        state = "failed" if subject.is_fault_of_plugin(error) else "refused"
        (folder / f"{state}-{rank}").write_text(str(error), encoding="utf-8")
    except Exception as error:  # noqa: BLE001 - what a plugin raises is what is looked for
        (folder / f"failed-{rank}").write_text(format_exception(error), encoding="utf-8")


def describe_difference(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> str:
    """Say how many tensors differ by more than `TOLERANCE`, and which differs most."""
    found = {name: float((value.double() - others[name].double()).abs().max()) for name, value in some.items()}
    wrong = {name: difference for name, difference in found.items() if not difference <= TOLERANCE}
    if not wrong:
        return ""
    name = max(wrong, key=wrong.__getitem__)
    return f"{len(wrong)} tensors, {name} by {wrong[name]:.2g}"
