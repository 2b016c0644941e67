"""What else metrics are called."""

from __future__ import annotations

ALIASES = {
    "acc": "accuracy",
    "accuracy_micro": "accuracy",
    "ap": "average_precision",
    "auc": "auroc",
    "auprc": "average_precision",
    "bacc": "balanced_accuracy",
    "calibration_error": "ece",
    "cohen_kappa": "kappa",
    "concordance": "ccc",
    "cross_entropy": "nll",
    "f0.5": "fbeta@beta=0.5",
    "f2": "fbeta@beta=2",
    "iou": "jaccard",
    "kappa_quadratic": "qwk",
    "log_loss": "nll",
    "macro_accuracy": "balanced_accuracy",
    "map": "average_precision",
    "matthews": "mcc",
    "mean_absolute_error": "mae",
    "mean_squared_error": "mse",
    "medae": "median_ae",
    "ppv": "precision",
    "prauc": "average_precision",
    "roc_auc": "auroc",
    "sensitivity": "recall",
    "subset_accuracy": "exact_match",
    "tnr": "specificity",
    "tpr": "recall",
    "uar": "balanced_accuracy",
}
"""Other names -> that of the catalogue."""
