"""Each package of ftcore imports only those below it; also where an import stands in a function or is for types."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ftcore

LAYERS = (
    {"errors", "lazy"},
    {"system"},
    {"distributed"},
    {"types"},
    {"charts", "console", "plots"},
    {"config"},
    {"hooks"},
    {"plugins"},
    {"checkpoints"},
    {"model", "data"},
    {"training"},
    {"runs"},
    {"inference"},
    {"reports", "tuning"},
    {"authoring"},
    {"cli"},
    {"testing"},
    {"__init__", "__main__"},
)
"""From the ground up. Packages of one layer do not know each other."""

ROOT = Path(ftcore.__file__).parent
FLOOR = {package: floor for floor, packages in enumerate(LAYERS) for package in packages}


def package_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def modules_imported(file: Path, root: Path = ROOT) -> set[str]:
    """Names below ``ftcore`` that a file imports, wherever in it: ``types.data``, or a name in that module."""
    here = ("ftcore", *file.relative_to(root).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("ftcore.")}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) + 1 - node.level]) + "." if node.level else ""
            module = f"{base}{node.module or ''}".rstrip(".")
            names = [f"{module}.{alias.name}" for alias in node.names]
            found |= {name.partition(".")[2] for name in names if name.startswith("ftcore.")}
    return found


def violations(file: Path, root: Path = ROOT) -> set[str]:
    own = package_of(file.relative_to(root).parts)
    used = {name.partition(".")[0] for name in modules_imported(file, root)} & FLOOR.keys()
    return {name for name in used - {own} if FLOOR[name] >= FLOOR[own]}


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_package_imports_only_those_below_it(file: Path) -> None:
    assert violations(file) == set()


@pytest.mark.parametrize(
    "line",
    [
        "from ftcore.cli import main",
        "from ..cli.group import main",
        "import ftcore.cli.group",
        "def f():\n    from ftcore.runs import fit",
        "if TYPE_CHECKING:\n    from ftcore.training.state import TrainingParts",
    ],
)
def test_an_import_of_something_above_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "loader.py").write_text(line, encoding="utf-8")

    assert violations(tmp_path / "data" / "loader.py", tmp_path)


def test_every_package_has_a_place() -> None:
    assert {package_of(path.relative_to(ROOT).parts) for path in ROOT.rglob("*.py")} == set(FLOOR)


def test_no_circle_of_imports_crosses_or_joins_modules() -> None:
    files = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in ROOT.rglob("*.py")}
    edges = {
        name: {module_of(used, files) for used in modules_imported(file)} - {name, ""} for name, file in files.items()
    }

    edges["inference.model"].discard("inference.predict")  # `Model.predict` is that function's short form

    assert circle(edges) == []


def module_of(name: str, files: dict[str, Path]) -> str:
    """``types.data.Task`` or ``types.data`` -> ``types.data``; a package's own exports are no module of it."""
    return next((part for part in (name, name.rpartition(".")[0]) if part in files), "")


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle, or nothing."""
    left = dict(edges)
    while loose := {name for name in left if not left[name] & left.keys() or not any(name in left[o] for o in left)}:
        left = {name: used for name, used in left.items() if name not in loose}
    return sorted(left)
