"""Nothing but the parts for images is bound to images: a network that reads texts goes the same way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from attrs import frozen
from torch import Tensor, nn

from ftcore import Backbone, FreezePlan, HeadSlot, InputSpec, TokenSpec, Transforms, UserError, hookimpl
from ftcore.data.dataset import LabelledImages, make_data
from ftcore.testing import invoke
from ftcore.types.model import input_spec_from_dict

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore import Context, Data, RunConfig
    from ftcore.testing import Result

LETTERS = "abcdefghij"
HERE = __name__


class Words:
    """Rows of letters; class ``first`` has an a, class ``second`` a b."""

    texts = tuple("cdefghij"[k % 5 : k % 5 + 3] + "ab"[k % 2] for k in range(80))

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, row: int, side: int | None) -> Any:
        del side
        return self.texts[row]

    def name(self, row: int) -> str:
        return f"text {row}"

    def version(self, row: int) -> str:
        return self.texts[row]


class Bag(nn.Module):
    """Token ids (N, L) int64 -> (N, classes)."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocabulary, 8), nn.Linear(8, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.embedding(tokens).mean(1))
        return outputs


@frozen
class Spell:
    """Text -> numbers of its letters (4,) int64."""

    letters: str

    def __call__(self, text: str) -> Tensor:
        return torch.tensor([self.letters.index(letter) for letter in text])


class Network:
    """A network that reads letters, and knows which only from what a run keeps, once there is a run."""

    @hookimpl
    def build_model(self, name: str | None, config: RunConfig) -> Backbone | None:
        if name != "own/bag":
            return None
        letters = config.architecture.get("letters", LETTERS)
        spec = TokenSpec(length=4, vocabulary=len(letters))
        return Backbone(Bag(len(letters)), (HeadSlot("head", 8),), spec, architecture={"letters": letters})


class Texts(Network):
    """Network, data and transforms."""

    @hookimpl
    def build_data(self, source: str | None, config: RunConfig, ctx: Context) -> Data | None:
        if source != "letters":
            return None
        values = ["first" if "a" in text else "second" for text in Words.texts]
        images: Any = Words()
        return make_data(LabelledImages(images, "classification", values, "0"), config, ctx)

    @hookimpl
    def make_transforms(self, spec: InputSpec, config: RunConfig) -> Transforms | None:
        spell = Spell(config.architecture.get("letters", LETTERS))
        return Transforms(train=spell, evaluate=spell) if isinstance(spec, TokenSpec) else None


def run(folder: Path, *arguments: str, plugin: str = "Texts") -> Result:
    sets = (f"run.folder={folder / 'run'}", "train.epochs=4", "adamw.lr=0.1")
    flags = [word for text in sets for word in ("--set", text)]
    named = ("--plugin", f"{HERE}:{plugin}", "--model", "own/bag", "--data", "letters")
    return invoke("run", *named, *flags, *arguments, "--json")


def test_a_network_that_reads_texts_learns_and_is_measured_from_its_folder(tmp_path: Path) -> None:
    result = run(tmp_path)
    measured = invoke("evaluate", tmp_path / "run", "--json")

    assert result.code == 0, result.err
    assert "input 4 tokens of 10" in result.err
    assert result.report["best"]["accuracy"] == 1.0
    assert measured.report["metrics"]["accuracy"] == 1.0


def test_it_predicts_what_a_file_of_text_is(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "one.txt").write_text("cdea", encoding="utf-8")
    (tmp_path / "other.txt").write_bytes(b"\xff\xfe")

    result = invoke("predict", tmp_path / "run", tmp_path / "one.txt", tmp_path / "other.txt")

    assert result.out.startswith(f"{tmp_path / 'one.txt'}\tfirst\t")
    assert f"cannot read the text {tmp_path / 'other.txt'}: 'utf-8' codec" in result.err


def test_what_build_model_needs_again_is_kept_with_the_model_and_handed_over(tmp_path: Path) -> None:
    run(tmp_path)
    file = tmp_path / "run" / "model" / "model.json"
    described = json.loads(file.read_text())
    described["architecture"] = {"letters": LETTERS[::-1]}
    file.write_text(json.dumps(described))

    measured = invoke("evaluate", tmp_path / "run", "--json")

    assert measured.code == 0, measured.err
    assert measured.report["metrics"]["accuracy"] < 1.0  # with the letters in another order


def test_a_linear_probe_on_texts_computes_what_the_head_sees_once(tmp_path: Path) -> None:
    result = run(tmp_path, "--plugin", "linear_probe")

    assert result.code == 0, result.err
    assert "feature caching       the input of head for each image, 8 numbers" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "model.image_size=32"), "model.image_size is for images, but own/bag takes texts"),
        (("--set", "model.crop=pad"), "model.crop is for images, but own/bag takes texts"),
        (("--set", "model.mean=0.5"), "model.mean is for images, but own/bag takes texts"),
        (("--plugin", "mixup"), "mixup changes images, but own/bag takes texts"),
        (("--plugin", "distill", "--set", "distill.teacher=runs/x"), "distill needs an image network"),
    ],
)
def test_what_is_for_images_is_refused(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = run(tmp_path, *arguments)

    assert result.code == 2
    assert message in result.err


def test_without_a_plugin_for_texts_the_one_for_images_says_what_is_missing(tmp_path: Path) -> None:
    result = run(tmp_path, "--data", "digits:5-6", plugin="Network")

    assert result.code == 2
    assert "plain_transforms and augment produce images, but this network takes 4 tokens of 10; enable a" in result.err


def test_mirror_images_of_texts_are_refused(tmp_path: Path) -> None:
    run(tmp_path)

    assert "tta needs images" in invoke("evaluate", tmp_path / "run", "--tta").err


@pytest.mark.parametrize("spec", [TokenSpec(length=4, vocabulary=10, padding=3), InputSpec((8, 9), 1, (0.5,), (0.5,))])
def test_what_a_network_wants_comes_back_from_a_file(spec: InputSpec) -> None:
    import attrs

    values: dict[str, Any] = json.loads(json.dumps(attrs.asdict(spec)))
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    assert input_spec_from_dict(tuples) == spec


def test_drawn_tokens_are_all_of_the_vocabulary() -> None:
    drawn = TokenSpec(length=50, vocabulary=4).randn(40, "cpu")

    assert np.unique(drawn.numpy()).tolist() == [0, 1, 2, 3]
    assert drawn.shape == (40, 50)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"frozen": "conv.weight"}, "FreezePlan needs sets of names, not 'conv.weight'"),
        ({"eval_modules": [1]}, r"FreezePlan needs sets of names, not \[1\]"),
        ({"unfreeze_at": {1: "layer1"}}, "FreezePlan needs sets of names, not 'layer1'"),
        ({"unfreeze_at": {"1": {"layer1"}}}, "an epoch must be an integer >= 0, not '1'"),
        ({"unfreeze_at": {-1: {"layer1"}}}, "an epoch must be an integer >= 0, not -1"),
    ],
)
def test_a_plan_of_other_types_is_refused(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FreezePlan(**plan)


def test_a_plan_takes_any_collection_of_names() -> None:
    assert FreezePlan(["a"], ("b",), {1: ["c"]}) == FreezePlan(frozenset("a"), frozenset("b"), {1: frozenset("c")})


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (InputSpec(), "3 x 224 x 224, bilinear, centre crop of 256 x 256"),
        (InputSpec((96, 128), crop_fraction=1.0), "3 x 96 x 128, bilinear, centre crop"),
        (InputSpec(crop_fraction=1.0, crop_mode="squash"), "3 x 224 x 224, bilinear, squashed"),
        (InputSpec(crop_mode="squash"), "3 x 224 x 224, bilinear, squashed, centre of 256 x 256"),
        (InputSpec(crop_fraction=1.0, crop_mode="pad"), "3 x 224 x 224, bilinear, padded"),
        (TokenSpec(length=4, vocabulary=10), "4 tokens of 10"),
    ],
)
def test_what_happens_to_an_input_is_said_in_words(spec: InputSpec, said: str) -> None:
    assert spec.preprocessing == said


def test_another_crop_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'crop_mode' must be in"):
        InputSpec(crop_mode="border")
