"""What a run uses where the user named nothing."""

from __future__ import annotations

import pytest

from ftcore.config.load import CliOverrides, load_config
from ftcore.hooks import HOOK_ARGUMENTS
from ftcore.plugins.discovery import discover
from ftcore.plugins.startup import activate
from ftcore_plugins.defaults import CHECK_CONFIG, COMBINATION_CHECKS, PLUGINS

BUILT_IN = {plugin.name for plugin in discover() if plugin.distribution == "ftcore"}
OPTIONAL = {"batch_transforms", "make_regularizers", "make_average", "list_models"}
"""Hooks that a run can do without."""


def test_every_default_and_every_partner_of_a_check_is_a_built_in() -> None:
    assert set(PLUGINS) | set(COMBINATION_CHECKS) <= BUILT_IN


def test_every_hook_that_a_run_needs_has_a_default() -> None:
    answered = {impl.hook for plugin in activate(load_config(None)).plugins for impl in plugin.hooks}

    assert set(HOOK_ARGUMENTS) - OPTIONAL <= answered


@pytest.mark.parametrize("name", COMBINATION_CHECKS)
def test_the_settings_of_a_check_are_settings(name: str) -> None:
    sets = (*(f"{key}={value}" for key, value in CHECK_CONFIG.items()), *COMBINATION_CHECKS[name])

    host = activate(load_config(None, CliOverrides(plugins=(name,), sets=sets)))

    assert name in [plugin.name for plugin in host.plugins]
