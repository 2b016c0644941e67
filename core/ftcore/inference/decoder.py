"""Decode pictures of strangers in other processes, each with a deadline after which it is killed and replaced."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event, Lock, Timer
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from ftcore.errors import DataError

from .decoder_process import read_frame, write_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .serve_limits import Limits

T = TypeVar("T")

LARGE_PIXELS = 4_000_000
"""From here on a picture waits in a queue of its own, so that small ones do not wait behind it."""

_CODE = """import json, sys; sys.path[:] = json.loads(sys.argv.pop(1))
from ftcore.inference.decoder_process import main; main()"""

_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "LANG", "LC_ALL")
"""Of the environment, what a process needs to start; the rest may hold secrets."""


class _Lane:
    """Processes that decode, as many as there are processors, and a thread that waits for each."""

    def __init__(self, limits: Limits, pass_on_pixels: int, nice: int, on_kill: Callable[[], None]) -> None:
        self.limits, self.pass_on_pixels, self.nice, self.on_kill = limits, pass_on_pixels, nice, on_kill
        self.number = min(4, os.cpu_count() or 1)
        self.threads = ThreadPoolExecutor(self.number)
        self.idle: list[subprocess.Popen[bytes]] = []
        self.all: set[subprocess.Popen[bytes]] = set()
        self.is_closed = False

    def start(self) -> subprocess.Popen[bytes]:
        """Start one more process; it knows nothing of this one but where Python looks for modules."""
        limits = (self.limits.max_request_bytes, self.limits.max_pixels, self.nice)
        path = json.dumps([place for place in sys.path if place], allow_nan=False)
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _CODE, path, *map(str, limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"OPENBLAS_NUM_THREADS": "1", **{name: os.environ[name] for name in _VARIABLES if name in os.environ}},
            start_new_session=True,  # Ctrl-C is for the server, which still needs it for what it answers last
        )
        self.all.add(process)
        if self.is_closed:
            process.kill()
        return process

    def decode(self, data: bytes | bytearray, sides: Sequence[int | None]) -> dict[int | None, Image.Image] | None:
        """Return a picture at some scales; None where it is large, and so another lane's.

        Raises:
            DataError: it cannot be decoded, or not in time.
        """
        process, expired, is_fit = self._take(), Event(), False

        def end() -> None:
            expired.set()
            process.kill()

        timer = Timer(self.limits.decode_seconds, end)
        timer.start()
        try:
            write_frame(process.stdin, {"sides": list(sides), "pass_on_pixels": self.pass_on_pixels}, data)  # type: ignore[arg-type]
            facts, pixels = read_frame(process.stdout, 2**20 + 3 * self.limits.max_pixels * len(sides))  # type: ignore[arg-type]
            images = _images(facts, pixels, sides)
            is_fit = True
        except (OSError, EOFError):
            seconds = self.limits.decode_seconds
            process.kill()
            ended = f"the decoder process ended with code {process.wait()}"
            why = f"decoding exceeds the limit of {seconds:g} s" if expired.is_set() else ended
            raise DataError(f"cannot read image of {len(data):,} bytes: {why}") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DataError(f"cannot read image of {len(data):,} bytes: the image made its decoder fail") from None
        finally:
            timer.cancel()
            timer.join()
            is_fit = is_fit and not expired.is_set()
            self._put_back(process, is_fit=is_fit)
            if not is_fit:
                self.on_kill()
        if isinstance(images, str):
            raise DataError(images)
        return images

    def _take(self) -> subprocess.Popen[bytes]:
        with suppress(IndexError):
            while True:
                process = self.idle.pop()
                if process.poll() is None:
                    return process
                self._put_back(process, is_fit=False)
        return self.start()

    def _put_back(self, process: subprocess.Popen[bytes], *, is_fit: bool) -> None:
        if is_fit:
            self.idle.append(process)
            return
        process.kill()
        process.wait()
        self.all.discard(process)
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    def close(self) -> None:
        """End the processes, and so the threads."""
        self.is_closed = True
        for process in list(self.all):
            process.kill()
        self.threads.shutdown(cancel_futures=True)
        for process in list(self.all):
            self._put_back(process, is_fit=False)


def _images(facts: Any, pixels: bytes, sides: Sequence[int | None]) -> dict[int | None, Image.Image] | str | None:
    """Believe nothing of what a process says that read a stranger's bytes: pictures, an error, or None for large."""
    if "error" in facts:
        return str(facts["error"])[:2000]
    if facts.get("large") is True:
        return None
    images, at = {}, 0
    for side, (mode, (width, height)) in zip(sides, facts["images"], strict=True):
        length = width * height * {"L": 1, "RGB": 3}[mode]
        images[side] = Image.frombytes(mode, (width, height), pixels[at : at + length])
        at += length
    return images


class Decoder:
    """Decodes many pictures at a time; small ones never wait for large ones.

    Args:
        limits: `max_request_bytes`, `max_pixels` and `decode_seconds` count here.
        sides: scales at which each picture is wanted, see `ftcore.data.decode_image`.
        prepare: what becomes of a picture, given at each scale; called in one thread at a time, for it is a plugin's.
        on_kill: called for each process that was killed, or died.
    """

    def __init__(
        self,
        limits: Limits,
        sides: Sequence[int | None],
        prepare: Callable[[dict[int | None, Image.Image]], T],
        on_kill: Callable[[], None] = lambda: None,
    ) -> None:
        self.sides, self.prepare, self.lock = sides, prepare, Lock()
        self.small = _Lane(limits, LARGE_PIXELS, 0, on_kill)
        self.large = _Lane(limits, limits.max_pixels, 5, on_kill)
        for _ in range(self.small.number):
            self.small.idle.append(self.small.start())

    async def decode(self, data: bytes | bytearray) -> Any:
        """Return what `prepare` makes of a picture.

        Raises:
            DataError: it cannot be decoded within the limits.
        """
        loop = asyncio.get_running_loop()
        for lane in (self.small, self.large):
            found = await loop.run_in_executor(lane.threads, self._prepared, lane, data)
            if found is not None:
                return found
        raise DataError(f"cannot read image of {len(data):,} bytes: the decoder returned an invalid result")

    def _prepared(self, lane: _Lane, data: bytes | bytearray) -> Any:
        images = lane.decode(data, self.sides)
        if images is None:
            return None
        with self.lock:
            return self.prepare(images)

    def close(self) -> None:
        """End all processes."""
        self.small.close()
        self.large.close()
