"""ftcore commands that can be killed: in processes forked from one that has imported everything, computed nothing."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any

import ftcore.cli.group
from ftcore.plugins.discovery import discover

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.context import ForkServerProcess

ROOT = Path(__file__).parents[2]
LIBRARIES = ("sklearn.datasets", "timm.utils.model_ema", "torchmetrics.classification", "torch._weights_only_unpickler")
OURS = (
    "ftcore.training.assemble",
    "ftcore.training.loop",
    "ftcore.runs.run",
    "ftcore.runs.folder",
    "ftcore.model.safe_unpickle",
    "ftcore.inference.evaluate",
    "ftcore.testing",
)
PLUGINS = tuple(plugin.target.partition(":")[0] for plugin in discover() if plugin.distribution == "ftcore")
TIMES = {"seconds", "training_seconds", "samples_per_second", "data_wait"}


def start(*arguments: object, log: Path) -> ForkServerProcess:
    """Start an ftcore command in a new session; what it prints is appended to a file."""
    return forked(_command, [str(argument) for argument in arguments], str(log))


def forked(function: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """Call a function in a process that has imported everything, and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LIBRARIES, *OURS, *PLUGINS])  # installed modules: it has the path that Python has
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))  # where its children find this module
    process = context.Process(target=function, args=arguments)
    process.start()
    # The start of another process looks at all of these; in another thread, it would read the exit code away.
    multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
    return process


def _command(arguments: list[str], log: str) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of a process of its own, not of one from a fork server
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    import torch

    torch.set_num_threads(1)
    os.fsync = _slow(os.fsync)  # type: ignore[assignment]
    try:
        ftcore.cli.main(arguments)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # multiprocessing, which is left now, would say 1 of it


def run_python(
    code: str, *arguments: object, folder: Path, env: Mapping[str, str] | None = None
) -> CompletedProcess[str]:
    """Run code as `python -c` does, but in a process that has imported everything; for what needs no fresh one.

    Args:
        code: that finds its arguments in `sys.argv`.
        arguments: of it.
        folder: to run it in; what it prints is written there, too.
        env: its environment, or this one's.
    """
    words, out, err = [str(argument) for argument in arguments], folder / "stdout", folder / "stderr"
    process = forked(_run_code, code, words, (str(out), str(err)), dict(env or os.environ))
    returncode = end(process)
    if returncode is None:
        os.killpg(process.pid or 0, signal.SIGKILL)
        raise TimeoutError(f"still running after two minutes: {err.read_text()}")
    return CompletedProcess(words, returncode, out.read_text(), err.read_text())


def _run_code(code: str, arguments: list[str], streams: tuple[str, str], env: dict[str, str]) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as a process of its own has it
    for stream, file in zip((1, 2), streams, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.chdir(Path(streams[0]).parent)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["-c", *arguments]
    try:
        exec(code, {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def _slow(sync: Callable[[int], None]) -> Callable[[int], None]:
    """Take as long as a disk does: where nothing is written through, a save is over before it can be seen."""

    def slowly(descriptor: int) -> None:
        time.sleep(0.003)
        sync(descriptor)

    return slowly


def end(process: ForkServerProcess, seconds: float = 120) -> int | None:
    """Wait for the end of a command; return its exit code, negative for a signal."""
    process.join(seconds)
    return process.exitcode


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Name what differs between two results."""
    return [key for key in sorted(found.keys() | expected.keys()) if found.get(key) != expected.get(key)]


def result(folder: Path) -> dict[str, Any]:
    """Return everything that a run left, but for times, in a form to compare."""
    newest = max((folder / "checkpoints").iterdir())
    state = json.loads((newest / "state.json").read_text())
    for counter in (state["progress"], state["progress"]["current"]):
        counter.update(dict.fromkeys(counter.keys() & {"seconds", "training_seconds"}))
    state.pop("metrics_bytes")
    files = [*newest.glob("*.safetensors"), *(folder / "model").glob("*")]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "state": state,
        "metrics": [{key: value for key, value in line.items() if key not in TIMES} for line in lines],
        "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
        **{str(file.relative_to(folder)): file.read_bytes() for file in files},
    }
