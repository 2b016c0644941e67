"""The losses against torch, torchvision, timm, scipy, or the paper's equation written out in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import torch
from scipy.stats import energy_distance, wasserstein_distance
from structlog.testing import capture_logs
from timm.loss import AsymmetricLossMultiLabel, AsymmetricLossSingleLabel
from timm.loss import BinaryCrossEntropy as TimmBinaryCrossEntropy
from torch.nn import functional
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from ftcore import Context, Loss, Task, UserError
from ftcore.testing import invoke
from ftcore_plugins.losses.bce import BinaryCrossEntropy, BinaryCrossEntropyConfig
from ftcore_plugins.losses.cross_entropy import CrossEntropy, CrossEntropyConfig, LogitAdjustment, LogitAdjustmentConfig
from ftcore_plugins.losses.focal import Asymmetric, AsymmetricConfig, Focal, FocalConfig
from ftcore_plugins.losses.ordinal import Ordinal, OrdinalConfig
from ftcore_plugins.losses.regression import Huber, HuberConfig, MeanAbsoluteError, MeanSquaredError
from ftcore_plugins.tasks import Classification, Multilabel, Regression

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = Classification(("healthy", "mild", "severe"), counts=(60, 30, 10), images=100)
LABELS = Multilabel(("boat", "car", "dog"), counts=(50, 10, 25), images=100)
NUMBERS = Regression(("age", "weight"), images=100, mean=(40.0, 70.0), std=(10.0, 12.0))


def outputs(kind: str = "classification", images: int = 48) -> tuple[Tensor, Tensor]:
    """Logits (N, 3) float64, and targets of a kind: indices, soft (probabilities), or labels."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(images, 3, generator=generator, dtype=torch.float64)
    if kind == "classification":
        return logits, torch.randint(3, (images,), generator=generator)
    uniform = torch.rand(images, 3, generator=generator, dtype=torch.float64)
    return logits, uniform / uniform.sum(dim=1, keepdim=True) if kind == "soft" else (uniform > 0.6).double()


def answer(plugin: Any, task: Task = CLASSES) -> Loss:
    """The plugin's loss, which must be one."""
    named = Context(Path(), structlog.get_logger(), named=True)  # for classification it answers only then
    loss = plugin.make_loss(task, named) if isinstance(plugin, BinaryCrossEntropy | Ordinal) else plugin.make_loss(task)
    assert isinstance(loss, Loss)
    return loss


def value(plugin: Any, logits: Tensor, targets: Tensor, task: Task = CLASSES) -> Tensor:
    """The plugin's loss in float64."""
    function = answer(plugin, task).function
    found: Tensor = (function.double() if isinstance(function, torch.nn.Module) else function)(logits, targets)
    return found


# cross_entropy and logit_adjustment


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("kind", ["classification", "soft"])
def test_cross_entropy_with_label_smoothing_is_its_formula(smoothing: float, kind: str) -> None:
    logits, targets = outputs(kind)

    found = value(CrossEntropy(CrossEntropyConfig(label_smoothing=smoothing)), logits, targets)

    hard = torch.eye(3, dtype=torch.float64)[targets] if kind == "classification" else targets
    expected = -((hard * (1 - smoothing) + smoothing / 3) * logits.softmax(dim=1).log()).sum(dim=1).mean()
    assert_close(found, expected)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_logit_adjustment_is_equation_10_of_the_paper(tau: float) -> None:
    logits, targets = outputs()

    found = value(LogitAdjustment(LogitAdjustmentConfig(tau)), logits, targets)

    weighed = logits.exp() * torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64) ** tau
    of_target = weighed[torch.arange(len(targets)), targets]
    assert_close(found, -(of_target / weighed.sum(dim=1)).log().mean(), rtol=1e-6, atol=1e-6)


def test_logit_adjustment_shows_the_priors_and_needs_the_counts() -> None:
    (table,) = answer(LogitAdjustment(LogitAdjustmentConfig())).tables

    assert table.columns == ("class", "images", "prior")
    assert table.rows == (("healthy", "60", "0.6"), ("mild", "30", "0.3"), ("severe", "10", "0.1"))
    without = Classification(CLASSES.names)
    with pytest.raises(UserError, match=r"logit_adjustment needs the number .* healthy, mild, severe; .* none"):
        LogitAdjustment(LogitAdjustmentConfig()).make_loss(without)


# focal


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_is_equation_5_of_the_paper(gamma: float) -> None:
    logits, targets = outputs()

    found = value(Focal(FocalConfig(gamma, (0.2, 1.0, 3.0))), logits, targets)

    p_t = logits.softmax(dim=1)[torch.arange(len(targets)), targets]
    alpha_t = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)[targets]
    assert_close(found, (-alpha_t * (1 - p_t) ** gamma * p_t.log()).mean(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_of_soft_targets_is_the_mean_of_that_of_each_class(gamma: float) -> None:
    logits, targets = outputs("soft")

    found = value(Focal(FocalConfig(gamma)), logits, targets)

    p = logits.softmax(dim=1)
    assert_close(found, -(targets * (1 - p) ** gamma * p.log()).sum(dim=1).mean())


def test_focal_of_two_classes_is_torchvisions_on_the_difference_of_the_logits() -> None:
    logits, targets = outputs()
    two, binary = Classification(("no", "yes"), (5, 5), 10), (targets > 0).double()

    found = value(Focal(FocalConfig(2.0, (0.75, 0.25))), logits[:, :2], binary.long(), two)

    theirs = sigmoid_focal_loss(logits[:, 1] - logits[:, 0], binary, alpha=0.25, gamma=2.0, reduction="mean")
    assert_close(found, theirs)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(("alpha", "theirs"), [(None, -1.0), (0.25, 0.25), (0.9, 0.9)])
def test_focal_of_labels_is_torchvisions(alpha: float | None, theirs: float, gamma: float) -> None:
    logits, targets = outputs("labels")

    found = value(Focal(FocalConfig(gamma, alpha)), logits, targets, LABELS)

    expected = sigmoid_focal_loss(logits, targets, alpha=theirs, gamma=gamma, reduction="mean")
    assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_focal_weighs_each_label_by_name_where_it_is_there() -> None:
    logits, targets = outputs("labels")

    found = value(Focal(FocalConfig(2.0, {"car": 10.0})), logits, targets, LABELS)

    theirs = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2.0)
    factors = 1 + targets * torch.tensor([0.0, 9.0, 0.0], dtype=torch.float64)
    assert_close(found, (theirs * factors).mean())


def test_focal_shows_its_factors_where_there_are_any() -> None:
    (table,) = answer(Focal(FocalConfig(alpha={"severe": 4.0}))).tables

    assert table.columns == ("class", "images", "alpha")
    assert table.rows == (("healthy", "60", "1"), ("mild", "30", "1"), ("severe", "10", "4"))
    assert answer(Focal(FocalConfig())).tables == ()


@pytest.mark.parametrize(
    ("alpha", "task", "message"),
    [
        ((1.0, 2.0), CLASSES, r"focal.alpha has 2 numbers for 3 classes \(healthy, mild, severe\)"),
        ({"sever": 2.0}, CLASSES, "focal.alpha: no class 'sever'; did you mean 'severe'"),
        ({"car": 0.0}, LABELS, "focal.alpha: the value of 'car' must be a positive number, got 0.0"),
        (0.25, CLASSES, r"in \(0, 1\) for labels; for classes a list .* got 0.25 for classification"),
        (1.0, LABELS, r"in \(0, 1\) for labels; .* got 1.0 for multilabel"),
    ],
    ids=["length", "name", "zero", "one number for classes", "one number too large"],
)
def test_a_wrong_alpha_is_refused(alpha: Any, task: Task, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Focal(FocalConfig(alpha=alpha)).make_loss(task)


# asymmetric


@pytest.mark.parametrize(("positive", "negative", "clip"), [(0.0, 4.0, 0.05), (1.0, 0.0, 0.05), (1.0, 2.0, 0.0)])
def test_asymmetric_of_labels_is_timms_of_one_image_over_labels(positive: float, negative: float, clip: float) -> None:
    logits, targets = outputs("labels")
    plugin = Asymmetric(AsymmetricConfig(positive, negative, clip))

    found = value(plugin, logits, targets, LABELS)

    # Of one image, timm's sum is the same in all of its versions, which reduce a batch in different ways.
    theirs = AsymmetricLossMultiLabel(gamma_pos=positive, gamma_neg=negative, clip=clip)
    sums = [theirs(logits[i : i + 1].float(), targets[i : i + 1].float()) for i in range(len(logits))]
    assert float(found) == pytest.approx(float(sum(sums)) / targets.numel(), rel=1e-5)


def test_asymmetric_of_labels_is_that_of_the_paper_by_default() -> None:
    logits, targets = outputs("labels")

    found = value(Asymmetric(AsymmetricConfig()), logits, targets, LABELS)

    p = logits.sigmoid()
    shifted = (p - 0.05).clamp(min=0)
    assert_close(found, -(targets * p.log() + (1 - targets) * shifted**4 * (1 - shifted).log()).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("positive", "negative"), [(0.0, 4.0), (1.0, 4.0), (2.0, 0.5), (0.5, 0.0)])
def test_asymmetric_of_classes_is_timms(positive: float, negative: float, smoothing: float) -> None:
    logits, targets = outputs()
    config = AsymmetricConfig(positive, negative if smoothing else None, label_smoothing=smoothing)

    found = value(Asymmetric(config), logits, targets)

    theirs = AsymmetricLossSingleLabel(gamma_pos=positive, gamma_neg=negative, eps=smoothing)
    assert_close(found, theirs(logits, targets))


def test_asymmetric_that_focuses_on_nothing_is_cross_entropy() -> None:
    logits, targets = outputs()
    _, labels = outputs("labels")

    of_classes = value(Asymmetric(AsymmetricConfig(0.0, 0.0, label_smoothing=0.2)), logits, targets)
    of_labels = value(Asymmetric(AsymmetricConfig(0.0, 0.0, clip=0.0)), logits, labels, LABELS)

    assert_close(of_classes, functional.cross_entropy(logits, targets, label_smoothing=0.2))
    assert_close(of_labels, functional.binary_cross_entropy_with_logits(logits, labels))


@pytest.mark.parametrize(
    ("options", "task", "message"),
    [
        ({"clip": 0.05}, CLASSES, "asymmetric.clip is for labels; this is classification of healthy"),
        ({"label_smoothing": 0.1}, LABELS, "asymmetric.label_smoothing is for classes; this is multilabel of boat"),
        ({"label_smoothing": 0.0, "gamma_neg": 4.0}, CLASSES, "gamma_neg = 4.0 has no effect"),
    ],
    ids=["clip", "smoothing", "gamma_neg"],
)
def test_asymmetric_refuses_what_it_would_not_read(options: dict[str, float], task: Task, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Asymmetric(AsymmetricConfig(**options)).make_loss(task)


# bce


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_of_classes_is_timms(smoothing: float) -> None:
    logits, targets = outputs()

    found = value(BinaryCrossEntropy(BinaryCrossEntropyConfig(label_smoothing=smoothing)), logits, targets)

    assert_close(found, TimmBinaryCrossEntropy(smoothing=smoothing)(logits, targets))


@pytest.mark.parametrize("plugin", ["bce", "bce@ftcore", "ftcore_plugins.losses.bce:BinaryCrossEntropy"])
def test_bce_answers_for_classes_in_whatever_form_it_was_named(plugin: str) -> None:
    arguments = ("explain", "--data", "digits:5-6", "--model", "digits/cnn", "--json")
    name = "bce" if plugin.startswith("bce") else "binary_cross_entropy"

    answers = [
        {row["hook"]: row["plugin"] for row in invoke(*arguments, *named).report["plugins"]}
        for named in ((), ("--plugin", plugin))
    ]

    assert [found["make_loss"] for found in answers] == ["cross_entropy", name]


def test_bce_of_mixed_classes_is_timms() -> None:
    logits, targets = outputs("soft")

    found = value(BinaryCrossEntropy(BinaryCrossEntropyConfig()), logits, targets)

    assert_close(found, TimmBinaryCrossEntropy(smoothing=0.0)(logits, targets))


def test_bce_of_classes_may_weigh_the_class_of_the_image() -> None:
    logits, targets = outputs()
    (table,) = answer(BinaryCrossEntropy(BinaryCrossEntropyConfig("balanced"))).tables

    found = value(BinaryCrossEntropy(BinaryCrossEntropyConfig("balanced")), logits, targets)

    factors = torch.tensor([40 / 60, 70 / 30, 90 / 10], dtype=torch.float64)
    assert_close(found, TimmBinaryCrossEntropy(smoothing=0, pos_weight=factors)(logits, targets), rtol=1e-6, atol=1e-6)
    assert [row[2] for row in table.rows] == ["0.6667", "2.333", "9"]


def test_bce_smooths_each_label_towards_a_half() -> None:
    logits, targets = outputs("labels")

    found = value(BinaryCrossEntropy(BinaryCrossEntropyConfig(label_smoothing=0.2)), logits, targets, LABELS)

    p, smoothed = logits.sigmoid(), torch.where(targets == 1, 0.9, 0.1).double()
    assert_close(found, -(smoothed * p.log() + (1 - smoothed) * (1 - p).log()).mean(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["labels", "hard", "soft"])
@pytest.mark.parametrize("rule", ["true_class", "torch"])
def test_bce_with_factors_and_label_smoothing_is_its_formula(rule: Any, kind: str) -> None:
    logits, targets = outputs(kind)
    task, among = (LABELS, 2) if kind == "labels" else (CLASSES, 3)
    plugin = BinaryCrossEntropy(BinaryCrossEntropyConfig({task.names[0]: 30.0}, 0.2, rule))

    found = value(plugin, logits, targets, task)

    y = targets if targets.ndim > 1 else torch.eye(3, dtype=torch.float64)[targets]
    f, p, low, high = torch.tensor([30.0, 1.0, 1.0]), logits.sigmoid(), 0.2 / among, 0.8 + 0.2 / among
    if rule == "torch":
        each = f * (0.8 * y + low) * p.log() + (1 - 0.8 * y - low) * (1 - p).log()
    else:
        there, absent = (side * p.log() + (1 - side) * (1 - p).log() for side in (high, low))
        each = f * y * there + (1 - y) * absent
    assert_close(found, -each.mean(), rtol=1e-6, atol=1e-6)


def least_probability(loss: Loss) -> float:
    """Probability of the first label at which an image without any costs least, found by going downhill."""
    logits, absent = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    for _ in range(2000):
        logits.requires_grad_()
        (gradient,) = torch.autograd.grad(loss.function(logits, absent), logits)
        logits = logits.detach() - 2 * gradient
    return float(logits.sigmoid()[0, 0])


@pytest.mark.parametrize(("factor", "said"), [(20.0, True), (18.0, False)])
def test_an_absent_label_wins_by_torchs_rule_alone_and_where_it_does_it_is_said(
    factor: float,
    said: bool,  # noqa: FBT001
) -> None:
    """f s/2 > 1 - s/2: for s = 0.1 from 19 on."""
    probability = {}
    with capture_logs() as logs:
        for rule in ("true_class", "torch"):
            config: Any = BinaryCrossEntropyConfig({LABELS.names[0]: factor}, 0.1, rule)
            loss = answer(BinaryCrossEntropy(config), LABELS)
            probability[rule] = least_probability(loss)

    assert probability["true_class"] == pytest.approx(0.05, abs=1e-3)
    assert probability["torch"] == pytest.approx(factor * 0.05 / (factor * 0.05 + 0.95), abs=1e-3)
    assert (probability["torch"] > 0.5) == said
    assert any("has the lowest loss if it is predicted" in entry["event"] for entry in logs) == said


# numbers


def test_losses_of_numbers_are_means_over_images_and_targets() -> None:
    logits, _ = outputs()
    found, wanted = logits[:, :2], logits[:, 1:]
    error = (found - wanted).abs()

    assert_close(value(MeanSquaredError(), found, wanted, NUMBERS), (error**2).mean())
    assert_close(value(MeanAbsoluteError(), found, wanted, NUMBERS), error.mean())
    for delta in (0.5, 1.0, 3.0):
        huber = torch.where(error < delta, error**2 / 2, delta * (error - delta / 2)).mean()
        assert_close(value(Huber(HuberConfig(delta)), found, wanted, NUMBERS), huber)


# ordinal

ORDERED = ("mild", "severe", "healthy")  # no order of the alphabet


def test_ordinal_is_half_the_squared_energy_distance_of_scipy() -> None:
    logits, targets = outputs("soft")

    found = value(Ordinal(OrdinalConfig(ORDERED)), logits, targets)

    places = [ORDERED.index(name) for name in CLASSES.names]
    distances = [
        energy_distance(places, places, p, y) ** 2 / 2
        for p, y in zip(logits.softmax(dim=1).tolist(), targets.tolist(), strict=True)
    ]
    assert float(found) == pytest.approx(sum(distances) / len(distances), rel=1e-9)


@pytest.mark.parametrize(("place", "wanted"), [(0, 0), (0, 1), (0, 2), (1, 2), (2, 1)])
def test_ordinal_of_a_certain_answer_is_the_earth_movers_distance(place: int, wanted: int) -> None:
    logits = 1e4 * torch.eye(3, dtype=torch.float64)[[CLASSES.names.index(ORDERED[place])]]
    target = torch.tensor([CLASSES.names.index(ORDERED[wanted])])

    found = value(Ordinal(OrdinalConfig(ORDERED)), logits, target)

    assert float(found) == wasserstein_distance([place], [wanted]) == abs(place - wanted)


def test_ordinal_shows_the_order_and_takes_that_of_the_names_if_none_is_given() -> None:
    for order, shown in ((ORDERED, ORDERED), (None, CLASSES.names)):
        (table,) = answer(Ordinal(OrdinalConfig(order))).tables
        assert table.columns == ("place", "class")
        assert table.rows == tuple(zip("123", shown, strict=True))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (("mild", "sever", "healthy"), "ordinal.order: no class 'sever'; did you mean 'severe'"),
        (("mild", "healthy"), "ordinal.order lacks 'severe'; list each class once"),
        (("mild", "mild", "severe", "healthy"), "ordinal.order has 'mild' 2 times"),
    ],
    ids=["name", "missing", "twice"],
)
def test_a_wrong_order_is_refused(order: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Ordinal(OrdinalConfig(order)).make_loss(CLASSES, Context(Path(), structlog.get_logger()))


# in a run


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("cross_entropy.label_smoothing=1", "'label_smoothing' must be < 1"),
        ("weighted_ce.label_smoothing=-0.1", "'label_smoothing' must be >= 0"),
        (
            "weighted_ce.beta=0.9",
            "weighted_ce: beta needs weights = \"effective\", not 'balanced' (beta: --set weighted_ce",
        ),
        ("logit_adjustment.tau=-1", "'tau' must be >= 0"),
        ("focal.gamma=-1", "'gamma' must be >= 0"),
        ("focal.gamma=inf", "expected a finite number"),
        ("asymmetric.gamma_neg=-1", "'gamma_neg' must be >= 0"),
        ("asymmetric.clip=1", "'clip' must be < 1"),
        ("bce.label_smoothing=1", "'label_smoothing' must be < 1"),
        ("soft_f1.eps=0", "'eps' must be > 0"),
        ("soft_dice.average=mirco", "did you mean 'micro'"),
        ("huber.delta=0", "'delta' must be > 0"),
        ("ordinal.order=mild", "expected a list"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_built(option: str, message: str) -> None:
    result = invoke("explain", "--static", "--plugin", option.partition(".")[0], "--set", option)

    assert result.code == 2
    assert message in result.err


@pytest.mark.parametrize("name", ["focal", "asymmetric", "ordinal", "logit_adjustment", "soft_f1", "soft_dice", "bce"])
def test_a_named_loss_learns_mixed_classes(name: str, tmp_path: Path) -> None:
    sets = ["train.epochs=2", f"run.folder={tmp_path / 'run'}", "data.source=digits:5-6", "model.name=digits/cnn"]
    words = [word for text in sets for word in ("--set", text)]

    result = invoke("run", "--plugin", name, "--plugin", "mixup", *words, "--json")

    assert result.code == 0, result.err
    assert result.report["hooks"]["make_loss"] == name
    assert result.report["best"]["accuracy"] > 0.7
    assert math.isfinite(result.report["best"]["loss"])


@pytest.mark.parametrize("name", ["mae", "huber"])
def test_a_named_loss_learns_a_number(name: str, tmp_path: Path) -> None:
    sets = ["train.epochs=1", f"run.folder={tmp_path / 'run'}", "data.task=regression"]
    words = [word for text in sets for word in ("--set", text)]

    result = invoke("run", "--plugin", name, *words, "--json")

    assert result.code == 0, result.err
    assert result.report["hooks"]["make_loss"] == name
    assert result.report["best"]["r2"] > 0


@pytest.mark.parametrize("name", ["mse", "mae", "huber"])
def test_a_loss_of_numbers_is_refused_for_classes(name: str, tmp_path: Path) -> None:
    result = invoke("run", "--plugin", name, "--set", f"run.folder={tmp_path / 'run'}")

    assert result.code == 2
    assert "supplies nothing in this run" in result.err
