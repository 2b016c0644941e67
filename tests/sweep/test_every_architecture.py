"""The head and the freezing of every architecture, without memory; and of many families, with real tensors."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import timm

from ftcore import StepLogged
from ftcore.config.load import CliOverrides, load_config
from ftcore.runs.run import fit
from ftcore.testing import image_folder

if TYPE_CHECKING:
    from types import ModuleType

    from ftcore import Event

FAMILIES = (
    "timm/test_convnext",
    "timm/test_efficientnet",
    "timm/test_vit",
    "timm/test_nfnet",
    "timm/test_mambaout",
    "timm/test_byobnet",
    "timm/test_resnet",
    "timm/starnet_s050",
    "timm/test_coatnet",
    "timm/test_vit_relpos",
    "timm/dla46x_c",
    "timm/edgenext_xx_small",
    "timm/mobilenetv3_small_050",
    "timm/ese_vovnet19b_slim_dw",
    "timm/repghostnet_050",
    "timm/efficientvit_m0",
    "timm/ghostnet_050",
    "timm/regnetx_002",
    "timm/cspnext_tiny",
    "timm/iformer_t",
    "timm/xcit_nano_12_p8_224",
    "timm/cs3darknet_focus_s",
    "timm/efficientvit_b0",
    "timm/swiftformer_xs",
    "timm/efficientformerv2_s0",
    "timm/pvt_v2_b0",
    "timm/fasternet_t0",
    "timm/fastvit_t8",
    "timm/lcnetv2_small",
    "timm/inception_next_atto",
    "timm/rexnet_100",
    "timm/pit_ti_224",
    "timm/repvit_m1",
    "timm/vit_tiny_patch16_dinov3_qkvb",
    "timm/coat_tiny",
    "timm/convit_tiny",
    "timm/gmlp_ti16_224",
    "timm/deit_tiny_distilled_patch16_224",
    "timm/hgnetv2_b0",
    "timm/shvit_s1",
    "timm/cpubone_nano",
    "timm/efficientvim_m1",
    "timm/crossvit_tiny_240",
    "timm/levit_128s",
    "timm/densenet121",
    "timm/dpn48b",
    "timm/visformer_tiny",
    "timm/csatv2",
    "timm/resnetv2_18",
    "timm/legacy_seresnet18",
    "timm/poolformerv2_s12",
    "timm/cait_xxs24_224",
    "timm/gcvit_xxtiny",
    "timm/tiny_vit_5m_224",
    "timm/efficientformer_l1",
    "torchvision/efficientnet_b0",
    "torchvision/googlenet",
    "torchvision/inception_v3",
    "torchvision/mnasnet0_5",
    "torchvision/mobilenet_v3_small",
    "torchvision/regnet_y_400mf",
    "torchvision/resnet18",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_1",
    "torchvision/swin_t",
    "torchvision/densenet121",
)
"""The smallest network of each of timm's model files, up to 13 million parameters; and of torchvision's."""


EVERY = int(os.environ.get("FTCORE_SWEEP_EVERY", "8"))
"""The sweep looks at one architecture of so many; at all of them with 1."""

FIRST = int(os.environ.get("FTCORE_SWEEP_FIRST", date.today().toordinal())) % EVERY
"""The first of them: another one each day, so that all are looked at in as many days."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The sweep as a module of its own, under a name by which its worker processes find it."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    spec = importlib.util.find_spec("every_architecture")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["every_architecture"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(6000 / EVERY)
def test_every_architecture_of_timm_and_torchvision(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    found = script.sweep(every=EVERY, first=FIRST)

    with capsys.disabled():
        repeat = f"FTCORE_SWEEP_EVERY={EVERY} FTCORE_SWEEP_FIRST={FIRST} looks at these"
        sys.stderr.write("\n" + "\n".join([*script.summary(found), repeat]) + "\n")
    assert len(found) > 1200 / EVERY
    assert [f.name for f in found if f.head or f.frozen] == []
    assert sum(f.norms for f in found) > 700 / EVERY
    assert {f.name for f in found if f.note} == {i for i in (f.name for f in found) if i.endswith("_enc")}


def test_a_head_that_is_not_swapped_is_found_by_the_sweep(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftcore.model.heads.replace_module", lambda model, _slot, _head: model)

    assert "its head seems to be another module" in script.look("timm/test_resnet").head


def test_a_backbone_that_learns_is_found_by_the_sweep(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftcore_plugins.freezing._outside", lambda _model, _heads: set())

    found = script.look("timm/test_resnet")

    assert (found.head, "running_mean" in found.frozen) == ("", True)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_its_head_and_then_everything_and_keeps_the_contract(name: str, tmp_path: Path) -> None:
    if name.startswith("timm/") and name.removeprefix("timm/") not in timm.list_models():
        pytest.skip(f"timm {timm.__version__} does not have it")
    losses: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, StepLogged):
            losses.append(event.loss)

    sets = (
        "model.weights=none",
        "train.epochs=2",
        "train.batch_size=6",
        "train.log_every=1",
        'gradual_unfreeze.at={0 = "head", 1 = "all"}',
        f"run.folder={tmp_path / 'run'}",
    )
    source = str(image_folder(tmp_path / "data", per_class=5))
    report = fit(load_config(None, CliOverrides(name, source, ("gradual_unfreeze",), sets=sets)), [note])

    auxiliary = {"torchvision/googlenet": 0.6, "torchvision/inception_v3": 0.4}.get(name, 0)
    assert losses[0] == pytest.approx((1 + auxiliary) * math.log(3), rel=1e-5)
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert report["frozen_tensors"] == 0  # those of the first epoch were compared, or this would not be reached
