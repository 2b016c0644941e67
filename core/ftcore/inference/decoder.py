"""Decode pictures of strangers in other processes, each with a deadline after which it is killed and replaced."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from threading import Event, Lock, Timer
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from ftcore.errors import DataError

from .decoder_process import read_frame, write_frame
from .serve_limits import SMALL_UPLOAD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .serve_limits import Limits

T = TypeVar("T")

SMALL_WORK = 4_000_000
"""What costs more than so many pixels, or has more bytes than a small upload, waits in a queue of its own."""

_CODE = """import json, sys; sys.path[:] = json.loads(sys.argv.pop(1))
from ftcore.inference.decoder_process import main; main()"""

_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "LANG", "LC_ALL")
"""Of the environment, what a process needs to start; the rest may hold secrets."""


class _Lane:
    """Processes that decode, as many as there are processors, and a thread that waits for each."""

    def __init__(
        self, limits: Limits, most_work: int | None, nice: int, prepare: Callable[..., Any], on_kill: Callable[[], None]
    ) -> None:
        self.limits, self.most_work, self.nice, self.on_kill = limits, most_work, nice, on_kill
        self.prepare, self.lock = deepcopy(prepare), Lock()
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
            # Ctrl-C is for the server alone, which still needs it for what it answers last. A session of its own would
            # do too, but Linux shares the processor out between sessions, and by `nice` only within one.
            process_group=0,
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
            write_frame(process.stdin, {"sides": list(sides), "most_work": self.most_work}, data)  # type: ignore[arg-type]
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
        prepare: what becomes of a picture, given at each scale. It is a plugin's, so one thread at a time calls it;
            large pictures have a copy of their own.
        on_kill: called for each process that was killed, or died.
    """

    def __init__(
        self,
        limits: Limits,
        sides: Sequence[int | None],
        prepare: Callable[[dict[int | None, Image.Image]], T],
        on_kill: Callable[[], None] = lambda: None,
    ) -> None:
        self.sides = sides
        self.small = _Lane(limits, SMALL_WORK, 0, prepare, on_kill)
        self.large = _Lane(limits, None, 10, prepare, on_kill)
        for _ in range(self.small.number):
            self.small.idle.append(self.small.start())

    async def decode(self, data: bytes | bytearray) -> Any:
        """Return what `prepare` makes of a picture.

        Raises:
            DataError: it cannot be decoded within the limits.
        """
        loop = asyncio.get_running_loop()
        for lane in (self.small, self.large)[len(data) > SMALL_UPLOAD :]:
            found = await loop.run_in_executor(lane.threads, self._prepared, lane, data)
            if found is not None:
                return found
        raise DataError(f"cannot read image of {len(data):,} bytes: the decoder returned an invalid result")

    def _prepared(self, lane: _Lane, data: bytes | bytearray) -> Any:
        images = lane.decode(data, self.sides)
        if images is None:
            return None
        with lane.lock:
            return lane.prepare(images)

    def close(self) -> None:
        """End all processes."""
        self.small.close()
        self.large.close()
