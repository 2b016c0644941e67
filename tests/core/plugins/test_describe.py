"""`ftcore plugins show`: what a plugin does and takes."""

from __future__ import annotations

import json

import pytest

from ftcore.plugins.discovery import discover
from ftcore.testing import invoke


def shown(name: str) -> dict[str, dict[str, dict[str, str]]]:
    """Title -> first column -> row of ``plugins show``."""
    result = invoke("plugins", "show", name, "--json")
    assert result.code == 0, result.err
    return {title: {next(iter(row.values())): row for row in table} for title, table in json.loads(result.out).items()}


def test_a_plugin_is_shown_with_its_hooks_and_options() -> None:
    found = shown("sgd")

    assert found["sgd"]["class"]["value"] == "ftcore_plugins.optimizers.torch_optimizers:Sgd"
    assert found["hooks"]["make_optimizer"]["how"] == "answers"
    assert found["hooks"]["make_optimizer"]["takes"] == "param_groups"
    assert found["options"]["momentum"] == {
        "option": "momentum",
        "type": "float",
        "default": "0.9",
        "meaning": "in [0, 1); torch's 0.0 is rarely used for networks.",
    }


def test_a_wrapper_and_an_option_over_several_lines_are_shown_in_full() -> None:
    assert shown("freeze_norm")["hooks"]["freeze"]["how"] == "wraps"
    at = shown("gradual_unfreeze")["options"]["at"]
    assert at["default"] == "{'0': 'head', '1': 'all'}"
    assert at["meaning"].endswith("Anything else stays frozen.")


@pytest.mark.parametrize("name", sorted(plugin.name for plugin in discover() if plugin.distribution == "ftcore"))
def test_every_option_of_a_built_in_has_a_meaning(name: str) -> None:
    assert all(row["meaning"] for row in shown(name)["options"].values())


def test_an_unknown_plugin_to_show_names_the_nearest() -> None:
    result = invoke("plugins", "show", "weighted_cee")

    assert result.code == 2
    assert "did you mean 'weighted_ce'?" in result.err
