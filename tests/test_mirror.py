"""The tests mirror the code: ``core/ftcore/data/loader.py`` is tested in ``tests/core/data/test_loader.py``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ftcore
import ftcore_plugins

TESTS = Path(__file__).parent

ROOTS = {"core": Path(ftcore.__file__).parent, "plugins": Path(ftcore_plugins.__file__).parent}
"""Folder of tests -> the package that it mirrors."""

VALUES = "values without behaviour"
COMMANDS = "each command is tested with what it calls, and what all refuse in core/test_bad_input.py"

EXCEPTIONS = {
    "core/__main__": "ranks/test_launching.py",
    "core/authoring/answer_checks": "faults/test_bad_plugins.py",
    "core/authoring/check": "faults/test_bad_plugins.py",
    "core/authoring/checks": "faults/test_bad_plugins.py",
    "core/authoring/side_effects": "faults/test_bad_plugins.py",
    "core/authoring/task_check": "faults/test_bad_plugins.py",
    "core/authoring/two_process_check": "faults/test_bad_plugins.py",
    "core/checkpoints/atomic": "faults/test_checkpoint.py, and call by call in faults/test_storage.py",
    "core/checkpoints/checkpoint": "faults/test_checkpoint.py",
    "core/checkpoints/manifest": "faults/test_checkpoint.py",
    "core/checkpoints/serialization": "faults/test_resume.py",
    "core/checkpoints/sharded": "ranks/test_fsdp.py",
    "core/checkpoints/distributed": "ranks/test_fsdp.py",
    "core/cli/data": COMMANDS,
    "core/cli/find": COMMANDS,
    "core/cli/inference": COMMANDS,
    "core/cli/models": COMMANDS,
    "core/cli/plugins": COMMANDS,
    "core/cli/run": COMMANDS,
    "core/cli/runs": COMMANDS,
    "core/cli/series": "core/reports/test_series.py",
    "core/config/validators": "core/config/test_schema.py and core/test_bad_input.py",
    "core/inference/batcher": "core/inference/test_serve.py",
    "core/inference/decoder_process": "core/inference/test_decoder.py",
    "core/inference/serve_limits": "core/inference/test_serve_connection.py",
    "core/cli/trust": "core/plugins/test_trust.py",
    "core/inference/colormap": "core/inference/test_gradcam.py",
    "core/data/scan": "core/reports/test_data_quality.py",
    "core/distributed/dtensor": "ranks/test_fsdp.py",
    "core/distributed/launch": "ranks/test_launching.py",
    "core/distributed/rank_logging": "ranks/test_failures.py",
    "core/distributed/ranks": "ranks/test_launching.py, and how they end together in ranks/test_failures.py",
    "core/distributed/rendezvous": "ranks/test_failures.py, and over a network in ranks/test_two_hosts.py",
    "core/model/safe_unpickle": "core/model/test_weights.py and faults/test_hostile_files.py",
    "core/reports/comparison_page": "core/reports/test_comparison.py, beside the numbers that it shows",
    "core/reports/redraw": "plugins/observers/report/test_reporter.py",
    "core/runs/facts": "core/runs/test_folder.py",
    "core/runs/log": "core/runs/test_folder.py",
    "core/runs/prepared": "core/runs/test_folder.py and test_run.py",
    "core/runs/saver": "faults/test_resume.py",
    "core/system/signals": "faults/test_signals.py",
    "core/training/frozen_features/cache": "numerics/test_feature_cache.py",
    "core/training/evaluation": "core/training/test_loop.py and numerics/test_metrics.py",
    "core/training/frozen_features/features": "numerics/test_precompute.py",
    "core/training/frozen_features/module_calls": "numerics/test_precompute.py",
    "core/training/frozen_features/split_point": "numerics/test_precompute.py",
    "core/training/gradients": "numerics/test_gradients.py",
    "core/training/nonfinite": "numerics/test_gradients.py, and its replay in faults/test_replay.py",
    "core/training/oom": "faults/test_out_of_memory.py",
    "core/training/resume_state": "faults/test_resume.py",
    "core/training/state": "numerics/test_regularizers.py and core/training/test_loop.py",
    "core/training/summary": "core/reports/test_explain.py",
    "core/training/weight_averaging": "numerics/test_averages.py",
    "core/tuning/batch_trial": "core/tuning/test_batch_size.py",
    "core/types/abilities": "core/types/test_task.py",
    "core/types/context": VALUES,
    "core/types/distributed": VALUES,
    "core/types/events": VALUES,
    "core/types/table": VALUES,
    "core/types/training": VALUES,
    "plugins/_norms": "numerics/test_execution.py",
    "plugins/averaging": "numerics/test_averages.py",
    "plugins/devices/ddp": "ranks/test_same_results.py",
    "plugins/devices/ddp_module": "ranks/test_same_results.py",
    "plugins/devices/execution": "numerics/test_execution.py",
    "plugins/devices/fsdp": "ranks/test_fsdp.py",
    "plugins/devices/fsdp_module": "ranks/test_fsdp.py",
    "plugins/devices/process_group": "ranks/test_same_results.py and ranks/test_fsdp.py",
    "plugins/losses/bce": "numerics/test_losses.py",
    "plugins/losses/cross_entropy": "numerics/test_losses.py and numerics/test_weighted_ce.py",
    "plugins/losses/focal": "numerics/test_losses.py",
    "plugins/losses/modules": "numerics/test_losses.py and numerics/test_soft_targets.py",
    "plugins/losses/ordinal": "numerics/test_losses.py",
    "plugins/losses/regression": "numerics/test_losses.py",
    "plugins/losses/soft_f1": "numerics/test_metric_losses.py",
    "plugins/losses/weighted_cross_entropy": "numerics/test_weighted_ce.py",
    "plugins/metrics/builtin": "numerics/test_metrics.py",
    "plugins/metrics/aliases": "plugins/metrics/test_named.py",
    "plugins/metrics/class_scores": "plugins/metrics/test_named.py",
    "plugins/metrics/label_scores": "plugins/metrics/test_named.py",
    "plugins/metrics/number_scores": "plugins/metrics/test_named.py",
    "plugins/metrics/multiclass": "numerics/test_metrics.py",
    "plugins/metrics/multilabel": "numerics/test_multilabel.py",
    "plugins/metrics/regression": "numerics/test_far_from_zero.py",
    "plugins/models/timm_hub": "core/inference/test_hub_export.py",
    "plugins/observers/report/accumulators": "plugins/observers/report/test_reporter.py",
    "plugins/observers/report/curves": "plugins/observers/report/test_page.py",
    "plugins/observers/report/evaluation_sections": "plugins/observers/report/test_page.py",
    "plugins/observers/report/record": "plugins/observers/report/test_reporter.py",
    "plugins/observers/report/regression_statistics": "plugins/observers/report/test_reporter.py",
    "plugins/observers/report/scores": "plugins/observers/report/test_reporter.py",
    "plugins/observers/report/statistics": "plugins/observers/report/test_reporter.py",
    "plugins/observers/report/tables": "plugins/observers/report/test_page.py",
    "plugins/observers/report/thumbnails": "plugins/observers/report/test_reporter.py",
    "plugins/optimizers/adaptive": "plugins/optimizers/test_torch_optimizers.py, one table for all of torch's",
    "plugins/optimizers/lbfgs_probe": "numerics/test_probe_solver.py",
    "plugins/precision/autocast": "numerics/test_precision.py",
    "plugins/precision/bf16_params": "numerics/test_pure_bf16.py",
    "plugins/regularizers": "numerics/test_regularizers.py",
    "plugins/steps/distillation": "numerics/test_distill.py",
    "plugins/steps/plain": "numerics/test_loop_equals_hand_written.py",
    "plugins/steps/r_drop": "numerics/test_steps.py",
    "plugins/steps/sam": "numerics/test_steps.py",
    "plugins/steps/supcon": "numerics/test_contrastive.py",
}
"""Module without a test file of its name -> the files, below this folder, that test it, or why there is nothing to."""

OF_NO_MODULE = {
    "core/test_bad_input.py": "what every command refuses, in one table",
    "core/test_contract.py": "the whole contract with plugins",
    "core/test_layers.py": "what all modules import",
    "core/test_unsafe_loading.py": "what no module may do",
    "core/model/test_freeze_contract.py": "what whole runs hold, whatever a plugin tries",
    "core/test_docstrings.py": "what docstrings name is there",
    "core/test_names.py": "the core knows no built-in by name",
}
"""Test file that mirrors no module -> what it tests instead."""


def modules() -> set[str]:
    """Return all modules but the doors of packages: ``core/data/loader``."""
    return {
        f"{tests}/{file.relative_to(root).with_suffix('').as_posix()}"
        for tests, root in ROOTS.items()
        for file in root.rglob("*.py")
        if file.name != "__init__.py"
    }


def mirror(module: str) -> str:
    """``core/data/loader`` -> ``core/data/test_loader.py``."""
    folder, _, name = module.rpartition("/")
    return f"{folder}/test_{name}.py"


@pytest.mark.parametrize("module", sorted(modules() - EXCEPTIONS.keys()))
def test_a_module_has_a_test_file_of_its_name(module: str) -> None:
    assert (TESTS / mirror(module)).is_file(), f"write tests/{mirror(module)}, or say in EXCEPTIONS why not"


@pytest.mark.parametrize("module", EXCEPTIONS)
def test_an_exception_is_of_a_module_that_has_no_test_file(module: str) -> None:
    assert module in modules()
    assert not (TESTS / mirror(module)).exists()


@pytest.mark.parametrize("module", EXCEPTIONS)
def test_an_exception_says_where_a_module_is_tested_or_why_not(module: str) -> None:
    files = re.findall(r"[\w/]+\.py", EXCEPTIONS[module])

    assert [file for file in files if not (TESTS / file).is_file()] == []
    assert files or EXCEPTIONS[module] == VALUES


def test_a_test_file_belongs_to_a_module_or_says_what_it_tests() -> None:
    there = {file.relative_to(TESTS).as_posix() for root in ROOTS for file in (TESTS / root).rglob("test_*.py")}

    assert there - {mirror(module) for module in modules()} == OF_NO_MODULE.keys()
