"""Curves as characters and as PNG."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import plotext  # type: ignore[import-untyped]
import pytest
from packaging.requirements import Requirement
from PIL import Image

from ftcore import UserError
from ftcore.plots import HEIGHT, WIDTH, Marker, Plot, Series, check_png, render_text, save_png, to_encoding
from ftcore.testing import invoke

DECADES = [10.0**k for k in range(-4, 1)]
FALLING = Plot("test", "rate", "loss", (Series("loss", DECADES, [4.0, 3.0, 2.0, 1.0, 0.0]),), log_x=True)


def canvas(text: str) -> list[str]:
    """The rows inside of the frame, from the top."""
    return re.findall(r"^[^│┤┌└]*[│┤](.*)│$", text, flags=re.MULTILINE)


def letters(text: str, letter: str) -> list[tuple[int, int]]:
    """Columns and rows of a letter inside of the frame."""
    rows = canvas(text)
    return [(column, row) for row, cells in enumerate(rows) for column, cell in enumerate(cells) if cell == letter]


def test_a_plot_is_70_by_15_characters_without_colour() -> None:
    rows = render_text(FALLING).splitlines()

    assert len(rows) == HEIGHT
    assert max(map(len, rows)) == WIDTH
    assert "\x1b" not in "".join(rows)
    assert "\x1b" in render_text(FALLING, colour=True)


def test_title_labels_and_powers_of_ten_are_written_around_it() -> None:
    rows = render_text(FALLING).splitlines()

    assert rows[0].strip() == "test"
    assert rows[-2].split() == ["1e-4", "1e-3", "1e-2", "1e-1", "1e0"]
    assert rows[-1].split() == ["loss", "rate"]


def test_whole_numbers_mark_a_linear_axis() -> None:
    text = render_text(Plot("t", "epochs", "rate", (Series("a", np.linspace(0, 10, 50).tolist(), [1.0] * 49 + [2.0]),)))

    assert text.splitlines()[-2].split() == ["0", "2", "4", "6", "8", "10"]


def test_marks_are_where_they_belong_on_a_logarithmic_axis() -> None:
    plot = Plot(
        "t", "rate", "loss", FALLING.lines, (Marker("valley", 1e-2, 2.0), Marker("steep", 1e-3, 3.0)), log_x=True
    )

    text = render_text(plot)

    (valley,), (steep,) = letters(text, "v"), letters(text, "s")
    width = len(canvas(text)[0])
    assert valley[0] == pytest.approx(0.5 * (width - 1), abs=1)
    assert steep[0] == pytest.approx(0.25 * (width - 1), abs=1)
    assert valley[1] == pytest.approx(4.5, abs=1)
    assert steep[1] == pytest.approx(2.25, abs=1)
    assert text.splitlines()[-2:] == ["v: valley", "s: steep"]


def test_several_curves_are_letters_with_a_legend() -> None:
    x = [0.0, 1.0, 2.0]

    text = render_text(Plot("t", "x", "y", (Series("low", x, [0.0, 0.0, 0.0]), Series("high", x, [9.0, 9.0, 9.0]))))

    assert {row for _, row in letters(text, "a")} == {9}
    assert {row for _, row in letters(text, "b")} == {0}
    assert text.splitlines()[-2:] == ["a: low", "b: high"]


def test_more_curves_than_can_be_told_apart_are_thinned_out_and_counted() -> None:
    lines = tuple(Series(str(k), [0.0, 1.0], [k, k]) for k in range(20))

    assert render_text(Plot("t", "x", "y", lines)).splitlines()[-8:] == [
        *(f"{letter}: {3 * k}" for k, letter in enumerate("abcdefg")),
        "and 13 more, not drawn",
    ]


@pytest.mark.parametrize("value", [0.001, 5.0, 0.0])
def test_a_constant_is_drawn_at_its_value(value: float) -> None:
    text = render_text(Plot("t", "x", "y", (Series("", [0.0, 1.0], [value, value]),)))

    (row,) = [row for row in text.splitlines() if row.count("⠉") + row.count("⠤") + row.count("⠒") > 50]
    assert float(row.split("┤")[0]) == value


def test_what_is_not_finite_is_left_out_and_the_last_of_many_points_is_kept() -> None:
    y = [1.0] * 5000
    y[17], y[-1] = math.nan, 3.0

    text = render_text(Plot("t", "x", "y", (Series("", [float(k) for k in range(5000)], y),)))

    assert canvas(text)[0].strip()
    assert "nan" not in text


def test_nothing_of_one_plot_is_left_in_the_next() -> None:
    first = render_text(FALLING)
    render_text(Plot("other", "x", "y", (Series("a", [0.0, 5.0], [5.0, 1.0]), Series("b", [0.0, 9.0], [5.0, 1.0]))))

    assert render_text(FALLING) == first


def test_a_stream_without_such_characters_gets_ascii() -> None:
    text = render_text(FALLING)

    assert to_encoding(text, "utf-8") == text
    plain = to_encoding(text, "cp1252")
    assert plain.isascii()
    assert plain.splitlines()[1].strip() == f"+{'-' * (len(canvas(text)[0]))}+"
    assert "*" in plain


def test_a_png_has_its_size_and_something_on_it(tmp_path: Path) -> None:
    plot = Plot("t", "x", "y", (Series("raw", DECADES, [0.0, 99.0, 0.0, 1.0, 2.0], faint=True), *FALLING.lines))

    save_png(plot, tmp_path / "curve.png")

    with Image.open(tmp_path / "curve.png") as image:
        assert (image.format, image.size) == ("PNG", (1200, 750))
        assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_a_png_needs_a_folder_that_exists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--png .*no.lr\.png: there is no folder .*no; make it first"):
        check_png(tmp_path / "no" / "lr.png")
    with pytest.raises(UserError, match=r"is a folder; name a file in it"):
        check_png(tmp_path)
    check_png(tmp_path / "lr.png")


def test_a_png_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(UserError, match=r"--png .*: Not a directory"):
        save_png(FALLING, tmp_path / "file" / "lr.png")


def test_a_png_without_matplotlib_says_what_to_install_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftcore.plots.find_spec", lambda _: None)

    for asked in (check_png, lambda path: save_png(FALLING, path)):
        with pytest.raises(UserError, match=r"^--png .*lr\.png: a PNG needs matplotlib: pip install 'ftcore\[plot\]'$"):
            asked(tmp_path / "lr.png")
    result = invoke("find", "lr", "--model", "digits/cnn", "--data", "nowhere", "--png", tmp_path / "lr.png")
    assert result.code == 2
    assert "pip install 'ftcore[plot]'" in result.err


def test_the_lowest_plotext_that_may_be_installed_has_what_is_drawn_with() -> None:
    """`render_text` needs the API of version 6; one of 5.3 was once allowed, with which nothing could be drawn."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (allowed,) = [asked.specifier for asked in map(Requirement, project["dependencies"]) if asked.name == "plotext"]

    assert [version for version in ("5.3", "5.3.2", "5.99", "6.0.0") if version in allowed] == ["6.0.0"]
    used = {"clear", "plot_size", "theme", "title", "label", "ruler", "signal", "draw", "build"}
    assert used <= set(dir(plotext.figure))
    assert callable(plotext.terminal.limit)


def test_drawing_is_imported_only_to_draw() -> None:
    code = "import sys, ftcore.plots, ftcore.cli.group; print({'plotext', 'matplotlib', 'torch'} & sys.modules.keys())"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
