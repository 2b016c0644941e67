"""What a run uses where the user named nothing."""

PLUGINS = (
    "timm",
    "torchvision",
    "digits",
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
)
"""Plugins that answer a hook that no named plugin answers."""

DEMO = {"model": {"name": "digits/cnn"}, "data": {"source": "digits:5-9"}, "train": {"threads": 1}}
"""What is set where the user named neither a model nor data; on 8 x 8 pixels a second thread only waits."""
