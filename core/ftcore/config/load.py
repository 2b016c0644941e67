"""Configuration files and command-line flags, read into a `RunConfig`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from ftcore.errors import UnknownOptionError, UserError, did_you_mean
from ftcore.system.files import read_json, read_toml

from .schema import FLAGS, HOOK_FLAGS, LIST_KEYS, SECTIONS, HookOption, PluginRef, RunConfig
from .structure import CliValue, structure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


MANIFEST = "manifest.json"
"""In each run folder, and what makes a folder one."""


@frozen
class CliOverrides:
    """The part of the configuration from the command line.

    Attributes:
        model: `model.name`.
        data: `data.source`.
        plugins: texts of ``--plugin``.
        without: texts of ``--without``.
        sets: texts of ``--set``, ``section.key=value`` or ``plugin.key=value``.
        flags: other flags, by the names in `schema.FLAGS` and `schema.HOOK_FLAGS` -> text.
    """

    model: str | None = None
    data: str | None = None
    plugins: Sequence[str] = ()
    without: Sequence[str] = ()
    sets: Sequence[str] = ()
    flags: Mapping[str, str] = field(factory=dict)


def load_config(
    file: Path | None = None, flags: CliOverrides | None = None, *, trusted: bool = True, run: Path | None = None
) -> RunConfig:
    """Read a TOML file, let flags beat it, and check every key and value of the core's sections.

    Args:
        file: the file; by default there is none.
        flags: what beats it.
        trusted: whether that the file names a plugin is permission to load its code.
        run: the run folder that the file belongs to, which never is; by default its own if a run's manifest is there.

    Raises:
        UserError: unreadable file, unknown key, wrong type, or a value out of range.
    """
    flags = flags or CliOverrides()
    tree, origins = _from_file(file) if file else ({}, {})
    named = [evolve(plugin, trusted=trusted) for plugin in _named("plugins", tree, file)]
    run = run or (file.parent if file and os.path.lexists(file.parent / MANIFEST) else None)
    if run and file:
        texts, places = [plugin.text for plugin in named], [plugin.origin for plugin in named]
        named = list(plugins_of_run(texts, places, file.absolute().parent, run))
    without = [name.text for name in _named("without", tree, file)]
    named += [PluginRef(text, f"--plugin {text}", Path.cwd()) for text in flags.plugins]
    for key, value, origin in _from_flags(flags):
        section, option = key.rsplit(".", 1)
        tree.setdefault(section, {})[option] = value
        origins[key] = origin
    sections: dict[str, Any] = {
        name: structure(tree.pop(name, {}), cls, name, origins) for name, cls in SECTIONS.items()
    }
    hooks = _hook_orders(tree.pop("hooks", {}), origins)
    options = {name.removeprefix("plugin."): values for name, values in tree.items()}
    return RunConfig(
        **sections,
        plugins=tuple(named),
        without=(*without, *flags.without),
        hooks=hooks,
        options=options,
        hook_options=_hook_options(flags),
        origins=origins,
    )


def load_run_config(run: Path, flags: CliOverrides | None = None) -> RunConfig:
    """Read the configuration that a run wrote, and the order of its classes; see `load_config`."""
    config = load_config(run / "config.toml", flags, run=run)
    return evolve(config, class_names=recorded_class_names(run))


def recorded_class_names(run: Path) -> tuple[str, ...]:
    """Return a run's classes or labels in the order of its outputs; none of a run that did not write them down.

    Raises:
        UserError: its manifest cannot be read.
    """
    file = run / MANIFEST
    try:
        return tuple(str(name) for name in read_json(file)["data"].get("names", []))
    except FileNotFoundError:
        return ()
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {file}: {type(error).__name__}: {error}") from None


def plugins_of_run(texts: Sequence[str], origins: Sequence[str], base: Path, run: Path) -> tuple[PluginRef, ...]:
    """Return plugins as the files of a run folder name them; this does not permit loading their code.

    An entry point must be ftcore's own, or be that of the distribution that the run's manifest names for it; where a
    model stands without its run, its text does: ``lora@ftcore-peft``.

    Args:
        texts: the names.
        origins: where each stands, for messages.
        base: the folder that a relative file is relative to.
        run: the run folder.

    Raises:
        UserError: its manifest cannot be read.
    """
    recorded = _recorded_distributions(run)
    distributions = [recorded.get(text.partition("@")[0], text.partition("@")[2] or "ftcore") for text in texts]
    found = zip(texts, origins, distributions, strict=True)
    return tuple(PluginRef(text, origin, base, trusted=False, distribution=of) for text, origin, of in found)


def _recorded_distributions(run: Path) -> dict[str, str]:
    """Return name -> distribution of the plugins in a run's manifest that came from one, such as ``acme 0.1.0``."""
    file = run / MANIFEST
    try:
        sources = {str(one["name"]): str(one["source"]).rpartition(" ")[0] for one in read_json(file)["plugins"]}
    except FileNotFoundError:
        return {}
    except (KeyError, TypeError) as error:
        raise UserError(f"cannot read {file}: {type(error).__name__}: {error}") from None
    return {name: distribution for name, distribution in sources.items() if distribution}


def _from_file(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a file into ``section -> key -> value`` and the origin of each key."""
    try:
        raw = read_toml(file, follow=True)
    except FileNotFoundError:
        raise UserError(f"config file not found: {file} (looked at {file.absolute()})") from None
    allowed = [*SECTIONS, "hooks", "plugin", *LIST_KEYS]
    for key in raw:
        if key not in allowed:
            raise UserError(f"unknown key {key!r} in {file}{did_you_mean(key, allowed)}; allowed: {', '.join(allowed)}")
    tree = {key: value for key, value in raw.items() if key != "plugin"}
    plugins = raw.get("plugin", {})
    if not isinstance(plugins, dict):
        raise UserError(f"plugin in {file} must be a table of each plugin's options: [plugin.NAME]; got {plugins!r}")
    tree |= {f"plugin.{name}": values for name, values in plugins.items()}
    for name, values in tree.items():
        if name not in LIST_KEYS and not isinstance(values, dict):
            raise UserError(f"{name} in {file} must be a table: [{name}]")
    origins = {f"{name}.{key}": str(file) for name, values in tree.items() if name not in LIST_KEYS for key in values}
    return tree, origins


def _named(key: str, tree: dict[str, Any], file: Path | None) -> list[PluginRef]:
    texts = tree.pop(key, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f'{key} in {file} must be a list of names such as ["weighted_ce", "sgd"], got {texts!r}')
    base = file.absolute().parent if file else Path.cwd()
    return [PluginRef(text, f"{file} {key}[{index}]", base) for index, text in enumerate(texts)]


def _from_flags(flags: CliOverrides) -> list[tuple[str, CliValue, str]]:
    """Return ``(section.key, value, origin)`` for each flag, in the order in which they count.

    Raises:
        UserError: a flag and a ``--set`` disagree, or a ``--set`` has another form.
    """
    given = {"model": flags.model, "data": flags.data, **flags.flags}
    found = [
        (FLAGS[name], CliValue(text), _flag_origin(name, text))
        for name, text in given.items()
        if name in FLAGS and text is not None
    ]
    by_flag = {key: (value, origin) for key, value, origin in found}
    for text in flags.sets:
        written, equals, value = text.partition("=")
        key = written.replace("-", "_")
        if not equals or not key:
            raise UserError(f"--set {text}: expected SECTION.KEY=VALUE or PLUGIN.KEY=VALUE, e.g. train.epochs=3")
        if key.count(".") != 1 or not all(key.split(".")):
            message = f"--set {text}: expected SECTION.KEY=VALUE or PLUGIN.KEY=VALUE, e.g. train.epochs=3"
            raise UnknownOptionError(message, [key])
        if key in by_flag and by_flag[key][0] != CliValue(value):
            raise UserError(f"{key} is set twice: {by_flag[key][1]}, --set {text}; remove one")
        known = key.split(".")[0] in {*SECTIONS, "hooks"}
        found.append((key if known else f"plugin.{key}", CliValue(value), f"--set {text}"))
    return found


def _flag_origin(name: str, text: str) -> str:
    return f"--{name.replace('_', '-')} {text}"


def _hook_options(flags: CliOverrides) -> tuple[HookOption, ...]:
    given = [(name, text) for name, text in flags.flags.items() if name in HOOK_FLAGS]
    return tuple(HookOption(HOOK_FLAGS[name], name, CliValue(text), _flag_origin(name, text)) for name, text in given)


def apply_demo_defaults(config: RunConfig, demo: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """Fill in what the demo sets where the user named neither a model nor data; a value that was set stays."""
    if config.model.name is not None or config.data.source is not None:
        return config
    sections: dict[str, Any] = {}
    for name, values in demo.items():
        missing = {key: value for key, value in values.items() if f"{name}.{key}" not in config.origins}
        sections[name] = evolve(getattr(config, name), **missing)
    return evolve(config, **sections)


def _hook_orders(values: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Read ``[hooks]``; whether there are such hooks, the host of the plugins knows."""
    orders = {}
    for hook, value in values.items():
        names = value.value() if isinstance(value, CliValue) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            origin = origins[f"hooks.{hook}"]
            raise UserError(f'hooks.{hook} must be a list of plugin names such as ["focal"], got {names!r} ({origin})')
        orders[hook] = tuple(names)
    return orders
