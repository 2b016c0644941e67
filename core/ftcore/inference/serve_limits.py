"""What a server takes, at most, and what it counts."""

from __future__ import annotations

from typing import Self

from attrs import define, frozen
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.exceptions import HTTPException

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Bounds of the histogram of batch sizes."""

SMALL_UPLOAD = 1_000_000
"""Bytes; for as many there is room where larger ones have taken all of theirs, and they are decoded first."""


@frozen
class Limits:
    """What a server takes.

    Attributes:
        max_request_bytes: bytes of one picture or text.
        max_pixels: width times height of a picture.
        max_total_bytes: bytes of all pictures and texts that are uploaded, or wait for the network.
        max_connections: connections at a time; the next is told to come again.
        batch: pictures that go through the network at a time.
        max_queue: requests that wait for it; one more is told to come again.
        header_seconds: within which a request's line and headers are there, and a client takes what it was answered.
        body_seconds: within which a request's body is there.
        decode_seconds: after which the process that decodes a picture is killed.
        grace_seconds: after SIGTERM, for what was asked by then.
    """

    max_request_bytes: int = 20_000_000
    max_pixels: int = 25_000_000
    max_total_bytes: int = 256_000_000
    max_connections: int = 512
    batch: int = 32
    max_queue: int = 1024
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    decode_seconds: float = 10.0
    grace_seconds: float = 10.0


class ServerMetrics:
    """What is counted of a server, for Prometheus."""

    def __init__(self, budget: ByteBudget) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("ftcore_requests", "Requests, by status.", ["status"], registry=self.registry)
        self.seconds = Histogram("ftcore_request_seconds", "Time from request to response.", registry=self.registry)
        self.batches = Histogram("ftcore_batch_size", "Images per forward pass.", buckets=SIZES, registry=self.registry)
        self.killed = Counter(
            "ftcore_decoders_killed", "Decoder processes that were killed or died.", registry=self.registry
        )
        self.connections = Gauge("ftcore_connections", "Open connections.", registry=self.registry)
        self.held = Gauge("ftcore_held_bytes", "Bytes of uploads and of waiting images.", registry=self.registry)
        self.held.set_function(lambda: budget.held)


@define
class ByteBudget:
    """How many bytes all requests together may hold.

    A quarter is kept for uploads below a megabyte: large ones cannot lock them out.

    Attributes:
        total: bytes.
        held: how many of them are taken.
    """

    total: int
    held: int = 0

    def hold(self) -> Share:
        """Return the share of one request, which holds nothing yet."""
        return Share(self)


@define
class Share:
    """Bytes that one request holds, until its `with` ends.

    Attributes:
        budget: of all requests.
        size: bytes.
    """

    budget: ByteBudget
    size: int = 0

    def resize(self, size: int) -> None:
        """Hold so many bytes.

        Raises:
            HTTPException: 503, there are not so many.
        """
        most = self.budget.total if size <= SMALL_UPLOAD else 3 * self.budget.total // 4
        if size > self.size and self.budget.held + size - self.size > most:
            raise HTTPException(503, "too many bytes in flight; try again later", {"Retry-After": "1"})
        self.budget.held += size - self.size
        self.size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.resize(0)
