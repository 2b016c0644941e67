"""A configuration to start with: commented, with a recipe that suits the data that were looked at."""

from __future__ import annotations

import textwrap
from statistics import median
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ftcore.config.schema import SECTIONS
from ftcore.plugins.describe import option_rows
from ftcore.plugins.discovery import load_defaults
from ftcore.types.abilities import Counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftcore.config.schema import RunConfig
    from ftcore.types.data import Data
    from ftcore.types.task import Task


@frozen
class StarterConfig:
    """What `ftcore init` writes.

    Attributes:
        text: a TOML file.
        summary: what the data are, and why which plugin is named; a line each.
    """

    text: str
    summary: tuple[str, ...]


def suggest(config: RunConfig) -> StarterConfig:
    """Look at a run's data, decode none, and write a configuration that names what suits them.

    Raises:
        UserError: the data cannot be indexed.
    """
    from ftcore.plugins.calls import HookCalls
    from ftcore.plugins.startup import activate

    host = activate(config)
    data = HookCalls(host).build_data(host.config.data.source)
    reasons = _recipe(data.task, len(data.train))
    summary = (*_describe(data), *(f"{plugin}: {why}" for plugin, why in reasons.items()))
    plugins = [*(named.text for named in config.plugins), *reasons]
    given: dict[str, Any] = {"model.name": config.model.name or load_defaults().STARTER_MODEL}
    for section in SECTIONS:
        prefix = f"{section}."
        options = [key.removeprefix(prefix) for key in config.origins if key.startswith(prefix)]
        given |= {prefix + option: getattr(getattr(config, section), option) for option in options}
    lines = [*(f"# {line}" for line in summary), f"plugins = {_spell(plugins)}", *_sections(given)]
    for plugin, values in config.options.items():
        lines += ["", f"[plugin.{plugin}]", *(f"{key} = {_spell(value.value())}" for key, value in values.items())]
    return StarterConfig("\n".join(lines) + "\n", summary)


def _sections(given: dict[str, Any]) -> Iterator[str]:
    """Spell all options of the core with their meanings; those that are not given are comments with their defaults."""
    for section, cls in SECTIONS.items():
        yield f"\n[{section}]"
        for option, _, _, meaning in option_rows(cls):
            key = f"{section}.{option}"
            yield textwrap.fill(meaning, 100, initial_indent="# ", subsequent_indent="# ")
            default = getattr(cls(), option)
            yield f"{option} = {_spell(given[key])}" if key in given else f"# {option} ={_after_equals(default)}"


def _after_equals(default: Any) -> str:
    return "" if default is None else f" {_spell(default)}"


def _spell(value: Any) -> str:
    """Spell a value as TOML."""
    import tomlkit

    spelt: str = tomlkit.item(list(value) if isinstance(value, tuple) else value).as_string()
    return spelt


def _describe(data: Data) -> Iterator[str]:
    task = data.task
    names = ", ".join(task.names[:10]) + (", ..." if len(task.names) > 10 else "")
    yield f"{len(data.train):,} training and {len(data.val):,} validation images"
    yield f"{task.name}, {task.outputs}: {names}"
    if isinstance(task, Counted) and task.counts:
        by_count = sorted(zip(task.counts, task.names, strict=True))
        (fewest, rare), (most, frequent) = by_count[0], by_count[-1]
        yield f"{fewest:,} ({rare}) to {most:,} ({frequent}) training images each"


def _recipe(task: Task, images: int) -> dict[str, str]:
    """Return what is named for data of this size and balance: plugin -> why."""
    defaults = load_defaults()
    counts = task.counts if isinstance(task, Counted) else ()
    each = int(median(counts)) if counts else images
    name, why = next((name, why) for below, name, why in defaults.STARTER_RECIPES if below is None or each < below)
    of_what = " per class or label (median)" if counts else ""
    reasons = {name: f"{each:,} training images{of_what}; {why}"}
    least_ratio, plugin, reason = defaults.STARTER_IMBALANCE.get(task.name, (0, "", ""))
    ratio = max(counts) / min(counts) if counts and plugin else 0
    if plugin and ratio >= least_ratio:
        reasons[plugin] = f"the largest class has {ratio:.0f} times the images of the smallest; {reason}"
    return reasons
