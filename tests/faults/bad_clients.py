"""Clients of a server that mean harm, beside some that do not."""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
import time
import zlib
from collections import Counter
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from .killing import end, forked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Bad = Callable[[int], Awaitable[None]]


def _head(length: int | str, *more: str) -> bytes:
    lines = ["POST /predict HTTP/1.1", "Host: localhost", "Content-Type: image/png", *more]
    return "\r\n".join(
        [*lines, f"Content-Length: {length}" if length else "Transfer-Encoding: chunked", "", ""]
    ).encode()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + kind + content + struct.pack("!I", zlib.crc32(kind + content))


def large_png(width: int, height: int) -> bytes:
    """A PNG of transparent zeros, which is small, and takes long."""
    rows = zlib.compress(bytes((4 * width + 1) * height), 1)
    header = struct.pack("!IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def many_scans(number: int) -> bytes:
    """A progressive JPEG whose last scan is there many times."""
    content = BytesIO()
    Image.effect_noise((512, 512), 50).save(content, "JPEG", progressive=True)
    data = content.getvalue()
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * number + b"\xff\xd9"


BOMBS = (large_png(4900, 5000), large_png(9400, 9400), many_scans(90), many_scans(400))


async def _talk(port: int, *pieces: bytes, pause: float = 0.0, times: int = 1) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for _ in range(times):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        await asyncio.wait_for(reader.read(), 15)
    finally:
        writer.transport.abort()


async def slow_headers(port: int) -> None:
    await _talk(port, b"POST /predict HTTP/1.1\r\nHost: local", b"a", pause=0.5, times=40)


async def slow_body(port: int) -> None:
    await _talk(port, _head(1000), *[b"x"] * 200, pause=0.3)


async def endless(port: int) -> None:
    await _talk(port, _head(0), *[b"10000\r\n" + bytes(65536) + b"\r\n"] * 1000, pause=0.02)


async def huge(port: int) -> None:
    await _talk(port, _head(19_000_000) + bytes(18_999_000), pause=5)


async def garbage(port: int) -> None:
    await _talk(port, os.urandom(1000) + b"\r\n\r\n", pause=0.2)


async def bombs(port: int) -> None:
    for data in BOMBS:
        await _talk(port, _head(len(data), "Connection: close") + data)


BAD = (slow_headers, slow_body, endless, huge, garbage, bombs)


@contextmanager
def attacked(port: int, clients: int) -> Iterator[None]:
    """Let clients that mean harm do so, in a process that leaves the processor to others: theirs is another machine."""
    process = forked(_attack, port, clients) if clients else None
    try:
        yield
    finally:
        if process:
            process.kill()
            end(process)


def _attack(port: int, clients: int) -> None:
    os.nice(19)

    async def one(attack: Bad) -> None:
        while True:
            with suppress(OSError, EOFError, TimeoutError):
                await attack(port)
            await asyncio.sleep(0.05)

    async def all_of_them() -> None:
        await asyncio.gather(*(one(kind) for kind in itertools.islice(itertools.cycle(BAD), clients)))

    asyncio.run(all_of_them())


async def load(port: int, picture: bytes, clients: int, seconds: float) -> tuple[list[float], Counter[str]]:
    """Let good clients ask at a time, with a pause between two requests.

    Returns:
        Seconds that each answer took, and how many there were of each status or error.
    """
    until, times, ends = time.monotonic() + seconds, list[float](), Counter[str]()
    request = _head(len(picture)) + picture

    async def good_one(place: int) -> None:
        await asyncio.sleep(4.0 * place / clients)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r")[0]))
                ends[head.split()[1].decode()] += 1
            except (OSError, EOFError) as error:
                ends[type(error).__name__] += 1
                return
            times.append(time.monotonic() - began)
            await asyncio.sleep(4.0)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(good_one(place) for place in range(clients)))
    return times, ends
