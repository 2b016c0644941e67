"""What is done with a trained network: predict, evaluate, join, export, serve, explain."""

from typing import TYPE_CHECKING

from ftcore.lazy import lazy
from ftcore.types.task import Prediction

if TYPE_CHECKING:
    from .evaluate import compute_metrics
    from .export import Exported
    from .load import SavedModel, read_saved
    from .model import Model

__all__ = ["Exported", "Model", "Prediction", "SavedModel", "compute_metrics", "read_saved"]

__getattr__ = lazy(
    __name__,
    {
        "evaluate": "compute_metrics",
        "export": "Exported",
        "load": "SavedModel read_saved",
        "model": "Model",
    },
)
