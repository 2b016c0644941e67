"""The values that hooks take and return, and the events of a run."""

from .context import Context
from .data import (
    BatchImageTransform,
    BatchTransform,
    Data,
    ImageSource,
    SampleDataset,
    Task,
    Transforms,
    TwoStageTransform,
)
from .distributed import Placement, Sharding
from .events import (
    BatchEvaluated,
    CheckpointSaved,
    EpochEnded,
    Event,
    Observer,
    RunEnded,
    RunFailed,
    RunStarted,
    RunStopped,
    StepLogged,
)
from .model import Backbone, FreezePlan, HeadSlot, HubExporter, InputSpec, ModelInfo, TokenSpec
from .table import Table
from .training import ForwardPass, Loss, ParamGroup, Precision, Recipe, Regularizer, Schedule, Step, WeightAverage

__all__ = [
    "Backbone",
    "BatchEvaluated",
    "BatchImageTransform",
    "BatchTransform",
    "CheckpointSaved",
    "Context",
    "Data",
    "EpochEnded",
    "Event",
    "ForwardPass",
    "FreezePlan",
    "HeadSlot",
    "HubExporter",
    "ImageSource",
    "InputSpec",
    "Loss",
    "ModelInfo",
    "Observer",
    "ParamGroup",
    "Placement",
    "Precision",
    "Recipe",
    "Regularizer",
    "RunEnded",
    "RunFailed",
    "RunStarted",
    "RunStopped",
    "SampleDataset",
    "Schedule",
    "Sharding",
    "Step",
    "StepLogged",
    "Table",
    "Task",
    "TokenSpec",
    "Transforms",
    "TwoStageTransform",
    "WeightAverage",
]
