"""How the documentation is built: ``uv run sphinx-build -W contrib/docs site``."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

import generate

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "ftcore"
release = metadata.version("ftcore")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["README.md"]
default_role = "code"
napoleon_use_ivar = True
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other libraries: their inventories are on the internet
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"ftcore {release}"
html_copy_source = False
html_show_sourcelink = False


def setup(app: Sphinx) -> None:
    """Write the pages that are made of ftcore itself before the others are read."""
    generate.write(Path(app.srcdir) / "reference")
