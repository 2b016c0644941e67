"""Pictures that mean harm to who decodes them; compared with `ftcore.data.read_image` in this process."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import time
import zlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import pytest
from PIL import Image

from ftcore.data import read_image
from ftcore.errors import DataError
from ftcore.inference.decoder import Decoder
from ftcore.inference.decoder_process import read_frame, write_frame
from ftcore.inference.serve_limits import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def killed() -> list[int]:
    return []


@pytest.fixture(scope="module")
def decoder(killed: list[int]) -> Iterator[Decoder]:
    made = Decoder(Limits(), (None,), lambda images: images[None], lambda: killed.append(1))
    yield made
    made.close()


def decoded(decoder: Decoder, data: bytes) -> Any:
    return asyncio.run(decoder.decode(data))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (noise(40, 30), "PNG", {}),
        (noise(40, 30, "RGBA"), "PNG", {}),
        (noise(40, 30, "L"), "PNG", {}),
        (noise(40, 30), "JPEG", {"progressive": True}),
        (noise(40, 30), "WEBP", {}),
        (noise(2100, 2000), "JPEG", {}),
    ],
)
def test_it_decodes_as_read_image_does(
    decoder: Decoder, image: Image.Image, kind: str, options: dict[str, Any]
) -> None:
    data = saved(image, kind, **options)
    expected = read_image(data)

    found = decoded(decoder, data)

    assert (found.mode, found.size) == (expected.mode, expected.size)
    assert found.tobytes() == expected.tobytes()


def test_each_scale_that_is_asked_for_is_there() -> None:
    data = saved(noise(2000, 1600), "JPEG")
    decoder = Decoder(Limits(), (None, 200), dict)
    try:
        found = decoded(decoder, data)
    finally:
        decoder.close()

    assert {side: image.size for side, image in found.items()} == {None: (2000, 1600), 200: (250, 200)}


def many_scans(number: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan is there many times."""
    data = saved(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * number + b"\xff\xd9"


def huge_png(side: int) -> bytes:
    """A PNG of zeros that is a thousandth of its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack("!I", len(content)) + kind + content + struct.pack("!I", zlib.crc32(kind + content))

    header = struct.pack("!IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_jpeg_of_many_scans_is_refused_and_one_of_few_is_not(decoder: Decoder) -> None:
    assert decoded(decoder, many_scans(1)).size == (64, 64)
    with pytest.raises(DataError, match="it has more than 100"):
        decoded(decoder, many_scans(400))
    with pytest.raises(DataError, match="it has more than 100"):
        read_image(many_scans(400))


def test_more_pixels_than_the_limit_are_refused_and_as_many_are_not(decoder: Decoder) -> None:
    assert decoded(decoder, huge_png(5000)).size == (5000, 5000)
    with pytest.raises(DataError, match="5001 x 5001 pixels are more than 25000000"):
        decoded(decoder, huge_png(5001))


def test_of_many_frames_one_is_decoded(decoder: Decoder) -> None:
    frames = [Image.new("L", (300, 300), place % 256) for place in range(1000)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    began = time.monotonic()

    found = decoded(decoder, data)

    assert found.size == (300, 300)
    assert time.monotonic() < began + 5


def test_a_frame_that_is_larger_than_its_screen_counts(decoder: Decoder) -> None:
    data = bytearray(saved(Image.new("L", (8, 8)), "GIF"))
    at = data.index(b"\x2c", 13)
    data[at + 5 : at + 9] = struct.pack("<HH", 20_000, 20_000)

    with pytest.raises(DataError):
        decoded(decoder, bytes(data))


@pytest.mark.parametrize(
    ("data", "is_large"),
    [
        (saved(noise(64, 64), "PNG"), False),
        (many_scans(90), False),
        (saved(noise(1000, 1000), "JPEG", progressive=True), False),
        (huge_png(1990), False),
        (huge_png(2010), True),
        (many_scans(90, 512), True),
        (huge_png(100) + bytes(1_000_001), True),
    ],
    ids=["small", "scans", "progressive", "pixels", "more pixels", "scans of many pixels", "bytes"],
)
def test_what_takes_long_does_not_keep_small_pictures_waiting(data: bytes, *, is_large: bool) -> None:
    decoder = Decoder(Limits(), (None,), lambda images: images[None].size)
    decoder.small.prepare, decoder.large.prepare = (lambda _: "small"), (lambda _: "large")
    try:
        assert decoded(decoder, data) == ("large" if is_large else "small")
    finally:
        decoder.close()


def test_large_pictures_have_a_lower_priority_that_counts(decoder: Decoder) -> None:
    """Between sessions it does not, where Linux shares the processor out between them (sched_autogroup)."""
    decoded(decoder, huge_png(2100))
    small, large = (next(iter(lane.all)).pid for lane in (decoder.small, decoder.large))

    assert os.getpriority(os.PRIO_PROCESS, large) >= os.getpriority(os.PRIO_PROCESS, small) + 10
    assert os.getsid(small) == os.getsid(large) == os.getsid(0)
    assert os.getpgid(large) not in {os.getpgid(0), os.getpgid(small)}  # Ctrl-C does not reach them


def test_a_process_that_takes_too_long_is_killed_and_replaced() -> None:
    killed: list[int] = []
    data = saved(noise(30, 30), "PNG")
    limits = attrs.evolve(Limits(), decode_seconds=3.0)
    decoder = Decoder(limits, (None,), lambda images: images[None], lambda: killed.append(1))
    try:
        decoded(decoder, data)
        stopped = {process.pid for process in decoder.small.all}
        for number in stopped:
            os.kill(number, signal.SIGSTOP)

        with pytest.raises(DataError, match="decoding exceeds the limit of 3 s"):
            decoded(decoder, data)
        for process in decoder.small.all:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

        assert decoded(decoder, data).size == (30, 30)
        assert killed == [1]
        assert stopped.isdisjoint(process.pid for process in decoder.small.all)
    finally:
        decoder.close()


def test_a_process_that_dies_costs_its_client_alone() -> None:
    data = saved(noise(30, 30), "PNG")
    decoder = Decoder(Limits(), (None,), lambda images: images[None])
    try:
        processes = list(decoder.small.all)
        for process in processes:
            os.kill(process.pid, signal.SIGSTOP)

        async def both() -> list[Any]:
            waiting = asyncio.ensure_future(decoder.decode(data))
            await asyncio.sleep(0.3)
            for process in processes:
                os.kill(process.pid, signal.SIGKILL)
            return list(await asyncio.gather(waiting, return_exceptions=True))

        (error,) = asyncio.run(both())

        assert isinstance(error, DataError)
        assert str(error).endswith("the decoder process ended with code -9")
        assert decoded(decoder, data).size == (30, 30)
    finally:
        decoder.close()


def test_its_processes_hold_nothing_of_this_ones_secrets_and_write_no_file(
    monkeypatch: pytest.MonkeyPatch, decoder: Decoder
) -> None:
    monkeypatch.setenv("SECRET", "a secret")
    process = decoder.small.start()
    try:
        folder, deadline = Path(f"/proc/{process.pid}"), time.monotonic() + 30
        while "Max file size             0 " not in (folder / "limits").read_text():
            assert time.monotonic() < deadline
        assert "a secret" not in (folder / "environ").read_text()
        assert len(list((folder / "fd").iterdir())) == 3
    finally:
        decoder.small._put_back(process, is_fit=False)


def test_its_processes_end_when_this_one_is_gone(decoder: Decoder) -> None:
    process = decoder.small.start()
    assert process.stdin

    process.stdin.close()

    assert process.wait(30) == 0
    decoder.small._put_back(process, is_fit=False)


def test_a_frame_comes_back_as_it_was_and_none_is_longer_than_expected() -> None:
    stream = BytesIO()
    write_frame(stream, {"one": [1, None]}, b"\x00\xff")
    stream.seek(0)
    assert read_frame(stream, 1000) == ({"one": [1, None]}, b"\x00\xff")

    stream.seek(0)
    with pytest.raises(EOFError):
        read_frame(stream, 5)
