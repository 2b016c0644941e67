from __future__ import annotations

import csv
import json
import random
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from ftcore import InputSpec, TokenSpec, UserError, load
from ftcore.testing import image_folder, invoke
from ftcore_plugins.transforms.standard import PlainTransforms
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BitImageProcessor,
    ConvNextImageProcessor,
    GPT2Config,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTImageProcessor,
    pipeline,
)

from ftcore_hf import HuggingFaceConfig
from ftcore_hf.hub import _processor
from ftcore_hf.models import _images, build
from ftcore_hf.texts import Tokenize, tokenizer_of

if TYPE_CHECKING:
    from pathlib import Path

    from ftcore.testing import Result

WORDS = {"good": ("fine", "lovely", "superb"), "poor": ("dull", "awful", "stale")}
FILLING = ("the", "film", "was", "a", "story", "and", "its", "end")


def vocabulary() -> dict[str, int]:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(word for words in WORDS.values() for word in words), *FILLING]
    return {word: number for number, word in enumerate(words)}


def save_tokenizer(folder: Path) -> None:
    backend = Tokenizer(models.WordLevel(vocabulary(), unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = vocabulary()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of random weights with a classifier for two classes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=len(vocabulary()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    mean = [0.5, 0.4, 0.3]
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=mean, image_std=[0.2, 0.2, 0.25]).save_pretrained(
        folder
    )
    return folder


def table(path: Path, count: int = 240, **columns: Any) -> Path:
    """Texts with one word that gives the class away among words that do not."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", *columns])
        for row in range(count):
            label = draw.choice(list(WORDS))
            words = [draw.choice(FILLING) for _ in range(draw.randint(2, 8))]
            words.insert(draw.randint(0, len(words)), draw.choice(WORDS[label]))
            writer.writerow([" ".join(words), label, *(value(row) for value in columns.values())])
    return path


def run(folder: Path, model: Path, data: Path | str, *arguments: str) -> Result:
    sets = ("train.epochs=6", "train.threads=1", f"run.folder={folder / 'run'}")
    flags = [word for text in sets for word in ("--set", text)]
    return invoke("run", "--plugin", "hf", "--model", f"hf/{model}", "--data", str(data), *flags, *arguments, "--json")


def test_a_network_learns_to_tell_texts_apart(bert: Path, tmp_path: Path) -> None:
    data = table(tmp_path / "texts.csv")

    result = run(
        tmp_path, bert, f"texts:{data}", "--set", "adamw.lr=0.005", "--set", "hf.length=12", "--set", "train.epochs=12"
    )

    assert result.code == 0, result.err
    assert result.report["best"]["accuracy"] > 0.95
    assert "12 tokens of 18" in result.err
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "cannot be read" not in page
    shown = re.search('<p class="text"><bdi>(.*)</bdi></p>', page)
    assert shown
    assert shown[1] in data.read_text(encoding="utf-8")


def test_a_run_needs_nothing_but_its_folder(bert: Path, tmp_path: Path) -> None:
    data = table(tmp_path / "texts.csv")
    there = shutil.copytree(bert, tmp_path / "there")
    report = run(tmp_path, there, f"texts:{data}", "--set", "adamw.lr=0.002").report
    shutil.rmtree(there)

    measured = invoke("evaluate", tmp_path / "run", "--json")

    assert measured.code == 0, measured.err
    assert measured.report["metrics"]["accuracy"] == pytest.approx(report["best"]["accuracy"])
    (tmp_path / "one.txt").write_text("the film was lovely", encoding="utf-8")
    predicted = invoke("predict", tmp_path / "run", tmp_path / "one.txt", "--json")
    assert set(json.loads(predicted.out)["values"]) == set(WORDS)
    mirrored = invoke("evaluate", tmp_path / "run", "--tta")
    assert "tta needs images, but this network takes texts" in mirrored.err


def test_what_is_exported_for_the_hub_is_a_network_of_transformers(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "pictures", per_class=4)
    sets = ("model.weights=none", "model.image_size=64", "train.epochs=1", f"run.folder={tmp_path / 'run'}")
    flags = [word for text in sets for word in ("--set", text)]
    assert invoke("run", "--data", data, "--model", "timm/test_resnet", *flags).code == 0

    said = invoke("export", tmp_path / "run", "--format", "hf", "--out", tmp_path / "hub")

    assert said.code == 0, said.err
    network = AutoModelForImageClassification.from_pretrained(tmp_path / "hub").eval()
    model, images = load(tmp_path / "run"), torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network(images).logits, model.module(images))
    assert tuple(network.config.id2label.values()) == model.task.names


def test_a_network_of_images_is_exported_as_a_folder_of_transformers(vit: Path, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "pictures", per_class=4)
    assert run(tmp_path, vit, data).code == 0

    said = invoke("export", tmp_path / "run", "--format", "hf", "--out", tmp_path / "hub")

    assert said.code == 0, said.err
    names: dict[str, Any] = {}
    exec(said.out.replace('"hub"', repr(str(tmp_path / "hub"))), names)
    picture = next(data.rglob("*.jpg"))
    (expected,) = load(tmp_path / "run").predict(picture)
    answers = pipeline("image-classification", names["model"], image_processor=names["processor"])(str(picture))
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(expected.values, abs=1e-2)
    card = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-classification\n")


@pytest.mark.parametrize("network", ["bert", "gpt"])
def test_a_network_of_texts_is_exported_with_its_tokenizer(
    network: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    texts = ["the film was lovely", "stale and dull"]
    assert run(tmp_path, request.getfixturevalue(network), f"texts:{table(tmp_path / 'texts.csv', 64)}").code == 0

    said = invoke("export", tmp_path / "run", "--format", "hf", "--out", tmp_path / "hub")

    assert said.code == 0, said.err
    names: dict[str, Any] = {}
    exec(said.out.replace('"hub"', repr(str(tmp_path / "hub"))), names)
    answers = pipeline("text-classification", names["model"], tokenizer=names["tokenizer"], top_k=None)(texts)
    for answer, expected in zip(answers, load(tmp_path / "run").predict(texts), strict=True):
        assert {each["label"]: each["score"] for each in answer} == pytest.approx(expected.values, abs=1e-5)
    card = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in card
    assert "| good | " in card


def test_a_head_that_transformers_does_not_build_is_no_folder_for_the_hub(vit: Path, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "pictures", per_class=4)
    assert run(tmp_path, vit, data, "--plugin", "mlp_head", "--set", "train.epochs=1").code == 0

    said = invoke("export", tmp_path / "run", "--format", "hf", "--out", tmp_path / "hub")

    assert said.code == 2
    assert "transformers does not build this network again: " in said.err
    assert not (tmp_path / "hub").exists()


def test_a_text_is_answered_over_http(bert: Path, tmp_path: Path) -> None:
    text = "the film was lovely"
    assert run(tmp_path, bert, f"texts:{table(tmp_path / 'texts.csv', 64)}").code == 0
    (expected,) = load(tmp_path / "run").predict(text)
    command = [sys.executable, "-m", "ftcore", "serve", str(tmp_path / "run"), "--port", "0"]

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        found = re.search(r"http://\S+(?=;)", process.stderr.readline())
        assert found
        request = urllib.request.Request(f"{found[0]}/predict", text.encode(), {"Content-Type": "text/plain"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            said = json.loads(answer.read())
        picture = urllib.request.Request(f"{found[0]}/predict", b"GIF89a", {"Content-Type": "image/gif"})
        with pytest.raises(urllib.error.HTTPError, match="415"):
            urllib.request.urlopen(picture, timeout=60)
        process.terminate()

    assert said["values"] == pytest.approx(expected.values, abs=1e-6)


def test_a_run_that_is_resumed_ends_in_the_same_bits(bert: Path, tmp_path: Path) -> None:
    data = table(tmp_path / "texts.csv", 64)
    sets = ("train.epochs=2", "run.save_every=1 step", "run.keep=99")
    whole = run(tmp_path, bert, f"texts:{data}", *(word for text in sets for word in ("--set", text)))
    checkpoints = tmp_path / "run" / "checkpoints"
    *_, third, last = sorted(checkpoints.iterdir())
    expected = load_file(last / "model.safetensors")
    for folder in (third, last):
        shutil.rmtree(folder)

    gone_on = invoke("resume", tmp_path / "run")

    assert (whole.code, gone_on.code) == (0, 0), gone_on.err
    found = load_file(last / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_linear_probe_computes_what_the_head_sees_once(bert: Path, tmp_path: Path) -> None:
    data = table(tmp_path / "texts.csv")

    result = run(tmp_path, bert, f"texts:{data}", "--plugin", "linear_probe")

    assert result.code == 0, result.err
    assert "feature caching       the input of model.classifier for each image, 32 numbers" in result.err


@pytest.mark.parametrize("weights", ["default", "none"])
def test_what_a_network_says_is_what_transformers_says(bert: Path, weights: str) -> None:
    backbone = build(str(bert), weights, HuggingFaceConfig(length=10), {})
    texts = ["The film was superb", "a dull story and its awful end", "unknown words"]
    tokenizer = AutoTokenizer.from_pretrained(bert)
    expected_ids = tokenizer(texts, padding="max_length", truncation=True, max_length=10, return_tensors="pt")
    assert isinstance(backbone.input, TokenSpec)
    tokenize = Tokenize(tokenizer_of(str(bert), {}), backbone.input)

    tokens = torch.stack([tokenize(text) for text in texts])

    assert tokens.tolist() == expected_ids["input_ids"].tolist()
    if weights == "default":
        theirs = AutoModelForSequenceClassification.from_pretrained(bert).eval()
        torch.testing.assert_close(
            backbone.module.eval()(tokens),
            theirs(input_ids=expected_ids["input_ids"], attention_mask=expected_ids["attention_mask"]).logits,
        )


def test_a_network_is_built_again_of_what_a_run_keeps(bert: Path) -> None:
    first = build(str(bert), "default", HuggingFaceConfig(), {})
    kept = json.loads(json.dumps(dict(first.architecture)))

    again = build("gone/away", "none", HuggingFaceConfig(), kept)

    again.module.load_state_dict(first.module.state_dict())
    tokens = first.input.randn(3, "cpu")
    assert torch.equal(first.module.eval()(tokens), again.module.eval()(tokens))
    assert again.input == first.input


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt")
    config = GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=16, eos_token_id=1, bos_token_id=1)
    config.pad_token_id = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def test_a_decoder_without_padding_is_filled_up_with_its_end(gpt: Path) -> None:
    backbone = build(str(gpt), "default", HuggingFaceConfig(), {})

    assert isinstance(backbone.input, TokenSpec)
    assert (backbone.input.length, backbone.input.padding) == (16, 1)
    assert [slot.path for slot in backbone.heads] == ["model.score"]


def test_pictures_are_seen_as_the_processor_says(vit: Path, tmp_path: Path) -> None:
    pictures = image_folder(tmp_path / "pictures", per_class=8)

    result = run(tmp_path, vit, pictures, "--set", "adamw.lr=0.002")

    assert result.code == 0, result.err
    assert result.report["best"]["accuracy"] > 0.9
    described = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert described["input"]["size"] == [32, 32]
    assert described["input"]["crop_mode"] == "squash"
    assert described["input"]["mean"] == [0.5, 0.4, 0.3]
    predicted = invoke("predict", tmp_path / "run", pictures / "blue" / "0.jpg", "--json")
    assert next(iter(json.loads(predicted.out)["values"])) == "blue"


PROCESSORS = {
    "squashed": (ViTImageProcessor(size={"height": 32, "width": 48}), InputSpec((32, 48), crop_fraction=1.0)),
    "cut": (BitImageProcessor(size={"shortest_edge": 40}, crop_size=32), InputSpec((32, 32), crop_fraction=0.8)),
    "ConvNeXt": (ConvNextImageProcessor(size={"shortest_edge": 224}), InputSpec((224, 224), crop_fraction=224 / 256)),
    "ConvNeXt at 384": (ConvNextImageProcessor(size={"shortest_edge": 384}), InputSpec((384, 384), crop_fraction=1.0)),
}
"""A processor of transformers, and the size that its pictures have."""


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_picture_is_seen_as_by_each_kind_of_processor(kind: str, tmp_path: Path) -> None:
    processor, size = PROCESSORS[kind]
    processor.save_pretrained(tmp_path)
    ViTConfig().save_pretrained(tmp_path)
    image = ramp()

    spec = _images(str(tmp_path), ViTConfig())

    assert (spec.size, spec.resize_size) == (size.size, size.resize_size)
    expected = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])
    levels = (seen(spec, image) - expected).abs() * torch.tensor(spec.std)[:, None, None] * 255
    assert levels.max() < 1.1


def ramp() -> Image.Image:
    across = np.linspace(0, 255, 640).round().astype(np.uint8)
    down = np.linspace(0, 255, 320).round().astype(np.uint8)[:, None]
    return Image.fromarray(np.stack(np.broadcast_arrays(across, 255 - across, down), axis=-1))


def seen(spec: InputSpec, image: Image.Image) -> torch.Tensor:
    made = PlainTransforms().make_transforms(spec)
    found: torch.Tensor = made.on_device(made.evaluate(image)[None])[0]
    return found


@pytest.mark.parametrize(
    "spec", [InputSpec((32, 32)), InputSpec((32, 48), crop_mode="squash"), InputSpec((32, 32), crop_mode="squash")]
)
def test_the_processor_that_is_written_shows_what_the_run_saw(spec: InputSpec) -> None:
    expected = torch.as_tensor(_processor(spec)(ramp(), return_tensors="pt")["pixel_values"][0])

    assert ((seen(spec, ramp()) - expected).abs() * torch.tensor(spec.std)[:, None, None] * 255).max() < 1.1


@pytest.mark.parametrize("spec", [InputSpec((32, 48)), InputSpec((32, 32), crop_mode="pad")])
def test_what_no_processor_does_is_refused(spec: InputSpec) -> None:
    with pytest.raises(UserError, match=r"no processor of transformers does what this run did .*--format safetensors"):
        _processor(spec)


@pytest.mark.parametrize(
    ("task", "values"),
    [("multilabel", {"fine": "good;long", "dull": "poor", "the": "long"}), ("regression", {"fine": 1.5, "dull": -2.0})],
)
def test_several_labels_and_numbers_are_learnt_too(
    task: str, values: dict[str, Any], bert: Path, tmp_path: Path
) -> None:
    rows = [f"a {word},{value}" for word, value in values.items()] * 10
    data = tmp_path / "texts.csv"
    data.write_text("\n".join(["text,label", *rows]))

    result = run(tmp_path, bert, f"texts:{data}", "--set", f"data.task={task}")

    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("words,label\nx,y\n", (), "has no column 'text'"),
        ("text,label\n,y\n", (), "row 1 has no 'text' (1 of 1 rows)"),
        ("text,label\nx\n", (), "row 1 has no 'label'"),
        ("text,label\n", (), "has no rows"),
        ("text,label\nx,1\ny,two\n", ("--set", "data.task=regression"), "could not convert string to float: 'two'"),
        (None, (), "cannot read the table of texts"),
        ("GOOD", ("--set", "hf.length=30"), "hf.length = 30: this network takes at most 24 tokens"),
        ("GOOD", ("--set", "model.image_size=64"), "model.image_size is for images, but hf/"),
        ("GOOD", ("--plugin", "mixup"), "mixup changes images, but hf/"),
        ("GOOD", ("--plugin", "distill", "--set", "distill.teacher=x"), "distill needs an image network"),
        ("GOOD", ("--set", "model.weights=best"), "has 'default', 'none', or a file"),
    ],
)
def test_what_cannot_be_is_refused_in_one_message(
    bert: Path, content: str | None, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    data = tmp_path / "texts.csv"
    if content == "GOOD":
        table(data, 30)
    elif content is not None:
        data.write_text(content)

    result = run(tmp_path, bert, f"texts:{data}", *arguments)

    assert result.code == 2, result.err
    assert message in result.err
    assert not (tmp_path / "run").exists()


def test_a_network_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(tmp_path / "texts.csv", 30)

    result = run(tmp_path, tmp_path / "nothing", f"texts:{data}")

    assert result.code == 2
    assert f"hf/{tmp_path / 'nothing'}: " in result.err
