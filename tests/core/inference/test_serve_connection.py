"""Clients that mean harm, each by a real connection: they are ended and told why, and the others see nothing of it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from tests.core.inference.serving import Server, answer, connect, head, limited, numbers, png, port_in, trained
from tests.faults.killing import end

from ftcore.inference.serve_connection import room_for_connections

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER_SECONDS, BODY_SECONDS, CONNECTIONS, REQUEST, TOTAL = 1.5, 2.0, 40, 3_000_000, 8_000_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("connections") / "run")


@pytest.fixture(scope="module")
def log(run: Path) -> Path:
    return run.with_suffix(".log")


@pytest.fixture(scope="module")
def server(run: Path, log: Path) -> Iterator[Server]:
    limits = {"header_seconds": HEADER_SECONDS, "body_seconds": BODY_SECONDS, "max_connections": CONNECTIONS}
    with limited(run, log, **limits, max_request_bytes=REQUEST, max_total_bytes=TOTAL) as (server, _):
        assert server.predict(png(7))[0] == 200
        yield server


def test_headers_that_do_not_come_are_ended_and_said(server: Server) -> None:
    before = numbers(server).get('ftcore_requests_total{status="408"}', 0)
    with connect(server) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: local")

        assert answer(connection) == (408, {"error": "reading the headers exceeded the limit of 1.5 s"})
    assert numbers(server)['ftcore_requests_total{status="408"}'] == before + 1


def test_headers_that_come_a_letter_at_a_time_have_no_more_time(server: Server) -> None:
    began = time.monotonic()
    with connect(server) as connection, suppress(BrokenPipeError, ConnectionResetError):
        while time.monotonic() < began + 20:
            connection.sendall(b"a")
            time.sleep(0.05)

    assert time.monotonic() < began + 15


def test_a_connection_that_says_nothing_is_closed(server: Server) -> None:
    with connect(server) as connection:
        assert answer(connection) == (0, None)


def test_a_body_that_does_not_come_is_ended_and_said(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(head(1000) + b"x" * 10)

        assert answer(connection) == (408, {"error": "reading the body exceeded the limit of 2 s"})


def test_a_body_without_an_end_is_refused_and_the_connection_closed(server: Server) -> None:
    began = time.monotonic()
    with connect(server) as connection:
        connection.sendall(head(None, "Transfer-Encoding: chunked"))
        with suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() < began + 30:
                connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")

    assert time.monotonic() < began + 20
    assert numbers(server)['ftcore_requests_total{status="413"}'] >= 1


def test_a_body_in_chunks_of_a_byte_does_not_keep_the_server_busy(server: Server) -> None:
    chunks = b"1\r\nx\r\n" * 300_000
    with connect(server) as connection:
        connection.sendall(head(None, "Transfer-Encoding: chunked"))
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(chunks)
            answer(connection)

    assert server.predict(png(7))[0] == 200
    counted = numbers(server)
    assert sum(counted.get(f'ftcore_requests_total{{status="{status}"}}', 0) for status in (400, 408)) >= 1


def test_two_lengths_are_refused_and_nothing_behind_them_is_answered(server: Server) -> None:
    body = b"0\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(
            head(len(body), "Transfer-Encoding: chunked") + body + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )

        status, said = answer(connection)

    assert status == 400
    assert said["error"].startswith("both Transfer-Encoding and Content-Length")


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01 no HTTP\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        head(None, "Transfer-Encoding: chunked") + b"zz\r\n",
    ],
)
def test_what_is_no_http_is_an_error_in_json_and_counted(server: Server, request_: bytes) -> None:
    before = numbers(server).get('ftcore_requests_total{status="400"}', 0)
    with connect(server) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request_)
        if len(request_) < 100_000:  # the rest of a long one that is not read ends the answer, too
            status, said = answer(connection)
            assert (status, list(said)) == (400, ["error"])

    assert numbers(server)['ftcore_requests_total{status="400"}'] >= before + 1


def test_one_connection_too_many_is_told_to_come_again(server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connect(server))
        with connect(server) as connection:
            assert answer(connection) == (503, {"error": "too many connections; try again"})

    deadline = time.monotonic() + 30
    while numbers(server)["ftcore_connections"] > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.predict(png(7))[0] == 200


def test_large_uploads_have_one_budget_and_leave_room_for_small_ones(server: Server) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(4) as threads:
        slow = [stack.enter_context(connect(server)) for _ in range(4)]
        for connection in slow:
            threads.submit(connection.sendall, head(REQUEST) + bytes(REQUEST - 10))

        answered = [server.predict(png(7))[0] for _ in range(20)]
        ends = sorted(answer(connection) for connection in slow)

    assert answered == [200] * 20
    assert {status for status, _ in ends} == {408, 503}, "two of three megabytes have room in six"
    assert ends[-1][1] == {"error": "too many bytes in flight; try again later"}
    assert numbers(server)["ftcore_held_bytes"] == 0


def test_a_client_that_takes_no_answers_is_ended(server: Server) -> None:
    ask = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1)
        connection.connect(("127.0.0.1", server.port))
        deadline = time.monotonic() + 60
        with suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() < deadline:
                with suppress(TimeoutError):
                    connection.sendall(ask * 1000)

    assert time.monotonic() < deadline
    assert server.predict(png(7))[0] == 200


def test_a_client_that_leaves_is_one_line_in_the_log(server: Server, log: Path) -> None:
    before = log.read_text()
    with connect(server) as connection:
        connection.sendall(head(1000) + b"x" * 10)
        time.sleep(0.2)

    deadline = time.monotonic() + 20
    while not (said := log.read_text()[len(before) :]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.1)
    assert len(log.read_text()[len(before) :].splitlines()) == 1
    assert "a client disconnected before the response" in said
    assert "Traceback" not in log.read_text()


def test_what_was_asked_before_sigterm_is_answered_and_no_slow_client_delays_the_end(run: Path) -> None:
    body = png(7)
    limits = {"header_seconds": 60, "body_seconds": 60, "grace_seconds": 3}
    with limited(run, run.with_suffix(".grace.log"), **limits) as (server, process), connect(server) as slow:
        assert server.predict(body)[0] == 200
        with connect(server) as good, connect(server), connect(server) as never:
            good.sendall(head(len(body)) + body[:50])
            slow.sendall(b"POST /predict HT")
            never.sendall(head(len(body)) + body[:50])
            time.sleep(0.3)
            os.kill(process.pid or 0, signal.SIGTERM)
            time.sleep(0.5)
            good.sendall(body[50:])

            assert answer(good)[0] == 200
            assert answer(never) == (503, {"error": "the server is shutting down"})
        assert end(process, 30) is not None


def test_few_files_mean_few_connections_and_that_is_said(run: Path) -> None:
    command = [
        "sh",
        "-c",
        'ulimit -n 80; exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "ftcore",
        "serve",
        str(run),
        "--port",
        "0",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr
            server = Server(port_in(next(line for line in process.stderr if "Ctrl-C to stop" in line)))
            line = process.stderr.readline()
            said = re.search(r"(\d+) connections at a time, not 512: limited by the number of open files", line)
            assert said, line
            with ExitStack() as stack:
                for _ in range(int(said[1])):
                    stack.enter_context(connect(server))
                for _ in range(30):
                    with connect(server) as connection:
                        assert answer(connection)[0] == 503
            assert server.predict(png(7))[0] == 200
        finally:
            process.kill()


def test_the_room_for_connections_is_what_files_are_left() -> None:
    connections, waiting = room_for_connections(10)

    assert connections == 10
    assert waiting >= 1
