"""A network that is spread over processes: what one process ends with, saved whole or in shares, read by any number."""

from __future__ import annotations

import json
import math
import re
import shutil
from copy import deepcopy
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.ranks.starting import call, messages, run
from tests.ranks.test_same_results import SETTINGS, STILL, arguments, epochs, numbers

from ftcore.checkpoints.sharded import FIRST_ROW_KEY, ShardedReader, write_safetensors_streaming
from ftcore.config.load import CliOverrides, load_config
from ftcore.distributed.dtensor import full_tensor, is_sharded, local_row_range, local_tensor
from ftcore.distributed.rendezvous import process_session
from ftcore.inference.load import load as load_model
from ftcore.model.freezing import state_digest
from ftcore.model.stages import derive_stages
from ftcore.reports.memory_estimate import measure
from ftcore.runs.prepared import prepare
from ftcore.testing import invoke
from ftcore.training.loop import accumulation_windows, compute_gradient
from ftcore.training.state import Progress
from ftcore_plugins.devices.fsdp_module import shardable_blocks

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

SHARDED = ("--set", "fsdp.checkpoints=sharded")
MOST = {name: options for name, options in SETTINGS.items() if name != "bf16 weights" and "once" not in name}


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


def weights(folder: Path) -> dict[str, Tensor]:
    """Of the newest checkpoint, however it was written; of the average, too."""
    stems = [name for name in ("model", "average") if (newest(folder) / f"{name}.safetensors").is_file()]
    stored = {stem: ShardedReader(newest(folder), stem) for stem in stems}
    return {f"{stem} {name}": files[name] for stem, files in stored.items() for name in files}


@pytest.mark.slow
@pytest.mark.parametrize("options", MOST.values(), ids=MOST)
def test_two_processes_end_with_what_one_ends_with(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert run(*arguments(tmp_path / "1", *options), ranks=1, log=tmp_path / "log-1") == [0]

    codes = run(*arguments(tmp_path / "2", *options, "--plugin", "fsdp"), ranks=2, log=tmp_path / "log-2")

    assert codes == [0, 0], messages(tmp_path / "log-2", 2)
    torch.testing.assert_close(weights(tmp_path / "2"), weights(tmp_path / "1"), rtol=0, atol=1e-5)
    assert numbers(epochs(tmp_path / "2")) == pytest.approx(numbers(epochs(tmp_path / "1")), abs=1e-4)
    (best, expected) = (load_file(tmp_path / name / "model" / "model.safetensors") for name in "21")
    torch.testing.assert_close(best, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "sharded"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_processes_goes_on_with_what_two_have_saved(kind: str, ranks: int, tmp_path: Path) -> None:
    options = (*STILL, "--plugin", "fsdp", "--plugin", "ema", "--plugin", "adamw", "--set", f"fsdp.checkpoints={kind}")
    sets = ("--set", "run.save_every=4 step", "--set", "run.keep=99")
    argued = [word for word in arguments(tmp_path / "run", *options, *sets) if word != "sgd"]
    argued.pop(argued.index("--plugin"))
    assert run(*argued, ranks=2, log=tmp_path / "log") == [0, 0], messages(tmp_path / "log", 2)
    expected, lines = weights(tmp_path / "run"), epochs(tmp_path / "run")
    for folder in sorted((tmp_path / "run" / "checkpoints").iterdir())[2:]:
        shutil.rmtree(folder)

    codes = run("resume", tmp_path / "run", ranks=ranks, log=tmp_path / "log-again")

    assert codes == [0] * ranks, messages(tmp_path / "log-again", ranks)
    found = weights(tmp_path / "run")
    if ranks == 2:
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert numbers(epochs(tmp_path / "run")) == pytest.approx(numbers(lines), abs=1e-4)
    assert (len(list(newest(tmp_path / "run").glob("rows-*"))) or ranks) == ranks


@pytest.mark.slow
def test_a_process_writes_no_more_than_its_share(tmp_path: Path) -> None:
    options = (*SHARDED, "--plugin", "fsdp", "--plugin", "ema", "--set", "train.epochs=1")
    assert run(*arguments(tmp_path / "run", *options), ranks=4, log=tmp_path / "log") == [0] * 4

    elements = [0] * 4
    for rank, file in enumerate(sorted(newest(tmp_path / "run").glob("rows-*.safetensors"))):
        with safe_open(file, framework="pt") as opened:
            elements[rank] = sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118
    parameters = sum(p.numel() for p in load_model(tmp_path / "run").module.parameters())
    assert sum(elements) == 3 * parameters  # of the network, its average and the momentum
    assert max(elements) < 0.3 * sum(elements)
    state = json.loads((newest(tmp_path / "run") / "state.json").read_text())
    assert state["progress"]["epoch"] == 1


@pytest.mark.slow
def test_a_checkpoint_of_which_a_share_is_gone_is_damaged(tmp_path: Path) -> None:
    assert run(*arguments(tmp_path / "run", *SHARDED, "--plugin", "fsdp"), ranks=2, log=tmp_path / "log") == [0, 0]
    last = newest(tmp_path / "run")
    (last / "rows-00001.safetensors").unlink()

    assert run("resume", tmp_path / "run", ranks=2, log=tmp_path / "log-again") == [0, 0]

    assert f"{last} is damaged" in (tmp_path / "log-again-0").read_text()
    assert (last / "rows-00001.safetensors").is_file()


def spread_and_copied() -> list[Any]:
    """What this process has of a network, of a copy, and of what it writes."""
    with process_session() as here_and_there:
        config = load_config(
            None, CliOverrides("digits/cnn", "digits:5-6", plugins=("fsdp", "sgd"), sets=("train.batch_size=8",))
        )
        plain = prepare(config).assembly.parts.network
        parts = prepare(config, ranks=here_and_there).assembly.parts
        network, twin = parts.network, deepcopy(parts.network)
        copies = zip(network.parameters(), twin.parameters(), strict=True)
        mine = sum(local_tensor(p).numel() for p in network.parameters())
        learnt = {name: full_tensor(p).detach() for name, p in network.named_parameters()}
        write_safetensors_streaming(network.state_dict(), None)
        with torch.no_grad():
            next(twin.parameters()).fill_(7.0)
        return [
            all(map(is_sharded, [*network.parameters(), *twin.parameters()])),
            all(
                local_tensor(one).data_ptr() != local_tensor(other).data_ptr()
                for one, other in copies
                if local_tensor(one).numel()
            ),
            sum(bool((full_tensor(p) == 7).all()) for p in network.parameters()),
            mine,
            all(torch.equal(learnt[name], p) for name, p in plain.named_parameters()),
            parts.placement.sharding is not None and parts.placement.sharding.weights == state_digest(plain),
        ]


def test_each_process_has_rows_of_each_parameter_and_a_copy_is_spread_as_well(tmp_path: Path) -> None:
    answers = call(spread_and_copied, ranks=2, folder=tmp_path)

    total = sum(
        p.numel()
        for p in prepare(
            load_config(None, CliOverrides("digits/cnn", "digits:5-6"))
        ).assembly.parts.network.parameters()
    )
    for spread, apart, changed, _, same, digest in answers:
        assert (spread, apart, changed, same, digest) == (True, True, 0, True, True)
    assert sum(answer[3] for answer in answers) == total
    assert max(answer[3] for answer in answers) < 0.55 * total


def taken_of_memory() -> list[int]:
    """What `explain --devices 2` says that this process has of parameters, gradients and optimizer, and what it has."""
    with process_session() as ranks:
        config = load_config(
            None, CliOverrides("digits/cnn", "digits:5-6", plugins=("fsdp",), sets=("train.batch_size=8",))
        )
        said = measure(prepare(config).assembly.parts).per_device(2, spread=True)
        parts = prepare(config, ranks=ranks).assembly.parts
        window = next(accumulation_windows(parts.data.train.epoch(0), 1))
        parts.placement.model.train()
        compute_gradient(parts, window, Progress())
        parameters = list(parts.network.parameters())
        gradients = [parameter.grad for parameter in parameters]
        parts.optimization.optimizer.step()
        states = [tensor for state in parts.optimization.optimizer.state.values() for tensor in state.values()]
        has = [sum(local_tensor(t).nbytes for t in tensors) for tensors in (parameters, gradients, states)]
        return [*has, *(said[name] for name in ("parameters", "gradients", "optimizer state"))]


def test_explain_says_what_each_process_takes_of_memory(tmp_path: Path) -> None:
    answers = call(taken_of_memory, ranks=2, folder=tmp_path)

    for *has, parameters, gradients, optimizer in answers:
        assert has == pytest.approx([parameters, gradients, optimizer], rel=0.15)


def test_what_is_streamed_is_what_safetensors_reads(tmp_path: Path) -> None:
    dtypes = (torch.float32, torch.bool, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.float16)
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in dtypes}
    tensors |= {"transposed": torch.rand(3, 2).T, "number": torch.tensor(3.5), "nothing": torch.zeros(0, 4)}

    write_safetensors_streaming(tensors, tmp_path / "a.safetensors")

    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


@pytest.mark.parametrize("cuts", [(0, 7), (0, 3, 7), (0, 2, 4, 7, 7)])
def test_rows_of_any_share_are_read_from_the_shares_of_others(cuts: tuple[int, ...], tmp_path: Path) -> None:
    given = torch.rand(7, 3)
    for rank, (begin, end) in enumerate(pairwise(cuts)):
        first = {FIRST_ROW_KEY: json.dumps({"model/a": begin})}
        save_file({"model/a": given[begin:end]}, tmp_path / f"rows-{rank:05d}.safetensors", first)
    save_file({"b": torch.tensor(5.0)}, tmp_path / "model.safetensors")

    stored = ShardedReader(tmp_path, "model")

    assert set(stored) == {"a", "b"}
    assert (stored.shape("a"), stored.shape("b")) == ((7, 3), ())
    assert (torch.equal(stored["a"], given), float(stored["b"])) == (True, 5.0)
    for begin in range(8):
        for end in range(begin, 8):
            assert torch.equal(stored.read("a", begin, end), given[begin:end])
    with pytest.raises(ValueError, match="not the same tensors: b, c"):
        stored.fill({"a": torch.zeros(7, 3), "c": torch.zeros(1)})
    with pytest.raises(ValueError, match="not the same tensors: a"):
        stored.fill({"a": torch.zeros(7, 4), "b": torch.zeros(())})
    filled = torch.zeros(7, 3)
    stored.fill({"a": filled, "b": torch.zeros(())})
    assert torch.equal(filled, given)
    assert local_row_range(filled) == (0, None)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: timm.create_model("resnet18"), [f"layer{n}.{block}" for n in range(1, 5) for block in range(2)]),
        (lambda: timm.create_model("vit_tiny_patch16_224"), [f"blocks.{block}" for block in range(12)]),
        (torchvision.models.convnext_tiny, ["features.1.0", "features.1.1", "features.1.2"]),
        (torchvision.models.vit_b_16, [f"encoder.layers.encoder_layer_{block}" for block in range(12)]),
    ],
    ids=["resnet", "vit", "convnext of torchvision", "vit of torchvision"],
)
def test_the_blocks_are_the_architectures_own(build: Any, expected: list[str]) -> None:
    with torch.device("meta"):
        network: nn.Module = build()

    found = shardable_blocks(network, derive_stages(network, [])[1])

    assert [path for path in found if path in expected] == expected
    under = [name for name, _ in network.named_parameters() if any(name.startswith(f"{path}.") for path in found)]
    assert len(under) == len(set(under)) > 0.8 * len(list(network.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--set", "train.on_oom=halve"),
            "train.on_oom = 'halve' does not work with fsdp, whose forward passes synchronise all",
        ),
        (
            ("--set", "run.async_save=true"),
            "run.async_save does not work with fsdp, which writes a ",
        ),
        (
            ("--set", "fsdp.backend=nccl"),
            'fsdp.backend = "nccl" is for CUDA, and this run is on cpu, where it must be ',
        ),
        (
            ("--set", "train.batch_size=1"),
            "train.batch_size = 1 is the total over all processes, but there are ",
        ),
        (("--set", "sgd.fused=true"), "sgd.fused = true: the kernel takes real parameters on cpu or cuda, not "),
    ],
)
def test_what_cannot_be_spread_is_refused(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    codes = run(*arguments(tmp_path / "run", *options, "--plugin", "fsdp"), ranks=2, log=tmp_path / "log", seconds=60)

    said = messages(tmp_path / "log", 2)
    assert codes == [2, 2]
    assert len(said) == 1
    assert said[0].startswith(f"ftcore: {message}")


@pytest.mark.slow
def test_an_optimizer_that_takes_whole_parameters_is_refused_with_a_way_out(tmp_path: Path) -> None:
    given = [word if word != "sgd" else "timm_optim" for word in arguments(tmp_path / "run", "--plugin", "fsdp")]

    codes = run(
        *given,
        "--set",
        "timm_optim.name=adamp",
        "--set",
        "timm_optim.lr=0.01",
        ranks=2,
        log=tmp_path / "log",
        seconds=60,
    )

    said = messages(tmp_path / "log", 2)
    assert codes == [2, 2], said
    assert re.match(
        r"ftcore: timm/optim/adamp.py, line \d+, uses an operation that torch does not support on sharded "
        "parameters; another optimizer or setting, or ddp, may do",
        said[0],
    )


@pytest.mark.slow
def test_what_is_gathered_in_bfloat16_learns_the_same(tmp_path: Path) -> None:
    assert run(*arguments(tmp_path / "1"), ranks=1, log=tmp_path / "log-1") == [0]

    options = ("--plugin", "fsdp", "--set", "fsdp.dtype=bfloat16")
    codes = run(*arguments(tmp_path / "2", *options), ranks=2, log=tmp_path / "log-2")

    assert codes == [0, 0], messages(tmp_path / "log-2", 2)
    kept, expected = weights(tmp_path / "2"), weights(tmp_path / "1")
    assert {tensor.dtype for name, tensor in kept.items() if "weight" in name} == {torch.float32}
    distance = sum(float((kept[name] - tensor).float().square().sum()) for name, tensor in expected.items())
    assert 1e-9 < distance < 0.05 * sum(float(tensor.float().square().sum()) for tensor in expected.values())


def test_one_process_that_nobody_started_is_told_how(tmp_path: Path) -> None:
    said = invoke(*arguments(tmp_path / "run", "--plugin", "fsdp"))

    assert said.code == 2
    assert "fsdp needs several processes: start with ftcore run --nproc 2, torchrun, srun or a PyTorchJob" in said.err
