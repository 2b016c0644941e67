from __future__ import annotations

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tests.core.plugins.hooks_files import FUNCTION, Write, named

from ftcore import HOOK_API, UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.config.schema import PluginRef, RunConfig
from ftcore.plugins.activation import Plugin, activate, activate_all
from ftcore.plugins.discovery import discover
from ftcore.plugins.references import resolve

if TYPE_CHECKING:
    from pathlib import Path

CLASS = "from ftcore import hookimpl\n\nclass {0}:\n    @hookimpl\n    def make_loss(self):\n        return print\n"
WITH_OPTIONS = """
from attrs import field, frozen, validators
from ftcore import hookimpl

@frozen
class FocalConfig:
    gamma: float = field(default=2.0, validator=validators.gt(0))

class Focal:
    Config = FocalConfig

    def __init__(self, config):
        self.config = config

    @hookimpl
    def make_loss(self):
        return self.scale

    def scale(self, number):
        return self.config.gamma * number
"""


def activated(text: object, config: RunConfig | None = None) -> Plugin:
    return activate(resolve(named(text), discover()), f"--plugin {text}", config or RunConfig())


def all_activated(flags: CliOverrides, defaults: tuple[str, ...] = ()) -> tuple[Plugin, ...]:
    return activate_all(load_config(None, flags), discover(), defaults)


def test_two_hooks_files_of_one_name_are_refused(write: Write) -> None:
    first = write("one/twin_hooks.py", CLASS.format("First"))
    second = write("two/twin_hooks.py", CLASS.format("Second") + CLASS.format("First"))

    with pytest.raises(UserError, match=rf"{second} cannot be imported as 'twin_hooks'.*{first}"):
        all_activated(CliOverrides(plugins=[f"{first}:First", f"{second}:Second"]))


def test_a_hooks_file_of_functions_is_a_plugin_without_options(write: Write) -> None:
    plugin = activated(write("functions_hooks.py", FUNCTION))

    assert plugin.name == "functions_hooks"
    assert plugin.config is None
    assert [(impl.hook, impl.function()) for impl in plugin.hooks] == [("make_loss", print)]
    assert not plugin.is_default


def test_a_class_gets_its_options_with_the_defaults_of_the_others(write: Write) -> None:
    file = write("options_hooks.py", WITH_OPTIONS)

    plain = activated(f"{file}:Focal")
    set_by_flag = activated(f"{file}:Focal", load_config(None, CliOverrides(sets=["focal.gamma=3"])))

    assert plain.config.gamma == 2.0
    assert set_by_flag.config.gamma == 3.0
    assert set_by_flag.hooks[0].function()(2) == 6.0


def test_an_option_of_a_class_is_checked_by_its_own_validator(write: Write) -> None:
    file = write("checked_hooks.py", WITH_OPTIONS)

    with pytest.raises(UserError, match=r"focal\.gamma: 'gamma' must be > 0: 0\.0 \(--set focal\.gamma=0\)"):
        activated(f"{file}:Focal", load_config(None, CliOverrides(sets=["focal.gamma=0"])))


def test_an_unknown_option_of_a_class_shows_the_nearest(write: Write) -> None:
    file = write("unknown_hooks.py", WITH_OPTIONS)

    with pytest.raises(UserError, match=r"unknown option 'focal\.gama'; did you mean 'gamma'\?"):
        activated(f"{file}:Focal", load_config(None, CliOverrides(sets=["focal.gama=1"])))


@pytest.mark.parametrize(("text", "suffix"), [(FUNCTION, ""), (CLASS.format("Optionless"), ":Optionless")])
def test_options_for_a_plugin_without_any_are_refused(write: Write, text: str, suffix: str) -> None:
    file = write("optionless.py", text)
    message = r"plugin 'optionless' has no options, but \['gamma'\] were set \(--set optionless\.gamma=1\)"

    with pytest.raises(UserError, match=message):
        activated(f"{file}{suffix}", load_config(None, CliOverrides(sets=["optionless.gamma=1"])))


def test_a_class_that_is_not_in_its_module_shows_the_nearest(write: Write) -> None:
    file = write("nearest_hooks.py", WITH_OPTIONS)

    with pytest.raises(UserError, match="nearest_hooks has no 'Focl'; did you mean 'Focal'"):
        activated(f"{file}:Focl")


def test_what_is_neither_a_module_nor_a_class_is_refused(write: Write) -> None:
    file = write("object_hooks.py", "FOCAL = 3\n")

    with pytest.raises(UserError, match="object_hooks:FOCAL is int; expected a module or a class"):
        activated(f"{file}:FOCAL")


@pytest.mark.parametrize("name", ["Model", "Train"])
def test_a_class_that_is_called_like_a_section_is_refused_because_set_could_not_reach_it(
    write: Write, name: str
) -> None:
    file = write("section_hooks.py", CLASS.format(name))

    with pytest.raises(UserError, match=f"invalid plugin name '{name.lower()}'"):
        activated(f"{file}:{name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("    Config = dict\n", r"Config is not an attrs class"),
        ("    def __init__(self, rate): ...\n", r"must take no arguments, as it has no Config"),
        (
            "    import attrs\n    @attrs.frozen\n    class Config: ...\n",
            r"must take one argument, its Config",
        ),
    ],
)
def test_a_class_that_cannot_be_made_says_what_it_must_take(write: Write, text: str, message: str) -> None:
    file = write("unmade_hooks.py", CLASS.format("Acme") + text)

    with pytest.raises(UserError, match=rf"plugin 'acme' .*unmade_hooks:Acme.*{message}"):
        activated(f"{file}:Acme")


def test_a_class_without_hooks_is_refused_and_not_made(write: Write, tmp_path: Path) -> None:
    made = tmp_path / "made"
    file = write("class_hooks.py", f"class Acme:\n    def __init__(self):\n        open({str(made)!r}, 'w')\n")

    with pytest.raises(UserError, match="no hooks found"):
        activated(f"{file}:Acme")

    assert not made.exists()


def test_a_file_whose_plugin_is_a_class_says_how_that_is_named(write: Write) -> None:
    file = write("in_a_class_hooks.py", CLASS.format("Acme") + "    @hookimpl\n    def freeze(self): ...\n")

    with pytest.raises(
        UserError, match=r"no hooks found: .*; its class Acme is a plugin: append :Acme to the reference"
    ):
        activated(str(file))


def test_a_failing_import_names_plugin_file_and_cause(write: Write) -> None:
    file = write("failing_hooks.py", "import no_such_library\n")
    message = rf"plugin 'failing_hooks' \(from {file}\) failed to import failing_hooks: ModuleNotFoundError: No module"

    with pytest.raises(UserError, match=message):
        activated(file)


def test_a_module_that_is_not_installed_is_named() -> None:
    with pytest.raises(UserError, match=r"plugin 'losses' \(from module acme_nowhere\.losses\) failed to import"):
        activated("acme_nowhere.losses")


def test_a_syntax_error_in_a_hooks_file_is_reported_as_its_fault(write: Write) -> None:
    file = write("garbled_hooks.py", "def (\n")

    with pytest.raises(UserError, match="failed to import garbled_hooks: SyntaxError"):
        activated(file)


def test_all_problems_of_a_plugin_are_in_one_message(write: Write) -> None:
    text = "from ftcore import hookimpl\n\n@hookimpl\ndef make_los(): ...\n\ndef freeze(): ...\n"
    file = write("sloppy_hooks.py", text)

    with pytest.raises(
        UserError,
        match=rf"plugin 'sloppy_hooks' \({file}, --plugin {file}\) cannot be used:\n  freeze: .*\n  make_los: ",
    ):
        activated(file)


def test_named_plugins_come_in_the_users_order_and_the_defaults_behind_them() -> None:
    plugins = all_activated(CliOverrides(plugins=["sgd", "bf16"]), ("cosine", "sgd", "fp32"))

    assert [(plugin.name, plugin.is_default) for plugin in plugins] == [
        ("sgd", False),
        ("bf16", False),
        ("cosine", True),
        ("fp32", True),
    ]
    assert str(plugins[0]).startswith("sgd (ftcore ")
    assert str(plugins[0]).endswith(", --plugin sgd)")


@pytest.mark.parametrize("again", ["sgd", "sgd@ftcore", "ftcore_plugins.optimizers.torch_optimizers:Sgd"])
def test_a_plugin_that_is_named_twice_is_refused(again: str) -> None:
    message = re.escape(f"plugin 'sgd' is enabled twice (--plugin sgd, --plugin {again})")

    with pytest.raises(UserError, match=message):
        all_activated(CliOverrides(plugins=["sgd", again]))


def test_without_leaves_out_a_default_or_a_plugin_of_the_config(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('plugins = ["sgd", "bf16"]\n', encoding="utf-8")

    plugins = activate_all(
        load_config(config, CliOverrides(without=["sgd", "cosine"])), discover(), ("cosine", "linear")
    )

    assert [plugin.name for plugin in plugins] == ["bf16", "linear"]


def test_without_an_unknown_name_shows_the_nearest() -> None:
    message = r"--without cosin: no such plugin in this run; did you mean 'cosine'\? \(enabled: sgd; defaults: cosine\)"

    with pytest.raises(UserError, match=message):
        all_activated(CliOverrides(plugins=["sgd"], without=["cosin"]), ("cosine",))


def test_options_for_a_plugin_that_was_not_named_are_refused() -> None:
    message = (
        r"plugin 'sgd' has options but is not enabled, so nothing would read them \(--set sgd\.lr=1\): add --plugin sgd"
    )

    with pytest.raises(UserError, match=message):
        all_activated(CliOverrides(sets=["sgd.lr=1"]))


def test_options_for_a_plugin_that_was_left_out_are_refused() -> None:
    with pytest.raises(UserError, match=r"plugin 'cosine' has options but .*\(--set cosine\.final=1\)"):
        all_activated(CliOverrides(without=["cosine"], sets=["cosine.final=1"]), ("cosine",))


@pytest.mark.parametrize(("name", "nearest"), [("trian", "train"), ("sdg", "sgd")])
def test_options_for_nothing_show_the_nearest_section_or_plugin(name: str, nearest: str) -> None:
    message = rf"'{name}' is neither a section nor a plugin; did you mean '{nearest}'\? \(--set {name}\.lr=1\)"

    with pytest.raises(UserError, match=message):
        all_activated(CliOverrides(sets=[f"{name}.lr=1"]))


def test_a_default_takes_options_without_being_named() -> None:
    (cosine,) = all_activated(CliOverrides(sets=["cosine.final=0.5"]), ("cosine",))

    assert cosine.config.final == 0.5
    assert cosine.is_default


def test_what_a_hooks_file_defines_reaches_a_process_that_was_spawned(write: Write) -> None:
    file = write("spawned_hooks.py", WITH_OPTIONS)
    scale = activated(f"{file}:Focal").hooks[0].function()

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        result = pool.submit(scale, 21).result()

    assert result == 42.0


def with_api(write: Write, api: str) -> Plugin:
    named = PluginRef("./api_hooks.py", "--plugin", write("api_hooks.py", f"{FUNCTION}\nFTCORE_API = {api}\n").parent)
    return activate(resolve(named, ()), "--plugin", RunConfig())


@pytest.mark.parametrize("api", ["(2, 0)"])
def test_a_plugin_for_this_hook_api_or_an_earlier_minor_one_is_welcome(write: Write, api: str) -> None:
    assert with_api(write, api).name == "api_hooks"


NEWEST = HOOK_API[1]


@pytest.mark.parametrize(
    ("api", "message"),
    [
        ("(2, 99)", rf"'api_hooks' \(from .*\) needs hook API 2\.99; this is .* API 2\.{NEWEST}: upgrade ftcore$"),
        ("(3, 0)", r"needs hook API 3\.0; .* upgrade ftcore$"),
        ("(0, 9)", r"needs hook API 0\.9; .* upgrade api_hooks$"),
        ("(1, 5)", r"needs hook API 1\.5; .* upgrade api_hooks$"),
        ("'1.1'", rf"FTCORE_API is '1\.1'; expected the required version, e\.g\. \(2, {NEWEST}\)"),
        ("(1,)", r"FTCORE_API is \(1,\); expected"),
        ("(1, True)", r"FTCORE_API is \(1, True\); expected"),
    ],
)
def test_a_plugin_for_another_hook_api_is_refused(write: Write, api: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_api(write, api)
