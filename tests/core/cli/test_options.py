from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from ftcore.cli import main
from ftcore.cli.options import LoggedCommand, print_result
from ftcore.types.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftcore.runs.log import RunLog

TABLE = Table("losses", ("name", "value"), (("focal", "1"), ("bce", "2")))


def test_tables_and_lines_are_printed_in_the_order_in_which_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    print_result("before", TABLE, "after")

    assert capsys.readouterr().out == "before\nlosses\nname   value\nfocal  1\nbce    2\n\nafter\n"


def test_as_json_the_rows_of_each_table_are_objects_unless_values_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    print_result("before", TABLE, as_json=True)
    print_result("before", TABLE, values=[], as_json=True)

    tables, values = capsys.readouterr().out.splitlines()
    assert json.loads(tables) == {"losses": [{"name": "focal", "value": "1"}, {"name": "bce", "value": "2"}]}
    assert values == "[]"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_as_json_a_number_that_is_not_finite_is_null(number: float, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(values=MappingProxyType({"r2": [number, 1.0]}), as_json=True)

    assert capsys.readouterr().out == '{"r2": [null, 1.0]}\n'


def commands(group: click.Group, name: str = "") -> Iterator[tuple[str, click.Command]]:
    for below, command in group.commands.items():
        yield f"{name}{below}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{below} ")


def test_the_commands_that_start_the_log_are_all_but_those_that_list_or_describe() -> None:
    others = {name for name, command in commands(main) if not isinstance(command, LoggedCommand)}

    assert others == {
        "find",
        "inspect",
        "models",
        "plugins",
        "plugins check",
        "plugins new",
        "plugins show",
        "runs",
    }


def test_a_command_that_starts_the_log_has_it_as_its_context_s_object() -> None:
    @click.command(cls=LoggedCommand)
    @click.pass_obj
    def look(log: RunLog) -> None:
        click.echo(type(log).__name__)

    assert CliRunner().invoke(look).output == "RunLog\n"


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (("ftcore", "pre"), ["predict"]),
        (("ftcore", "run", "--bat"), ["--batch-size"]),
        (("ftcore", "run", "--plugin", "weigh"), ["weighted_ce"]),
        (("ftcore", "run", "--recipe", "l"), ["linear_probe", "lp_ft"]),
    ],
)
def test_a_shell_completes_commands_flags_and_names(words: tuple[str, ...], completed: list[str]) -> None:
    given = {"_FTCORE_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}

    found = CliRunner().invoke(main, env=given, prog_name="ftcore").output

    assert [line.partition(",")[2] for line in found.splitlines()] == completed


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_shell_gets_its_script(shell: str) -> None:
    script = CliRunner().invoke(main, env={"_FTCORE_COMPLETE": f"{shell}_source"}, prog_name="ftcore").output

    assert f"_FTCORE_COMPLETE={shell}_complete" in script
