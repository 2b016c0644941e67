"""One connection of a client, which is ended where it costs more than a request may: time, or work to understand it."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

    from .serve_limits import Limits, ServerMetrics

_PARSING_SECONDS = 1.0
"""Of the processor, for what one request sends; 20 MB take a tenth. A body in chunks of one byte would take minutes."""

_READ_BYTES = 65536
"""At a time, so that one connection does not keep the others waiting."""

_LINGER_SECONDS = 1.0
"""For the rest of a request that was answered before its end, so that the client hears the answer; and for the last
bytes of an answer."""


class Connection(H11Protocol):
    """Uvicorn's, in pure Python, with deadlines, and errors in JSON that are counted.

    Uvicorn bounds the time between two requests alone; here are bounded, too: from the connection, or the last answer,
    to the end of the next headers; the rest of a body that nobody reads; an answer that the client does not take.
    """

    def __init__(self, *given: Any, limits: Limits, numbers: ServerMetrics, **named: Any) -> None:
        super().__init__(*given, **named)
        self.limits, self.numbers = limits, numbers
        self.timers: dict[str, asyncio.TimerHandle] = {}
        self.parsing = 0.0
        self.has_said = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, unless there are too many."""
        super().connection_made(transport)
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        self.numbers.connections.set(len(self.connections))
        if len(self.connections) > self.limits.max_connections:
            self.refuse(503, "too many connections; try again", "retry-after: 1\r\n")
        else:
            self.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)
        for name in list(self.timers):
            self.stop(name)
        self.numbers.connections.set(len(self.connections))

    def data_received(self, data: bytes) -> None:
        """Understand what came."""
        if self.transport.is_closing():
            return
        self.has_said, began = True, time.thread_time()
        super().data_received(data)
        self.parsing += time.thread_time() - began
        if self.parsing > _PARSING_SECONDS:
            self.refuse(400, "too many small chunks in the request")
        self.watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.parsing, self.has_said = 0.0, False
        super().on_response_complete()
        self.watch()

    def pause_writing(self) -> None:
        """Wait for the client to take its answer."""
        super().pause_writing()
        self.start("answer", self.limits.header_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: it took some of it."""
        super().resume_writing()
        self.stop("answer")

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self.refuse(400, f"{msg.rstrip('.')}: not a valid HTTP/1.1 request, or too long")

    def watch(self) -> None:
        """Let the time run while no request is being answered."""
        cycle: Any = self.cycle  # None before the first request
        is_answering = cycle is not None and not cycle.response_complete
        has_rest = self.conn.their_state is h11.SEND_BODY
        wanted = "" if is_answering else "rest" if has_rest else "headers"
        for name in {"rest", "headers"} - {wanted}:
            self.stop(name)
        if wanted and wanted not in self.timers:
            self.start(wanted, _LINGER_SECONDS if has_rest else self.limits.header_seconds, self.expire)

    def expire(self) -> None:
        """End a connection that took too long; who has begun to ask is told."""
        if self.has_said and self.conn.their_state is h11.IDLE:
            self.refuse(408, f"reading the headers exceeded the limit of {self.limits.header_seconds:g} s")
        else:
            self.end()

    def refuse(self, status: int, message: str, headers: str = "") -> None:
        """Answer what never becomes a request, and end."""
        if self.transport.is_closing():
            return
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = json.dumps({"error": message}, allow_nan=False)
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n{headers}"
            self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode())
        self.numbers.requests.labels(status).inc()
        self.end()

    def end(self) -> None:
        """Close, at once where the last bytes are not taken."""
        self.transport.close()
        self.start("end", _LINGER_SECONDS, self.transport.abort)

    def start(self, name: str, seconds: float, then: Any) -> None:
        """Start a timer."""
        self.stop(name)
        self.timers[name] = self.loop.call_later(seconds, then)

    def stop(self, name: str) -> None:
        """Stop a timer, if it runs."""
        if timer := self.timers.pop(name, None):
            timer.cancel()


def room_for_connections(wanted: int) -> tuple[int, int]:
    """Raise the number of files that this process may open as far as the system lets it, and share it out.

    Args:
        wanted: connections.

    Returns:
        Connections for which there is room, at most `wanted`, and how many may wait to be accepted.
    """
    waiting = 128
    try:
        import resource

        import psutil  # type: ignore[import-untyped, unused-ignore]
    except ImportError:  # Windows has no such number
        return wanted, waiting
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + waiting + 256
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return wanted, waiting
    own = psutil.Process().num_fds() + 32  # those of decoders, which come later
    room = max(2, soft - own)
    waiting = min(waiting, room // 4)
    return max(1, min(wanted, room - waiting)), waiting
