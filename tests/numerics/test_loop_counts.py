"""What the loop costs, counted: calls, waits for the device, operations, what stays in memory, imports.

A bound is what was counted, and a little; who needs more has a reason, and writes it here.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from attrs import evolve
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

import ftcore
import ftcore_plugins
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.prepared import prepare
from ftcore.training.evaluation import evaluate
from ftcore.training.loop import train_step
from ftcore.training.state import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftcore.data.loader import Batch
    from ftcore.training.state import TrainingParts

WAITING = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select"}
"""Operations after which the host must have a number: on a GPU it waits there for all that was queued.

In inference mode, `item` is seen as itself, elsewhere as what it is made of.
"""

OURS = tuple(str(Path(module.__file__ or "").parent) for module in (ftcore, ftcore_plugins))


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.seen[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))

    def waits(self) -> int:
        return sum(self.seen[name] for name in WAITING)


@pytest.fixture
def parts(tmp_path: Path) -> TrainingParts:
    sets = ("train.batch_size=16", f"run.folder={tmp_path / 'run'}")
    flags = CliOverrides("digits/cnn", "digits:5-9", plugins=("constant",), sets=sets)
    return evolve(prepare(load_config(None, flags)).assembly.parts, observers=())


def stepper(parts: TrainingParts, steps: int) -> Callable[[], None]:
    """Return what takes one step with the next batch, of those that were read before."""
    batches = iter(list(islice(parts.data.train.epoch(0), steps)))
    progress = Progress()

    def step() -> None:
        terms, divisor = train_step(parts, [next(batches)], progress)
        progress.step += 1
        progress.current.add(terms, divisor)

    parts.placement.model.train()
    return step


def by_hand(parts: TrainingParts, batch: Batch) -> None:
    loss: Any = cross_entropy(parts.network(batch.images), batch.targets)
    loss.backward()
    parts.optimization.optimizer.step()
    parts.optimization.optimizer.zero_grad(set_to_none=True)


def test_a_step_waits_for_the_device_once(parts: TrainingParts) -> None:
    """To see whether loss and gradient are finite, for an update with such a gradient cannot be undone."""
    step = stepper(parts, 4)
    step()

    with Operations() as operations:
        for _ in range(3):
            step()

    assert operations.waits() == 3


def test_a_step_adds_few_operations_to_those_of_a_loop_by_hand(parts: TrainingParts) -> None:
    """The norm of each gradient and of all, its sum with the loss, a number of it; and the loss of the epoch."""
    step, batch = stepper(parts, 2), next(parts.data.train.epoch(1))
    step()
    by_hand(parts, batch)

    with Operations() as ours:
        step()
    with Operations() as theirs:
        by_hand(parts, batch)

    more = ours.seen - theirs.seen
    assert sum(more.values()) <= 8, more


def test_an_evaluation_waits_for_the_device_only_at_its_end(parts: TrainingParts) -> None:
    """The loss, and as many numbers as there are metrics, whatever the number of batches."""
    read, counts = list(parts.data.val.sequential(0)), []
    assert len(read) > 4
    for batches in (read[:2], read):
        ready: Any = Ready(batches)
        with Operations() as operations:
            evaluate(evolve(parts, data=evolve(parts.data, val=ready)))
        counts.append(operations.waits())

    assert 0 < counts[0] == counts[1] <= 2 + len(parts.evaluation.metrics)


class Ready:
    """Batches that were read before."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def epoch(self, _epoch: int) -> Any:
        return iter(self.batches)


def test_a_step_calls_few_functions_of_ours(parts: TrainingParts) -> None:
    """In a network of one layer, a call of a function is half a percent of what ftcore adds to a step."""
    step, calls = stepper(parts, 3), Counter[str]()
    step()
    step()

    def count(frame: Any, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            calls[frame.f_code.co_qualname] += 1

    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(None)

    assert sum(calls.values()) <= 44, calls


def test_nothing_of_a_step_stays_in_memory(parts: TrainingParts) -> None:
    """Neither tensors nor other objects: a run of a million steps has what one of ten has."""

    def objects() -> Counter[type]:
        gc.collect()
        return Counter(map(type, gc.get_objects()))

    step = stepper(parts, 24)
    for _ in range(4):
        step()
    objects()  # which leaves something itself, the first time
    before = objects()
    for _ in range(20):
        step()

    more = objects() - before
    assert all(count < 10 for count in more.values()), more
    assert not any(issubclass(kind, torch.Tensor) for kind in more), more


IMPORTED = """
import sys
from ftcore.testing import invoke
result = invoke(*sys.argv[1:])
assert result.code == 0, result.err
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.slow
def test_a_run_imports_only_what_it_names(tmp_path: Path) -> None:
    """No timm for another's network, no drawing, no server, no table reader, no other framework.

    torchmetrics imports matplotlib where it is there.
    """
    sets = ("train.epochs=1", "model.weights=none", f"run.folder={tmp_path / 'run'}")
    words = ["run", "--data", "digits:5-6", "--model", "digits/cnn", *(w for text in sets for w in ("--set", text))]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *words], capture_output=True, text=True, check=True, cwd=tmp_path
    )

    imported = set(done.stdout.split())
    assert "torch" in imported
    assert (
        imported
        & {
            *("timm", "transformers", "onnx", "onnxruntime", "captum"),
            *("plotext", "starlette", "uvicorn", "pandas", "pyarrow", "peft", "ray", "optuna"),
        }
        == set()
    )
