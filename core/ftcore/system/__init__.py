"""The machine and this process: CPU, memory, signals, random generators."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .cpu import available_cpus, default_num_threads, retain_freed_memory, set_threads, trim_memory
    from .memory import DeviceMemory, is_oom
    from .seeding import derive_seed, seed_everything, seed_step
    from .signals import SignalFlags, StoppedBySignal, handle_signals

__all__ = [
    "DeviceMemory",
    "SignalFlags",
    "StoppedBySignal",
    "available_cpus",
    "default_num_threads",
    "derive_seed",
    "handle_signals",
    "is_oom",
    "retain_freed_memory",
    "seed_everything",
    "seed_step",
    "set_threads",
    "trim_memory",
]

__getattr__ = lazy(
    __name__,
    {
        "cpu": "available_cpus default_num_threads retain_freed_memory set_threads trim_memory",
        "memory": "DeviceMemory is_oom",
        "seeding": "derive_seed seed_everything seed_step",
        "signals": "SignalFlags StoppedBySignal handle_signals",
    },
)
