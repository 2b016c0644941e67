"""`ftcore serve` in a process of its own, and clients that ask it over real sockets."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import attrs
from PIL import Image
from sklearn.datasets import load_digits
from tests.faults.killing import end, forked, start

from ftcore.testing import invoke

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

PNG = {"Content-Type": "image/png"}


def png(place: int) -> bytes:
    """A digit as the content of a PNG file."""
    content = BytesIO()
    Image.fromarray((load_digits().images[place] * (255 / 16)).astype("uint8")).save(content, "png")
    return content.getvalue()


def trained(folder: Path, *words: str) -> Path:
    given = ("--model", "digits/cnn", *words, "--set", "train.epochs=2", "--set", f"run.folder={folder}")
    said = invoke("run", "--data", "digits:5-9", *given)
    assert said.code == 0, said.err
    return folder


@attrs.frozen
class Server:
    """`ftcore serve` in a process of its own.

    Attributes:
        port: at 127.0.0.1.
    """

    port: int

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = PNG) -> tuple[int, Any]:
        """Return the status, and what is said."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json else text
        finally:
            connection.close()

    def predict(self, body: Any, query: str = "", **headers: str) -> tuple[int, Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()} or PNG
        return self.ask("POST", f"/predict{query}", body, named)


def port_in(line: str) -> int:
    port = re.search(r"http://127\.0\.0\.1:(\d+); press Ctrl-C to stop", line)
    assert port, line
    return int(port[1])


@contextmanager
def serving(run: Path, *words: str) -> Iterator[Server]:
    log = run.with_suffix(".log")
    process = start("serve", run, "--port", "0", *words, log=log)
    try:
        while "Ctrl-C to stop" not in (said := log.read_text() if log.exists() else ""):
            assert process.is_alive(), said
            time.sleep(0.01)
        yield Server(port_in(said))
    finally:
        process.kill()
        end(process)


def numbers(server: Server) -> dict[str, float]:
    lines = server.ask("GET", "/metrics")[1].splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


@contextmanager
def limited(run: Path, log: Path, **limits: float) -> Iterator[tuple[Server, ForkServerProcess]]:
    """Serve with limits that the command has no option for."""
    process = forked(_serve, str(run), str(log), limits)
    try:
        while "Ctrl-C to stop" not in (said := log.read_text() if log.exists() else ""):
            assert process.is_alive(), said
            time.sleep(0.01)
        yield Server(port_in(said)), process
    finally:
        process.kill()
        end(process)


def _serve(run: str, log: str, limits: dict[str, Any]) -> None:
    import os
    import sys

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    import torch

    from ftcore.inference.load import load
    from ftcore.inference.serve import application, bind, serve
    from ftcore.inference.serve_access import access_to
    from ftcore.inference.serve_limits import Limits

    torch.set_num_threads(1)
    listening = bind("127.0.0.1", 0)
    app = application(load(run), Limits(**limits), access=access_to("127.0.0.1"))
    sys.stderr.write(f"http://127.0.0.1:{listening.getsockname()[1]}; press Ctrl-C to stop\n")
    sys.stderr.flush()
    serve(app, listening)


def head(length: int | None = None, *more: str, path: str = "/predict", host: str = "localhost") -> bytes:
    """Line and headers of a request for a prediction."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: image/png", *more]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def answer(connection: socket.socket) -> tuple[int, Any]:
    """Read until the server closes: the status of the first answer, and what it says; 0 for nothing."""
    content = b""
    while piece := connection.recv(65536):
        content += piece
    first, _, body = content.partition(b"\r\n\r\n")
    return (int(first.split()[1]), json.loads(body)) if content else (0, None)
