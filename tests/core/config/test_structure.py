from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
from attrs import field, frozen, validators

from ftcore import UserError
from ftcore.config.structure import CliValue, structure


@frozen
class Options:
    switch: bool = False
    count: int = 0
    rate: float = field(default=0.0, validator=validators.ge(0.0))
    text: str = ""
    perhaps: str | None = None
    limit: int | None = field(default=None, validator=validators.optional(validators.gt(0)))
    file: Path = Path()
    mode: Literal["fast", "exact"] = "fast"
    bits: Literal[8, 16] = 8
    rates: tuple[float, ...] = ()
    words: list[str] = field(factory=list)
    pair: tuple[float, float] = (0.0, 1.0)
    scales: dict[str, float] = field(factory=dict)
    weights: Literal["balanced"] | tuple[float, ...] | dict[str, float] = "balanced"


@frozen
class Needy:
    size: int


def built(key: str, value: Any) -> Any:
    return getattr(structure({key: value}, Options, "plugin.acme", {f"plugin.acme.{key}": "run.toml"}), key)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("switch", "false", "acme.switch: expected true or false, got 'false' (run.toml)"),
        ("switch", 1, "acme.switch: expected true or false, got 1"),
        ("count", 0.9, "acme.count: expected an integer, got 0.9"),
        ("count", True, "acme.count: expected an integer, got True"),
        ("count", "3", "acme.count: expected an integer, got '3'"),
        ("rate", float("inf"), "acme.rate: expected a finite number, got inf"),
        ("rate", float("nan"), "acme.rate: expected a finite number, got nan"),
        ("rate", True, "acme.rate: expected a finite number, got True"),
        ("rate", "0.1", "acme.rate: expected a finite number, got '0.1'"),
        ("text", 3, "acme.text: expected text, got 3"),
        ("perhaps", False, "acme.perhaps: expected text, got False"),
        ("file", 3, "acme.file: expected a path, got 3"),
        ("mode", "fats", "acme.mode: 'fats' is not one of 'fast', 'exact'; did you mean 'fast'?"),
        ("bits", 9, "acme.bits: 9 is not one of 8, 16"),
        ("rates", "123", "acme.rates: expected a list"),
        ("rates", 1.0, "acme.rates: expected a list"),
        ("rates", [1.0, "2"], "acme.rates: expected a finite number, got '2'"),
        ("words", "abc", "acme.words: expected a list"),
        ("pair", [1.0, 2.0, 3.0], "acme.pair: "),
        ("scales", [1.0], "acme.scales: expected a table"),
        ("scales", {"a": "b"}, "acme.scales: expected a finite number, got 'b'"),
        ("weights", True, "acme.weights: "),
        ("weights", "blanced", "'blanced' is not one of 'balanced'; did you mean 'balanced'?"),
        ("weights", ["a"], "acme.weights: "),
    ],
)
def test_a_value_of_another_type_is_refused_and_not_coerced(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        built(key, value)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("switch", "true", True),
        ("count", "-3", -3),
        ("rate", "1e-3", 0.001),
        ("rate", "1", 1.0),
        ("text", "plain words", "plain words"),
        ("text", "'quoted'", "quoted"),
        ("text", '"quoted = too"', "quoted = too"),
        ("text", "3", "3"),
        ("text", "true", "true"),
        ("text", "2024-01-31", "2024-01-31"),
        ("text", "", ""),
        ("perhaps", "photos/7", "photos/7"),
        ("perhaps", "7", "7"),
        ("limit", "7", 7),
        ("file", "out/a.csv", Path("out/a.csv")),
        ("mode", "exact", "exact"),
        ("mode", "'exact'", "exact"),
        ("bits", "16", 16),
        ("rates", "[1, 2.5]", (1.0, 2.5)),
        ("rates", "[]", ()),
        ("words", '["a", "b"]', ["a", "b"]),
        ("pair", "[2, 3]", (2.0, 3.0)),
        ("scales", "{a = 1, b = 0.5}", {"a": 1.0, "b": 0.5}),
        ("weights", "balanced", "balanced"),
        ("weights", "[1, 2]", (1.0, 2.0)),
        ("weights", "{tumor = 10}", {"tumor": 10.0}),
    ],
)
def test_a_flag_is_read_as_the_type_of_its_option(key: str, text: str, value: object) -> None:
    result = built(key, CliValue(text))

    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("switch", "yes", "expected true or false, got 'yes'"),
        ("switch", "'true'", "expected true or false, got \"'true'\""),
        ("count", "0.9", "expected an integer, got '0.9'"),
        ("count", "many", "expected an integer, got 'many'"),
        ("rate", "'0.1'", "expected a finite number"),
        ("rates", "1, 2", "expected a list"),
        ("rates", "123", "expected a list"),
        ("scales", "{a: 1}", "expected a table"),
    ],
)
def test_a_flag_of_another_type_is_refused_as_it_was_typed(key: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        built(key, CliValue(text))


def test_true_is_not_the_number_one_of_a_choice() -> None:
    @frozen
    class Choice:
        level: Literal[1, 2] = 1

    with pytest.raises(UserError, match=re.escape("acme.level: True is not one of 1, 2 (run.toml)")):
        structure({"level": True}, Choice, "plugin.acme", {"plugin.acme.level": "run.toml"})


def test_a_whole_number_is_a_number() -> None:
    result = built("rate", 1)

    assert result == 1.0
    assert type(result) is float


def test_a_validators_own_text_is_kept() -> None:
    with pytest.raises(UserError, match=r"acme\.rate: 'rate' must be >= 0\.0: -1\.0 \(run\.toml\)"):
        built("rate", -1.0)


def test_a_validator_of_an_optional_number_is_asked() -> None:
    with pytest.raises(UserError, match=r"acme\.limit: 'limit' must be > 0: 0"):
        built("limit", 0)


def test_an_unknown_key_names_the_nearest_and_what_is_allowed() -> None:
    message = r"unknown option 'acme\.swicth'; did you mean 'switch'\? \(run\.toml; allowed: switch, count, .*weights\)"

    with pytest.raises(UserError, match=message):
        built("swicth", 1)


def test_every_problem_is_reported_at_once_with_its_own_origin() -> None:
    origins = {"train.count": "run.toml", "train.rate": "--set train.rate=-1", "train.extra": "run.toml"}

    with pytest.raises(UserError, match="unknown option") as caught:
        structure({"count": "3", "rate": CliValue("-1"), "extra": 1}, Options, "train", origins)

    count, rate, extra = str(caught.value).splitlines()
    assert count == "train.count: expected an integer, got '3' (run.toml)"
    assert rate.startswith("train.rate: 'rate' must be >= 0.0")
    assert rate.endswith("(--set train.rate=-1)")
    assert extra.startswith("unknown option 'train.extra'")


def test_an_option_without_default_must_be_set() -> None:
    with pytest.raises(UserError, match=r"acme\.size has no default and must be set"):
        structure({}, Needy, "plugin.acme", {})


def test_what_is_not_set_keeps_its_default() -> None:
    assert structure({}, Options, "train", {}) == Options()


@pytest.mark.parametrize(
    "text", ["9" * 4000, "9" * 5000, "1e400", "[" * 100_000], ids=["4,000 digits", "5,000", "1e400", "["]
)
def test_a_huge_value_is_refused_in_a_short_message(text: str) -> None:
    with pytest.raises(UserError) as refused:
        built("count", CliValue(text))

    assert "acme.count: " in str(refused.value)
    assert "(run.toml)" in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("number", "fits"), [(2**63 - 1, True), (2**63, False), (-(2**63), True), (-(2**63) - 1, False)]
)
def test_a_whole_number_is_one_of_64_bits_as_in_toml(number: int, *, fits: bool) -> None:
    if fits:
        assert built("count", number) == number
        return
    with pytest.raises(UserError, match=rf"acme.count: {number} does not fit into 64 bits \(run.toml\)"):
        built("count", number)
