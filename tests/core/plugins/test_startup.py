"""From a configuration to active plugins; what each step refuses is with that step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftcore.config.load import CliOverrides, load_config
from ftcore.config.schema import RunConfig
from ftcore.distributed.ranks import ProcessInfo
from ftcore.plugins.startup import activate
from ftcore_plugins import defaults

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore.plugins.host import Host


def started(*plugins: str, without: tuple[str, ...] = (), sets: tuple[str, ...] = ()) -> Host:
    return activate(load_config(None, CliOverrides(plugins=plugins, without=without, sets=sets)))


def names(host: Host) -> list[str]:
    return [plugin.name for plugin in host.plugins]


def test_where_nothing_was_asked_for_the_defaults_are_active_and_the_demo_is_set() -> None:
    host = activate(RunConfig())

    assert sorted(names(host)) == sorted(defaults.PLUGINS)
    assert all(plugin.is_default for plugin in host.plugins)
    assert (host.config.model.name, host.config.data.source) == ("digits/cnn", "digits:5-9")


def test_named_plugins_come_before_the_defaults_and_what_was_left_out_does_not_come() -> None:
    host = started("sgd", without=("cosine",), sets=("sgd.lr=0.5",))

    assert names(host)[0] == "sgd"
    assert "cosine" not in names(host)
    (sgd,) = [plugin.config for plugin in host.plugins if plugin.name == "sgd"]
    assert sgd is not None
    assert getattr(sgd, "lr", None) == 0.5


def test_a_recipe_has_become_the_plugins_that_it_names() -> None:
    host = started("linear_probe")

    assert {"freeze_backbone", "adamw"} <= {plugin.name for plugin in host.plugins if not plugin.is_default}


def test_a_host_knows_its_folder_and_its_processes(tmp_path: Path) -> None:
    ranks = ProcessInfo()

    host = activate(RunConfig(), tmp_path, ranks)

    assert (host._folder, host._ranks) == (tmp_path, ranks)
