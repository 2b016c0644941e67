"""Write a plugin to begin with: a package, or a hooks file. The texts are in ``templates.toml``."""

from __future__ import annotations

import ast
import inspect
import keyword
import re
import sys
import tomllib
from collections import Counter
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from string import Template
from textwrap import indent
from typing import TYPE_CHECKING

import ftcore
from ftcore import hooks as specs
from ftcore.config.schema import RESERVED
from ftcore.errors import UserError, did_you_mean
from ftcore.hooks import HOOK_ARGUMENTS
from ftcore.plugins.discovery import discover

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


_NAME = re.compile(r"[a-z][a-z0-9]+(_[a-z][a-z0-9]+)*")

_TEXTS = tomllib.loads(Path(__file__).with_name("templates.toml").read_text(encoding="utf-8"))

_WIDTH = 80
"""Of a line of imports at most."""

NEXT_STEPS_PACKAGE = "next: cd {name}; pip install -e . --group dev; pytest; ftcore plugins check {name}"

NEXT_STEPS_FILE = "next: ftcore plugins check ./hooks.py:{cls}; ftcore run --plugin ./hooks.py:{cls}"
"""What one may do with what was written."""

_CLASS = '''
@frozen
class ${cls}Config:
    """Options of `$name`.

    Attributes:
$meanings
    """

$options


class $cls:
    """What `$name` does, in a sentence."""

    Config = ${cls}Config

    def __init__(self, config: ${cls}Config) -> None:
        self.config = config

$methods
'''

_METHOD = '''
@hookimpl
def $hook($arguments) -> $answer:
    """$about"""
$body
'''


def write_package(name: str, hooks: Sequence[str], folder: Path) -> list[Path]:
    """Write a package with a plugin that answers some hooks, and return its files.

    Args:
        name: of the plugin, of its module, and with dashes of its distribution.
        hooks: their names.
        folder: where the package's own folder is made.

    Raises:
        UserError: the name cannot be used, a hook does not exist, or the package's folder does.
    """
    root, words = folder / name, _words(name, hooks)
    _check_missing(root)
    texts = {Template(path).substitute(words): Template(text).substitute(words) for path, text in _files().items()}
    texts[f"src/{name}/__init__.py"] = render_module(name, hooks)
    return [_written(root / path, text) for path, text in texts.items()]


def write_hooks_file(name: str, hooks: Sequence[str], folder: Path) -> list[Path]:
    """Write ``hooks.py`` with such a plugin instead, and return that; see `write_package`."""
    path = folder / "hooks.py"
    _check_missing(path)
    return [_written(path, render_module(name, hooks))]


def class_name(name: str) -> str:
    """Return the name of a plugin's class: ``acme_focal`` -> ``AcmeFocal``."""
    return "".join(part.capitalize() for part in name.split("_"))


def render_module(name: str, hooks: Sequence[str]) -> str:
    """Return the source of a module with a plugin; see `write_package`."""
    words, wanted = _words(name, hooks), _wanted(hooks)
    templates = [_TEXTS["hooks"][hook] for hook in wanted]
    having = [template for template in templates if "option" in template]
    plugin = Template(_CLASS.strip()).safe_substitute(
        meanings="\n".join(f"        {t['option'].partition(':')[0]}: {t['meaning']}" for t in having),
        options="\n".join(f"    {template['option']}" for template in having),
        methods="\n\n".join(indent(_method(hook), "    ") for hook in wanted),
    )
    blocks = [plugin, *(template["top"].strip() for template in templates if "top" in template)]
    code = "\n\n\n".join(Template(block).substitute(words) for block in blocks)
    about = f'"""{words["cls"]}, a plugin of ftcore."""'
    return f"{about}\n\nfrom __future__ import annotations\n\n{_imports(code)}\n\n\n{code}\n"


def _files() -> dict[str, str]:
    return {path: text.removeprefix("\n") for path, text in _TEXTS["files"].items()}


def _words(name: str, hooks: Sequence[str]) -> dict[str, str]:
    """Return what stands for each placeholder, once name and hooks are known to be right."""
    _check_name(name)
    unknown = [hook for hook in hooks if hook not in HOOK_ARGUMENTS]
    if unknown:
        raise UserError(
            f"no hook {unknown[0]!r}{did_you_mean(unknown[0], HOOK_ARGUMENTS)}: --hook takes one of "
            f"{', '.join(HOOK_ARGUMENTS)}"
        )
    return {
        "name": name,
        "cls": class_name(name),
        "distribution": name.replace("_", "-"),
        "spelt": ", ".join(f"`{hook}`" for hook in _wanted(hooks)),
        "version": ".".join(metadata.version("ftcore").split(".")[:2]),
    }


def _wanted(hooks: Iterable[str]) -> list[str]:
    """Return the hooks in the order of their calls, with those that make no sense without each other."""
    named = set(hooks)
    named |= {_TEXTS["hooks"][hook]["with"] for hook in named if "with" in _TEXTS["hooks"][hook]}
    return [hook for hook in HOOK_ARGUMENTS if hook in named]


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name in RESERVED or keyword.iskeyword(name):
        raise UserError(
            f"{name!r} is not a valid plugin name: use lower-case words (a-z, 0-9, at least two characters, starting "
            f"with a letter) joined by _, no Python keyword and none of {', '.join(sorted(RESERVED))}"
        )
    taken = next((plugin.source for plugin in discover() if plugin.name == name), None)
    if taken or name in sys.stdlib_module_names or find_spec(name):
        raise UserError(f"{name!r} is already used by {taken or 'a module of that name'}; choose another name")


def _check_missing(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path.absolute()} already exists and will not be overwritten; choose another name or folder")


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _method(hook: str) -> str:
    """Return a hook's implementation, taking those of the spec's arguments that its body uses."""
    template, spec = _TEXTS["hooks"][hook], inspect.signature(getattr(specs, hook))
    used = set(_names(ast.parse(template["body"])))
    arguments = [f"{name}: {argument.annotation}" for name, argument in spec.parameters.items() if name in used]
    answers = [kind for kind in spec.return_annotation.split(" | ") if kind not in {"Any", "None"}]
    passes = ["None"] if re.search("return None|else None", template["body"]) else []
    return Template(_METHOD.strip()).safe_substitute(
        hook=hook,
        arguments=", ".join(["self", *arguments]),
        answer=" | ".join(answers + passes),
        about=template["about"],
        body=indent(template["body"].strip(), "    "),
    )


def _imports(code: str) -> str:
    """Return the imports that a module needs: what only annotations name is imported for type checkers alone."""
    tree, homes = ast.parse(code), _import_locations()
    noted = [name for node in ast.walk(tree) for part in _annotations(node) for name in _names(part)]
    used = Counter(_names(tree)) - Counter(noted)
    bodies = {name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in _bound(node)}
    now = {name: homes[name] for name in used if name in homes and name not in bodies}
    later = {name: homes[name] for name in noted if name in homes and name not in now}
    typing = {"TYPE_CHECKING": "typing"} if later else {}
    block = f"\n\nif TYPE_CHECKING:\n{indent(_format_imports(later), '    ')}" if later else ""
    return _format_imports(now | typing) + block


def _import_locations() -> dict[str, str]:
    """Return the module of each name that a plugin may import."""
    nodes = [node for node in ast.walk(ast.parse(inspect.getsource(specs))) if isinstance(node, ast.ImportFrom)]
    others = {name: node.module or "" for node in nodes if not node.level for name in _bound(node)}
    return {**others, **dict.fromkeys(ftcore.__all__, "ftcore"), **_TEXTS["modules"]}


def _annotations(node: ast.AST) -> Iterator[ast.expr]:
    found = getattr(node, "annotation", None) or getattr(node, "returns", None)
    if found:
        yield found


def _bound(node: ast.ImportFrom) -> list[str]:
    return [alias.name for alias in node.names]


def _names(tree: ast.AST) -> list[str]:
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]


def _format_imports(homes: Mapping[str, str]) -> str:
    """Spell imports as ruff sorts them: first those of the standard library."""
    groups: dict[bool, list[str]] = {False: [], True: []}
    for home in sorted(set(homes.values()), key=str.lower):
        found = (name for name in homes if homes[name] == home)
        names = sorted(found, key=lambda name: (not name.isupper(), name.islower(), name))
        groups[home.partition(".")[0] not in sys.stdlib_module_names].append(_line(home, names))
    return "\n\n".join("\n".join(lines) for lines in groups.values() if lines)


def _line(home: str, names: Sequence[str]) -> str:
    line = f"from {home} import {', '.join(names)}"
    if len(line) <= _WIDTH:
        return line
    lines = "".join(f"    {name},\n" for name in names)
    return f"from {home} import (\n{lines})"
