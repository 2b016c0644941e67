from __future__ import annotations

import traceback
from pathlib import Path

import pytest

import ftcore
from ftcore.cli import main

HOOKS = """
from ftcore import hookimpl

@hookimpl
def build_head(slot, task):
    from torch import nn

    class Broken(nn.Linear):
        def forward(self, features):
            if self.training and features.requires_grad:
                raise ZeroDivisionError("broken")
            return super().forward(features)

    return Broken(slot.in_features, task.outputs)
"""


def test_seven_hops_lead_from_the_command_to_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_head.py").write_text(HOOKS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--plugin", str(tmp_path / "broken_head.py"), "--set", f"run.folder={tmp_path / 'run'}"]

    with pytest.raises(ZeroDivisionError) as caught:
        main(["run", *flags], standalone_mode=False)

    own = Path(ftcore.__file__).parent
    frames = [
        frame for frame in traceback.extract_tb(caught.value.__traceback__) if own in Path(frame.filename).parents
    ]
    start = next(
        place for place, frame in enumerate(frames) if (Path(frame.filename).parent.name, frame.name) == ("cli", "run")
    )
    hops = frames[start:]  # each leads to the next, and the last to the network
    assert [frame.name for frame in hops] == [
        "run",
        "fit",
        "fit",
        "train_epoch",
        "train_step",
        "compute_gradient",
        "backward",
    ]
    assert len({frame.filename for frame in hops}) == 3
