from __future__ import annotations

import pytest

from ftcore import UserError
from ftcore_plugins.data.cells import is_missing, number, parse_binary, parse_finite, parse_float


@pytest.mark.parametrize(("text", "value"), [("1.5", 1.5), (" -2e3 ", -2000.0), ("0", 0.0), ("1_000", 1000.0)])
def test_a_number_is_read_as_python_reads_it(text: str, value: float) -> None:
    assert parse_float(text) == parse_finite(text) == number(text) == value


@pytest.mark.parametrize("text", ["", "cat", "1,5", "nan", "inf", "-inf", "1e999"])
def test_what_is_no_finite_number_is_none(text: str) -> None:
    assert parse_float(text) is None
    with pytest.raises(ValueError, match="must be a finite number"):
        parse_finite(text)
    with pytest.raises(UserError, match=rf"data\.task = 'regression' needs numbers as labels, got '{text}'"):
        number(text)


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("1", 1.0), ("1.0", 1.0), ("00", 0.0)])
def test_a_label_is_there_or_not(text: str, value: float) -> None:
    assert parse_binary(text) == value


@pytest.mark.parametrize("text", ["2", "0.5", "-1", "yes", "nan", ""])
def test_what_is_neither_0_nor_1_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be 0 or 1"):
        parse_binary(text)


@pytest.mark.parametrize(("text", "missing"), [("", True), ("NaN", True), ("N/A", True), ("0", False), ("cat", False)])
def test_a_cell_may_say_that_it_holds_nothing(text: str, *, missing: bool) -> None:
    assert is_missing(text) is missing
