"""ftcore: fine-tune an image network; every decision is one plugin's answer to one hook.

These are the names for plugin authors, together with the modules `ftcore.config`, `ftcore.console`, `ftcore.files`,
`ftcore.freezing`, `ftcore.heads`, `ftcore.images`, `ftcore.labelled`, `ftcore.predict`, `ftcore.shapes`,
`ftcore.splitting`, `ftcore.stages`, `ftcore.testing` and `ftcore.weights`; the other modules may change at any time.
Importing this package imports neither torch nor any plugin.
"""

from .backbone import Backbone, HeadSlot, Hub, InputSpec, ModelInfo, Tokens
from .config import RunConfig
from .errors import DataError, UserError, closest, listed, nearest
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
from .hooks import HOOK_API, hookimpl
from .loaded import load
from .parts import (
    Average,
    BatchTransform,
    Context,
    Data,
    FreezePlan,
    ImageTransform,
    Loss,
    ParamGroup,
    Pass,
    Placement,
    Precision,
    Recipe,
    Regularizer,
    Samples,
    Schedule,
    Spread,
    Step,
    Steps,
    Table,
    Task,
    Transforms,
)
from .ranks import Ranks

__all__ = [
    "HOOK_API",
    "Average",
    "Backbone",
    "BatchEvaluated",
    "BatchTransform",
    "CheckpointSaved",
    "Context",
    "Data",
    "DataError",
    "EpochEnded",
    "Event",
    "FreezePlan",
    "HeadSlot",
    "Hub",
    "ImageTransform",
    "InputSpec",
    "Loss",
    "ModelInfo",
    "Observer",
    "ParamGroup",
    "Pass",
    "Placement",
    "Precision",
    "Ranks",
    "Recipe",
    "Regularizer",
    "RunConfig",
    "RunEnded",
    "RunFailed",
    "RunStarted",
    "RunStopped",
    "Samples",
    "Schedule",
    "Spread",
    "Step",
    "StepLogged",
    "Steps",
    "Table",
    "Task",
    "Tokens",
    "Transforms",
    "UserError",
    "closest",
    "hookimpl",
    "listed",
    "load",
    "nearest",
]
