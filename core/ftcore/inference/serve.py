"""A model over HTTP: a picture or a text in, JSON out; and a page where a person drops pictures.

`application` is an ASGI application like any other: Starlette's, to be mounted or served by what a team has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn
from attrs import evolve
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ftcore.checkpoints.strict_json import to_json
from ftcore.errors import DataError, UserError
from ftcore.system.logging import format_event

from .batcher import Batcher
from .decoder import Decoder
from .predict import transform, transform_for
from .serve_access import Access, Guard, refusal
from .serve_connection import Connection, room_for_connections
from .serve_limits import ByteBudget, Limits, ServerMetrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from PIL.Image import Image
    from starlette.requests import Request
    from structlog.types import EventDict
    from torch import Tensor

    from ftcore.types.data import TwoStageTransform
    from ftcore.types.task import Prediction

    from .model import Model
    from .serve_limits import Share


CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""What the page may do: nothing from elsewhere, nothing to elsewhere."""


def application(
    model: Model, limits: Limits | None = None, *, tta: bool = False, access: Access | None = None
) -> Starlette:
    """Return the ASGI application: ``GET /``, the page; ``POST /predict``; ``GET /health`` and ``GET /metrics``.

    ``POST /predict`` takes the bytes of a picture as the body, as ``image/...`` or ``application/octet-stream``, or a
    text as ``text/plain`` where the model reads texts; ``?top=N`` asks for the N most probable values. Its answer is
    ``{"values": {name: value}}``, for labels also ``"labels"``. An error is ``{"error": message}``: 400 for a wrong
    `top`, 401 without the token, 408 for a body that is too slow, 413 for too many bytes, 415 for another type, 421 for
    another server, 422 for what cannot be read, 503 where there is too much at a time.

    Its lifespan must run (Starlette runs none of what is mounted): it starts the processes that decode.

    Args:
        model: what `ftcore.load` returns.
        limits: what it takes at most. Those of connections and headers are of `serve` alone.
        tta: average over each picture and its mirror image.
        access: who may ask, and by what name; by default everyone, by any.
    """
    access, limits = access or Access(), limits or Limits()
    answering = _Endpoints(model, limits, access, tta=tta)
    routes = [
        Route("/", answering.show),
        Route("/predict", answering.predict, methods=["POST"]),
        Route("/health", answering.health),
        Route("/metrics", answering.measured),
    ]
    handlers: Any = {HTTPException: answering.refuse}
    guard = Middleware(Guard, access=access, numbers=answering.numbers)
    app = Starlette(routes=routes, lifespan=answering.lifespan, exception_handlers=handlers, middleware=[guard])
    app.state.limits, app.state.numbers = limits, answering.numbers
    return app


class _Endpoints:
    """What is answered at each address."""

    decoder: Decoder

    def __init__(self, model: Model, limits: Limits, access: Access, *, tta: bool) -> None:
        self.model, self.limits, self.access = model, limits, access
        self.budget = ByteBudget(limits.max_total_bytes)
        self.numbers = ServerMetrics(self.budget)
        self.batcher = Batcher(model, limits, self.numbers, tta)
        self.page = (resources.files("ftcore.inference") / "serve.html").read_text(encoding="utf-8")

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        steps = [member.transforms.evaluate for member in self.model.members]
        sides = tuple({step.min_decode_side for step in steps})
        self.decoder = Decoder(self.limits, sides, partial(_prepare, steps), self.numbers.killed.inc)
        working = asyncio.create_task(self.batcher.work())
        yield
        working.cancel()
        self.decoder.close()

    async def show(self, _request: Request) -> Response:
        return HTMLResponse(self.page, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})

    async def predict(self, request: Request) -> Response:
        began = time.monotonic()
        top = self.top(request)
        self.check_type(request.headers.get("content-type", ""))
        with self.budget.hold() as share:
            body = await self.body(request, share)
            found = await _while_connected(request, self.answer(body, share))
        self.numbers.seconds.observe(time.monotonic() - began)
        self.numbers.requests.labels(200).inc()
        answer = to_json(self.model.task.data(found, top))  # which a network that is NaN has none of
        return Response(answer, media_type="application/json")

    async def answer(self, body: bytearray, share: Share) -> Prediction:
        """Return what the network says of a body."""
        loop = asyncio.get_running_loop()
        try:
            if self.model.is_text_model:
                text = body.decode()
                seen = await loop.run_in_executor(self.batcher.thread, transform, self.model, lambda _: text)
            else:
                seen = await self.decoder.decode(body)
        except UnicodeDecodeError as error:
            raise HTTPException(422, f"cannot read this text: {error}") from None
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        share.resize(sum(tensor.nbytes for tensor in seen))  # the body is not needed any more
        return await self.batcher.submit(seen)

    async def health(self, request: Request) -> Response:
        if not self.access.is_authorised(request.headers):
            return JSONResponse({"status": "ok"})
        task, reads = self.model.task, "text" if self.model.is_text_model else "picture"
        facts = {
            "task": task.name,
            "names": list(task.names),
            "reads": reads,
            "most_bytes": self.limits.max_request_bytes,
            "most_pixels": self.limits.max_pixels,
        }
        return JSONResponse({"status": "ok", **facts})

    async def measured(self, _request: Request) -> Response:
        return Response(generate_latest(self.numbers.registry), media_type=CONTENT_TYPE_LATEST)

    async def refuse(self, _request: Request, error: HTTPException) -> Response:
        return refusal(error)

    def top(self, request: Request) -> int | None:
        text = request.query_params.get("top")
        if text is None:
            return None
        task = self.model.task
        if not task.ranked:
            raise HTTPException(
                400, f"top is for classes and labels, and what a task {task.name!r} predicts is in no order"
            )
        if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
            shown = text if len(text) < 40 else f"{text[:40]}..."
            raise HTTPException(400, f"top must be an integer >= 1, not {shown!r}")
        return int(text)

    async def body(self, request: Request, share: Share) -> bytearray:
        """Return the picture's bytes or the text's."""
        most, body = self.limits.max_request_bytes, bytearray()
        too_large = HTTPException(413, f"the request exceeds the limit of {most:,} bytes")
        if int(request.headers.get("content-length", "0")) > most:
            raise too_large
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for piece in request.stream():
                    body += piece
                    if len(body) > most:
                        raise too_large
                    share.resize(len(body))
        except TimeoutError:
            why = f"reading the body exceeded the limit of {self.limits.body_seconds:g} s"
            raise HTTPException(408, why, {"Connection": "close"}) from None
        return body

    def check_type(self, header: str) -> None:
        kind = header.partition(";")[0].strip().lower()
        is_picture = kind.startswith("image/") or kind == "application/octet-stream"
        if not (kind == "text/plain" if self.model.is_text_model else is_picture):
            pictures = "image/jpeg (or another image/...) or application/octet-stream"
            wanted = "text/plain" if self.model.is_text_model else pictures
            raise HTTPException(415, f"Content-Type is {kind or 'missing'}; send the body as {wanted}")


def _prepare(steps: Sequence[TwoStageTransform], images: dict[int | None, Image]) -> tuple[Tensor, ...]:
    """Return what `transform_for` returns of a picture at each scale."""
    return transform_for(steps, images.__getitem__)


async def _while_connected(request: Request, work: Coroutine[Any, Any, Prediction]) -> Prediction:
    """Wait for an answer; where the client leaves before, drop the work that has not begun.

    Raises:
        ClientDisconnect: it left.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens; `port` 0 takes any that is free.

    Raises:
        UserError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(f"cannot listen at {host}, port {port}: {why}; choose others with --host and --port") from None


def _say(_logger: Any, level: str, event: EventDict) -> EventDict:
    """Write an event on standard error; nothing is kept of it, for a server lives long."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"ftcore: {level}: {format_event(event)}\n")
        sys.stderr.flush()
    raise structlog.DropEvent


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answer what `application` returned until SIGINT or SIGTERM; what was asked by then is answered still."""
    structlog.configure(processors=[structlog.processors.add_log_level, _say], cache_logger_on_first_use=False)
    limits = app.state.limits
    connections, waiting = room_for_connections(limits.max_connections)
    if connections < limits.max_connections:
        allowed = f"the server accepts {connections} connections at a time, not {limits.max_connections}"
        structlog.get_logger().warning(f"{allowed}: limited by the number of open files (ulimit -n)")
    protocol: Any = partial(Connection, limits=evolve(limits, max_connections=connections), numbers=app.state.numbers)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_level="critical",  # `Guard` says what goes wrong, in one line
        access_log=False,
        server_header=False,
        backlog=waiting,
        timeout_graceful_shutdown=round(limits.grace_seconds),
    )
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again when all is answered
        uvicorn.Server(config).run(sockets=[listening])
