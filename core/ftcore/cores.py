"""How many processor cores there are for this process, and not how many the machine has."""

from __future__ import annotations

from functools import cache


def cores() -> int:
    """Return how many cores this process may use: those of its affinity, and its container's share of time (cgroup)."""
    from joblib import cpu_count

    return int(cpu_count())


@cache
def usual_threads() -> int:
    """Return how many threads torch takes where nobody says: its choice, but no more than there are cores.

    In a container that has two of a machine's 64 cores, torch's choice is 64 threads, which wait for each other. To be
    called before anybody has said, for torch does not remember.
    """
    import torch

    return min(torch.get_num_threads(), cores())


def set_threads(wanted: int | None) -> None:
    """Let the network's arithmetic take so many threads of the processor; None for `usual_threads`."""
    import torch

    usual = usual_threads()
    torch.set_num_threads(wanted or usual)
