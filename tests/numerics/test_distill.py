"""Learning from a teacher."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torchvision.transforms.v2 import functional

from ftcore import Backbone, EpochEnded, ForwardPass, HeadSlot, InputSpec, StepLogged, UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.inference import load as saved
from ftcore.inference.ensemble import create_ensemble
from ftcore.runs.prepared import prepare
from ftcore.testing import image_folder, invoke
from ftcore.training.loop import fit
from ftcore.training.state import Progress
from ftcore_plugins.steps.distillation import _by_name, distillation_loss, renormalise_and_resize
from ftcore_plugins.tasks import Classification, Regression

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ftcore import Event
    from ftcore.data.loader import Batch
    from ftcore.training.state import TrainingParts


def build(
    *sets: str, plugins: tuple[str, ...] = ("distill",), data: str | Path = "digits:5-6", model: str = "digits/cnn"
) -> TrainingParts:
    flags = CliOverrides(model, str(data), plugins=plugins, sets=("train.epochs=1", "train.log_every=1", *sets))
    return prepare(load_config(None, flags)).assembly.parts


def train(parts: TrainingParts) -> list[Event]:
    events: list[Event] = []
    fit(attrs.evolve(parts, observers=(events.append,)), Progress(), lambda _: None)
    return events


def run(folder: Path, *sets: str, data: str | Path = "digits:5-6", model: str = "digits/cnn") -> Path:
    """A teacher that is trained, badly."""
    texts = (f"run.folder={folder}", "train.epochs=1", "adamw.lr=0.003", *sets)
    result = invoke("run", "--data", data, "--model", model, *(part for text in texts for part in ("--set", text)))
    assert result.code == 0, result.err
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "teacher")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another seed, normalisation and size."""
    sets = ("train.seed=7", "model.mean=0.5", "model.std=0.25", "model.image_size=12")
    return run(tmp_path_factory.mktemp("runs") / "other", *sets)


def first(parts: TrainingParts) -> Batch:
    return next(parts.data.train.epoch(0))


def term(parts: TrainingParts, batch: Batch, outputs: Tensor) -> Tensor:
    return parts.objective.step.terms["distill"](ForwardPass(batch.images, batch.targets, outputs, lambda _: outputs))


def kl(wanted: Tensor, outputs: Tensor, temperature: float) -> float:
    """T^2 KL of probabilities, with torch's own loss."""
    log_q, p = (outputs / temperature).log_softmax(1), (wanted / temperature).softmax(1)
    return float(nn.KLDivLoss(reduction="batchmean")(log_q, p)) * temperature**2


Outputs = st.tuples(st.integers(1, 6), st.integers(2, 5), st.floats(0.1, 6), st.integers(0, 999))
Temperature = st.floats(0.5, 8)


def two(drawn: tuple[int, int, float, int]) -> tuple[Tensor, Tensor]:
    rows, columns, scale, seed = drawn
    outputs, wanted = scale * torch.randn(
        2, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return outputs.requires_grad_(), wanted


@given(drawn=Outputs, temperature=Temperature)
def test_over_classes_it_is_the_divergence_from_the_teacher(
    drawn: tuple[int, int, float, int], temperature: float
) -> None:
    outputs, wanted = two(drawn)

    found = distillation_loss(outputs, wanted, "classification", temperature)
    found.backward()  # type: ignore[no-untyped-call]

    assert float(found.detach()) == pytest.approx(kl(wanted, outputs.detach(), temperature), rel=1e-6, abs=1e-9)
    p, q = (Categorical(logits=x.detach() / temperature) for x in (wanted, outputs))
    assert float(found.detach()) == pytest.approx(
        temperature**2 * float(kl_divergence(p, q).mean()), rel=1e-6, abs=1e-9
    )
    gradient = temperature * (q.probs - p.probs) / len(outputs)  # arXiv:1503.02531, eq. 2, times T^2
    torch.testing.assert_close(outputs.grad, gradient, rtol=1e-6, atol=1e-9)


@given(drawn=Outputs, temperature=Temperature)
def test_over_labels_it_is_the_mean_over_each_label_and_its_absence(
    drawn: tuple[int, int, float, int], temperature: float
) -> None:
    outputs, wanted = two(drawn)
    p, q = (Bernoulli(logits=x.detach() / temperature) for x in (wanted, outputs))

    found = float(distillation_loss(outputs, wanted, "multilabel", temperature).detach())

    assert found == pytest.approx(temperature**2 * float(kl_divergence(p, q).mean()), rel=1e-6, abs=1e-9)


@given(drawn=Outputs)
def test_over_numbers_it_is_the_mean_squared_difference(drawn: tuple[int, int, float, int]) -> None:
    outputs, wanted = two(drawn)

    found = float(distillation_loss(outputs, wanted, "regression", 2.0).detach())

    assert found == pytest.approx(float(((outputs - wanted) ** 2).detach().mean()), rel=1e-9)


@given(drawn=Outputs, temperature=Temperature, kind=st.sampled_from(["classification", "multilabel", "regression"]))
def test_a_teacher_that_agrees_asks_for_nothing(
    drawn: tuple[int, int, float, int], temperature: float, kind: str
) -> None:
    outputs, _ = two(drawn)

    found = distillation_loss(outputs, outputs.detach().clone(), kind, temperature)
    found.backward()  # type: ignore[no-untyped-call]

    assert outputs.grad is not None
    assert (float(found.detach()), float(outputs.grad.abs().max())) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_a_student_with_the_weights_of_its_teacher_is_asked_for_nothing(teacher: Path) -> None:
    parts = build(f"distill.teacher={teacher}", plugins=("distill", "freeze_norm"))
    parts.network.load_state_dict(load_file(teacher / "model" / "model.safetensors"))
    batch = first(parts)

    found = term(parts, batch, parts.network.eval()(batch.images))
    found.backward()  # type: ignore[no-untyped-call]

    assert float(found.detach()) == pytest.approx(0.0, abs=1e-9)
    assert all(float(p.grad.abs().max()) < 1e-6 for p in parts.network.parameters() if p.grad is not None)


@pytest.mark.parametrize("temperature", [2.0, 5.0])
def test_the_term_is_strength_times_the_divergence_of_a_pass(teacher: Path, temperature: float) -> None:
    given_ = () if temperature == 2.0 else (f"distill.temperature={temperature}",)
    parts = build(f"distill.teacher={teacher}", "distill.strength=0.3", *given_)
    batch = first(parts)
    outputs, network = torch.randn(len(batch.targets), 2), saved.load(teacher).module

    found = float(term(parts, batch, outputs))

    with torch.no_grad():
        assert found == pytest.approx(0.3 * kl(network(batch.images), outputs, temperature), rel=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (5, 5), (20, 14)])
def test_the_teacher_sees_the_same_pictures_in_its_own_size_and_normalisation(size: tuple[int, int]) -> None:
    raw = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    student = InputSpec((8, 8), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    teacher = InputSpec(size, mean=(0.5, 0.4, 0.3), std=(0.2, 0.1, 0.3))

    found = renormalise_and_resize(functional.normalize(raw, [*student.mean], [*student.std]), student, teacher)

    expected = functional.resize(raw, [*size], antialias=True)
    torch.testing.assert_close(found, functional.normalize(expected, [*teacher.mean], [*teacher.std]))


def test_a_teacher_of_another_size_and_normalisation_answers_as_it_does_alone(tmp_path: Path) -> None:
    folder = run(tmp_path / "teacher", "model.mean=0.6", "model.std=0.2")
    parts, model = build(f"distill.teacher={folder}"), saved.load(folder)
    batch = first(parts)
    pictures = [parts.data.train.samples[int(index)][0] for index in batch.indices]
    images = model.transforms.on_device(torch.stack([model.transforms.evaluate(picture) for picture in pictures]))
    outputs = torch.randn(len(images), 2)

    found = float(term(parts, batch, outputs))

    with torch.no_grad():
        assert found == pytest.approx(kl(model.module(images), outputs, 2.0), rel=1e-4)


def changed(folder: Path, run: Path, edit: Any) -> Path:
    """A copy of a run whose description and weights are edited."""
    (folder / "model").mkdir(parents=True)
    description = json.loads((run / "model" / "model.json").read_text())
    tensors = load_file(run / "model" / "model.safetensors")
    del description["reference"]  # what the network answered before it was edited
    edit(description, tensors)
    (folder / "model" / "model.json").write_text(json.dumps(description))
    save_file(tensors, folder / "model" / "model.safetensors")
    return folder


def test_classes_in_another_order_are_matched_by_name(teacher: Path, tmp_path: Path) -> None:
    def reverse(description: Any, tensors: dict[str, Tensor]) -> None:
        description["task"]["state"]["names"].reverse()
        tensors |= {name: tensors[name].flip(0) for name in ("head.weight", "head.bias")}

    parts = build(f"distill.teacher={teacher}")
    turned = build(f"distill.teacher={changed(tmp_path / 'turned', teacher, reverse)}")
    batch = first(parts)
    outputs = torch.randn(len(batch.targets), 2)

    assert float(term(turned, batch, outputs)) == pytest.approx(float(term(parts, batch, outputs)), rel=1e-6)


def test_numbers_are_compared_in_the_students_standardisation(tmp_path: Path) -> None:
    def shift(description: Any, _: dict[str, Tensor]) -> None:
        description["task"]["state"] |= {"mean": [3.0], "std": [4.0]}

    folder = changed(tmp_path / "b", run(tmp_path / "a", "data.task=regression"), shift)
    parts = build("data.task=regression", f"distill.teacher={folder}")
    batch = first(parts)
    outputs = torch.randn(len(batch.targets), 1)
    task = parts.data.task
    assert isinstance(task, Regression)
    with torch.no_grad():
        wanted = (saved.load(folder).module(batch.images) * 4.0 + 3.0 - task.mean[0]) / task.std[0]

    assert float(term(parts, batch, outputs)) == pytest.approx(float((outputs - wanted).square().mean()), rel=1e-5)


def test_an_ensemble_teaches_the_mean_of_its_probabilities(teacher: Path, other: Path, tmp_path: Path) -> None:
    create_ensemble([teacher, other], tmp_path / "both", [3, 1])
    parts, model = build(f"distill.teacher={tmp_path / 'both'}", "distill.temperature=1"), saved.load(tmp_path / "both")
    batch = first(parts)
    outputs = torch.randn(len(batch.targets), 2)
    raw = batch.images.double() * 0.38 + 0.3
    resized = functional.resize(raw, [12, 12], antialias=True)
    one, two = (member.module.double() for member in model.members)
    with torch.no_grad():
        p = 0.75 * one((raw - 0.3) / 0.38).softmax(1) + 0.25 * two((resized - 0.5) / 0.25).softmax(1)

    found = float(term(parts, batch, outputs))

    assert found == pytest.approx(
        float(nn.KLDivLoss(reduction="batchmean")(outputs.double().log_softmax(1), p)), rel=1e-4
    )


def test_an_ensemble_that_is_certain_still_gives_a_finite_term(teacher: Path, other: Path, tmp_path: Path) -> None:
    def certain(_: Any, tensors: dict[str, Tensor]) -> None:
        tensors["head.weight"] *= 1e5

    runs = [changed(tmp_path / str(place), run, certain) for place, run in enumerate((teacher, teacher))]
    create_ensemble(runs, tmp_path / "both")
    parts = build(f"distill.teacher={tmp_path / 'both'}")
    batch = first(parts)

    assert term(parts, batch, torch.randn(len(batch.targets), 2)).isfinite()


@pytest.mark.parametrize(
    ("sets", "data", "message"),
    [
        ((), "digits:6-7", "knows the classification 5, 6; this is the classification 6, 7"),
        ((), "digits:5-7", "knows the classification 5, 6; this is the classification 5, 6, 7"),
        (("data.task=regression",), "digits:5-6", "knows the classification 5, 6; this is the regression digit"),
    ],
)
def test_a_teacher_of_something_else_is_refused(teacher: Path, sets: tuple[str, ...], data: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(f"distill.teacher={teacher}", *sets, data=data)


def test_a_teacher_of_other_channels_is_refused_before_the_first_step(tmp_path: Path) -> None:
    pictures = image_folder(tmp_path / "pictures", ("5", "6"))
    folder = run(
        tmp_path / "teacher", "model.weights=none", "model.image_size=32", data=pictures, model="timm/test_resnet"
    )

    with pytest.raises(UserError, match="distill: the teacher takes 3 channels, the student 1"):
        build(f"distill.teacher={folder}")


def test_a_network_of_other_classes_is_refused_before_there_is_a_run_folder(tmp_path: Path) -> None:
    pictures = image_folder(tmp_path / "pictures")
    sets = (
        "distill.teacher=timm/test_resnet",
        "distill.weights=none",
        f"run.folder={tmp_path / 'run'}",
        "model.weights=none",
    )
    options = [part for text in sets for part in ("--set", text)]

    result = invoke("run", "--data", pictures, "--model", "timm/test_vit", "--plugin", "distill", *options)

    assert result.code == 2
    assert "distill.teacher = 'timm/test_resnet' has 1000 classes, the data has 3 (blue, green, red)" in result.err
    assert not (tmp_path / "run").exists()


def test_a_network_by_name_teaches_what_it_says() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 8, 2))
    spec = InputSpec((8, 8), 1, (0.1,), (0.2,))
    ask = _by_name(
        "my/net",
        Backbone(module, (HeadSlot("2", 64),), spec),
        spec,
        Classification(("a", "b")),
        torch.device("cpu"),
    )
    images = torch.randn(5, 1, 8, 8)

    torch.testing.assert_close(ask(images), module[2](images.flatten(1)))
    assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ((), "distill needs a teacher"),
        (("distill.teacher=nowhere",), "nowhere is not a run folder with a model"),
        (("distill.teacher=nowhere", "distill.weights=none"), "distill.weights is for a network by name"),
    ],
)
def test_a_teacher_that_is_not_there_is_refused(sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(*sets)


def test_a_temperature_for_numbers_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "teacher", "data.task=regression")

    with pytest.raises(UserError, match=r"distill.temperature has no effect in regression"):
        build(f"distill.teacher={folder}", "data.task=regression", "distill.temperature=3")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_teacher_neither_learns_nor_leaves_eval_mode(teacher: Path, precision: str) -> None:
    parts = build(f"distill.teacher={teacher}", plugins=("distill", precision))
    batch = first(parts)
    outputs = torch.randn(len(batch.targets), 2)
    before = term(parts, batch, outputs)

    train(parts)

    assert torch.equal(term(parts, batch, outputs), before)
    rows = [slice(place, place + 1) for place in range(len(outputs))]
    each = [float(term(parts, type(batch)(*(part[row] for part in batch)), outputs[row])) for row in rows]
    assert sum(each) / len(each) == pytest.approx(float(before), rel=1e-2 if precision == "bf16" else 1e-4)


def test_a_teacher_changes_nothing_that_a_run_draws(teacher: Path) -> None:
    student = ("mlp_head", "sgd", "augment")
    plain = build("mlp_head.std=0.1", "sgd.lr=0.05", plugins=student)
    taught = build(
        "mlp_head.std=0.1",
        "sgd.lr=0.05",
        f"distill.teacher={teacher}",
        "distill.strength=1e-20",
        plugins=(*student, "distill"),
    )
    assert all(torch.equal(p, q) for p, q in zip(plain.network.parameters(), taught.network.parameters(), strict=True))

    losses = [[e.loss for e in train(parts) if isinstance(e, StepLogged)] for parts in (plain, taught)]

    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


@pytest.mark.parametrize("order", [("sam", "distill", "r_drop"), ("r_drop", "distill", "sam")])
def test_all_of_them_work_in_one_run(teacher: Path, order: tuple[str, ...]) -> None:
    parts = build(f"distill.teacher={teacher}", "train.accumulate=2", plugins=(*order, "l1", "ema", "mlp_head"))
    names = {"loss", "l1", "distill", "r_drop"}

    *steps, ended = train(parts)

    assert isinstance(ended, EpochEnded)
    assert ended.train.keys() == names
    assert all({"loss", *step.loss_terms} == names for step in steps if isinstance(step, StepLogged))
    assert all(torch.tensor(value).isfinite() for value in ended.train.values())


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_the_teacher_sees_mixed_pictures(teacher: Path, mixing: str) -> None:
    ended = train(build(f"distill.teacher={teacher}", plugins=("distill", mixing)))[-1]

    assert isinstance(ended, EpochEnded)
    assert ended.train["distill"] > 0


def test_a_good_teacher_teaches_a_student_that_sees_no_targets(teacher: Path) -> None:
    parts = build(f"distill.teacher={teacher}", "distill.strength=20", "adamw.lr=0.003", "train.epochs=4")
    blind = attrs.evolve(
        parts,
        objective=attrs.evolve(
            parts.objective, loss=attrs.evolve(parts.objective.loss, function=lambda outputs, _: outputs.sum() * 0)
        ),
    )
    network, batch = saved.load(teacher).module, first(parts)

    train(blind)

    with torch.no_grad():
        wanted, found = network(batch.images).argmax(1), copy.deepcopy(parts.network).eval()(batch.images).argmax(1)
    assert float((wanted == found).float().mean()) > 0.9
