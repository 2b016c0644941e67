"""The checks of a plugin: each says what it looked at, or what to change."""

from __future__ import annotations

import subprocess
from importlib import import_module
from pickle import dumps
from typing import TYPE_CHECKING, Any

from attrs import exceptions, fields, frozen

from ftcore.config.structure import structure
from ftcore.errors import UserError
from ftcore.plugins.activation import instantiate
from ftcore.plugins.activation import load as load_plugin
from ftcore.plugins.discovery import load_defaults
from ftcore.plugins.lint import find_problems, is_plugin
from ftcore.types.events import StepLogged

from .plugin_under_test import (
    CheckFailedError,
    NotApplicableError,
    environment,
    format_exception,
    python_command,
    run_steps,
)
from .side_effects import describe_changes, differences, process_state, rng_states, run_digests
from .task_check import check_unknown_task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from .plugin_under_test import PluginUnderTest


def _import(subject: PluginUnderTest) -> str:
    """An import leaves the process as it was."""
    for module in load_defaults().CHECK_IMPORTS:
        import_module(module)
    before = process_state() | rng_states()
    load_plugin(subject.reference)
    changed = describe_changes(before, process_state() | rng_states())
    if changed:
        raise CheckFailedError(f"importing it changed {changed}; do that in the hook that needs it, if at all")
    return "the process is unchanged"


def _config(subject: PluginUnderTest) -> str:
    """Options have defaults, none can be changed later, and no others are taken."""
    target = load_plugin(subject.reference)
    if not is_plugin(target):
        raise NotApplicableError("the plugin has neither hooks nor options")
    if instantiate(target, subject.reference, subject.given)[0] is None:
        raise NotApplicableError("the plugin has no Config, so it has no options")
    cls: Any = target.Config
    options = structure(subject.given.options.get(subject.name, {}), cls, subject.name, {})
    for option in fields(cls):
        try:
            setattr(options, option.name, getattr(options, option.name))
        except exceptions.FrozenInstanceError:
            continue
        raise CheckFailedError(f"{cls.__name__}.{option.name} is mutable; decorate {cls.__name__} with @attrs.frozen")
    try:
        structure({"no_such_option": 0}, cls, subject.name, {})
    except UserError:
        return f"options: {', '.join(option.name for option in fields(cls)) or 'none'}; others are rejected"
    raise CheckFailedError(f"{cls.__name__} accepts an unknown option; let attrs generate its __init__")


def _lint(subject: PluginUnderTest) -> str:
    """Its hooks are hooks, and take what they are given."""
    target = load_plugin(subject.reference)
    plugin = instantiate(target, subject.reference, subject.given)[1] if is_plugin(target) else target
    faults = find_problems(plugin)
    if faults:
        raise CheckFailedError("; ".join(faults))
    return f"its hooks are hooks: {', '.join(sorted(subject.hooks))}" if subject.hooks else "it is a recipe"


def _contract(subject: PluginUnderTest) -> str:
    """What its hooks return is what a run can use."""
    from .answer_checks import ANSWER_CHECKS

    parts = subject.ready.assembly.parts
    tried = [hook for hook in ANSWER_CHECKS if hook in subject.hooks]
    for hook in tried:
        fault = ANSWER_CHECKS[hook](parts)
        if fault:
            where = next(impl.where for impl in subject.activated.hooks if impl.hook == hook)
            raise CheckFailedError(f"{subject.name}.{hook} ({where}): {fault}")
    return f"a run is assembled with it{'; tried: ' if tried else ''}{', '.join(tried)}"


def _check_side_effects(subject: PluginUnderTest) -> str:
    """A run leaves the process as it was."""
    import torch

    torch.set_num_threads(1)  # as ``CHECK`` has it
    before = process_state()
    _ = subject.full_run_digests
    changed = describe_changes(before, process_state())
    if changed:
        raise CheckFailedError(
            f"a run with the plugin changed {changed}; restore it at the end of the run (observers receive RunEnded, "
            "RunFailed and RunStopped), or do not change it"
        )
    return "a run leaves the process unchanged"


def _determinism(subject: PluginUnderTest) -> str:
    """Two runs end in the same bits."""
    wrong = differences(subject.run("again"), subject.full_run_digests)
    if wrong:
        raise CheckFailedError(
            f"two runs of the same configuration differ: {wrong}; use only the global random generators of torch, "
            f"numpy and "
            "Python, which are seeded for each step and sample, and keep no state outside the plugin"
        )
    return "two runs are bitwise identical"


def _spawn(subject: PluginUnderTest) -> str:
    """What loader processes need can be sent to one that was spawned."""
    import torch

    if subject.hooks.isdisjoint({"build_data", "make_transforms"}):
        raise NotApplicableError("loader processes do not use it: it has neither build_data nor make_transforms")
    dataset, file = subject.ready.assembly.parts.data.train.dataset, subject.folder / "sample"
    try:
        content = dumps(dataset)
    except Exception as error:
        raise CheckFailedError(
            f"it cannot be sent to loader processes: {type(error).__name__}: {error}; define it at the top of a "
            f"module, as a "
            "class or a function, and bind values with functools.partial"
        ) from error
    code = "import pickle, sys, torch; torch.save(pickle.load(sys.stdin.buffer)[0, 0][0], sys.argv[1])"
    done = subprocess.run(
        python_command(code, str(file)), input=content, capture_output=True, env=environment(), check=False
    )
    if done.returncode:
        raise CheckFailedError(
            f"a spawned process cannot read it: {done.stderr.decode(errors='replace').strip()[-500:]}"
        )
    if not torch.equal(torch.load(file, weights_only=True), dataset[0, 0][0]):  # type: ignore[index]
        raise CheckFailedError(
            "a spawned process returns a different image; keep everything that determines it in the pickled object"
        )
    return "a spawned process returns the same image"


def _check_state_dict(subject: PluginUnderTest) -> str:
    """What a state_dict gave to the last checkpoint of a run, its load_state_dict takes."""
    from ftcore.checkpoints import checkpoint
    from ftcore.checkpoints.serialization import serialize
    from ftcore.training import resume_state

    parts = subject.prepared("state").assembly.parts
    if not parts.stateful:
        raise NotApplicableError("the plugin, its loss and its observers have no state_dict")
    _ = subject.full_run_digests
    last = max((subject.folder / "whole" / "checkpoints").iterdir())
    resume_state.restore_state(parts, last)
    for name, given in checkpoint.load_state(last)["plugins"].items():
        expected: dict[str, Tensor] = {}
        found: dict[str, Tensor] = {}
        wanted = serialize(given, name, expected)
        if serialize(parts.stateful[name].state_dict(), name, found) != wanted or not _same(found, expected):
            raise CheckFailedError(f"{name}: load_state_dict does not restore everything that state_dict returned")
    return f"state_dict is restored: {', '.join(parts.stateful)}"


def _same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    import torch

    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


class _SimulatedCrash(BaseException):
    pass


def _resume(subject: PluginUnderTest) -> str:
    """A run that ends in mid-epoch and is gone on with ends in the same bits."""
    from ftcore.runs.run import fit, resume

    complete, folder, at = (
        subject.full_run_digests,
        subject.folder / "cut",
        max(2, subject.ready.assembly.parts.steps_per_epoch // 2 + 1),
    )
    steps = iter(range(1, at + 1))

    def cut(event: object) -> None:
        if isinstance(event, StepLogged) and next(steps) == at:
            raise _SimulatedCrash

    try:
        fit(subject.config("cut"), [cut])
    except _SimulatedCrash:
        resume(folder)
    else:
        raise NotApplicableError(f"the run ended before step {at}; lengthen it with a smaller train.batch_size")
    wrong = differences(run_digests(folder), complete)
    if wrong:
        raise CheckFailedError(
            f"a run interrupted in step {at} and resumed differs from an uninterrupted one: {wrong}; save everything "
            f"that "
            "the plugin, its loss or its observer remembers between steps in state_dict and load_state_dict"
        )
    return f"a run interrupted in step {at} and resumed is bitwise identical to an uninterrupted one"


def _combination(subject: PluginUnderTest) -> str:
    """It works beside each built-in plugin, two steps each, or that is refused with a message."""
    tried, refused = 0, []
    for other, sets in load_defaults().COMBINATION_CHECKS.items():
        try:
            run_steps(subject.prepared("beside", other, sets=sets).assembly.parts, 2)
        except UserError as error:
            if subject.is_fault_of_plugin(error):
                raise CheckFailedError(f"with {other}: {error}") from None
            refused.append(other)
        except Exception as error:
            raise CheckFailedError(
                f"with {other}: {format_exception(error)}; do not depend on other plugins"
            ) from error
        else:
            tried += 1
    return f"two steps with each of {tried} built-in plugins; rejected with a message: {', '.join(refused) or 'none'}"


def _check_ddp_equivalence(subject: PluginUnderTest) -> str:
    """Two processes that share each batch end in the weights of one that has it whole."""
    from . import two_process_check

    others = two_process_check.companion_plugins(subject)
    one, drew = two_process_check.weights_single_process(subject, others)
    first, second = two_process_check.weights_two_processes(subject, others)
    if wrong := two_process_check.describe_difference(first, second):
        raise CheckFailedError(
            f"two processes that split each batch end with different weights, {wrong}; "
            f"{two_process_check.SAME_ON_ALL_RANKS_HINT}"
        )
    wrong = two_process_check.describe_difference(first, one)
    if wrong and drew:
        raise NotApplicableError("steps draw random numbers (e.g. dropout), which differ between processes")
    if wrong and _uses_reduced_precision(subject, one):
        raise NotApplicableError("at this precision, a sum over processes rounds differently from a sum over the batch")
    if wrong:
        raise CheckFailedError(
            f"two processes that split each batch end with other weights than a single process, {wrong}; let the loss "
            "be a mean over samples, or set Loss.denominator to what its mean is divided by, and let no term depend "
            f"on the number of samples per process. {load_defaults().ADVICE['whole batch']}"
        )
    return f"two processes end with the weights of a single process, to {two_process_check.TOLERANCE:g}"


def _uses_reduced_precision(subject: PluginUnderTest, weights: Mapping[str, Tensor]) -> bool:
    import torch

    halves = any(value.is_floating_point() and value.dtype != torch.float32 for value in weights.values())
    return halves or "precision_context" in subject.hooks


@frozen
class Check:
    """A check.

    Attributes:
        run: subject -> what was looked at; raises `CheckFailedError`, `NotApplicableError` or what the plugin does.
        needs: checks without which it says nothing.
    """

    run: Callable[[PluginUnderTest], str]
    needs: tuple[str, ...] = ("import", "config", "lint", "contract")


CHECKS = {
    "import": Check(_import, ()),
    "config": Check(_config, ("import",)),
    "lint": Check(_lint, ("import", "config")),
    "contract": Check(_contract, ("import", "config", "lint")),
    "tasks": Check(check_unknown_task),
    "effects": Check(_check_side_effects),
    "determinism": Check(_determinism),
    "spawn": Check(_spawn),
    "state": Check(_check_state_dict),
    "resume": Check(_resume, ("import", "config", "lint", "contract", "determinism", "state")),
    "combination": Check(_combination),
    "ranks": Check(_check_ddp_equivalence, ("import", "config", "lint", "contract", "determinism", "combination")),
}
"""Name -> check, in the order in which they are made."""
