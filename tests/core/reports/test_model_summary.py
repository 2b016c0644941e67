"""`ftcore inspect`: what a network looks like inside, without its weights and without memory for it."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import chdir
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import timm
import torch
from torch import nn
from torchvision.models import get_model

from ftcore import Backbone, HeadSlot, InputSpec, hookimpl
from ftcore.testing import invoke

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WHOLE = "(the network)"
EVERYTHING = ("--depth", "9")

REAL: dict[str, Callable[[], nn.Module]] = {
    "timm/test_resnet": lambda: timm.create_model("test_resnet", num_classes=10),
    "torchvision/squeezenet1_1": lambda: get_model("squeezenet1_1", num_classes=10),
}
"""The same networks as their libraries build them, with as many outputs as `inspect` gives them."""


class Recorded:
    """Answers for ``recorded/net``, and notes which weights it was asked for and on which device it was."""

    asked: ClassVar[list[tuple[str, str]]] = []

    @hookimpl
    def build_model(self, name: str | None, weights: str) -> Backbone | None:
        if name != "recorded/net":
            return None
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
        self.asked.append((weights, str(model[0].weight.device)))
        return Backbone(model, (HeadSlot("3", 4),), InputSpec((6, 5), channels=1, mean=(0.0,), std=(1.0,)))


class Unbuffered(nn.Module):
    """Holds a tensor that is neither a parameter nor a buffer; a run takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(3, 1, 1, device="cpu")
        self.fc = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> Any:
        return self.fc((images * self.scale).mean((1, 2)))


class Provider:
    """Answers for ``odd/unbuffered``."""

    @hookimpl
    def build_model(self, name: str | None) -> nn.Module | None:
        return Unbuffered() if name == "odd/unbuffered" else None


def printed(*arguments: str | Path) -> str:
    result = invoke("inspect", *arguments)
    assert (result.code, result.err) == (0, "")
    return result.out


def refusal(*arguments: str | Path) -> str:
    result = invoke("inspect", *arguments)
    assert (result.code, result.out) == (2, "")
    return result.err


def cells(out: str, title: str) -> dict[str, dict[str, str]]:
    """First column of a printed table -> the cells of its row, by column; cut where the header's words begin."""
    lines = iter(out.splitlines())
    assert any(line.startswith(title) for line in lines)
    header = next(lines)
    columns = {found[0]: found.start() for found in re.finditer(r"\S+(?: \S+)*", header)}
    ends = [*list(columns.values())[1:], None]
    table: dict[str, dict[str, str]] = {}
    for line in lines:
        if not line:
            break
        row = {name: line[begin:end].strip() for (name, begin), end in zip(columns.items(), ends, strict=True)}
        assert row[next(iter(row))] not in table
        table[row[next(iter(row))]] = row
    return table


def modules(*arguments: str | Path) -> dict[str, dict[str, str]]:
    """Module -> its row of the printed table, without the mark of the head."""
    found = cells(printed(*arguments), "modules")
    return {name.removesuffix("<- head").strip(): row for name, row in found.items()}


def groups(*arguments: str | Path) -> dict[str, dict[str, str]]:
    return cells(printed(*arguments), "parameter groups of ")


def column(rows: dict[str, dict[str, str]], name: str) -> dict[str, str]:
    return {module: row[name] for module, row in rows.items()}


def facts(*arguments: str | Path) -> dict[str, str]:
    title, _, *lines = printed(*arguments).partition("\n\nmodules")[0].splitlines()
    return {"title": title, **dict(line.split(maxsplit=1) for line in lines)}


def outputs_of(model: nn.Module, size: tuple[int, int]) -> dict[str, str]:
    """Run real images through a network, and note what comes out of each module."""
    shapes = {name or WHOLE: "" for name, _ in model.named_modules()}

    def note(name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        return lambda _module, _inputs, output: shapes.update(
            {name or WHOLE: " x ".join(["N", *map(str, output.shape[1:])])}
        )

    for name, module in model.named_modules():
        module.register_forward_hook(note(name))
    with torch.no_grad():
        model.eval()(torch.randn(2, 3, *size))
    return shapes


@pytest.mark.parametrize(
    ("name", "size", "flags"),
    [
        ("timm/test_resnet", (160, 160), ()),
        ("timm/test_resnet", (72, 72), ("--set", "model.image_size=72")),
        ("torchvision/squeezenet1_1", (224, 224), ()),
    ],
)
def test_output_shapes_are_those_of_the_real_network_on_real_images(
    name: str, size: tuple[int, int], flags: tuple[str, ...]
) -> None:
    assert column(modules(name, *EVERYTHING, *flags), "output") == outputs_of(REAL[name](), size)


@pytest.mark.parametrize("name", REAL)
def test_parameters_and_kinds_are_those_of_the_real_network(name: str) -> None:
    real = {path or WHOLE: module for path, module in REAL[name]().named_modules()}

    found = modules(name, *EVERYTHING)

    counts = {path: f"{sum(p.numel() for p in module.parameters()):,}" for path, module in real.items()}
    assert column(found, "parameters") == counts
    kinds = {path: type(module).__name__ for path, module in real.items()}
    assert column(found, "kind") == kinds
    assert facts(name)["parameters"].startswith(f"{counts[WHOLE]}, of which {counts[WHOLE]} are trainable")


def test_parameters_of_a_module_that_has_modules_get_rows_of_their_own() -> None:
    real = timm.create_model("test_vit")

    found = modules("timm/test_vit", "--depth", "1")

    own = {name: row["parameters"] for name, row in found.items() if row["kind"] == "Parameter"}
    assert own == {name: f"{p.numel():,}" for name, p in real.named_parameters(recurse=False)}
    assert "cls_token" in own


def test_the_input_and_the_stages_are_among_the_facts() -> None:
    cfg = timm.get_pretrained_cfg("test_resnet")

    found = facts("timm/test_resnet")

    assert found["title"] == "timm/test_resnet"
    shown = f"{' x '.join(map(str, cfg.input_size))}, {cfg.interpolation}, centre crop of 168 x 168"  # 160 / 0.95
    assert found["input"] == f"{shown}, mean {cfg.mean}, std {cfg.std}"
    assert found["stages"] == "4 after the stem"
    assert found["head"] == "fc (96 features)"


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("timm/test_resnet", ["fc"]),
        ("torchvision/squeezenet1_1", ["classifier.1"]),
        ("timm/deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
        ("torchvision/inception_v3", ["AuxLogits.fc", "fc"]),
    ],
)
def test_every_head_is_marked_and_nothing_else(name: str, heads: list[str]) -> None:
    found = cells(printed(name, *EVERYTHING), "modules")

    assert [path.split() for path in found if "head" in path.split()[1:]] == [[head, "<-", "head"] for head in heads]


def test_a_head_of_several_layers_is_one_row() -> None:
    found = modules("timm/test_resnet", "--plugin", "mlp_head", "--set", "mlp_head.hidden=[16]", *EVERYTHING)

    assert [name for name in found if name.startswith("fc")] == ["fc"]
    assert found["fc"]["output"] == "N x 10"
    assert found["fc"]["kind"] == "Sequential"


def test_freeze_backbone_freezes_and_holds_everything_but_the_head() -> None:
    found = modules("timm/test_resnet", "--plugin", "freeze_backbone", *EVERYTHING)

    states = column(found, "state")
    assert (states.pop(WHOLE), states.pop("fc")) == ("trainable, frozen", "trainable")
    assert states == {name: "eval" if found[name]["parameters"] == "0" else "frozen, eval" for name in states}
    assert list(groups("timm/test_resnet", "--plugin", "freeze_backbone")) == ["decay", "no_decay"]
    assert column(found, "group")["layer1"] == ""


def test_without_a_plugin_everything_learns_and_nothing_is_held() -> None:
    found = modules("timm/test_resnet", *EVERYTHING)

    states = {name: "trainable" if row["parameters"] != "0" else "" for name, row in found.items()}
    assert column(found, "state") == states


def test_frozen_convolutions_leave_a_module_that_learns_in_part() -> None:
    sets = ("--set", 'freeze_modules.types=["Conv2d"]')

    states = column(modules("timm/test_resnet", "--plugin", "freeze_modules", *sets, *EVERYTHING), "state")

    assert states["layer1.0"] == "trainable, frozen"
    assert (states["layer1.0.conv1"], states["layer1.0.bn1"]) == ("frozen, eval", "trainable")


def test_gradual_unfreezing_shows_when_each_module_starts_to_learn() -> None:
    sets = ("--set", 'gradual_unfreeze.at={0 = "head", 3 = "layer4"}')
    arguments = ("timm/resnet18", "--plugin", "gradual_unfreeze", *sets)

    found = modules(*arguments)

    states = column(found, "state")
    assert {name: states[name] for name in ("conv1", "layer1", "layer3.1", "layer4", "layer4.1", "fc")} == {
        "conv1": "frozen, eval",
        "layer1": "frozen, eval",
        "layer3.1": "frozen, eval",
        "layer4": "trainable after 3 epochs, eval",
        "layer4.1": "trainable after 3 epochs, eval",
        "fc": "trainable",
    }
    assert states[WHOLE] == "trainable, trainable after 3 epochs, frozen"
    assert facts(*arguments)["parameters"].endswith(
        f"of which {found['fc']['parameters']} are trainable in the first epoch"
    )
    assert found["layer4"]["group"] == "decay, no_decay"


def test_what_is_released_in_several_epochs_is_shown_with_each() -> None:
    sets = ("--set", 'gradual_unfreeze.at={0 = "head", 2 = ["layer4", "layer3"], 5 = "all"}')

    states = column(modules("timm/resnet18", "--plugin", "gradual_unfreeze", *sets), "state")

    assert (states["layer4"], states["layer2"]) == ("trainable after 2 epochs, eval", "trainable after 5 epochs, eval")
    assert states[WHOLE].startswith("trainable, trainable after 2 epochs, trainable after 5 epochs")


def test_groups_are_shown_by_module_and_with_their_rates() -> None:
    arguments = ("timm/resnet18", "--set", "groups.backbone_lr=0.1", "--set", "adamw.lr=0.02", *EVERYTHING)

    shown, rates = column(modules(*arguments), "group"), groups(*arguments)

    assert shown["conv1"] == "backbone.decay"
    assert shown["layer1.0.bn1"] == "backbone.no_decay"
    assert shown["layer1"] == "backbone.decay, backbone.no_decay"
    assert shown["fc"] == "head.decay, head.no_decay"
    assert shown["act1"] == ""
    assert shown[WHOLE] == "backbone.decay, backbone.no_decay and 2 more"
    assert column(rates, "lr") == {
        "backbone.decay": "0.002",
        "head.decay": "0.02",
        "backbone.no_decay": "0.002",
        "head.no_decay": "0.02",
    }
    assert {float(rate) > 0 for name, rate in column(rates, "weight decay").items() if ".decay" in name} == {True}
    assert {rate for name, rate in column(rates, "weight decay").items() if ".no_decay" in name} == {"0"}
    counts = [int(number.replace(",", "")) for number in column(rates, "parameters").values()]
    assert sum(counts) == sum(p.numel() for p in timm.create_model("resnet18", num_classes=10).parameters())


def test_another_optimizer_is_shown_with_its_rates() -> None:
    out = printed("timm/test_resnet", "--plugin", "sgd", "--set", "sgd.lr=0.3")

    assert "parameter groups of SGD" in out
    assert set(column(cells(out, "parameter groups of SGD"), "lr").values()) == {"0.3"}


@pytest.mark.parametrize("classes", [1, 3, 250])
def test_the_new_head_has_as_many_outputs_as_classes(classes: int) -> None:
    found = modules("timm/test_resnet", "--classes", str(classes), "--depth", "1")

    assert found[WHOLE]["output"] == found["fc"]["output"] == f"N x {classes}"
    assert found["fc"]["parameters"] == f"{97 * classes:,}"


def test_a_network_without_classes_is_refused() -> None:
    assert "'--classes': 0 is not in the range" in refusal("timm/test_resnet", "--classes", "0")


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_modules_are_shown_down_to_a_depth(depth: int) -> None:
    real = REAL["timm/test_resnet"]()
    wanted = [name or WHOLE for name, _ in real.named_modules() if len(name.split(".")) <= depth or not name]

    assert list(modules("timm/test_resnet", "--depth", str(depth))) == wanted


def test_two_levels_are_shown_unless_asked_otherwise() -> None:
    assert printed("timm/test_resnet") == printed("timm/test_resnet", "--depth", "2", "--classes", "10")


def test_a_config_file_says_the_same_as_flags(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'plugins = ["freeze_backbone", "sgd"]\n[model]\nname = "timm/test_resnet"\nimage_size = 64\n'
        "[plugin.sgd]\nlr = 0.25\n",
        encoding="utf-8",
    )

    out = printed(file, "--depth", "3", "--classes", "4")

    flags = ("--plugin", "freeze_backbone", "--plugin", "sgd", "--set", "sgd.lr=0.25", "--set", "model.image_size=64")
    assert out == printed("timm/test_resnet", *flags, "--depth", "3", "--classes", "4")
    assert out.startswith("timm/test_resnet\n")
    assert "0.25" in out


def test_flags_beat_the_config_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('plugins = ["freeze_backbone"]\n[model]\nname = "timm/test_resnet"\n', encoding="utf-8")

    changed = printed(file, "--without", "freeze_backbone", "--set", "model.name=torchvision/squeezenet1_1")

    assert changed == printed("torchvision/squeezenet1_1")


def test_a_config_file_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    assert f"config file not found: {tmp_path / 'no.toml'}" in refusal(tmp_path / "no.toml")


def test_a_plugins_network_is_built_without_weights_and_without_memory() -> None:
    Recorded.asked.clear()

    found = modules("recorded/net", "--plugin", f"{__name__}:Recorded", "--set", "model.weights=default")

    assert Recorded.asked == [("none", "meta")]
    assert column(found, "output") == {
        WHOLE: "N x 10",
        "0": "N x 4 x 4 x 3",
        "1": "N x 4 x 1 x 1",
        "2": "N x 4",
        "3": "N x 10",
    }


def test_a_network_that_does_not_run_without_memory_is_shown_without_shapes() -> None:
    found = modules("odd/unbuffered", "--plugin", f"{__name__}:Provider", "--set", "model.image_size=8")

    assert set(column(found, "output").values()) == {""}
    assert column(found, "parameters") == {WHOLE: "90", "fc": "90"}
    assert column(found, "state") == {WHOLE: "trainable", "fc": "trainable"}


@pytest.mark.parametrize("weights", ["default", "none", "missing.safetensors"])
def test_no_weights_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    out = printed("torchvision/squeezenet1_1", "--set", f"model.weights={weights}")

    assert out == printed("torchvision/squeezenet1_1")
    assert list(tmp_path.iterdir()) == []


def test_inspecting_writes_nothing_to_disk(tmp_path: Path) -> None:
    with chdir(tmp_path):
        assert printed("timm/test_resnet", "--plugin", "freeze_backbone")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/resnet5O", "timm has no network 'resnet5O'"),
        ("torchvision/resnet5O", "torchvision has no classification network 'resnet5O'"),
    ],
)
def test_an_unknown_network_names_the_five_nearest_of_its_provider(name: str, words: str) -> None:
    message, _, near = refusal(name).strip().partition("; nearest: ")

    provider = name.partition("/")[0]
    assert message == f"ftcore: {words}"
    names = near.split(", ")
    assert names[0] == f"{provider}/resnet50"
    assert len(set(names)) == 5
    assert {found.partition("/")[0] for found in names} == {provider}


def test_a_network_without_a_provider_names_the_nearest_with_theirs() -> None:
    assert re.search(
        r"model.name = 'resnet5O'; expected PROVIDER/NETWORK; nearest: (timm|torchvision)/resnet50, ",
        refusal("resnet5O"),
    )


def test_a_plan_that_fits_nothing_is_an_error_as_in_a_run() -> None:
    error = refusal("timm/test_resnet", "--plugin", "freeze_modules", "--set", 'freeze_modules.names=["layr1"]')

    assert "freeze_modules.names: 'layr1' matches no module or parameter; did you mean 'layer1'?" in error


MEMORY = """
import resource
import timm, torch, torchvision
from ftcore.testing import invoke

torch.set_num_threads(1)
invoke("inspect", "timm/test_vit")  # what is imported on the way
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = invoke("inspect", "timm/vit_giant_patch14_clip_224", "--plugin", "freeze_backbone")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(result.out, result.err)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes of resident memory are Linux's")
def test_a_network_of_a_billion_parameters_needs_no_memory_for_them() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)

    kilobytes, _, out = done.stdout.partition("\n")
    total = int(cells(out, "modules")[WHOLE]["parameters"].replace(",", ""))
    assert total > 1_000_000_000  # four gigabytes of float32
    assert int(kilobytes) * 1024 < 1.5e9
