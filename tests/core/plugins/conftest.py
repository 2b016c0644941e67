"""Hooks files for a test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.core.plugins.hooks_files import Write


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Write a hooks file; what was imported from its folder is forgotten afterwards."""
    path, modules = list(sys.path), set(sys.modules)

    def write_file(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    yield write_file
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if Path(getattr(sys.modules[name], "__file__", None) or ".").is_relative_to(tmp_path):
            del sys.modules[name]
