"""A run as it is asked for: the sections of a configuration, its files and flags."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy

if TYPE_CHECKING:
    from .load import CliOverrides, load_config, load_run_config
    from .schema import (
        SECTIONS,
        DataConfig,
        ModelConfig,
        ObserversConfig,
        PluginRef,
        RunConfig,
        RunSection,
        TrainConfig,
    )

__all__ = [
    "SECTIONS",
    "CliOverrides",
    "DataConfig",
    "ModelConfig",
    "ObserversConfig",
    "PluginRef",
    "RunConfig",
    "RunSection",
    "TrainConfig",
    "load_config",
    "load_run_config",
]

__getattr__ = lazy(
    __name__,
    {
        "load": "CliOverrides load_config load_run_config",
        "schema": "SECTIONS DataConfig ModelConfig ObserversConfig PluginRef RunConfig RunSection TrainConfig",
    },
)
