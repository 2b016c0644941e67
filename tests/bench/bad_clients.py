"""What clients that mean harm cost the others of `ftcore serve`: time to an answer, with and without them.

    uv run python tests/bench/bad_clients.py [--seconds 20] [--rounds 3]

200 good clients each post a digit every four seconds; in every second round 60 bad ones do what they can beside them
(slow headers, slow bodies, endless and huge bodies, garbage, pictures that are small and take long). Rounds are
interleaved; the ratio is of the medians of all answers. Server and clients share this machine, bad ones at the lowest
priority, for their processors are elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path

from tests.core.inference.serving import png, serving, trained
from tests.faults.bad_clients import attacked, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="with and without")
    given = parser.parse_args()
    times: dict[int, list[float]] = {0: [], 60: []}
    with tempfile.TemporaryDirectory() as folder, serving(trained(Path(folder) / "run")) as server:
        for _ in range(given.rounds):
            for bad, found in times.items():
                with attacked(server.port, bad):
                    taken, ends = asyncio.run(load(server.port, png(7), 200, given.seconds))
                found.extend(taken)
                print(f"{bad} bad clients: {dict(ends)}, half within {statistics.median(taken) * 1e3:.1f} ms")
    alone, beside = (statistics.median(found) for found in times.values())
    late = [statistics.quantiles(found, n=100)[98] * 1e3 for found in times.values()]
    print(f"median {alone * 1e3:.1f} -> {beside * 1e3:.1f} ms: {beside / alone:.2f} times; 99 of 100 within {late} ms")


if __name__ == "__main__":
    main()
