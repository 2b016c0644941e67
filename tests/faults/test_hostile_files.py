"""No file that a user can hand to ftcore executes anything, crashes it or fills the memory; each is refused by name."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ftcore.checkpoints import manifest

from .hostile_files import PICKLES, SAFETENSORS, of
from .killing import forked
from .reading import attempt, read_pickled, read_run, read_safetensors
from .test_resume import stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from .hostile_files import Maker

SPARE = 256 * 2**20
HARMLESS = {
    "a place that torch does not have",
    "a device that is not there",
    "60 MB of metadata",
    "an epoch to come",
}
"""Read like any other: all tensors come to the CPU, nobody reads the metadata, and after the last epoch is the end."""


def fault(read: Callable[[Path], None], make: Maker, folder: Path, *, harmless: bool) -> str:
    """Let ftcore read a file; return what is wrong with how it went, or nothing."""
    folder.mkdir()
    trace = folder.parent / f"{folder.name}.trace"
    file = make(folder, trace)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = forked(attempt, read, file, sender)
    sender.close()
    process.join(60)
    if process.exitcode != 0 or not receiver.poll():
        process.kill()
        return f"its reader ended with {process.exitcode}"
    outcome = receiver.recv()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder)
    if outcome.forbidden or trace.exists():
        return f"it ran something: {outcome.forbidden}"
    if outcome.peak > 3 * size + SPARE:
        return f"it took {outcome.peak:,} bytes"
    return "" if harmless is not (str(folder) in outcome.said) else f"it said {outcome.said!r}"


def counted(read: Callable[[Path], None], makers: Mapping[str, Maker], folder: Path, what: str) -> dict[str, str]:
    """Read each file; print how many were refused with nothing done; return the others with their faults."""

    def look(place: int, name: str) -> str:
        return fault(read, makers[name], folder / str(place), harmless=name in HARMLESS)

    folder.mkdir(exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        faults = pool.map(look, range(len(makers)), makers)
        found = {name: said for name, said in zip(makers, faults, strict=True) if said}
    print(f"{len(makers) - len(found)} of {len(makers)} hostile {what} executed nothing")  # noqa: T201
    return found


def test_pickled_weights_execute_nothing(tmp_path: Path) -> None:
    assert counted(read_pickled, PICKLES, tmp_path, "pickles") == {}


def test_safetensors_are_refused_with_bounded_memory(tmp_path: Path) -> None:
    makers = {name: of(data, "weights.safetensors") for name, data in SAFETENSORS.items()}

    assert counted(read_safetensors, makers, tmp_path, "safetensors") == {}


# ------------------------------------------------------------------ run folders


DEEP = "[" * 200_000
CODE = "from ftcore import hookimpl\nopen({!r}, 'w').close()\n@hookimpl\ndef make_loss(): ...\n"


def described(folder: Path, **values: object) -> Path:
    """Change ``model.json``."""
    file = folder / "model" / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return file


def stated(folder: Path, edit: Callable[[dict[str, Any]], object] | str) -> None:
    """Change ``state.json`` of the newest checkpoint, and its manifest with it, as one would who wants it read."""
    newest = max((folder / "checkpoints").iterdir())
    state = json.loads((newest / "state.json").read_text())
    if not isinstance(edit, str):
        edit(state)
    (newest / "state.json").write_text(edit if isinstance(edit, str) else json.dumps(state))
    manifest.write_manifest(newest)


def listed(folder: Path, **files: Any) -> None:
    """Change the manifest of each checkpoint."""
    for place in (folder / "checkpoints").iterdir():
        (place / "manifest.json").write_text(json.dumps({"format": manifest.FORMAT, "files": files}))


def replaced(folder: Path, name: str, text: str | bytes) -> None:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def brought(folder: Path, trace: Path, place: str) -> str:
    """Put a plugin that leaves a trace where the folder has it; return its path."""
    file = (folder / place).resolve()
    file.write_text(CODE.format(str(trace)))
    return str(file)


def configured(folder: Path, plugin: str) -> Path:
    file = folder / "config.toml"
    file.write_text(file.read_text().replace("plugins = []", f"plugins = [{plugin!r}]"))
    return file


RUNS: dict[str, Callable[[Path, Path], object]] = {
    "code beside its model": lambda run, trace: (
        brought(run, trace, "model/evil.py"),
        described(run, plugins=["./evil.py"]),
    ),
    "code above its model": lambda run, trace: (
        brought(run, trace, "evil.py"),
        described(run, plugins=["../evil.py"]),
    ),
    "code above it": lambda run, trace: (
        brought(run, trace, "../evil.py"),
        described(run, plugins=["../../evil.py:Class"]),
    ),
    "code in it by its whole path": lambda run, trace: described(run, plugins=[brought(run, trace, "model/evil.py")]),
    "code beside its config": lambda run, trace: (brought(run, trace, "evil.py"), configured(run, "./evil.py")),
    "code above its config": lambda run, trace: (brought(run, trace, "../evil.py"), configured(run, "../evil.py")),
    "code in it, in its config": lambda run, trace: configured(run, brought(run, trace, "evil.py")),
    "a class of the standard library": lambda run, _: described(run, plugins=["subprocess:Popen"]),
    "a function of the standard library": lambda run, _: described(run, plugins=["os:abort"]),
    "a class of it in its config": lambda run, _: configured(run, "subprocess:Popen"),
    "a plugin that is a path": lambda run, _: described(run, plugins=["../../../../etc/passwd"]),
    "plugins that are numbers": lambda run, _: described(run, plugins=[1]),
    "plugins that are a text": lambda run, _: described(run, plugins="./evil.py"),
    "a network that is a path": lambda run, _: described(run, model={"name": "digits/../../etc/passwd"}),
    "a network of Python": lambda run, _: described(run, model={"name": "os/system"}),
    "a network that is a number": lambda run, _: described(run, model={"name": 3}),
    "weights of another place": lambda run, _: described(run, file="../../elsewhere/model.safetensors"),
    "weights that never end": lambda run, _: described(run, file="/dev/zero/model.safetensors"),
    "options of Python": lambda run, _: described(run, options={"__class__": {"__init__": 1}}),
    "options that it does not have": lambda run, _: described(run, options={"digits": {"__globals__": 1}}),
    "a task that is a number": lambda run, _: described(run, task=3),
    "an input without a size": lambda run, _: described(run, input={}),
    "a format to come": lambda run, _: described(run, format=99),
    "members that are numbers": lambda run, _: described(run, members=[1, 2]),
    "no members": lambda run, _: described(run, members=[]),
    "200,000 lists for a model": lambda run, _: replaced(run, "model/model.json", DEEP),
    "no text for a model": lambda run, _: replaced(run, "model/model.json", b"\xff\xfe"),
    "a pickle for weights": lambda run, _: replaced(run, "model/model.safetensors", SAFETENSORS["a pickle"]),
    "200,000 lists for a config": lambda run, _: replaced(run, "config.toml", f"plugins = {DEEP}"),
    "one key twice": lambda run, _: replaced(run, "config.toml", "plugins = []\nplugins = []\n"),
    "no text for a config": lambda run, _: replaced(run, "config.toml", b"\xff\xfe"),
    "200,000 lists for its manifest": lambda run, _: replaced(run, "manifest.json", DEEP),
    "a number for its manifest": lambda run, _: replaced(run, "manifest.json", "3"),
    "200,000 lists for its state": lambda run, _: stated(run, DEEP),
    "a state that is a number": lambda run, _: stated(run, "3"),
    "a state without progress": lambda run, _: stated(run, lambda state: state.pop("progress")),
    "a tensor that is not there": lambda run, _: stated(run, lambda s: s.update(optimizer={"$tensor": "no"})),
    "a stride of 2**60": lambda run, _: stated(run, _stride),
    "a number that is code": lambda run, _: stated(run, lambda s: s.update(scaler={"$float": "__import__('os')"})),
    "an epoch that is a text": lambda run, _: stated(run, lambda s: s["progress"].update(epoch="1; import os")),
    "an epoch to come": lambda run, _: stated(run, lambda s: s["progress"].update(epoch=10**30)),
    "a state of other plugins": lambda run, _: stated(run, lambda s: s.update(plugins={"os": {"system": 1}})),
    "a schedule with a function": lambda run, _: stated(run, lambda s: s["schedule"].update(get_lr="os.system")),
    "a checkpoint of /dev/zero": lambda run, _: listed(run, **{"/dev/zero": {"bytes": 0, "sha256": ""}}),
    "a checkpoint of another place": lambda run, _: listed(run, **{"../../config.toml": {}}),
    "a checkpoint of numbers": lambda run, _: listed(run, **{"state.json": 3}),
}


def _stride(state: dict[str, Any]) -> None:
    moment = next(iter(state["optimizer"]["state"].values()))["exp_avg"]
    moment["stride"] = [2**60] * 4


def test_run_folders_bring_no_code_and_are_refused_by_name(tmp_path: Path) -> None:
    template = stopped(tmp_path / "template", 6)

    def maker(edit: Callable[[Path, Path], object]) -> Maker:
        def make(folder: Path, trace: Path) -> Path:
            shutil.copytree(template, folder / "run")
            edit(folder / "run", trace)
            return folder / "run"

        return make

    makers = {name: maker(edit) for name, edit in RUNS.items()}

    assert counted(read_run, makers, tmp_path / "runs", "run folders") == {}
