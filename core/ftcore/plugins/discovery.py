"""Find installed plugins without importing any: names from metadata, hooks from the source's syntax tree."""

from __future__ import annotations

import ast
import os
import stat
import sys
import sysconfig
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from importlib import import_module, metadata
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ftcore.errors import UserError, format_names
from ftcore.system.logging import warn

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP = "ftcore.plugins"

_NAMES = (ast.Attribute, ast.Name)

_MAX_BASES = 50
"""Of a class, of its bases, and so on."""

DEFAULTS_GROUP = "ftcore.defaults"


@frozen(order=True)
class InstalledPlugin:
    """A plugin that is installed: seen in metadata, not imported.

    Attributes:
        name: the entry point's name, *the* name of the plugin.
        distribution: what pip calls the package.
        version: of the distribution.
        target: ``package.module:Class`` or ``package.module``.
    """

    name: str
    distribution: str
    version: str
    target: str

    @property
    def source(self) -> str:
        """Distribution and version, for messages."""
        return f"{self.distribution} {self.version}"


@contextmanager
def without_working_folder() -> Iterator[None]:
    """Look for modules and distributions where Python has them installed, and not in whatever folder the user is in.

    ``python -m`` and ``PYTHONPATH=.`` put that on ``sys.path``; what is added meanwhile stays.
    """
    before, here = list(sys.path), os.path.realpath(".")
    installed = {os.path.realpath(path) for path in sysconfig.get_paths().values()}
    left_out = [path for path in before if os.path.realpath(path or ".") == here and here not in installed]
    sys.path[:] = [path for path in before if path not in left_out]
    try:
        yield
    finally:
        sys.path[:] = [*before, *(path for path in sys.path if path not in before)]


def discover() -> tuple[InstalledPlugin, ...]:
    """List every plugin of every installed distribution, sorted; nothing is imported.

    A distribution whose metadata cannot be read is left out, with a warning.
    """
    found: dict[tuple[str, str], InstalledPlugin] = {}
    with without_working_folder():
        installed = list(metadata.distributions())
    for dist in installed:
        try:
            plugins = _plugins_of(dist)
        except Exception as error:  # noqa: BLE001 - one package must not take all the others with it
            where = str(getattr(dist, "_path", dist))
            warn("plugins of a package are ignored", package=where, reason=f"{type(error).__name__}: {error}")
            continue
        for plugin in plugins:
            found.setdefault((plugin.name, plugin.distribution), plugin)
    return tuple(sorted(found.values()))


def _plugins_of(dist: metadata.Distribution) -> list[InstalledPlugin]:
    entries = dist.entry_points.select(group=GROUP)
    name: Any = dist.name if entries else ""  # which reads and parses its metadata again, as does the version
    version: Any = dist.version if entries else ""
    if None in (name, version):
        raise ValueError("its metadata lacks the name or version")
    return [InstalledPlugin(entry.name, name, version, entry.value) for entry in entries]


def default_module() -> str:
    """Return the module that lists the default plugins; only ftcore's own distribution may name it."""
    try:
        with without_working_folder():
            entries = metadata.distribution("ftcore").entry_points.select(group=DEFAULTS_GROUP)
    except metadata.PackageNotFoundError:
        raise UserError("ftcore has no package metadata; install it: pip install -e . in its folder") from None
    return next(iter(entries)).value


def load_defaults() -> Any:
    """Import the module that lists the default plugins, and says all else that ftcore itself must know of any plugin.

    It holds constants alone, and imports nothing.
    """
    return import_module(default_module())


def find_installed(name: str, distribution: str | None, available: tuple[InstalledPlugin, ...]) -> InstalledPlugin:
    """Return the one plugin that `name` (and `distribution`, if given) means."""
    named = [plugin for plugin in available if plugin.name == name]
    found = [plugin for plugin in named if distribution in (None, plugin.distribution)]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        sources = "\n".join(f"  {plugin.source}: {plugin.target}" for plugin in found)
        raise UserError(
            f"plugin name {name!r} is provided by {len(found)} installed packages:\n{sources}\n"
            f"choose one, e.g. --plugin {name}@{found[0].distribution}"
        )
    if named:
        raise UserError(
            f"plugin {name!r} is not in distribution {distribution!r}; it is provided "
            f"by {format_names(p.distribution for p in named)}"
        )
    raise UserError(
        f"no plugin named {name!r}{nearest_plugins(name, available)}\n"
        "`ftcore plugins` lists all; for a module write acme.hooks, for a class acme.losses:Focal, for a file "
        "./hooks.py"
    )


def nearest_plugins(word: str, available: tuple[InstalledPlugin, ...]) -> str:
    """Return ``"; did you mean ...?"`` with plugins of a similar name or task, each with what it does; or ``""``.

    Other tools' words for what a plugin does are among the constants of the default plugins.
    """
    known = {plugin.name: plugin for plugin in available}
    plain = word.replace("-", "_").lower()
    exact = [plain] if plain in known else []
    names = [*load_defaults().SYNONYMS.get(plain, exact)] or get_close_matches(plain, known, n=4, cutoff=0.6)
    if not names:
        parts = [part for part in plain.split("_") if len(part) > 3]
        found = {p.name: f"{p.name} {static_facts(p.target).summary}".lower() for p in available}
        names = [name for name, text in found.items() if any(part in text for part in parts)][:4]
    if not names:
        return ""
    names = [name for name in dict.fromkeys(names) if name in known]
    lines = [f"\n  {name}: {static_facts(known[name].target).summary}" for name in names]
    return f"; did you mean {names[0]!r}?{''.join(lines)}" if names else ""


def source_file(module: str) -> Path | None:
    """Return the file that a module would be loaded from, importing neither it nor its parents."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
        for part in rest:
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    except (ImportError, ValueError, OSError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None


@frozen
class StaticFacts:
    """What the source of a plugin says without being imported.

    Attributes:
        summary: first line of its docstring, or ``""``.
        is_recipe: whether it names other plugins.
    """

    summary: str = ""
    is_recipe: bool = False


def static_facts(target: str) -> StaticFacts:
    """Read the first line of a plugin's docstring, and whether it is a recipe, from its source."""
    module, _, attribute = target.partition(":")
    path = source_file(module)
    tree = _syntax_tree(path) if path else None
    scope = _class_node(tree, attribute) if tree and attribute else tree
    if scope is None:
        return StaticFacts()
    methods = {node.name for node in scope.body if isinstance(node, ast.FunctionDef)}
    return StaticFacts((ast.get_docstring(scope) or "").partition("\n")[0], is_recipe="recipe" in methods)


def static_hooks(target: str) -> tuple[str, ...] | None:
    """Read the names of a plugin's hooks from its source; None where there is no readable source."""
    module, _, attribute = target.partition(":")
    path = source_file(module)
    return file_hooks(path, attribute) if path else None


def file_hooks(path: Path, attribute: str) -> tuple[str, ...] | None:
    """Read the names of the hooks of a file, or of a class in it; None where it cannot be read."""
    tree = _syntax_tree(path)
    if tree is None:
        return None
    if not attribute:
        return tuple(sorted(_marked(tree)))
    found = _class_hooks(path, attribute)
    return None if found is None else tuple(sorted(found))


MAX_SOURCE_BYTES = 2_000_000
"""Of a file with a plugin; more is no source that a person wrote, and a syntax tree takes a hundred times as much."""


@cache
def _syntax_tree(path: Path) -> ast.Module | None:
    """Parse a file; None where it cannot be read, is no file, or is more than the parser can take."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_SOURCE_BYTES:
            return None
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _class_hooks(path: Path, name: str, below: frozenset[tuple[Path, str]] = frozenset()) -> set[str] | None:
    """Names of hooks of a class and its bases, wherever they are imported from; None where there is no such class.

    Args:
        path: of the module.
        name: of the class.
        below: classes of which it is a base, at which a circle ends.
    """
    tree = _syntax_tree(path)
    scope = _class_node(tree, name) if tree else None
    if tree is None or scope is None or (path, name) in below or len(below) > _MAX_BASES:
        return None
    imported = {
        alias.asname or alias.name: (node, alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names = _marked(scope)
    for base in scope.bases:
        if isinstance(base, ast.Name) and base.id != name:
            node, called = imported.get(base.id, (None, base.id))
            file = path if node is None else _imported_file(path, node)
            names |= (_class_hooks(file, called, below | {(path, name)}) if file else None) or set()
    return names


def _class_node(tree: ast.Module, name: str) -> ast.ClassDef | None:
    return next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)


def _imported_file(path: Path, node: ast.ImportFrom) -> Path | None:
    """Return the file that a ``from ... import`` in `path` means; importing nothing, and None for other folders."""
    if node.level:
        return path.with_name(f"{node.module}.py") if node.level == 1 and node.module else None
    return source_file(node.module or "")


def _marked(scope: ast.Module | ast.ClassDef) -> set[str]:
    """Names of the hooks that a module or a class implements itself: a function's own, or its ``specname``."""
    functions = [node for node in scope.body if isinstance(node, ast.FunctionDef) and _is_marked(node)]
    return {_specname(function) or function.name for function in functions}


def _specname(function: ast.FunctionDef) -> str | None:
    keywords = [word for d in function.decorator_list if isinstance(d, ast.Call) for word in d.keywords]
    values = [word.value for word in keywords if word.arg == "specname"]
    return next((str(value.value) for value in values if isinstance(value, ast.Constant)), None)


def _is_marked(function: ast.FunctionDef) -> bool:
    decorators = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    names = [d.attr if isinstance(d, ast.Attribute) else d.id for d in decorators if isinstance(d, _NAMES)]
    return "hookimpl" in names
