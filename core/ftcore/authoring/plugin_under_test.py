"""A plugin that is checked, and the runs that it is checked with."""

from __future__ import annotations

import os
import sys
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from ftcore.config.load import CliOverrides, load_config
from ftcore.config.schema import PluginRef, RunConfig
from ftcore.plugins.activation import Plugin, activate
from ftcore.plugins.discovery import discover, load_defaults
from ftcore.plugins.references import PluginReference, resolve

from .side_effects import run_digests

if TYPE_CHECKING:
    from ftcore.distributed.ranks import ProcessInfo
    from ftcore.errors import UserError
    from ftcore.runs.prepared import PreparedRun
    from ftcore.training.state import TrainingParts


@frozen
class CheckRequest:
    """What to check, and with what beside it.

    Attributes:
        plugin: as in ``--plugin``.
        model: `model.name`; by default the first network that the plugin lists, or that of ``CHECK``.
        data: `data.source`; by default the plugin's name where it answers `build_data`, or that of ``CHECK``.
        plugins: others, named beside it.
        without: as ``--without``.
        sets: as ``--set``.
        but: checks that are left out.
    """

    plugin: str
    model: str | None = None
    data: str | None = None
    plugins: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    but: tuple[str, ...] = ()


class CheckFailedError(Exception):
    """A check has failed; the text says what to change."""


class NotApplicableError(Exception):
    """There is nothing in this plugin that a check looks at; the text says why."""


class PluginUnderTest:
    """The plugin that is checked; what several checks need is made once.

    Attributes:
        asked: see `CheckRequest`.
        folder: for runs.
        helper: see `ftcore.authoring.two_process_check.forkserver`.
        reference: what is imported.
    """

    def __init__(self, asked: CheckRequest, folder: Path, helper: Any = None) -> None:
        self.asked, self.folder, self.helper = asked, folder, helper
        self.named = PluginRef(asked.plugin, f"plugins check {asked.plugin}", Path.cwd())
        self.reference: PluginReference = resolve(self.named, discover())

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.reference.name

    @cached_property
    def given(self) -> RunConfig:
        """What the user set."""
        return load_config(None, CliOverrides(sets=self.asked.sets))

    @cached_property
    def activated(self) -> Plugin:
        """The plugin, activated, with nothing beside it."""
        return activate(self.reference, self.named.origin, self.given)

    @cached_property
    def hooks(self) -> frozenset[str]:
        """Names of the hooks that it answers or goes round."""
        return frozenset(impl.hook for impl in self.activated.hooks)

    @cached_property
    def ready(self) -> PreparedRun:
        """A run with it, assembled."""
        return self.prepared("ready")

    @cached_property
    def full_run_digests(self) -> dict[str, str]:
        """What a run with it leaves: name -> digest."""
        return self.run("whole")

    def config(self, folder: str, *plugins: str, sets: tuple[str, ...] = ()) -> RunConfig:
        """Return the configuration of a run with it, and with other plugins."""
        asked = self.asked
        sets = (*self._sets, *asked.sets, *sets, f"run.folder={self.folder / folder}")
        config = load_config(
            None, CliOverrides(asked.model, asked.data, (*asked.plugins, *plugins), asked.without, sets)
        )
        return evolve(config, plugins=(self.named, *config.plugins))

    def prepared(
        self, folder: str, *plugins: str, sets: tuple[str, ...] = (), ranks: ProcessInfo | None = None
    ) -> PreparedRun:
        """Assemble a run with it, and with other plugins."""
        from ftcore.runs.prepared import prepare

        return prepare(self.config(folder, *plugins, sets=sets), ranks=ranks)

    def run(self, folder: str) -> dict[str, str]:
        """Run, and return a digest of everything that is left.

        Raises:
            NotApplicableError: it does not run in one process.
        """
        from ftcore.runs.run import fit

        if lone := self.ready.assembly.parts.placement.single_process_error:
            raise NotApplicableError(f"it cannot run in one process: {lone}")
        fit(self.config(folder))
        return run_digests(self.folder / folder)

    def is_fault_of_plugin(self, error: UserError) -> bool:
        """Whether an error says that this plugin did wrong, rather than being a refusal."""
        return self.name in error.faulty_plugins

    @cached_property
    def _sets(self) -> list[str]:
        """Settings of a run, but for what the user set."""
        given = {"data.source": self.asked.data, "model.name": self.asked.model}
        sets: dict[str, str] = dict(load_defaults().CHECK_CONFIG)
        if "build_data" in self.hooks:
            sets["data.source"] = self.name
        if {"build_model", "list_models"} <= self.hooks and self.asked.model is None:
            sets |= {"model.name": self._first_network(), "model.weights": "none"}
        return [f"{key}={value}" for key, value in sets.items() if not given.get(key)]

    def _first_network(self) -> str:
        from ftcore.plugins.calls import HookCalls
        from ftcore.plugins.host import Host

        listed = HookCalls(Host(self.given, [self.activated], self.folder)).list_models()
        if not listed:
            raise CheckFailedError("list_models lists no networks; list one, or choose a network with --model NAME")
        return listed[0].name


def run_steps(parts: TrainingParts, count: int, *, still: bool = False) -> None:
    """Take the first steps of a run; batch norms may stand still meanwhile."""
    from torch.nn.modules.batchnorm import _NormBase

    from ftcore.model import freezing
    from ftcore.training.loop import accumulation_windows, train_step
    from ftcore.training.state import Progress

    progress = Progress()
    parts.placement.model.train()
    freezing.set_frozen_eval(parts.network, parts.plan, 0)
    for module in parts.network.modules():
        module.train(module.training and not (still and isinstance(module, _NormBase)))
    for window in islice(accumulation_windows(parts.data.train.epoch(0), parts.train_config.accumulate), count):
        train_step(parts, window, progress)
        progress.step += 1


def python_command(code: str, argument: str) -> list[str]:
    """Return the command of a process that says where it died, if it does."""
    return [sys.executable, "-P", "-X", "faulthandler", "-c", code, argument]


def environment() -> dict[str, str]:
    """Return the environment of a process that finds the modules that this one finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def format_exception(error: BaseException) -> str:
    """Say what was raised, where, and what is noted of it."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace else ""
    return "; ".join([f"{type(error).__name__}: {error}{place}", *getattr(error, "__notes__", ())])
