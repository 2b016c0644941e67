"""Who may ask a server, and by what name: by real requests, and with the command's options."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from tests.chromium import needs_chromium, started
from tests.core.inference.serving import Server, answer, connect, png, serving, trained

from ftcore.errors import UserError
from ftcore.inference.serve_access import access_to, is_loopback, read_token
from ftcore.testing import invoke

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("access") / "run")


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    (run.parent / "token").write_text(f"{TOKEN}\n")
    with serving(run, "--token-file", str(run.parent / "token"), "--allow-host", "models.example.org") as started:
        yield started


def status_for(server: Server, host: str) -> int:
    with connect(server) as connection:
        connection.sendall(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return answer(connection)[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:80", "models.example.org:443"])
def test_its_own_names_are_answered(server: Server, host: str) -> None:
    assert status_for(server, host) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "192.168.0.1", "", "127.0.0.1@evil.example"]
)
def test_another_name_is_refused_and_counted(server: Server, host: str) -> None:
    before = numbers_with_token(server).get('ftcore_requests_total{status="421"}', 0)

    assert status_for(server, host) == 421
    assert numbers_with_token(server)['ftcore_requests_total{status="421"}'] == before + 1


def numbers_with_token(server: Server) -> dict[str, float]:
    text = server.ask("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})[1]
    found = re.findall(r"^([^#\s]+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_all_of_a_machine_is_asked_by_address_or_by_its_names() -> None:
    access = access_to("0.0.0.0", ["models.example.org"])

    for name in ("10.1.2.3:8000", "[fe80::1]:8000", "localhost", "models.example.org."):
        assert access.is_known_host(name), name
    for name in ("evil.example", "10.1.2.3.evil.example", "::1x"):
        assert not access.is_known_host(name), name


@pytest.mark.parametrize(("path", "method"), [("/predict", "POST"), ("/metrics", "GET"), ("/nothing", "GET")])
@pytest.mark.parametrize(
    "given", ["", "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \xe4"]
)
def test_without_the_token_nothing_is_answered(server: Server, path: str, method: str, given: str) -> None:
    headers = {"Content-Type": "image/png", **({"Authorization": given} if given else {})}

    status, said = server.ask(method, path, png(7) if method == "POST" else None, headers)

    assert (status, said) == (401, {"error": "this needs the header Authorization: Bearer TOKEN"})


def test_with_the_token_all_is(server: Server) -> None:
    assert server.predict(png(7), Content_Type="image/png", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert server.ask("GET", "/health", headers={"Authorization": f"bearer {TOKEN}"})[1]["names"] == list("56789")


def test_that_it_is_there_is_said_without_the_token_and_no_more(server: Server) -> None:
    assert server.ask("GET", "/health") == (200, {"status": "ok"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_others_may_reach_it_only_with_a_token_or_where_that_is_said(run: Path, host: str) -> None:
    said = invoke("serve", run, "--host", host, "--port", "0")

    assert said.code == 2
    assert said.err.startswith(
        f"ftcore: --host {host} makes this model available to other machines: require a token with --token-file FILE"
    )
    assert "--insecure" in said.err


@pytest.mark.parametrize("content", ["", "short", "two words that are long enough", "ä" * 20, "x" * 5000])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content, encoding="utf-8")

    with pytest.raises(UserError, match="contains no token: expected one line of 16 to 4096 ASCII characters"):
        read_token(tmp_path / "token")


def test_a_token_is_a_line_and_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")

    access = access_to("localhost", (), tmp_path / "token")

    assert access.token == TOKEN
    assert TOKEN not in repr(access)
    with pytest.raises(UserError, match="cannot read the token in"):
        read_token(tmp_path / "nothing")


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.2", True), ("::1", True), ("localhost", True), ("", False)])
def test_an_address_of_this_machine_alone_is_known(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


@needs_chromium
def test_a_person_gives_the_token_on_the_page(server: Server) -> None:
    from playwright.sync_api import expect

    with started() as browser:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.get_by_label("This server asks for its token:").fill("a wrong one")
        page.get_by_role("button", name="Go on").click()
        expect(page.locator("#facts")).to_have_text("This is not the token.")
        page.get_by_label("This server asks for its token:").fill(TOKEN)
        page.keyboard.press("Enter")
        page.locator("#files").set_input_files({"name": "7.png", "mimeType": "image/png", "buffer": png(7)})
        expect(page.locator("#answers dl")).to_have_count(1)
