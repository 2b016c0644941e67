"""A process that decodes pictures of strangers: it knows no model, no token and no connection, and may be killed.

It reads requests from standard input and answers on standard output, both as a `write_frame`. Nothing that it says can
execute code: numbers, texts and pixels, which `ftcore.inference.decoder` checks.
"""

from __future__ import annotations

import json
import struct
import sys
from contextlib import suppress
from typing import IO, Any

from PIL import Image

from ftcore.data.decoding import decode_image, estimate_work
from ftcore.errors import DataError

_LENGTHS = struct.Struct("!QQ")

_MEMORY = 256 * 2**20
"""Bytes of addresses that decoding takes beside the pixels: the file, tables, buffers."""

_BYTES_A_PIXEL = 24
"""16 bits of four channels as they are read, as PIL converts them, and as RGB."""


def write_frame(stream: IO[bytes], facts: dict[str, Any], content: bytes | bytearray = b"") -> None:
    """Write some facts as JSON, and bytes."""
    text = json.dumps(facts, allow_nan=False).encode()
    stream.write(_LENGTHS.pack(len(text), len(content)) + text)
    stream.write(content)
    stream.flush()


def read_frame(stream: IO[bytes], max_bytes: int) -> tuple[Any, bytes]:
    """Read what `write_frame` wrote.

    Raises:
        EOFError: there is no more, or more than `max_bytes`.
        ValueError: it is no JSON.
    """
    lengths = _LENGTHS.unpack(_read(stream, _LENGTHS.size))
    if sum(lengths) > max_bytes:
        raise EOFError
    return json.loads(_read(stream, lengths[0])), _read(stream, lengths[1])


def _read(stream: IO[bytes], length: int) -> bytes:
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return content


def restrict(max_pixels: int, nice: int) -> None:
    """Bound what this process can take: memory, no files, no core dump; and let others go first."""
    Image.MAX_IMAGE_PIXELS = max_pixels  # PIL refuses twice as many, also where only decoding shows the size
    Image.init()
    with suppress(ImportError, ValueError, OSError):  # as far as the system has them
        import os
        import resource

        import psutil  # type: ignore[import-untyped, unused-ignore]

        memory = psutil.Process().memory_info().vms + _MEMORY + _BYTES_A_PIXEL * max_pixels
        for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
            resource.setrlimit(kind, (most, most))
        os.nice(nice)


def answer(facts: dict[str, Any], data: bytes, max_pixels: int) -> tuple[dict[str, Any], bytes]:
    """Decode one picture at some scales.

    Args:
        facts: ``sides``, see `ftcore.data.decode_image`, and ``most_work``, above which it is not decoded here.
        data: the content of a picture file.
        max_pixels: width times height, at most.

    Returns:
        ``images``, a pair of mode and size for each scale, and their pixels; or ``error``; or ``large``.
    """
    name = f"of {len(data):,} bytes"
    try:
        if data and facts["most_work"] is not None and estimate_work(data, name) > facts["most_work"]:
            return {"large": True}, b""
        images = [decode_image(data, name, side, max_pixels=max_pixels) for side in facts["sides"]]
    except DataError as error:
        return {"error": str(error)}, b""
    return {"images": [[image.mode, image.size] for image in images]}, b"".join(image.tobytes() for image in images)


def main() -> None:
    """Answer until standard input ends."""
    max_bytes, max_pixels, nice = (int(word) for word in sys.argv[1:])
    restrict(max_pixels, nice)
    with suppress(EOFError, BrokenPipeError):
        while True:
            facts, data = read_frame(sys.stdin.buffer, max_bytes + 2**16)
            write_frame(sys.stdout.buffer, *answer(facts, data, max_pixels))
