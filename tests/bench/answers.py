"""What a model answers: `ftcore predict` beside a loop by hand, and `ftcore serve` under load.

    uv run python tests/bench/answers.py [--seconds 60]

1. predict: pictures a second from JPEG files of 640 x 426 to probabilities, batches of 32, one thread; by
   `ftcore.inference.predict.predict`, and by a loop that is written by hand around the same network, with PIL and
   torchvision's transforms of the same size, interpolation and normalisation. Rounds are interleaved; the ratio is
   of their medians.
2. serve: 200 clients on this machine, each with a connection that it keeps, who post a JPEG as soon as they have the
   answer to the last: how many a second, and how many errors. Then at half of that rate, each client at its times,
   whether or not the last answer is there; the time to an answer counts from when it was due.

The network is ResNet-18 with random weights, at 128 px; ``--model`` and ``--size`` choose others.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2

from ftcore.inference.load import load
from ftcore.inference.predict import predict
from ftcore.testing import invoke

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ftcore.inference.model import Model

BATCH, ROUNDS, CLIENTS = 32, 7, 200


def photographs(root: Path, number: int) -> list[Path]:
    """Save JPEG photographs of two classes."""
    files = []
    for label, pixels in enumerate(load_sample_images().images):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for place in range(number // 2):
            left, top = place % 16, place // 16
            files.append(folder / f"{place}.jpg")
            Image.fromarray(pixels).crop((left, top, left + 620, top + 410)).resize((640, 426)).save(files[-1])
    return files


def trained(root: Path, model: str, size: int) -> Path:
    """Return the folder of a short run."""
    sets = (f"run.folder={root / 'run'}", "train.epochs=1", "model.weights=none", f"model.image_size={size}")
    given = [word for text in sets for word in ("--set", text)]
    said = invoke("run", "--data", root / "pictures", "--model", model, *given, "--quiet")
    assert said.code == 0, said.err
    return root / "run"


def by_hand(model: Model, files: Sequence[Path]) -> list[list[float]]:
    """Predict as one does without ftcore: (N, K) probabilities."""
    spec: Any = model.members[0].network.spec
    steps = v2.Compose(
        [
            v2.Resize(int(spec.size[0] / spec.crop_fraction), v2.InterpolationMode(spec.interpolation)),
            v2.CenterCrop(spec.size),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(spec.mean), list(spec.std)),
        ]
    )
    found: list[list[float]] = []
    with torch.inference_mode():
        for at in range(0, len(files), BATCH):
            images = [steps(Image.open(file).convert("RGB")) for file in files[at : at + BATCH]]
            found += model.module(torch.stack(images)).softmax(1).tolist()
    return found


def rate(work: Callable[[], Any], count: int) -> float:
    """Pictures a second."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def measure_predict(run: Path, files: Sequence[Path]) -> None:
    """Print pictures a second, and the ratio."""
    torch.set_num_threads(1)
    model = load(run)
    ways = {"ours": lambda: list(predict(model, files)), "by hand": lambda: by_hand(model, files)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, work in ways.items():
            speed = rate(work, len(files))
            speeds[name] += [speed] if turn else []  # the first warms up
    one, other = (statistics.median(values) for values in speeds.values())
    ratios = sorted(ours / theirs for ours, theirs in zip(*speeds.values(), strict=True))
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(f"predict: {one:.0f} pictures/s, by hand {other:.0f}: {one / other:.2f} ({spread})")


async def post(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: bytes, statuses: Counter[bytes]
) -> None:
    """Send one request, and read its answer to the end."""
    reader, writer = connection
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length
    await reader.readexactly(int(length[1]))
    statuses[head.split(b" ", 2)[1]] += 1


async def load_server(port: int, body: bytes, seconds: float, pause: float) -> tuple[list[float], Counter[bytes]]:
    """Let every client post, each `pause` seconds after it was to post last, or at once: times, statuses."""
    head = (
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    request, times, statuses = head.encode() + body, list[float](), Counter[bytes]()
    began = time.perf_counter()

    async def client(place: int) -> None:
        connection = await asyncio.open_connection("127.0.0.1", port)
        due = began + pause * place / CLIENTS
        while due < began + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await post(connection, request, statuses)
            times.append(time.perf_counter() - due)
            due = due + pause if pause else time.perf_counter()
        connection[1].close()

    await asyncio.gather(*(client(place) for place in range(CLIENTS)))
    return times, statuses


def measure_serve(run: Path, picture: Path, seconds: float) -> None:
    """Print requests a second at most, and how long an answer takes at half of that."""
    command = [sys.executable, "-m", "ftcore", "serve", str(run), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        port = int(process.stderr.readline().partition("127.0.0.1:")[2].partition(";")[0])
        body = picture.read_bytes()
        asyncio.run(load_server(port, body, 2.0, 0.0))
        times, statuses = asyncio.run(load_server(port, body, seconds, 0.0))
        most = len(times) / seconds
        shown = ", ".join(f"{number} times {status.decode()}" for status, number in statuses.items())
        print(f"serve: {CLIENTS} clients for {seconds:.0f} s, {most:.0f} requests/s at most; {shown}")
        times, statuses = asyncio.run(load_server(port, body, seconds, 2 * CLIENTS / most))
        shown = ", ".join(f"{number} times {status.decode()}" for status, number in statuses.items())
        half, rare = statistics.median(times), statistics.quantiles(times, n=100)[98]
        print(
            f"at half of it: {len(times) / seconds:.0f} requests/s; half of the answers within {half * 1e3:.1f} ms, "
            f"99 of 100 within {rare * 1e3:.1f} ms: {rare / half:.1f} times as long; {shown}"
        )
        process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision/resnet18")
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--seconds", type=float, default=60.0, help="of load, twice")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        files = photographs(root / "pictures", 8 * BATCH)
        run = trained(root, given.model, given.size)
        measure_predict(run, files)
        measure_serve(run, files[0], given.seconds)


if __name__ == "__main__":
    main()
