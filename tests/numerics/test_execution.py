"""Memory format, compilation and recomputed activations change how a run computes, and not what."""

from __future__ import annotations

import copy
import json
import shutil
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from ftcore import Backbone, Placement, RunConfig, UserError
from ftcore.checkpoints import checkpoint
from ftcore.config.load import CliOverrides, load_config
from ftcore.model.freezing import is_submodule_of, named_tensors
from ftcore.model.shape_inference import build_on_meta
from ftcore.model.stages import block_modules, derive_stages
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke
from ftcore.training.loop import fit, train_step
from ftcore.training.state import Progress
from ftcore_plugins._norms import preserve_running_stats
from ftcore_plugins.devices.execution import ChannelsLast, Checkpointing
from ftcore_plugins.models.digits_cnn import make_cnn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from ftcore.training.state import TrainingParts

LEARNS = ("sgd.lr=0.05", "linear.std=0.1")
"""Plain enough that a difference of rounding stays one: Adam's first steps are signs of gradients."""


def build(*sets: str, plugins: tuple[str, ...] = (), model: str = "digits/cnn") -> TrainingParts:
    flags = CliOverrides(model, "digits:5-6", ("sgd", *plugins), sets=("train.epochs=1", *LEARNS, *sets))
    return prepare(load_config(None, flags)).assembly.parts


def trained(*sets: str, plugins: tuple[str, ...] = (), steps: int = 5) -> dict[str, Tensor]:
    """The network after some steps of 32 images."""
    parts, progress = build(*sets, plugins=plugins), Progress()
    parts.placement.model.train()
    epoch = parts.data.train.epoch(0)
    for _ in range(steps):
        train_step(parts, [next(epoch)], progress)
    return dict(parts.network.state_dict())


def run(folder: Path, *words: str) -> Path:
    """A run of the command; words with an equals sign are settings."""
    sets = (
        word
        for setting in (f"run.folder={folder}", "train.epochs=1", *words)
        if "=" in setting
        for word in ("--set", setting)
    )
    plugins = (part for word in words if "=" not in word for part in ("--plugin", word))
    result = invoke("run", "--data", "digits:5-6", "--model", "digits/cnn", *plugins, *sets)
    assert result.code == 0, result.err
    return folder


def pictures(folder: Path) -> Path:
    from PIL import Image

    folder.mkdir()
    for number in range(5):
        scan = load_digits().images[number] * (255 / 16)
        Image.fromarray(scan.round().astype("uint8")).save(folder / f"{number}.png")
    return folder


def predicted(folder: Path, images: Path) -> list[Any]:
    result = invoke("predict", folder, images, "--json")
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# channels_last


def test_channels_last_changes_the_layout_and_not_the_result() -> None:
    assert_same(trained(plugins=("channels_last",)), trained())


def test_weights_and_what_they_compute_are_in_channels_last() -> None:
    parts, layouts = build(plugins=("channels_last",)), list[bool]()
    convolutions = [module for module in parts.network.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions[1:]:
        convolution.register_forward_hook(
            lambda _, images, output: layouts.extend(
                tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (images[0], output)
            )
        )

    train_step(parts, [next(parts.data.train.epoch(0))], Progress())

    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)
    assert layouts == [True] * 4


def test_what_channels_last_saves_loads_into_a_plain_network(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "channels_last")
    plain = run(tmp_path / "plain")
    network = make_cnn(2)

    network.load_state_dict(load_file(folder / "model" / "model.safetensors"))

    assert all(p.is_contiguous() for p in network.parameters())
    expected = load_file(plain / "model" / "model.safetensors")
    assert_same(dict(network.state_dict()), expected, atol=1e-2)  # ten steps of AdamW
    images = pictures(tmp_path / "pictures")
    for one, other in zip(predicted(folder, images), predicted(plain, images), strict=True):
        assert one["values"] == pytest.approx(other["values"], abs=1e-2)


def test_channels_last_needs_convolutions() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(UserError, match="channels_last: the network has no convolutions"):
        next(ChannelsLast().wrap_devices(model))


@pytest.mark.parametrize("other", ["bf16", "checkpointing", "ema", "bf16_pure"])
def test_channels_last_goes_with(other: str) -> None:
    sets = ("ema.warmup=false", "ema.decay=0.5") if other == "ema" else ()
    both, alone = (trained(*sets, plugins=plugins) for plugins in ((other, "channels_last"), (other,)))

    assert_same(both, alone, atol=1e-5 if other in {"checkpointing", "ema"} else 3e-2)


# compile


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_network_learns_the_same(backend: str) -> None:
    found = trained(f"compile.backend={backend}", plugins=("compile",))

    assert_same(found, trained())


def test_the_network_itself_is_what_is_compiled() -> None:
    parts, graphs = build("compile.backend=eager", "compile.fullgraph=true", plugins=("compile",)), []
    torch._dynamo.utils.counters.clear()

    fit(parts, Progress(), lambda _: None)

    graphs = [torch._dynamo.utils.counters["stats"]["unique_graphs"]]
    assert graphs[0] >= 2  # training and evaluation
    assert "layer1.0.weight" in dict(parts.network.named_parameters())


@pytest.mark.parametrize("also", [(), ("ema",)])
def test_names_in_saved_files_are_those_of_the_network(tmp_path: Path, also: tuple[str, ...]) -> None:
    folder = run(tmp_path / "run", "compile", *also, "compile.backend=eager")

    files = [file for file in folder.rglob("*.safetensors") if file.name != "state.safetensors"]
    (saved,) = folder.glob("checkpoints/*")
    optimizer = checkpoint.load_state(saved)["optimizer"]
    assert len(files) == 2 + len(also)
    assert {name for file in files for name in load_file(file)} == set(make_cnn(2).state_dict())
    assert set(optimizer["state"]) == {name for group in optimizer["groups"] for name in group["params"]}
    assert set(optimizer["state"]) == {name for name, _ in make_cnn(2).named_parameters()}
    assert len(predicted(folder, pictures(tmp_path / "pictures"))) == 5


@pytest.mark.parametrize("others", [("checkpointing",), ("channels_last", "bf16"), ("ema",)])
def test_compilation_goes_with(others: tuple[str, ...]) -> None:
    for order in (("compile", *others), (*others, "compile")):
        found = trained("compile.backend=aot_eager", plugins=order, steps=3)

        assert_same(found, trained(plugins=others, steps=3), atol=3e-2 if "bf16" in others else 1e-5)


# torch.compile looks at the features that supcon watches, and warns itself of it
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_program_of_an_earlier_network_is_not_used_again() -> None:
    trained("compile.backend=eager", plugins=("compile",), steps=2)

    assert_same(
        trained("compile.backend=eager", plugins=("compile", "supcon"), steps=2),
        trained(plugins=("supcon",), steps=2),
    )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("others", [(), ("checkpointing",)])
def test_inductor_learns_the_same(others: tuple[str, ...]) -> None:
    assert_same(trained(plugins=("compile", *others)), trained())


@pytest.mark.parametrize(
    ("plugins", "sets", "message"),
    [
        (("dp", "compile"), (), "compile does not work with dp"),
        (("compile", "dp"), (), "compile does not work with dp"),
        (("compile",), ("compile.backend=inductr",), r"'inductr' is not one of .*aot_eager.*eager.*inductor"),
        (
            ("compile",),
            ("compile.backend=eager", "compile.mode=max-autotune"),
            r"mode is for backend = \"inductor\", not 'eager' \(.*--set compile.mode=max-autotune",
        ),
        (("compile", "checkpointing"), ("compile.backend=eager",), "'eager' does not work with checkpointing"),
        (("checkpointing", "compile"), ("compile.backend=eager",), "'eager' does not work with checkpointing"),
    ],
)
def test_what_cannot_be_compiled_is_refused(plugins: tuple[str, ...], sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(*sets, plugins=plugins)


# checkpointing

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "digits/cnn": lambda: make_cnn(5),
    "timm/resnet18": lambda: timm.create_model("resnet18", num_classes=5, drop_path_rate=0.3),
    "timm/vit_tiny_patch16_224": lambda: timm.create_model(
        "vit_tiny_patch16_224", num_classes=5, img_size=32, drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.2
    ),
    "torchvision/mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=5, dropout=0.4),
}
HEADS = {
    "digits/cnn": "head",
    "timm/resnet18": "fc",
    "timm/vit_tiny_patch16_224": "head",
    "torchvision/mobilenet_v3_small": "classifier.3",
}


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """A network, and the same with checkpointing."""
    torch.manual_seed(0)
    plain = NETWORKS[name]().train()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # torchvision's 0.01 would hide a second update in the rounding
    saving = copy.deepcopy(plain)
    stages, layers = derive_stages(saving, [HEADS[name]])
    wrapper = Checkpointing().wrap_devices(saving, (HEADS[name],), Backbone(saving, (), stages=stages, blocks=layers))
    next(wrapper)
    return plain, saving


def images_for(name: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    channels, size = (1, 8) if name.startswith("digits") else (3, 32)
    return torch.randn(4, channels, size, size), torch.randint(5, (4,))


def learnt(model: nn.Module, name: str, *, bf16: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Gradients and buffers after a step, and the bytes that it kept for its backward pass."""
    images, targets = images_for(name)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = model(images)
        loss = functional.cross_entropy(outputs.float(), targets)
        size = sum(kept.values())
    loss.backward()  # type: ignore[no-untyped-call]
    drawn = {"the generator": torch.get_rng_state()}
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}, {**dict(model.named_buffers()), **drawn}, size


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_computing_again_gives_the_same_gradients_statistics_and_dropout_bit_for_bit(name: str, bf16: bool) -> None:  # noqa: FBT001
    plain, saving = pair(name)

    expected, found = (learnt(model, name, bf16=bf16) for model in (plain, saving))

    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)
    counts = [int(buffer) for buffer_name, buffer in found[1].items() if buffer_name.endswith("num_batches_tracked")]
    assert set(counts) <= {1}
    assert found[2] < 0.7 * expected[2]


@pytest.mark.parametrize("name", NETWORKS)
def test_only_the_blocks_that_learn_are_computed_again(name: str) -> None:
    """A frozen network keeps nothing, and its head learns as ever."""
    plain, saving = pair(name)
    for model in (plain, saving):
        for path, p in model.named_parameters():
            p.requires_grad_(is_submodule_of(path, [HEADS[name]]))
        for path, module in model.named_children():
            module.train(is_submodule_of(path, [HEADS[name]]))
    calls = {"plain": 0, "saving": 0}
    for label, model in (("plain", plain), ("saving", saving)):
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_hook(lambda *_, label=label: calls.update({label: calls[label] + 1}))

    expected, found = (learnt(model, name) for model in (plain, saving))

    torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)
    assert calls == {"plain": 1, "saving": 1}
    assert len(found[0]) == 3


def test_a_run_with_a_frozen_backbone_and_checkpointing_is_one_without() -> None:
    still = ("freeze_backbone", 'freeze_backbone.but=["layer3"]')
    found, expected = (trained(still[1], plugins=(still[0], *more)) for more in (("checkpointing",), ()))

    assert_same(found, expected, atol=0)


def test_a_copy_of_a_network_computes_its_own_blocks_again() -> None:
    """Averages are copies, and so are the replicas of `nn.DataParallel`."""
    _, saving = pair("digits/cnn")
    twin = copy.deepcopy(saving)
    block: Any = saving.get_submodule("layer1")
    replica = block._replicate_for_data_parallel()
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    replica._modules = {name: nn.Identity() for name in replica._modules}
    images, _ = images_for("digits/cnn")

    assert float(twin.get_submodule("layer1")(images).detach().abs().max()) == 0
    assert torch.equal(replica(images), images)


@pytest.mark.parametrize(
    "plugins", [("ema",), ("swa", "constant"), ("sam",), ("dp",), pytest.param(("fp16",), marks=pytest.mark.slow)]
)
def test_checkpointing_goes_with(plugins: tuple[str, ...]) -> None:
    sets = ("ema.decay=0.5",) if "ema" in plugins else ()
    found, expected = (build(*sets, plugins=(*plugins, *more)) for more in (("checkpointing",), ()))

    for parts in (found, expected):
        fit(parts, Progress(), lambda _: None)

    assert_same(dict(found.network.state_dict()), dict(expected.network.state_dict()), atol=0)
    assert_same(dict(found.model_at(0).state_dict()), dict(expected.model_at(0).state_dict()), atol=0)


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="checkpointing: no blocks were found"):
        build("model.weights=none", plugins=("checkpointing",), model="torchvision/vgg11")


def test_checkpointing_leaves_names_and_types_as_they_are() -> None:
    plain, saving = pair("timm/resnet18")

    assert list(saving.state_dict()) == list(plain.state_dict())
    assert [type(m).__name__ for m in saving.modules()] == [type(m).__name__ for m in plain.modules()]
    assert isinstance(saving.get_submodule("layer1.0"), timm.models.resnet.BasicBlock)


# what running statistics there are


def test_running_statistics_of_every_kind_stay_and_move_again_afterwards() -> None:
    from timm.layers import EvoNorm2dB0

    model = nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True), EvoNorm2dB0(3)).train()
    buffers = dict(model.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    images = 3 * torch.randn(8, 3, 4, 4) + 1

    with preserve_running_stats(model):
        model(images)
        assert all(model.get_buffer(name) is not buffer for name, buffer in buffers.items())

    assert all(model.get_buffer(name) is buffer for name, buffer in buffers.items())
    torch.testing.assert_close(buffers, before, rtol=0, atol=0)
    model(images)
    moved = {name for name, buffer in buffers.items() if not torch.equal(buffer, before[name])}
    assert moved == set(buffers) - {"1.num_batches_tracked"}  # which torch makes and does not count


def test_running_statistics_are_put_back_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    buffers = dict(model.named_buffers())

    with pytest.raises(RuntimeError, match="running_mean should contain 5 elements"), preserve_running_stats(model):
        model[0](torch.zeros(2, 5, 4, 4))

    assert all(model.get_buffer(name) is buffer for name, buffer in buffers.items())


# blocks

FAMILIES = [
    *("timm/resnet18", "timm/vit_tiny_patch16_224", "timm/convnext_atto", "timm/swin_tiny_patch4_window7_224"),
    *(
        "timm/efficientnet_b0",
        "timm/mobilenetv3_small_050",
        "timm/densenet121",
        "timm/regnety_002",
        "timm/beit_base_patch16_224",
    ),
    *("timm/mixer_s32_224", "timm/levit_128s", "timm/maxvit_tiny_tf_224", "timm/nfnet_f0", "timm/inception_v3"),
    *("torchvision/resnet18", "torchvision/vit_b_16", "torchvision/convnext_tiny", "torchvision/swin_t"),
    *("torchvision/efficientnet_b0", "torchvision/mobilenet_v3_small", "torchvision/densenet121"),
    *("torchvision/regnet_y_400mf", "torchvision/maxvit_t", "torchvision/googlenet", "torchvision/inception_v3"),
    *("torchvision/shufflenet_v2_x0_5", "torchvision/squeezenet1_1", "torchvision/mnasnet0_5"),
]


@cache
def backbone(name: str) -> Backbone:
    found = build_on_meta(lambda: HookCalls(activate(RunConfig())).build_model(name, "none"))
    assert isinstance(found, Backbone)
    found.module.to("meta")
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_are_found_in_every_family_and_hold_no_head(name: str) -> None:
    network = backbone(name)
    heads = [slot.path for slot in network.heads]

    blocks = block_modules(network.module, network.blocks, heads)

    assert len(blocks) > 2
    for path in blocks:
        assert not any(is_submodule_of(head, [path]) or is_submodule_of(path, [head]) for head in heads)
        assert not any(is_submodule_of(other, [path]) for other in blocks if other != path)
        assert not isinstance(network.module.get_submodule(path), nn.ModuleList | nn.ModuleDict)
    inside = sum(t.numel() for n, t in named_tensors(network.module).items() if is_submodule_of(n, blocks))
    outside = sum(
        t.numel() for n, t in named_tensors(network.module).items() if not is_submodule_of(n, [*blocks, *heads])
    )
    assert inside > 0.4 * (inside + outside)  # mobilenetv3_small_050 has a large convolution behind its blocks


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_calls_its_blocks(name: str) -> None:
    """A block whose forward nobody calls would keep all of its activations."""
    network = backbone(name)
    blocks = block_modules(network.module, network.blocks, [slot.path for slot in network.heads])
    called = set[str]()
    handles = [
        network.module.get_submodule(path).register_forward_hook(lambda *_, path=path: called.add(path))
        for path in blocks
    ]
    with torch.no_grad():
        network.module.eval()(torch.empty(2, 3, *network.input.size, device="meta"))
    for handle in handles:
        handle.remove()

    assert called == set(blocks)


def test_blocks_of_a_resnet_are_those_of_the_paper() -> None:
    network = backbone("timm/resnet18")

    found = block_modules(network.module, network.blocks, ["fc"])

    assert found == [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]


def test_a_module_that_is_or_holds_a_head_is_no_block() -> None:
    conv = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    model = nn.Sequential(conv, copy.deepcopy(conv), nn.Sequential(copy.deepcopy(conv), nn.Linear(1, 2)))
    _, layers = derive_stages(model, ["2.1"])

    assert block_modules(model, {**layers, "2.1.weight": 7, "2.1.bias": 7}, ["2.1"]) == ["0", "1"]
    whole = {name: 7 for name in named_tensors(model) if is_submodule_of(name, ["2"])}
    assert block_modules(model, {**layers, **whole}, ["2"]) == ["0", "1"]


def test_a_placement_comes_through_unchanged() -> None:
    plain, _ = pair("digits/cnn")
    _, layers = derive_stages(plain, ["head"])
    wrapper = Checkpointing().wrap_devices(plain, ("head",), Backbone(plain, (), blocks=layers))
    placement = Placement(torch.device("cpu"), plain, lambda model: model)
    next(wrapper)

    with pytest.raises(StopIteration) as stopped:
        wrapper.send(placement)

    assert stopped.value.value is placement
