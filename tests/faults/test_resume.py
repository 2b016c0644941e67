"""A run that was stopped goes on as if it had not been, from any step, and nothing that differs is passed over."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from ftcore import EpochEnded, StepLogged, UserError, hookimpl
from ftcore.checkpoints import atomic
from ftcore.checkpoints import checkpoint as checkpoints_checkpoint
from ftcore.checkpoints import manifest as checkpoints_manifest
from ftcore.checkpoints.serialization import deserialize, serialize
from ftcore.config.load import CliOverrides, load_config
from ftcore.data import loader
from ftcore.data.workers import WorkerPids
from ftcore.runs.lock import lock_run_folder
from ftcore.runs.run import fit, resume
from ftcore.runs.saver import THREAD
from ftcore.system.signals import StoppedBySignal
from ftcore.testing import invoke
from ftcore.training import resume_state
from ftcore.training.state import Progress

from .killing import result

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from ftcore import Event, Observer

HERE = __name__
STEPS = 8
"""Of a run: two epochs of four."""


def config(folder: Path, plugins: tuple[str, ...] = (), sets: tuple[str, ...] = ()) -> Any:
    settings = ("train.epochs=2", "train.batch_size=96", "train.log_every=1", f"run.folder={folder}", *sets)
    return load_config(None, CliOverrides("digits/cnn", "digits:5-6", plugins=plugins, sets=settings))


def stopping(at: int, how: signal.Signals = signal.SIGTERM) -> Callable[[Event], None]:
    """Make an observer that has this process sent a signal in a step, from 1."""
    steps = iter(range(1, 10**6))

    def observe(event: Event) -> None:
        if isinstance(event, StepLogged) and next(steps) == at:
            os.kill(os.getpid(), how)

    return observe


def stopped(folder: Path, at: int, plugins: tuple[str, ...] = (), sets: tuple[str, ...] = ()) -> Path:
    with pytest.raises(
        StoppedBySignal, match=f"stopped by SIGTERM after step {at}, .*; resume with: ftcore resume {folder}"
    ):
        fit(config(folder, plugins, sets), [stopping(at)])
    return folder


UNFREEZING = ("freeze_backbone.unfreeze_at=1",)
RUNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": ((), ()),
    "ema": (("ema",), ()),
    "swa": (("swa",), ("swa.start=0",)),
    "accumulated": ((), ("train.batch_size=40", "train.accumulate=2", "train.clip_norm=1")),
    "fp16": (("fp16",), ()),
    "pure bf16": (("bf16_pure",), ()),
    "plateau": (("plateau", "sgd"), ("plateau.patience=0", "train.epochs=3")),
    "multistep": (("multistep",), ("multistep.milestones=[1]",)),
    "one cycle": (("onecycle",), ()),
    "mixup": (("mixup",), ()),
    "sam": (("sam",), ()),
    "lp_ft": (("lp_ft",), ("lp_ft.probe_epochs=1",)),
    "l2_sp": (("l2_sp",), ()),
    "lamb": (("timm_optim",), ("timm_optim.name=lamb",)),
    "lookahead": (("timm_optim",), ("timm_optim.name=lookahead_adamw",)),
}


@pytest.mark.parametrize("named", [pytest.param(name, marks=[pytest.mark.slow] * (name == "fp16")) for name in RUNS])
@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path: Path, named: str, at: int) -> None:
    plugins, sets = RUNS[named]
    fit(config(tmp_path / "whole", plugins, sets))

    resume(stopped(tmp_path / "stopped", at, plugins, sets))

    expected, found = result(tmp_path / "whole"), result(tmp_path / "stopped")
    assert found.pop("checkpoints")[-1] == expected.pop("checkpoints")[-1]
    assert found == expected


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (1, 2)])
def test_it_may_go_on_with_another_number_of_workers(tmp_path: Path, before: int, after: int) -> None:
    fit(config(tmp_path / "whole", ("mixup",)))

    resume(stopped(tmp_path / "stopped", 3, ("mixup",), (f"train.workers={before}",)), (f"train.workers={after}",))

    assert result(tmp_path / "stopped") | {"checkpoints": 0} == result(tmp_path / "whole") | {"checkpoints": 0}


def test_no_sample_before_the_checkpoint_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = stopped(tmp_path / "run", 3), []
    real = loader.TransformedDataset._prepared

    def prepared(self: loader.TransformedDataset, index: int) -> Any:
        if self.seed is not None:
            read.append(index)
        return real(self, index)

    monkeypatch.setattr(loader.TransformedDataset, "_prepared", prepared)
    resume(folder)

    orders = [loader.epoch_order(0, epoch, 290) for epoch in (0, 1)]
    assert read == orders[0][3 * 96 :] + orders[1]


def test_a_run_without_a_checkpoint_goes_on_from_its_beginning(tmp_path: Path) -> None:
    fit(config(tmp_path / "whole"))
    stopped(tmp_path / "run", 1)
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    for file in saved.iterdir():
        file.unlink()
    saved.rmdir()

    resume(tmp_path / "run")

    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_a_run_that_died_before_it_removed_old_checkpoints_removes_them_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ("run.save_every=1 step",)
    fit(config(tmp_path / "whole", (), sets))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints_checkpoint, "prune_checkpoints", lambda *_: None)
        fit(config(tmp_path / "run", (), sets))

    resume(tmp_path / "run")

    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_a_damaged_checkpoint_never_drives_out_a_whole_one(tmp_path: Path) -> None:
    sets = ("run.save_every=1 step", "run.keep=1", "train.epochs=3")
    folder = stopped(tmp_path / "run", 7, (), sets)
    damaged = folder / "checkpoints" / "step-00000008"
    (folder / "checkpoints" / "step-00000007").rename(damaged)
    (damaged / "state.json").write_text("{}")

    with pytest.raises(StoppedBySignal):  # goes on from the best, that of the first epoch, and saves the fifth step
        resume(folder, (), [stopping(1)])

    assert checkpoints_checkpoint.latest_checkpoint(folder / "checkpoints") == folder / "checkpoints" / "step-00000005"


def test_a_damaged_checkpoint_does_not_count_as_one_of_those_that_are_kept(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", 5, (), ("run.save_every=2 steps", "run.keep=2", "train.batch_size=24"))
    checkpoints = folder / "checkpoints"
    (checkpoints / "step-00000005" / "state.json").write_text("{}")

    with pytest.raises(StoppedBySignal):
        resume(folder, (), [stopping(2)])

    whole = {path.name for path in checkpoints.glob("step-*") if not checkpoints_manifest.find_damage(path)}
    assert whole == {"step-00000004", "step-00000006"}
    assert (checkpoints / "damaged-step-00000005" / "state.json").read_text() == "{}"


def test_of_a_finished_run_only_the_report_is_given_again(tmp_path: Path) -> None:
    first = fit(config(tmp_path / "run"))
    before = result(tmp_path / "run")

    again = resume(tmp_path / "run")

    assert {key: again[key] for key in ("best", "last", "epochs")} == {k: first[k] for k in ("best", "last", "epochs")}
    assert again["saves"] == 0
    assert result(tmp_path / "run") == before


LEFT_OUT = ("progress", "optimizer", "schedule", "warmup", "scaler", "plugins", "model", "average", "totals")


def rewrite_as_format_1(saved: Path) -> None:
    """Let a checkpoint be as ftcore wrote it before it renamed what counts how far a run is."""
    then = {
        "scale_history": "scales",
        "micro_batch_splits": "pieces",
        "epochs_since_best": "stale",
        "best_value": "mark",
    }
    state = json.loads((saved / "state.json").read_text())
    assert then.keys() <= state["progress"].keys()
    state["progress"] = {then.get(name, name): value for name, value in state["progress"].items()}
    (saved / "state.json").write_text(json.dumps(state))
    checkpoints_manifest.write_manifest(saved)
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))


@pytest.mark.slow
def test_a_checkpoint_of_format_1_is_gone_on_with_in_the_same_bits(tmp_path: Path) -> None:
    plugins, sets = ("fp16", "ema"), ("train.epochs=3", "train.patience=2", "run.keep=1")
    fit(config(tmp_path / "whole", plugins, sets))
    folder = stopped(tmp_path / "run", 6, plugins, sets)
    for saved in (folder / "checkpoints").iterdir():
        rewrite_as_format_1(saved)

    resume(folder)

    assert result(folder) | {"checkpoints": 0} == result(tmp_path / "whole") | {"checkpoints": 0}


@pytest.mark.parametrize(
    "left_out", [pytest.param(part, marks=[pytest.mark.slow] * (part == "scaler")) for part in LEFT_OUT]
)
def test_each_part_of_the_state_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str) -> None:
    """Without it the run ends in other bits, or does not go on: the proof that the tests above can fail."""
    plugins = ("ema", "plateau", f"{HERE}:Counting", *(["fp16"] if left_out == "scaler" else []))
    sets = ("plateau.patience=0", "plateau.warmup=0.5", "train.epochs=3")
    fit(config(tmp_path / "whole", plugins, sets))
    folder = stopped(tmp_path / "stopped", 6, plugins, sets)

    nothing: Any = lambda *_: None  # noqa: E731
    real = resume_state._progress
    if left_out == "progress":
        monkeypatch.setattr(resume_state, "_progress", lambda _: Progress())
    elif left_out == "totals":
        monkeypatch.setattr(resume_state, "_progress", lambda s: real({**s, "current": s["current"] | {"totals": {}}}))
    elif left_out == "optimizer":
        monkeypatch.setattr(resume_state, "load_optimizer", nothing)
    elif left_out in {"model", "average"}:
        load_network = resume_state._load_network
        keep: Any = lambda network, file: None if file.stem == left_out else load_network(network, file)  # noqa: E731
        monkeypatch.setattr(resume_state, "_load_network", keep)
    elif left_out == "plugins":
        monkeypatch.setattr(resume_state, "_load_plugins", nothing)
    elif left_out == "scaler":
        monkeypatch.setattr(torch.amp.GradScaler, "load_state_dict", nothing)
    else:
        load_scheduler, wanted = resume_state._load_scheduler, left_out
        is_warmup: Any = lambda s: type(s).__name__ != "ReduceLROnPlateau"  # noqa: E731
        some: Any = lambda s, d: None if is_warmup(s) == (wanted == "warmup") else load_scheduler(s, d)  # noqa: E731
        monkeypatch.setattr(resume_state, "_load_scheduler", some)
    resume(folder)

    assert result(folder) | {"checkpoints": 0} != result(tmp_path / "whole") | {"checkpoints": 0}


# ------------------------------------------------------------------ signals


@pytest.mark.parametrize(("how", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_signal_ends_a_run_behind_its_step_with_the_code_of_its_death(tmp_path: Path, how: str, code: int) -> None:
    flags = [
        "--set",
        f"run.folder={tmp_path / 'run'}",
        "--set",
        "train.log_every=1",
        "--plugin",
        f"{HERE}:{how.title()}",
    ]
    found = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *flags)

    assert found.code == code
    assert f"ftcore: stopped by {how} after step 2, in epoch 1; resume with: ftcore resume" in found.err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_command_that_is_interrupted_says_so_and_ends_with_the_code_of_that_signal(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text("raise KeyboardInterrupt")

    found = invoke("explain", "--plugin", str(tmp_path / "hooks.py"))

    assert (found.code, found.err) == (130, f"executes the hooks file {tmp_path / 'hooks.py'}\n\nftcore: interrupted\n")


def test_sigusr1_has_a_run_saved_and_it_goes_on(tmp_path: Path) -> None:
    fit(config(tmp_path / "run", sets=("run.keep=9",)), [stopping(3, signal.SIGUSR1)])

    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000004", "step-00000008"]


def test_a_second_signal_ends_a_run_at_once(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from ftcore.system.signals import handle_signals\n"
        "with handle_signals() as flags:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print(flags.ending, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('still there', flush=True)\n"
    )

    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout) == (143, "15\n")


def test_a_loader_process_outlives_signals_that_it_is_sent_before_it_ignores_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own handler in a loader process would end it."""
    ready = WorkerPids.__call__

    def signalled(pids: WorkerPids, worker: int) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        ready(pids, worker)

    monkeypatch.setattr(WorkerPids, "__call__", signalled)

    report = fit(config(tmp_path / "run", sets=("train.workers=1", "train.epochs=1")))

    assert report["epochs"] == 1


def test_handlers_are_those_of_before_when_a_run_is_over(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)]

    stopped(tmp_path / "run", 1)

    assert before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)]


class _Sending:
    number: signal.Signals

    @hookimpl
    def make_observers(self) -> Sequence[Observer]:
        return [stopping(2, self.number)]


class Sigterm(_Sending):
    number = signal.SIGTERM


class Sigint(_Sending):
    number = signal.SIGINT


class Sighup(_Sending):
    number = signal.SIGHUP


@pytest.mark.parametrize(
    ("every", "saved"),
    [("3 steps", [3, 6, 8]), ("2 epochs", [8]), ("1 epoch", [4, 8]), ("9 minutes", [8])],
)
def test_a_run_is_saved_as_often_as_wanted_and_at_its_end(tmp_path: Path, every: str, saved: list[int]) -> None:
    report = fit(config(tmp_path / "run", sets=("run.keep=99", f"run.save_every={every}")))

    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in saved]
    assert report["saves"] == len(saved)
    assert 0 < report["saving_seconds"] < report["seconds"]


# ------------------------------------------------------------------ saved while it goes on


def held_back(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let nothing of a checkpoint be written before the event that is returned."""
    go, write_folder = threading.Event(), atomic.write_dir_atomic

    def later(target: Path, write: Callable[[Path], None]) -> None:
        if target.parent.name == "checkpoints":
            assert go.wait(60)
        write_folder(target, write)

    monkeypatch.setattr(atomic, "write_dir_atomic", later)
    return go


@pytest.mark.parametrize(
    "plugins", [("ema",), pytest.param(("fp16", "swa"), marks=pytest.mark.slow), ("tied",)], ids=str
)
def test_a_checkpoint_holds_the_step_it_was_asked_for_whatever_came_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: tuple[str, ...]
) -> None:
    plugins = tuple(f"{HERE}:Tied" if name == "tied" else name for name in plugins)
    sets = ("run.keep=9", "run.save_every=2 steps", *(["swa.start=0"] if "swa" in plugins else []))
    fit(config(tmp_path / "waiting", plugins, sets))
    go = held_back(monkeypatch)
    seen: list[int] = []

    def observe(event: Event) -> None:
        if isinstance(event, StepLogged):
            seen.append(event.step)
        if seen == [1, 2, 3]:  # the second is asked for; the next waits for it
            assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))
            go.set()

    report = fit(config(tmp_path / "run", plugins, (*sets, "run.async_save=true")), [observe])

    assert report["saves"] == 4
    for step in ("step-00000002", "step-00000004", "step-00000006", "step-00000008"):
        for file in ("model.safetensors", "average.safetensors", "state.safetensors"):
            one, other = (tmp_path / folder / "checkpoints" / step / file for folder in ("waiting", "run"))
            assert not one.exists() or one.read_bytes() == other.read_bytes()
    assert result(tmp_path / "run") == result(tmp_path / "waiting")


class Tied:
    """A layer under two names."""

    @hookimpl(wrapper=True)
    def build_model(self) -> Generator[None, Any, Any]:
        """Add it."""
        backbone = yield
        backbone.module.layer3.again = backbone.module.layer3[0]
        return backbone


@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_run_that_is_saved_while_it_goes_on_is_stopped_with_all_saved(tmp_path: Path, at: int) -> None:
    fit(config(tmp_path / "whole", ("ema",)))

    folder = stopped(tmp_path / "run", at, ("ema",), ("run.async_save=true", "run.save_every=1 step"))

    assert max(path.name for path in (folder / "checkpoints").iterdir()) == f"step-{at:08d}"
    resume(folder)
    assert result(folder) | {"checkpoints": 0} == result(tmp_path / "whole") | {"checkpoints": 0}


def test_a_checkpoint_that_cannot_be_written_in_the_meantime_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = atomic._rename

    def full(aside: Path, target: Path, old: Path) -> None:
        if target.parent.name == "checkpoints":
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(aside, target, old)

    def break_down(event: Event) -> None:
        if isinstance(event, StepLogged) and event.step == 3:
            monkeypatch.setattr(atomic, "_rename", full)

    with pytest.raises(UserError, match=r"cannot save in .*checkpoints: .*No space left on device"):
        fit(config(tmp_path / "run", (), ("run.async_save=true", "run.save_every=1 step")), [break_down])

    monkeypatch.undo()
    assert resume(tmp_path / "run")["epochs"] == 2


def test_a_run_that_fails_waits_for_what_it_was_writing(tmp_path: Path) -> None:
    def break_down(event: Event) -> None:
        if isinstance(event, StepLogged) and event.step == 3:
            stack.callback(register_module_forward_pre_hook(fail).remove)

    def fail(*_: Any) -> None:
        raise ValueError("in the forward pass")

    with ExitStack() as stack, pytest.raises(ValueError, match="in the forward pass"):
        fit(config(tmp_path / "run", (), ("run.async_save=true", "run.save_every=1 step")), [break_down])

    assert max(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == "step-00000003"
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]:
        thread.join(5)  # it has written, and is about to end
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]


# ------------------------------------------------------------------ what is refused


def refused(folder: Path, *arguments: str) -> str:
    found = invoke("resume", folder, *arguments)
    assert found.code == 2
    return found.err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size = 96", "batch_size = 48", "config train.batch_size: 96 then, 48 now"),
        ("seed = 0", "seed = 1", "config train.seed: 0 then, 1 now"),
        ('"digits:5-6"', '"digits:5-7"', "data fingerprint: "),
        ("lr = 0.001", "lr = 0.1", "option adamw.lr: 0.001 then, 0.1 now"),
    ],
)
def test_what_is_not_the_run_that_was_begun_is_refused_by_name(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    folder = stopped(tmp_path / "run", 2)
    file = folder / "config.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))

    found = refused(folder)

    assert "configuration or environment differ from the original run; --allow-drift resumes anyway" in found
    assert message in found


def test_with_allow_drift_it_goes_on_and_says_what_has_changed(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", 2)

    found = invoke("resume", folder, "--set", "train.epochs=3", "--allow-drift", "--json")

    assert found.code == 0, found.err
    assert found.report["epochs"] == 3
    assert "resumed with changes, the state in the checkpoint is used" in found.err
    assert "config train.epochs: 2 then, 3 now" in found.err


def test_another_machine_is_said_and_not_refused(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", 2)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["machine"]["processor"] = "ALTIVEC"
    (folder / "manifest.json").write_text(json.dumps(manifest))

    found = invoke("resume", folder)

    assert found.code == 0, found.err
    assert "the last bits may differ" in found.err
    assert "processor: ALTIVEC then" in found.err


def test_weights_that_are_not_those_the_run_began_with_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from ftcore_plugins.data.digits import WEIGHTS

    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(WEIGHTS.read_bytes())
    folder = stopped(tmp_path / "run", 2, sets=(f"model.weights={weights}",))
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)

    assert "starting weights: " in refused(folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "is not a run folder" in refused(tmp_path)


def test_two_processes_cannot_hold_a_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from ftcore.runs.lock import lock_run_folder\n"
        "with lock_run_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(stopped(tmp_path / "run", 2))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        message = refused(tmp_path / "run")
        other.kill()
    assert f"{tmp_path / 'run'} is in use by process {other.pid} on " in message

    with lock_run_folder(tmp_path / "run"):  # a lock dies with its process
        pass


def test_run_resume_is_resume_and_takes_nothing_else(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", 2)

    found = invoke("run", "--resume", folder, "--plugin", "sgd")
    assert (found.code, "remove plugins" in found.err) == (2, True)

    assert invoke("run", "--resume", folder, "--json").report["epochs"] == 2


def test_a_run_in_a_folder_that_holds_one_says_how_to_go_on(tmp_path: Path) -> None:
    stopped(tmp_path / "run", 2)

    found = invoke("run", "--data", "digits:5-6", "--set", f"run.folder={tmp_path / 'run'}")

    assert found.code == 2
    assert f"or resume it: ftcore resume {tmp_path / 'run'}" in found.err


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    found = invoke(
        *("run", "--data", "digits:5-6", "--model", "digits/cnn", "--plugin", "sgd", "--plugin", f"{HERE}:Breaking"),
        *("--set", f"run.folder={tmp_path / 'run'}", "--set", "train.epochs=3"),
    )

    assert found.code == 2
    assert "weights are not finite after step 20: head.bias" in found.err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000010"]


class Breaking:
    """Breaks a weight at the end of the second epoch."""

    def __init__(self) -> None:
        self.model: Any = None

    @hookimpl
    def make_average(self, model: torch.nn.Module) -> None:
        self.model = model

    @hookimpl
    def make_observers(self) -> Sequence[Observer]:
        def observe(event: Event) -> None:
            if isinstance(event, EpochEnded) and event.epoch == 2:
                with torch.no_grad():
                    self.model.head.bias.fill_(torch.inf)

        return [observe]


# ------------------------------------------------------------------ state of plugins


class Counting:
    """Counts steps, and lets the number decide the loss."""

    def __init__(self) -> None:
        self.steps = 0
        self.sum = torch.zeros(3).t()

    def state_dict(self) -> dict[str, Any]:
        state: dict[Any, Any] = {"steps": self.steps, "sum": self.sum, 3: (float("inf"), None)}
        return state

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        assert state[3] == (float("inf"), None)
        self.steps, self.sum = state["steps"], state["sum"]

    @hookimpl
    def make_loss(self) -> Any:
        def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            if outputs.requires_grad:
                self.steps += 1
                self.sum += 1
            return torch.nn.functional.cross_entropy(outputs, targets) * (1 + self.steps)

        return loss


class Half:
    """Can say its state and not take it."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    @hookimpl
    def make_observers(self) -> Sequence[Observer]:
        return [lambda _: None]


def test_the_state_of_a_plugin_is_saved_and_put_back(tmp_path: Path) -> None:
    fit(config(tmp_path / "whole", (f"{HERE}:Counting",)))

    resume(stopped(tmp_path / "stopped", 5, (f"{HERE}:Counting",)))

    found = result(tmp_path / "stopped")
    assert found["state"]["plugins"]["plugin counting"]["$items"][0] == ["steps", STEPS]
    assert found | {"checkpoints": 0} == result(tmp_path / "whole") | {"checkpoints": 0}


def test_a_plugin_with_half_of_the_two_methods_is_refused(tmp_path: Path) -> None:
    plugin = ["--plugin", f"{HERE}:Half", "--set", f"run.folder={tmp_path / 'run'}"]
    found = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *plugin)

    assert found.code == 2
    assert "plugin half has only one of state_dict and load_state_dict" in found.err


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "text"], "b": {}},
        {1: "one", "one": torch.arange(3), "$tensor": 4},
        {"a.b": torch.zeros(2), "a": {"b": torch.ones(2)}},
        (float("inf"), [float("-inf"), (0.1,)], ()),
        {"strided": torch.arange(6.0).reshape(2, 3).t(), "cut": torch.arange(9)[::2], "scalar": torch.tensor(2.0)},
        {"bf16": torch.tensor([1.1], dtype=torch.bfloat16), "bool": torch.tensor([True])},
    ],
)
def test_what_is_unpacked_is_what_was_packed(value: dict[Any, Any]) -> None:
    tensors: dict[str, torch.Tensor] = {}

    plain = json.loads(json.dumps(serialize(value, "state", tensors)))

    torch.testing.assert_close(_flat(deserialize(plain, tensors)), _flat(value), rtol=0, atol=0, check_stride=False)
    assert all(tensor.is_contiguous() for tensor in tensors.values())


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [item for key, inner in value.items() for item in (repr(key), *_flat(inner))] and [
            item for inner in value.values() for item in _flat(inner)
        ]
    if isinstance(value, list | tuple):
        return [item for inner in value for item in _flat(inner)]
    return [value if isinstance(value, torch.Tensor) else torch.tensor(float(hash(repr(value)) % 10**6))]


def test_the_layout_of_a_tensor_stays() -> None:
    tensors: dict[str, torch.Tensor] = {}
    laid = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)

    found = deserialize(serialize(laid, "state", tensors), tensors)

    assert found.stride() == laid.stride()
    assert torch.equal(found, laid)
