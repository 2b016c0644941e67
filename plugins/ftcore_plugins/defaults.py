"""What a run uses where the user named nothing; and what ftcore tries and advises of plugins, for it knows none."""

from __future__ import annotations

PLUGINS = (
    "timm",
    "torchvision",
    "digits",
    "classification",
    "multilabel",
    "regression",
    "folder",
    "table",
    "plain_transforms",
    "linear",
    "freeze_nothing",
    "one_device",
    "fp32",
    "groups",
    "adamw",
    "cosine",
    "cross_entropy",
    "bce",
    "mse",
    "plain_step",
    "class_metrics",
    "multilabel_metrics",
    "regression_metrics",
    "progress",
    "advice",
    "report",
)
"""Plugins that answer a hook that no named plugin answers."""

DEMO_CONFIG = {"model": {"name": "digits/cnn"}, "data": {"source": "digits:5-9"}, "train": {"threads": 1}}
"""What is set where the user named neither a model nor data; on 8 x 8 pixels a second thread only waits."""

CHECK_CONFIG = {
    "data.source": "digits:5-6",
    "model.name": "digits/cnn",
    "train.epochs": "2",
    "train.batch_size": "64",
    "train.log_every": "1",
    "train.workers": "0",
    "train.threads": "1",
    "run.save_every": "1 step",
}
"""What `ftcore plugins check` runs a plugin with, where nothing else is set: two epochs of four steps."""

COMBINATION_CHECKS: dict[str, tuple[str, ...]] = {
    "augment": (),
    "balanced_sampling": (),
    "mixup": (),
    "cutmix": (),
    "mlp_head": (),
    "freeze_backbone": (),
    "freeze_modules": ("freeze_modules.stages=1",),
    "freeze_norm": (),
    "gradual_unfreeze": (),
    "groups": ("groups.layer_decay=0.5",),
    "sgd": (),
    "adam": (),
    "nadam": (),
    "radam": (),
    "adamax": (),
    "rmsprop": (),
    "adagrad": (),
    "adadelta": (),
    "adafactor": (),
    "asgd": (),
    "timm_optim": ("timm_optim.name=lion",),
    "constant": (),
    "polynomial": (),
    "exponential": ("exponential.gamma=0.9",),
    "step": ("step.size=1",),
    "multistep": ("multistep.milestones=[1]",),
    "onecycle": (),
    "phases": (),
    "plateau": ("plateau.patience=0", "train.epochs=3"),
    "weighted_ce": (),
    "focal": (),
    "asymmetric": (),
    "bce": (),
    "logit_adjustment": (),
    "ordinal": (),
    "soft_f1": (),
    "soft_dice": (),
    "l1": (),
    "l2_sp": (),
    "sam": (),
    "supcon": (),
    "ema": (),
    "swa": (),
    "bf16": (),
    "fp16": (),
    "bf16_pure": (),
    "channels_last": (),
    "checkpointing": (),
    "dp": (),
}
"""Plugins that make sense for those digits -> settings: `ftcore plugins check` takes two steps beside each."""

DISTRIBUTED_CHECK = {"wrap_devices": "ddp", "make_optimizer": "sgd"}
"""Hook -> what answers it, where it is open, while `ftcore plugins check` compares two processes with one: gradient
descent, because it amplifies no rounding."""

DISTRIBUTED_CHECK_SETS = ("ddp.device=cpu",)
"""What is set with it."""

CHECK_IMPORTS = ("torchvision",)
"""Modules that any run imports, so that what they do to the process is no fault of a plugin."""

DISTRIBUTED_PLUGINS = {"ddp": False, "fsdp": True}
"""Plugins that share a batch among processes -> whether they spread the network, too: `ftcore explain --devices`."""

SPEED_CANDIDATES = {"channels_last": "", "bf16": "rounds otherwise", "compile": "the first step takes long"}
"""Plugins that may make a run faster -> what else they change: `ftcore find speed` tries them in this order."""

LIBRARIES = ("torchvision", "timm")
"""Distributions that these plugins compute with, beside torch: a run and what is cached depend on their versions."""

ADVICE = {
    "batch norm": "freeze_norm",
    "float16": "bf16 or fp32 instead of fp16",
    "hub": "the Hugging Face format is for networks of timm, and of transformers with ftcore-hf",
    "memory": "bf16, checkpointing (where not in use)",
    "processes": "--plugin ddp splits each batch between them",
    "sharding": "another optimizer or setting, or ddp, may do",
    "whole batch": "If the loss is meant to be computed over the whole batch, like soft_f1, skip this check: --but "
    "ranks",
}
"""What a message of ftcore is about -> what it advises of these plugins."""

STARTER_MODEL = "timm/mobilenetv3_large_100"
"""The network that `ftcore init` writes where none is named: small, and pre-trained on ImageNet."""

STARTER_RECIPES = (
    (20, "linear_probe", "few images: training only the new head overfits least"),
    (200, "lp_ft", "train the head first, then everything at a lower rate"),
    (None, "fine_tune", "many images: all layers are trained"),
)
"""Fewer training images per class or label than this, the recipe that `ftcore init` suggests, and why."""

STARTER_IMBALANCE = {"classification": (4, "weighted_ce", "weights rare classes more")}
"""Task -> images of the largest class over those of the smallest from which `ftcore init` names a plugin, and why."""

TASK = "classification"
"""What a network is shown for where there are no data."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "amp": ("bf16", "fp16"),
    "augmentation": ("augment",),
    "auto_mixed_precision": ("bf16", "fp16"),
    "balanced": ("balanced_sampling", "weighted_ce"),
    "bce_with_logits": ("bce",),
    "class_weights": ("weighted_ce",),
    "cosine_annealing": ("cosine",),
    "data_augmentation": ("augment",),
    "data_parallel": ("ddp", "dp"),
    "deepspeed": ("fsdp",),
    "distillation": ("distill",),
    "distributed": ("ddp", "fsdp"),
    "feature_extraction": ("linear_probe", "freeze_backbone"),
    "feature_extractor": ("linear_probe", "freeze_backbone"),
    "float16": ("fp16",),
    "freeze": ("freeze_backbone", "freeze_modules"),
    "freezing": ("freeze_backbone", "freeze_modules"),
    "frozen": ("freeze_backbone", "freeze_modules"),
    "full_finetune": ("freeze_nothing",),
    "gradient_checkpointing": ("checkpointing",),
    "half": ("fp16", "bf16"),
    "imbalance": ("weighted_ce", "balanced_sampling", "focal", "logit_adjustment"),
    "imbalanced": ("weighted_ce", "balanced_sampling", "focal", "logit_adjustment"),
    "label_smoothing": ("cross_entropy",),
    "layer_decay": ("groups",),
    "llrd": ("groups",),
    "long_tail": ("logit_adjustment", "weighted_ce", "balanced_sampling"),
    "lr_scheduler": ("cosine", "onecycle", "plateau"),
    "mixed_precision": ("bf16", "fp16"),
    "one_cycle": ("onecycle",),
    "oversampling": ("balanced_sampling",),
    "overfitting": ("augment", "mixup", "freeze_backbone"),
    "reduce_lr_on_plateau": ("plateau",),
    "scheduler": ("cosine", "onecycle", "plateau"),
    "stochastic_weight_averaging": ("swa",),
    "torch_compile": ("compile",),
    "unfreeze": ("gradual_unfreeze",),
    "warmup": ("cosine", "onecycle"),
    "weighted_sampler": ("balanced_sampling",),
}
"""What other tools and papers call things -> the plugins that do them, for messages."""
