"""Charts for pages."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from ftcore.charts import Axis, Bar, Interval, axis_for, bars, intervals

ROWS = [Interval("first", 0.9, 0.8, 0.95), Interval("<b>", 0.5, 0.4, 0.6), Interval("x" * 40 + "tail", 0.7, 0.7, 0.7)]


def test_intervals_stand_below_each_other_each_around_its_value() -> None:
    drawn = ET.fromstring(intervals("accuracy of <each>", ROWS, Axis(0.0, 1.0, "accuracy")))

    dots, ends = drawn.findall("circle"), [path for path in drawn.findall("path") if path.get("class") == "line c1"]
    assert [float(dot.get("cx") or 0) for dot in dots] == [656.0, 480.0, 568.0]
    assert [float(dot.get("cy") or 0) for dot in dots] == [17, 51, 85]
    assert [path.get("d") for path in ends] == ["M612.0 17H678.0", "M436.0 51H524.0", "M568.0 85H568.0"]
    assert [path.get("d") for path in drawn.findall("path") if path.get("class") == "mark"] == ["M656.0 0V102"]
    assert [text.text for text in drawn.findall("text")] == [
        *("0", "0.2", "0.4", "0.6", "0.8", "1"),
        *("first", "<b>", "…" + "x" * 29 + "tail"),
    ]
    assert drawn.get("aria-label") == "accuracy of <each>"


@pytest.mark.parametrize("even", [True, False])
def test_bars_are_as_high_as_their_values_and_as_dark_as_said(even: bool) -> None:  # noqa: FBT001 - a parameter
    drawn = [Bar(0.0, 0.5, 1.0, "all"), Bar(0.5, 1.0, 0.25, "a quarter", shade=0.2)]

    found = ET.fromstring(bars("shares", drawn, Axis(0.0, 1.0, "x"), Axis(0.0, 1.0, "y"), even=even))

    first, second = found.findall("rect")
    assert float(second.get("height") or 0) == pytest.approx(float(first.get("height") or 0) / 4)
    assert [bar.get("fill-opacity") for bar in (first, second)] == ["0.60", "0.20"]
    assert [bar.findtext("title") for bar in (first, second)] == ["all", "a quarter"]
    assert ("even" in [path.get("class") for path in found.findall("path")]) == even


@pytest.mark.parametrize(
    ("values", "ends"),
    [([0.0, 1.0], (0.0, 1.06)), ([0.9, 1.0], (0.894, 1.006)), ([5.0], (4.5, 5.5)), ([None], (0.0, 1.06))],
)
def test_an_axis_has_room_for_all_values(values: list[float | None], ends: tuple[float, float]) -> None:
    axis = axis_for(values, "")

    assert (axis.low, axis.high) == pytest.approx(ends)
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks())
