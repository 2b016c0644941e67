"""ftcore: fine-tune an image network; every decision is one plugin's answer to one hook.

These are the names for plugin authors, together with those that the packages `ftcore.cli`, `ftcore.config`,
`ftcore.data`, `ftcore.distributed`, `ftcore.inference`, `ftcore.model` and `ftcore.runs` and the modules
`ftcore.charts`, `ftcore.console` and `ftcore.testing` export; everything else may change at any time.
Importing this package imports neither torch nor any plugin.
"""

from typing import TYPE_CHECKING

from .config.schema import RunConfig
from .distributed.ranks import ProcessInfo
from .errors import DataError, UserError, did_you_mean, format_names, suggestions
from .hooks import HOOK_API, hookimpl
from .lazy import lazy
from .types.abilities import Averaged, Counted, Invertible, Matched, Parsed, Scored, Softened, require
from .types.context import Context
from .types.data import (
    BatchImageTransform,
    BatchTransform,
    Data,
    ImageSource,
    SampleDataset,
    Transforms,
    TwoStageTransform,
)
from .types.distributed import Placement, Sharding
from .types.events import (
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
from .types.model import Backbone, FreezePlan, HeadSlot, HubExporter, InputSpec, ModelInfo, TokenSpec
from .types.table import Table
from .types.task import Fitted, Prediction, SourceTargets, Task
from .types.training import (
    ForwardPass,
    Loss,
    Moment,
    ParamGroup,
    Precision,
    Recipe,
    Regularizer,
    Schedule,
    Step,
    WeightAverage,
)

if TYPE_CHECKING:
    from .inference.load import load

__all__ = [
    "HOOK_API",
    "Averaged",
    "Backbone",
    "BatchEvaluated",
    "BatchImageTransform",
    "BatchTransform",
    "CheckpointSaved",
    "Context",
    "Counted",
    "Data",
    "DataError",
    "EpochEnded",
    "Event",
    "Fitted",
    "ForwardPass",
    "FreezePlan",
    "HeadSlot",
    "HubExporter",
    "ImageSource",
    "InputSpec",
    "Invertible",
    "Loss",
    "Matched",
    "ModelInfo",
    "Moment",
    "Observer",
    "ParamGroup",
    "Parsed",
    "Placement",
    "Precision",
    "Prediction",
    "ProcessInfo",
    "Recipe",
    "Regularizer",
    "RunConfig",
    "RunEnded",
    "RunFailed",
    "RunStarted",
    "RunStopped",
    "SampleDataset",
    "Schedule",
    "Scored",
    "Sharding",
    "Softened",
    "SourceTargets",
    "Step",
    "StepLogged",
    "Table",
    "Task",
    "TokenSpec",
    "Transforms",
    "TwoStageTransform",
    "UserError",
    "WeightAverage",
    "did_you_mean",
    "format_names",
    "hookimpl",
    "load",
    "require",
    "suggestions",
]

__getattr__ = lazy(__name__, {"inference.load": "load"})
