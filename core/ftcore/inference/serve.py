"""A model over HTTP: a picture or a text in, JSON out; and a page where a person drops pictures.

`application` is an ASGI application like any other: Starlette's, to be mounted or served by what a team has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn
from attrs import define, field, frozen
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ftcore.checkpoints.strict_json import to_json
from ftcore.errors import DataError, UserError

from .output import prediction_to_dict
from .predict import predict_batch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request

    from .model import Model
    from .predict import Prediction


CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""What the page may do: nothing from elsewhere, nothing to elsewhere."""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Bounds of the histogram of batch sizes."""


@frozen
class Limits:
    """What a server takes.

    Attributes:
        max_request_bytes: bytes of one picture or text.
        batch: pictures that go through the network at a time.
        max_queue: requests that wait for it; one more is told to come again.
    """

    max_request_bytes: int = 20_000_000
    batch: int = 32
    max_queue: int = 1024


class ServerMetrics:
    """What is counted of a server, for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("ftcore_requests", "Requests, by status.", ["status"], registry=self.registry)
        self.seconds = Histogram("ftcore_request_seconds", "From a request to its answer.", registry=self.registry)
        self.batches = Histogram("ftcore_batch_size", "Together in the network.", buckets=SIZES, registry=self.registry)


@define
class Batcher:
    """Lets what came while the network was busy through it together.

    Nobody waits for a batch to fill: it is what there is, so a lone request is answered at once.

    Attributes:
        model: what answers.
        limits: see there.
        numbers: counts the batches.
        tta: average over each picture and its mirror image.
        queue: what was asked, and where the answer goes.
        thread: in which the network works, so that the server hears requests meanwhile.
    """

    model: Model
    limits: Limits
    numbers: ServerMetrics
    tta: bool = False
    queue: asyncio.Queue[tuple[Any, asyncio.Future[Prediction | DataError]]] = field(factory=asyncio.Queue)
    thread: ThreadPoolExecutor = field(factory=lambda: ThreadPoolExecutor(1))

    async def submit(self, item: Any) -> Prediction | DataError:
        """Return what the network says of a picture or a text.

        Raises:
            HTTPException: 503, too many wait already.
        """
        if self.queue.qsize() >= self.limits.max_queue:
            raise HTTPException(503, "too many requests wait; try again", {"Retry-After": "1"})
        answer: asyncio.Future[Prediction | DataError] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((item, answer))
        return await answer

    async def work(self) -> None:
        """Answer, until cancelled."""
        while True:
            batch = [await self.queue.get()]
            while len(batch) < self.limits.batch and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            wanted = [(item, answer) for item, answer in batch if not answer.done()]  # nobody may listen any more
            self.numbers.batches.observe(len(wanted))
            for (_, answer), found in zip(wanted, await self.run_batch([item for item, _ in wanted]), strict=True):
                if not answer.done():
                    answer.set_exception(found) if isinstance(found, RuntimeError) else answer.set_result(found)

    async def run_batch(self, items: Sequence[Any]) -> Sequence[Prediction | DataError | RuntimeError]:
        """Return the answers; where the network fails, that, for each."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, self.predict, items)
        except Exception as error:  # noqa: BLE001 - one request must not end the server
            structlog.get_logger().error("the network failed", error=f"{type(error).__name__}: {error}")
            return [RuntimeError(str(error))] * len(items)

    def predict(self, items: Sequence[Any]) -> list[Prediction | DataError]:
        """Let the network see items."""
        return predict_batch(self.model, items, tta=self.tta)


def application(model: Model, limits: Limits | None = None, *, tta: bool = False) -> Starlette:
    """Return the ASGI application: ``GET /``, the page; ``POST /predict``; ``GET /health`` and ``GET /metrics``.

    ``POST /predict`` takes the bytes of a picture as the body, as ``image/...`` or ``application/octet-stream``, or a
    text as ``text/plain`` where the model reads texts; ``?top=N`` asks for the N most probable values. Its answer is
    ``{"values": {name: value}}``, for labels also ``"labels"``. An error is ``{"error": message}``: 400 for a wrong
    `top`, 413 for too many bytes, 415 for another type, 422 for what cannot be read, 503 where too many wait.

    Args:
        model: what `ftcore.load` returns.
        limits: what it takes at most.
        tta: average over each picture and its mirror image.
    """
    answering = _Endpoints(model, limits or Limits(), tta=tta)
    routes = [
        Route("/", answering.show),
        Route("/predict", answering.predict, methods=["POST"]),
        Route("/health", answering.health),
        Route("/metrics", answering.measured),
    ]
    handlers: Any = {HTTPException: answering.refuse, RuntimeError: answering.fail}
    return Starlette(routes=routes, lifespan=answering.lifespan, exception_handlers=handlers)


class _Endpoints:
    """What is answered at each address."""

    def __init__(self, model: Model, limits: Limits, *, tta: bool) -> None:
        self.model, self.limits, self.numbers = model, limits, ServerMetrics()
        self.batcher = Batcher(model, limits, self.numbers, tta)
        self.page = (resources.files("ftcore.inference") / "serve.html").read_text(encoding="utf-8")

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        working = asyncio.create_task(self.batcher.work())
        yield
        working.cancel()

    async def show(self, _request: Request) -> Response:
        return HTMLResponse(self.page, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})

    async def predict(self, request: Request) -> Response:
        began = time.monotonic()
        top = self.top(request)
        found = await self.batcher.submit(await self.body(request))
        if isinstance(found, DataError):
            raise HTTPException(422, str(found))
        self.numbers.seconds.observe(time.monotonic() - began)
        self.numbers.requests.labels(200).inc()
        answer = to_json(prediction_to_dict(found, self.model.task, top))  # which a network that is NaN has none of
        return Response(answer, media_type="application/json")

    async def health(self, _request: Request) -> Response:
        task, reads = self.model.task, "text" if self.model.is_text_model else "picture"
        facts = {
            "task": task.kind,
            "names": list(task.names),
            "reads": reads,
            "most_bytes": self.limits.max_request_bytes,
        }
        return JSONResponse({"status": "ok", **facts})

    async def measured(self, _request: Request) -> Response:
        return Response(generate_latest(self.numbers.registry), media_type=CONTENT_TYPE_LATEST)

    async def refuse(self, _request: Request, error: HTTPException) -> Response:
        self.numbers.requests.labels(error.status_code).inc()
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    async def fail(self, _request: Request, _error: RuntimeError) -> Response:
        self.numbers.requests.labels(500).inc()
        return JSONResponse({"error": "the network failed; the server's log says how"}, 500)

    def top(self, request: Request) -> int | None:
        text = request.query_params.get("top")
        if text is None:
            return None
        if self.model.task.kind == "regression":
            raise HTTPException(400, "top is for classes and labels, and this model predicts numbers")
        if not text.isascii() or not text.isdigit() or int(text) < 1:
            raise HTTPException(400, f"top is a whole number from 1, not {text!r}")
        return int(text)

    async def body(self, request: Request) -> str | bytes:
        """Return the picture's bytes or the text."""
        self.check_type(request.headers.get("content-type", ""))
        most, body = self.limits.max_request_bytes, bytearray()
        if int(request.headers.get("content-length", "0")) > most:
            raise HTTPException(413, f"more than {most:,} bytes, which is the limit")
        async for piece in request.stream():
            body += piece
            if len(body) > most:
                raise HTTPException(413, f"more than {most:,} bytes, which is the limit")
        if not self.model.is_text_model:
            return bytes(body)
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise HTTPException(422, f"cannot read this text: {error}") from None

    def check_type(self, header: str) -> None:
        kind = header.partition(";")[0].strip().lower()
        is_picture = kind.startswith("image/") or kind == "application/octet-stream"
        if not (kind == "text/plain" if self.model.is_text_model else is_picture):
            pictures = "image/jpeg (or another image/...) or application/octet-stream"
            wanted = "text/plain" if self.model.is_text_model else pictures
            raise HTTPException(415, f"Content-Type is {kind or 'missing'}; send the body as {wanted}")


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens; `port` 0 takes any that is free.

    Raises:
        UserError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(f"cannot listen at {host}, port {port}: {why}; --host and --port choose others") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answer until SIGINT or SIGTERM; what was asked by then is answered still."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=10)
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again when all is answered
        uvicorn.Server(config).run(sockets=[listening])
