"""The processes of a run: which this is, how they meet, how they are started."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .dtensor import full_tensor, is_sharded, local_tensor
    from .ranks import PeerFailed, ProcessInfo, rank_and_world_size
    from .rendezvous import process_session

__all__ = [
    "PeerFailed",
    "ProcessInfo",
    "full_tensor",
    "is_sharded",
    "local_tensor",
    "process_session",
    "rank_and_world_size",
]

__getattr__ = lazy(
    __name__,
    {
        "dtensor": "full_tensor is_sharded local_tensor",
        "ranks": "PeerFailed ProcessInfo rank_and_world_size",
        "rendezvous": "process_session",
    },
)
