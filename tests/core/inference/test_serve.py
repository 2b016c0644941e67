"""A model over HTTP, asked by real clients: answers, limits, many at a time, and the page in a real browser."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from tests.chromium import LOOKS, needs_chromium, started
from tests.core.inference.serving import Server, numbers, png, port_in, serving, trained

import ftcore
from ftcore.testing import invoke

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("serve") / "run")


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    with serving(run, "--max-mb", "0.01") as started:
        yield started


def test_a_picture_is_answered_as_predict_answers_it(server: Server, run: Path) -> None:
    expected = ftcore.load(run).predict(png(7))[0].values

    status, found = server.predict(png(7))

    assert status == 200
    assert list(found) == ["values"]
    assert list(found["values"]) == list(expected)
    assert found["values"] == pytest.approx(expected, abs=1e-6)


def test_a_picture_of_a_phone_is_answered_upright_as_its_file_is(server: Server, run: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(BytesIO(png(7))) as image:
        image.convert("RGB").resize((48, 32)).save(tmp_path / "phone.jpg", exif=exif)
    model = ftcore.load(run)
    with Image.open(tmp_path / "phone.jpg") as image:
        lying = model.predict(np.asarray(image))[0].values

    _, found = server.predict((tmp_path / "phone.jpg").read_bytes(), Content_Type="image/jpeg")

    assert found["values"] == pytest.approx(model.predict(tmp_path / "phone.jpg")[0].values, abs=1e-6)
    assert found["values"] != pytest.approx(lying, abs=1e-6)


def test_the_most_probable_ones_alone_may_be_asked_for(server: Server) -> None:
    every, best = (server.predict(png(7), query)[1]["values"] for query in ("", "?top=2"))

    assert list(best.items()) == list(every.items())[:2]


@pytest.mark.parametrize("top", ["0", "-1", "two", "1.5", "²", ""])
def test_a_number_that_is_none_is_refused(server: Server, top: str) -> None:
    quoted = top.encode("utf-8").hex("%")

    status, found = server.predict(png(7), f"?top=%{quoted}" if top else "?top=")

    assert (status, found) == (400, {"error": f"top must be an integer >= 1, not {top!r}"})


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg; charset=binary", "IMAGE/WEBP", "application/octet-stream"])
def test_what_kind_of_picture_it_is_its_content_says(server: Server, kind: str) -> None:
    assert server.predict(png(7), Content_Type=kind)[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
def test_another_type_is_refused_with_the_one_that_is_taken(server: Server, kind: str) -> None:
    status, found = server.predict(png(7), Content_Type=kind)

    assert status == 415
    assert kind.partition(";")[0] in found["error"]
    assert "image/jpeg" in found["error"]


def test_a_request_without_a_type_is_refused(server: Server) -> None:
    status, found = server.predict(png(7), Accept="*/*")

    assert status == 415
    assert found["error"].startswith("Content-Type is missing; send the body as image/jpeg ")


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_request_that_is_too_large_is_refused(server: Server, *, in_pieces: bool) -> None:
    body = bytes(10_001)

    status, found = server.predict((body[at : at + 1000] for at in range(0, 10_001, 1000)) if in_pieces else body)

    assert (status, found) == (413, {"error": "the request exceeds the limit of 10,000 bytes"})


def test_a_length_that_is_too_large_is_refused_before_anything_is_sent(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: [::1]\r\nContent-Type: image/png\r\nContent-Length: 9999999999\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("body", [b"no picture", b"", png(7)[:-30]])
def test_what_is_no_picture_is_refused_and_named(server: Server, body: bytes) -> None:
    status, found = server.predict(body)

    assert status == 422
    assert found["error"].startswith(f"cannot read image of {len(body)} bytes: ")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/predict", 405), ("GET", "/nothing", 404)])
def test_what_is_not_there_is_an_error_in_json(server: Server, method: str, path: str, status: int) -> None:
    found = server.ask(method, path)

    assert found[0] == status
    assert list(found[1]) == ["error"]


def test_its_health_says_what_it_answers(server: Server) -> None:
    assert server.ask("GET", "/health") == (
        200,
        {
            "status": "ok",
            "task": "classification",
            "names": ["5", "6", "7", "8", "9"],
            "reads": "picture",
            "most_bytes": 10_000,
            "most_pixels": 25_000_000,
        },
    )


def test_every_request_is_counted_by_its_status(server: Server) -> None:
    server.predict(png(7)), server.predict(b"")
    before = numbers(server)

    for body in (png(5), png(6), b"no picture"):
        server.predict(body)

    after = numbers(server)
    assert after['ftcore_requests_total{status="200"}'] - before['ftcore_requests_total{status="200"}'] == 2
    assert after['ftcore_requests_total{status="422"}'] - before['ftcore_requests_total{status="422"}'] == 1
    assert after["ftcore_request_seconds_count"] - before["ftcore_request_seconds_count"] == 2
    assert after["ftcore_batch_size_sum"] - before["ftcore_batch_size_sum"] == 2  # what is no picture gets nowhere


def test_two_hundred_clients_at_a_time_get_their_own_answers(server: Server, run: Path) -> None:
    places = [place % 40 for place in range(800)]
    bodies = {place: png(place) for place in range(40)}
    model = ftcore.load(run)
    expected = {place: model.predict(body)[0].values for place, body in bodies.items()}
    before = numbers(server)

    with ThreadPoolExecutor(200) as clients:
        found = list(clients.map(lambda place: server.predict(bodies[place]), places))

    after = numbers(server)
    assert {status for status, _ in found} == {200}
    for place, (_, answer) in zip(places, found, strict=True):
        assert answer["values"] == pytest.approx(expected[place], abs=1e-5)
    assert after["ftcore_batch_size_sum"] - before["ftcore_batch_size_sum"] == 800
    assert after["ftcore_batch_size_count"] - before["ftcore_batch_size_count"] < 800


def test_a_client_that_goes_away_disturbs_nobody(server: Server) -> None:
    body = png(7)
    head = (
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for content in (head.encode() + body[:50], head.encode() + body, b"GET /hea", b"\x16\x03\x01 no HTTP\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(content)

    assert server.predict(body)[0] == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_it_is_asked_to(run: Path, number: int) -> None:
    command = [sys.executable, "-m", "ftcore", "serve", str(run), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr
            line = next((line for line in process.stderr if "Ctrl-C to stop" in line), "")
            assert Server(port_in(line)).predict(png(7))[0] == 200

            process.send_signal(number)

            assert process.wait(60) == (0 if number == signal.SIGINT else -number)
        finally:
            process.kill()


def test_labels_are_named_and_numbers_have_no_top(tmp_path: Path) -> None:
    with serving(trained(tmp_path / "numbers", "--set", "data.task=regression")) as server:
        status, found = server.predict(png(7))
        refused = server.predict(png(7), "?top=2")

    assert status == 200
    assert list(found["values"]) == ["digit"]
    why = "top is for classes and labels, and what a task 'regression' predicts is in no order"
    assert refused == (400, {"error": why})


def test_a_port_that_is_taken_is_said(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = invoke("serve", run, "--port", str(taken.getsockname()[1]))

    assert said.code == 2
    assert said.err.startswith("ftcore: cannot listen at 127.0.0.1, port ")
    assert "Address already in use; choose others with --host and --port" in said.err


def test_a_folder_that_is_no_run_is_said(tmp_path: Path) -> None:
    said = invoke("serve", tmp_path)

    assert said.code == 2
    assert "not a run folder with a model" in said.err


def test_without_the_extra_the_command_that_installs_it_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftcore.cli.inference.find_spec", lambda name: None if name == "uvicorn" else True)

    said = invoke("serve", run)

    assert (said.code, said.err) == (2, "ftcore: serving needs uvicorn: pip install 'ftcore[serve]'\n")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


def opened(browser: Browser, server: Server, look: str) -> tuple[Page, list[str]]:
    page = browser.new_context(**LOOKS[look]).new_page()  # type: ignore[arg-type]
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"http://127.0.0.1:{server.port}/")
    return page, wrong


def shown_once(page: Page, selector: str, number: int) -> None:
    """Wait until there are so many."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_count(number)


@needs_chromium
@pytest.mark.parametrize("look", LOOKS)
def test_a_person_chooses_pictures_and_sees_what_they_are(
    browser: Browser, server: Server, run: Path, tmp_path: Path, look: str
) -> None:
    page, wrong = opened(browser, server, look)
    for place in (5, 7):
        (tmp_path / f"{place}.png").write_bytes(png(place))
    best = [next(iter(answer.values)) for answer in ftcore.load(run).predict([tmp_path / "5.png", tmp_path / "7.png"])]

    page.get_by_label("Drop pictures anywhere on this page").set_input_files([tmp_path / "5.png", tmp_path / "7.png"])

    shown_once(page, "#answers dl", 2)
    items = page.locator("#answers > li")
    texts = [items.nth(place).inner_text() for place in (1, 0)]  # the newest is first
    assert [text.splitlines()[0] for text in texts] == ["5.png", "7.png"]
    assert [items.nth(place).locator("dt").first.inner_text() for place in (1, 0)] == best
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth === 8)")
    assert page.locator("#facts").inner_text() == "classification: 5, 6, 7, 8, 9"
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert wrong == []
    if folder := os.environ.get("FTCORE_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/serve-{look}.png")


@needs_chromium
def test_a_picture_that_is_dropped_is_answered_and_one_that_is_none_is_said(browser: Browser, server: Server) -> None:
    page, _ = opened(browser, server, "light")

    page.evaluate(
        """bytes => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(bytes)], "seven.png", {type: "image/png"}));
            files.items.add(new File(["no picture"], "<b>notes</b>.txt", {type: "text/plain"}));
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
        }""",
        list(png(7)),
    )

    shown_once(page, "#answers dl, #answers .error", 2)
    assert page.locator("#answers .error").inner_text().startswith("cannot read image of 10 bytes")
    assert page.locator("#answers > li", has_text="<b>notes</b>.txt").count() == 1
    assert page.locator("#answers > li", has_text="seven.png").locator("dt").count() == 5


@needs_chromium
def test_the_page_can_be_used_with_a_keyboard_and_asks_nothing_of_others(browser: Browser, server: Server) -> None:
    page, wrong = opened(browser, server, "light")

    page.locator("#files").wait_for()
    page.keyboard.press("Tab")

    assert page.evaluate("document.activeElement.id") == "files"
    assert page.get_by_role("main").count() == page.get_by_role("banner").count() == 1
    assert page.locator("h1").count() == 1
    assert page.evaluate("fetch('http://127.0.0.1:1/').then(() => 'asked', error => 'refused')") == "refused"
    assert any("Content Security Policy" in text for text in wrong)
