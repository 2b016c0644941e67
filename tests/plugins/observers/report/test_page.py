"""The page of a run in a real browser, as a person opens it: without a network, light and dark, wide and on a phone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest
from tests.chromium import LOOKS, needs_chromium, started

from ftcore.reports.redraw import rewrite_reports
from ftcore.runs.run import fit

from .test_reporter import LARGE, Noise, config, events, hostile, labels_table, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

pytestmark = needs_chromium


def of_classes(folder: Path) -> None:
    fit(config(folder, "train.epochs=3"))
    rewrite_reports(folder, why=True)


def of_labels(folder: Path) -> None:
    folder.mkdir()
    table = labels_table(folder)
    fit(config(folder / "run", 'table.target=["even", "small"]', data=str(table)))
    for name in ("report.html", "report.json"):
        (folder / "run" / name).rename(folder / name)


def of_numbers(folder: Path) -> None:
    fit(config(folder, "data.task=regression"))


def of_a_hundred(folder: Path) -> None:
    folder.mkdir()
    told(events(LARGE["100 classes"], folder, Noise("pictures/{}.jpg".format), 12, groups=30))


def of_hostile(folder: Path) -> None:
    folder.mkdir()
    hostile(folder)


PAGES: dict[str, Callable[[Path], None]] = {
    "classes": of_classes,
    "labels": of_labels,
    "numbers": of_numbers,
    "a hundred classes": of_a_hundred,
    "hostile names": of_hostile,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@attrs.define
class Shown:
    """Pages in a browser, each made and opened once.

    Attributes:
        browser: that shows them.
        folder: of their files.
        pages: name and look -> the page, and what happened that should not.
    """

    browser: Browser
    folder: Path
    pages: dict[tuple[str, str], tuple[Page, list[str]]] = attrs.field(factory=dict)

    def file(self, name: str) -> Path:
        """Return the file of a page, which may have to be written."""
        folder = self.folder / name.replace(" ", "-")
        if not folder.exists():
            PAGES[name](folder)
        return folder / "report.html"

    def __call__(self, name: str, look: str = "light") -> Page:
        """Return a page with all that can be unfolded unfolded."""
        if (name, look) not in self.pages:
            self.pages[name, look] = opened(self.browser, self.file(name), look)
        return self.pages[name, look][0]

    def wrong(self, name: str, look: str) -> list[str]:
        """Return what happened in a page that should not."""
        self(name, look)
        return self.pages[name, look][1]


@pytest.fixture(scope="module")
def shown(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return Shown(browser, tmp_path_factory.mktemp("pages"))


def opened(browser: Browser, file: Path, look: str) -> tuple[Page, list[str]]:
    page = browser.new_context(**LOOKS[look]).new_page()  # type: ignore[arg-type]
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda asked: wrong.append(asked.url) if asked.url.startswith("http") else None)
    page.on("requestfailed", lambda asked: wrong.append(asked.url))
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    return page, wrong


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("look", LOOKS)
def test_every_chart_is_drawn_and_nothing_is_asked_of_a_network(shown: Shown, name: str, look: str) -> None:
    page = shown(name, look)

    charts = page.locator("svg[role=img]").all()
    boxes = [chart.bounding_box() or {"width": 0, "height": 0} for chart in charts]
    pictures = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
    names = [chart.get_attribute("aria-label") for chart in charts]
    assert shown.wrong(name, look) == []
    assert len(charts) >= 5
    assert all(box["width"] > 200 and box["height"] > 100 for box in boxes)
    assert all(names)
    assert pictures
    assert all(pictures)
    assert page.evaluate("[...document.querySelectorAll('svg[role=img]')].every(one => one.getBBox().width > 200)")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("look", LOOKS)
def test_the_page_is_as_wide_as_the_screen_and_no_wider(shown: Shown, name: str, look: str) -> None:
    page = shown(name, look)

    width, screen = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")

    assert width <= screen


@pytest.mark.parametrize("name", PAGES)
def test_the_parts_of_the_page_are_named_and_its_tables_have_headers(shown: Shown, name: str) -> None:
    page = shown(name)

    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1
    assert page.locator("h1").count() == 1
    named: list[Any] = page.evaluate(
        """[...document.querySelectorAll('section')].map(
            one => document.getElementById(one.getAttribute('aria-labelledby'))?.tagName)"""
    )
    assert set(named) == {"H2"}
    assert page.locator("th:not([scope]):not([aria-hidden])").count() == 0
    assert page.locator("table:not(:has(caption))").count() == 0
    assert page.locator("img:not([alt])").count() == 0
    assert page.evaluate("document.documentElement.lang") == "en"
    ids: list[str] = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", PAGES)
def test_the_numbers_of_every_chart_are_in_a_table_beside_it(shown: Shown, name: str) -> None:
    page = shown(name)

    missing: list[str] = page.evaluate(
        """[...document.querySelectorAll('svg[role=img]')].filter(chart => {
            const beside = chart.closest('figure').querySelector('table')
            const below = chart.closest('.charts, .side').nextElementSibling?.querySelector('table')
            return !beside && !below
        }).map(chart => chart.getAttribute('aria-label'))"""
    )

    assert missing == []


@pytest.mark.parametrize("name", PAGES)
def test_the_keyboard_reaches_every_link_and_its_target_is_there(shown: Shown, name: str) -> None:
    page = shown(name)
    links: list[str] = page.evaluate("[...document.querySelectorAll('a')].map(one => one.getAttribute('href'))")

    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    reached = []
    for _ in links:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.getAttribute('href')"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"

    assert reached == links
    assert all(page.locator(link).count() == 1 for link in links)
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == links[-1]


CONTRAST = """() => {
    const canvas = document.createElement('canvas').getContext('2d')
    const light = colour => {
        canvas.fillStyle = colour
        const parts = canvas.fillStyle.match(/[0-9a-f]{2}/g).slice(0, 3).map(part => parseInt(part, 16) / 255)
        const [r, g, b] = parts.map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    const paper = light(getComputedStyle(document.body).backgroundColor)
    return [...document.querySelectorAll('p, th, dd, dt, a, h1, h2, summary, figcaption, svg text')].map(one => {
        const style = getComputedStyle(one)
        const ink = light(one.namespaceURI.endsWith('svg') ? style.fill : style.color)
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)
    })
}"""


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("look", ["light", "dark"])
def test_all_text_stands_out_from_the_paper(shown: Shown, name: str, look: str) -> None:
    """By 4.5 to 1, as the Web Content Accessibility Guidelines 2.2 ask for in 1.4.3."""
    page = shown(name, look)

    ratios: list[float] = page.evaluate(CONTRAST)

    assert min(ratios) >= 4.5
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)" if look == "light" else "rgb(17, 19, 24)"
    )
