"""The checks of a plugin: each says what it looked at, or what to change."""

from __future__ import annotations

import subprocess
from importlib import import_module
from pickle import dumps
from typing import TYPE_CHECKING, Any

from attrs import exceptions, fields, frozen

from .discover import default_module
from .errors import UserError
from .events import StepLogged
from .lint import is_plugin, problems
from .plugins import configured
from .plugins import load as load_plugin
from .structure import structure
from .subject import FaultError, NotApplicableError, environment, python, raised, steps
from .traces import changes, differences, generators, left, process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from .subject import Subject


def _import(subject: Subject) -> str:
    """An import leaves the process as it was."""
    import torchvision  # noqa: F401 - these are imported by any run, and what they do is not the plugin's fault

    before = process() | generators()
    load_plugin(subject.reference)
    changed = changes(before, process() | generators())
    if changed:
        raise FaultError(f"importing it changed {changed}; do that in the hook that needs it, or not at all")
    return "changes nothing in the process"


def _config(subject: Subject) -> str:
    """Options have defaults, none can be changed later, and no others are taken."""
    target = load_plugin(subject.reference)
    if not is_plugin(target):
        raise NotApplicableError("it has neither hooks nor options")
    if configured(target, subject.reference, subject.given)[0] is None:
        raise NotApplicableError("it has no Config, and so no options")
    cls: Any = target.Config
    options = structure(subject.given.options.get(subject.name, {}), cls, subject.name, {})
    for option in fields(cls):
        try:
            setattr(options, option.name, getattr(options, option.name))
        except exceptions.FrozenInstanceError:
            continue
        raise FaultError(
            f"{cls.__name__}.{option.name} can be changed later; decorate {cls.__name__} with @attrs.frozen"
        )
    try:
        structure({"no_such_option": 0}, cls, subject.name, {})
    except UserError:
        return f"it takes {', '.join(option.name for option in fields(cls)) or 'no options'}, and nothing else"
    raise FaultError(f"{cls.__name__} takes an option that it does not have; let attrs write its __init__")


def _lint(subject: Subject) -> str:
    """Its hooks are hooks, and take what they are given."""
    target = load_plugin(subject.reference)
    plugin = configured(target, subject.reference, subject.given)[1] if is_plugin(target) else target
    faults = problems(plugin)
    if faults:
        raise FaultError("; ".join(faults))
    return f"its hooks are hooks: {', '.join(sorted(subject.hooks))}" if subject.hooks else "it is a recipe"


def _contract(subject: Subject) -> str:
    """What its hooks return is what a run can use."""
    from .probes import PROBES

    parts = subject.ready.assembly.parts
    tried = [hook for hook in PROBES if hook in subject.hooks]
    for hook in tried:
        fault = PROBES[hook](parts)
        if fault:
            where = next(impl.where for impl in subject.alone.hooks if impl.hook == hook)
            raise FaultError(f"{subject.name}.{hook} ({where}): {fault}")
    return f"a run is assembled with it{'; tried: ' if tried else ''}{', '.join(tried)}"


def _effects(subject: Subject) -> str:
    """A run leaves the process as it was."""
    import torch

    torch.set_num_threads(1)  # as ``CHECK`` has it
    before = process()
    _ = subject.whole
    changed = changes(before, process())
    if changed:
        raise FaultError(
            f"a run with it changed {changed}; put that back when the run is over (an observer is told of RunEnded, "
            "RunFailed and RunStopped), or leave it alone"
        )
    return "a run leaves the process as it was"


def _determinism(subject: Subject) -> str:
    """Two runs end in the same bits."""
    wrong = differences(subject.run("again"), subject.whole)
    if wrong:
        raise FaultError(
            f"two runs of the same configuration end in different bits: {wrong}; draw only from the global generators "
            "of torch, numpy and Python, which are seeded for each step and sample, and keep nothing outside the plugin"
        )
    return "two runs end in the same bits"


def _spawn(subject: Subject) -> str:
    """What loader processes need can be sent to one that was spawned."""
    import torch

    if subject.hooks.isdisjoint({"build_data", "make_transforms"}):
        raise NotApplicableError("nothing of it goes to a loader process: it has no build_data and no make_transforms")
    dataset, file = subject.ready.assembly.parts.train.dataset, subject.folder / "sample"
    try:
        content = dumps(dataset)
    except Exception as error:
        raise FaultError(
            f"loader processes cannot get it: {type(error).__name__}: {error}; define it at the top of a module, as a "
            "class or a function, and bind values with functools.partial"
        ) from error
    code = "import pickle, sys, torch; torch.save(pickle.load(sys.stdin.buffer)[0, 0][0], sys.argv[1])"
    done = subprocess.run(python(code, str(file)), input=content, capture_output=True, env=environment(), check=False)
    if done.returncode:
        raise FaultError(f"a spawned process cannot read it: {done.stderr.decode(errors='replace').strip()[-500:]}")
    if not torch.equal(torch.load(file, weights_only=True), dataset[0, 0][0]):  # type: ignore[index]
        raise FaultError("a spawned process reads another picture; let all that decides it be in what is pickled")
    return "a spawned process reads the same picture"


def _state(subject: Subject) -> str:
    """What a state_dict gave to the last checkpoint of a run, its load_state_dict takes."""
    from . import checkpoint, snapshot
    from .packing import pack

    parts = subject.prepared("state").assembly.parts
    if not parts.stateful:
        raise NotApplicableError("neither it, nor its loss, nor an observer has a state_dict")
    _ = subject.whole
    last = max((subject.folder / "whole" / "checkpoints").iterdir())
    snapshot.put_back(parts, last)
    for name, given in checkpoint.read(last)["plugins"].items():
        expected: dict[str, Tensor] = {}
        found: dict[str, Tensor] = {}
        wanted = pack(given, name, expected)
        if pack(parts.stateful[name].state_dict(), name, found) != wanted or not _same(found, expected):
            raise FaultError(f"{name}: load_state_dict does not put back what state_dict gave; let it take all of it")
    return f"what state_dict gives is put back: {', '.join(parts.stateful)}"


def _same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    import torch

    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


class _Cut(Exception):  # noqa: N818 - it is no error
    pass


def _resume(subject: Subject) -> str:
    """A run that ends in mid-epoch and is gone on with ends in the same bits."""
    from .run import resume, run

    whole, folder, at = (
        subject.whole,
        subject.folder / "cut",
        max(2, subject.ready.assembly.parts.steps_per_epoch // 2 + 1),
    )
    steps = iter(range(1, at + 1))

    def cut(event: object) -> None:
        if isinstance(event, StepLogged) and next(steps) == at:
            raise _Cut

    try:
        run(subject.config("cut"), [cut])
    except _Cut:
        resume(folder)
    else:
        raise NotApplicableError(f"the run was over before step {at}; a smaller train.batch_size makes it longer")
    wrong = differences(left(folder), whole)
    if wrong:
        raise FaultError(
            f"a run that was cut off in step {at} and gone on with ends in other bits: {wrong}; give the plugin, its "
            "loss or its observer a state_dict and a load_state_dict of all that it remembers from step to step"
        )
    return f"cut off in step {at} and gone on with, a run ends in the same bits"


def _combination(subject: Subject) -> str:
    """It works beside each built-in plugin, two steps each, or that is refused with a message."""
    tried, refused = 0, []
    for other, sets in import_module(default_module()).BESIDE.items():
        try:
            steps(subject.prepared("beside", other, sets=sets).assembly.parts, 2)
        except UserError as error:
            if subject.blames_it(error):
                raise FaultError(f"beside {other}: {error}") from None
            refused.append(other)
        except Exception as error:
            raise FaultError(f"beside {other}: {raised(error)}; take no other plugin for granted") from error
        else:
            tried += 1
    return f"two steps beside each of {tried} built-in plugins; refused, with a message: {', '.join(refused) or 'none'}"


def _ranks(subject: Subject) -> str:
    """Two processes that share each batch end in the weights of one that has it whole."""
    from . import shares

    others = shares.beside(subject)
    one, drew = shares.alone(subject, others)
    first, second = shares.in_two(subject, others)
    if wrong := shares.apart(first, second):
        raise FaultError(f"two processes that share each batch end in different weights, {wrong}; {shares.SAME}")
    wrong = shares.apart(first, one)
    if wrong and drew:
        raise NotApplicableError("a step draws random numbers, as dropout does, and each process its own")
    if wrong and _rounds(subject, one):
        raise NotApplicableError("at its precision a sum of shares is rounded to something else than that of a batch")
    if wrong:
        raise FaultError(
            f"two processes that share each batch end in other weights than one that has it whole, {wrong}; let a loss "
            "be a mean over samples, or say in Loss.weight what its mean was divided by, and let no term depend on how "
            "many samples its process has. A loss that is meant to be one of a whole batch, as soft_f1 is: --but ranks"
        )
    return f"two processes that share each batch end in the weights of one, to {shares.BOUND:g}"


def _rounds(subject: Subject, weights: Mapping[str, Tensor]) -> bool:
    import torch

    halves = any(value.is_floating_point() and value.dtype != torch.float32 for value in weights.values())
    return halves or "precision_context" in subject.hooks


@frozen
class Check:
    """A check.

    Attributes:
        look: subject -> what was looked at; raises `FaultError`, `NotApplicableError`, or whatever the plugin does.
        needs: checks without which it says nothing.
    """

    look: Callable[[Subject], str]
    needs: tuple[str, ...] = ("import", "config", "lint", "contract")


CHECKS = {
    "import": Check(_import, ()),
    "config": Check(_config, ("import",)),
    "lint": Check(_lint, ("import", "config")),
    "contract": Check(_contract, ("import", "config", "lint")),
    "effects": Check(_effects),
    "determinism": Check(_determinism),
    "spawn": Check(_spawn),
    "state": Check(_state),
    "resume": Check(_resume, ("import", "config", "lint", "contract", "determinism", "state")),
    "combination": Check(_combination),
    "ranks": Check(_ranks, ("import", "config", "lint", "contract", "determinism", "combination")),
}
"""Name -> check, in the order in which they are made."""
