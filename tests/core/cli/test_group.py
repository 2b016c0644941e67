from __future__ import annotations

import pytest

from ftcore.cli import main
from ftcore.testing import invoke


def test_help_lists_every_command_once_under_what_it_is_for_with_one_sentence() -> None:
    lines = invoke("--help").out.splitlines()

    for name, command in main.commands.items():
        listed = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(listed) == 1, name
        assert command.get_short_help_str(limit=200).endswith("."), name
    for title in ("Train:", "Data and networks:", "Evaluate and use:", "Compare and combine:", "Extend:"):
        assert title in lines


@pytest.mark.parametrize("command", [(), ("run",), ("resume",), ("predict",), ("export",), ("runs",)])
def test_examples_stay_a_line_each(command: tuple[str, ...]) -> None:
    lines = invoke(*command, "--help").out.splitlines()

    start = next(number for number, line in enumerate(lines) if line.strip() == "Examples:")
    assert lines[start + 1].strip().startswith("ftcore ")
    assert not any("\b" in line or r"\b" in line for line in lines)


def test_flags_show_the_defaults_of_their_options() -> None:
    text = " ".join(invoke("run", "--help").out.split())

    assert "passes over the training images [default: 10]" in text
    assert "images per forward pass [default: 32]" in text


def test_plugins_are_listed_by_kind_with_a_line_each_and_found_by_a_word() -> None:
    everything, losses, found = invoke("plugins"), invoke("plugins", "--kind", "loss"), invoke("plugins", "imbalance")

    assert "\nloss\n" in everything.out
    assert "\nrecipe\n" in everything.out
    assert losses.out.startswith("loss\n")
    assert "\n  * cross_entropy " in losses.out
    assert "sgd" not in losses.out
    assert "weighted_ce" in found.out


def test_a_word_that_is_a_command_of_plugins_is_one() -> None:
    assert "cross-entropy" in invoke("plugins", "show", "weighted_ce").out.lower()
