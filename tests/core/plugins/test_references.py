"""What the text of a plugin refers to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs
import pytest
from tests.core.plugins.hooks_files import FUNCTION, Write, named

from ftcore import UserError
from ftcore.config.schema import PluginRef
from ftcore.plugins.discovery import InstalledPlugin
from ftcore.plugins.references import PluginReference, resolve

if TYPE_CHECKING:
    from pathlib import Path

ACME = InstalledPlugin("focal", "acme-losses", "1.0", "acme.losses:Focal")
FOCAL = PluginReference("focal", "acme.losses", "Focal", "acme-losses 1.0", "focal", distribution="acme-losses")


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("focal", FOCAL),
        ("focal@acme-losses", attrs.evolve(FOCAL, canonical="focal@acme-losses")),
        ("acme.hooks", PluginReference("hooks", "acme.hooks", "", "module acme.hooks", "acme.hooks")),
        (
            "acme.losses:Focal",
            PluginReference("focal", "acme.losses", "Focal", "module acme.losses", "acme.losses:Focal"),
        ),
        ("acme:FocalLoss", PluginReference("focal_loss", "acme", "FocalLoss", "module acme", "acme:FocalLoss")),
        ("Acme", PluginReference("acme", "Acme", "", "module Acme", "Acme")),
    ],
)
def test_the_form_alone_decides_what_a_plugin_means(text: str, reference: PluginReference) -> None:
    assert resolve(named(text), (ACME,)) == reference


@pytest.mark.parametrize(
    ("text", "name", "attribute"),
    [
        ("resolved_hooks.py", "resolved_hooks", ""),
        ("./resolved_hooks.py", "resolved_hooks", ""),
        ("resolved_hooks.py:Focal", "focal", "Focal"),
        ("./resolved_hooks.py:FocalLoss", "focal_loss", "FocalLoss"),
        ("{folder}/resolved_hooks.py:Focal", "focal", "Focal"),
    ],
)
def test_a_path_means_a_hooks_file_beside_what_names_it(write: Write, text: str, name: str, attribute: str) -> None:
    file = write("resolved_hooks.py", "raise RuntimeError('imported')\n")

    reference = resolve(PluginRef(text.format(folder=file.parent), "run.toml", file.parent), (ACME,))

    assert (reference.name, reference.module, reference.attribute) == (name, "resolved_hooks", attribute)
    assert (reference.source, reference.file) == (str(file), file)


@pytest.mark.parametrize(
    "text",
    ["focal loss", "focal@", "@acme", "acme..hooks", "acme.losses:", "acme:a:b", "acme:Focal()", "-x", "", "a,b"],
)
def test_what_has_no_known_form_is_refused_with_the_forms(text: str) -> None:
    message = re.escape(f"cannot parse plugin {text!r} (--plugin {text}): expected NAME, NAME@DISTRIBUTION, ")

    with pytest.raises(UserError, match=message):
        resolve(named(text), (ACME,))


@pytest.mark.parametrize(
    "text", ["missing.py", "./missing.py", "sub/missing.py", "sub/missing.py:Focal", "sub/missing"]
)
def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path, text: str) -> None:
    place = tmp_path / text.partition(":")[0]
    message = re.escape(f"plugin file not found: {text} (run.toml plugins[0]; looked at {place})")

    with pytest.raises(UserError, match=message):
        resolve(PluginRef(text, "run.toml plugins[0]", tmp_path), ())


@pytest.mark.parametrize("stem", ["json", "os", "time", "torch", "ftcore"])
def test_a_hooks_file_whose_name_is_taken_must_be_renamed(write: Write, stem: str) -> None:
    file = write(f"{stem}.py", FUNCTION)

    with pytest.raises(UserError, match=rf"cannot be imported as '{stem}': that name is already .*; rename the file"):
        resolve(named(file), ())


def test_a_hooks_file_whose_name_is_no_identifier_must_be_renamed(write: Write) -> None:
    file = write("my-hooks.py", FUNCTION)

    with pytest.raises(UserError, match="cannot be imported: 'my-hooks' is not a Python identifier; rename the file"):
        resolve(named(file), ())
