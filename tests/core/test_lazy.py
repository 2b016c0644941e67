from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from inspect import getclosurevars
from typing import TYPE_CHECKING

import pytest

import ftcore
from ftcore.lazy import lazy

if TYPE_CHECKING:
    from pathlib import Path

LAZY = [
    module.name
    for module in pkgutil.walk_packages(ftcore.__path__, "ftcore.")
    if module.ispkg and "__getattr__" in vars(importlib.import_module(module.name))
]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of two modules that say so when they are imported."""
    folder = tmp_path / "acme_lazy"
    folder.mkdir()
    lines = "from ftcore.lazy import lazy\n__getattr__ = lazy(__name__, {'near': 'NEAR OTHER', 'far': 'FAR'})\n"
    (folder / "__init__.py").write_text(lines, encoding="utf-8")
    (folder / "near.py").write_text("NEAR, OTHER = object(), object()\n", encoding="utf-8")
    (folder / "far.py").write_text("raise ImportError('there is no far')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme_lazy"]:
        monkeypatch.delitem(sys.modules, name)
    return "acme_lazy"


def test_a_module_is_imported_when_one_of_its_names_is_asked_for(package: str) -> None:
    made = importlib.import_module(package)
    assert f"{package}.near" not in sys.modules

    found = made.NEAR

    assert found is made.NEAR is sys.modules[f"{package}.near"].NEAR
    assert made.OTHER is not found
    assert f"{package}.far" not in sys.modules


def test_the_error_of_a_module_that_cannot_be_imported_comes_through(package: str) -> None:
    made = importlib.import_module(package)

    with pytest.raises(ImportError, match="there is no far"):
        _ = made.FAR


def test_a_name_that_no_module_defines_is_an_error_as_of_any_module() -> None:
    get = lazy("ftcore.data", {"task": "make_task"})

    with pytest.raises(AttributeError, match=r"^module 'ftcore\.data' has no attribute 'task'$"):
        get("task")


def test_many_packages_are_lazy() -> None:
    assert len(LAZY) > 10


@pytest.mark.parametrize("package", LAZY)
def test_every_name_that_a_package_exports_is_there(package: str) -> None:
    made = importlib.import_module(package)

    lazily = getclosurevars(made.__getattr__).nonlocals["homes"]
    assert [name for name in made.__all__ if not hasattr(made, name)] == []
    assert lazily.keys() <= set(made.__all__)


def test_the_packages_themselves_import_neither_torch_nor_numpy() -> None:
    code = f"import sys, {', '.join(LAZY)}; print(*{{'torch', 'numpy'}} & sys.modules.keys())"

    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"
