"""`ftcore models`: which networks there are, how large they are, and what is remembered of them."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import timm
from attrs import evolve
from torch import nn
from torchvision.models import get_model

from ftcore import ModelInfo, UserError, hookimpl
from ftcore.config.load import CliOverrides, load_config
from ftcore.model import catalog
from ftcore.model.catalog import count_parameters, filter_models, parse_count, rows_from_cache
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore.testing import invoke

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TOYS = f"{__name__}:Toys"

HOOKS = """
from torch import nn
from ftcore import ModelInfo, hookimpl

@hookimpl
def list_models():
    return [ModelInfo("mine/resnet5O", "mine 0.7", (8, 16), (), lambda: nn.Linear(4, 5))]
"""


class Toys:
    """Lists four networks, and notes which of them are built."""

    built: ClassVar[list[str]] = []
    version: ClassVar[int] = 1

    @hookimpl
    def list_models(self) -> list[ModelInfo]:
        widths = {"toys/wide": 30, "toys/tiny": 1, "toys/other-tiny": 1, "toys/middle": 4}
        return [
            ModelInfo(name, f"toys {self.version}", (8, 8), ("first",) * (width > 1), partial(self.build, name, width))
            for name, width in widths.items()
        ]

    def build(self, name: str, width: int) -> nn.Module:
        self.built.append(name)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, width, bias=False))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Toys, "built", [])
    return tmp_path / "cache" / "ftcore" / "parameters-2.json"


def rows(*arguments: str | Path, err: str = "") -> list[dict[str, Any]]:
    result = invoke("models", *arguments, "--json")
    assert (result.code, result.err) == (0, err)
    found: list[dict[str, Any]] = json.loads(result.out)
    return found


def kept(cache: Path) -> dict[str, int]:
    """Return the counts in a cache, which are behind their seal."""
    found: dict[str, int] = json.loads(cache.read_bytes().partition(b"\n")[2])
    return found


def names(*arguments: str | Path) -> list[str]:
    return [row["name"] for row in rows(*arguments)]


def refusal(*arguments: str) -> str:
    result = invoke("models", *arguments)
    assert (result.code, result.out) == (2, "")
    return result.err


def real_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("squeezenet", {"torchvision/squeezenet1_0", "torchvision/squeezenet1_1"}),
        ("*squeezenet1_?", {"torchvision/squeezenet1_0", "torchvision/squeezenet1_1"}),
        ("squeezenet1_[1-9]", {"torchvision/squeezenet1_1"}),
        ("torchvision/squeezenet*1", {"torchvision/squeezenet1_1"}),
        ("vgg11*", {"timm/vgg11", "timm/vgg11_bn", "torchvision/vgg11", "torchvision/vgg11_bn"}),
        ("*/vgg11", {"timm/vgg11", "torchvision/vgg11"}),
        ("torchvision/vgg11", {"torchvision/vgg11", "torchvision/vgg11_bn"}),
        ("vision/vgg11_", {"torchvision/vgg11_bn"}),
        ("SqueezeNet1_1", {"torchvision/squeezenet1_1"}),
        ("Torchvision/SQUEEZE*0", {"torchvision/squeezenet1_0"}),
    ],
)
def test_a_pattern_is_a_glob_or_a_part_of_the_name_with_or_without_the_provider(
    pattern: str, expected: set[str]
) -> None:
    assert set(names(pattern)) == expected


def test_a_glob_fits_the_whole_name_and_a_word_any_part_of_it() -> None:
    known = list(Toys().list_models())

    assert [info.name for info in filter_models(known, "tiny")] == ["toys/tiny", "toys/other-tiny"]
    assert [info.name for info in filter_models(known, "tin[y]")] == ["toys/tiny"]
    assert [info.name for info in filter_models(known, "*tiny")] == ["toys/tiny", "toys/other-tiny"]
    with pytest.raises(UserError, match=r"no network matches 'iny\*'"):
        filter_models(known, "iny*")


def test_networks_are_sorted_by_their_parameters_and_then_by_name() -> None:
    found = rows("toys/", "--plugin", TOYS)

    assert [(row["name"], row["parameters"]) for row in found] == [
        ("toys/other-tiny", 192),
        ("toys/tiny", 192),
        ("toys/middle", 768),
        ("toys/wide", 5760),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "timm/test_resnet",
        "timm/vit_tiny_r_s16_p8_224",
        "torchvision/squeezenet1_1",
        "torchvision/regnet_y_400mf",
    ],
)
def test_the_parameters_are_those_of_the_real_network(name: str) -> None:
    provider, _, network = name.partition("/")
    real = timm.create_model(network) if provider == "timm" else get_model(network)

    (row,) = [row for row in rows(name) if row["name"] == name]

    assert row["parameters"] == real_count(real)


def test_size_library_and_weights_are_those_of_the_provider() -> None:
    (ours,) = rows("timm/test_resnet")
    (theirs,) = rows("squeezenet1_1")

    assert ours["size"] == list(timm.get_pretrained_cfg("test_resnet").input_size[1:])
    assert ours["weights"] == [timm.get_pretrained_cfg("test_resnet").tag]
    assert ours["library"] == f"timm {timm.__version__}"
    assert (theirs["size"], theirs["weights"]) == ([224, 224], ["IMAGENET1K_V1"])


@pytest.mark.parametrize(
    ("text", "number"),
    [("10M", 1e7), ("1.5B", 1.5e9), ("250000", 250_000), ("3k", 3000), ("2m", 2e6), ("0.5b", 5e8), ("7K", 7000)],
)
def test_a_count_can_be_written_with_a_letter(text: str, number: float) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["5x", "M", "ten", "10 million", "1.2.3M", "MM", "0", "-5", "nan", "inf", ""])
def test_a_count_that_is_none_is_an_error_with_examples(text: str) -> None:
    assert f"--max-params {text}: expected a number such as 10M, 1.5B or 250000" in refusal("--max-params", text)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("1M", ["toys/other-tiny", "toys/tiny", "toys/middle", "toys/wide"]),
        ("5.76k", ["toys/other-tiny", "toys/tiny", "toys/middle", "toys/wide"]),
        ("5759", ["toys/other-tiny", "toys/tiny", "toys/middle"]),
        ("0.768K", ["toys/other-tiny", "toys/tiny", "toys/middle"]),
        ("100", []),
    ],
)
def test_only_networks_of_at_most_so_many_parameters_are_shown(limit: str, expected: list[str]) -> None:
    assert names("toys/*", "--plugin", TOYS, "--max-params", limit) == expected


def remember_all_but_toys(cache: Path, parameters: int) -> None:
    known = HookCalls(activate(load_config(None, CliOverrides()))).list_models()
    catalog._write_cache({f"{info.name} of {info.library}": parameters for info in known})
    assert cache.is_file()


def test_a_limit_alone_counts_what_is_not_known_yet(cache: Path) -> None:
    remember_all_but_toys(cache, 2000)

    found = rows("--max-params", "1k", "--plugin", TOYS)

    assert [row["parameters"] for row in found] == [192, 192, 768]
    assert len(Toys.built) == 4


def test_networks_without_weights_can_be_left_out() -> None:
    every, pretrained = rows("timm/*resnet18*"), rows("timm/*resnet18*", "--pretrained")

    assert [row for row in every if row["weights"]] == pretrained
    assert 0 < len(pretrained) < len(every)
    assert set(names("toys/", "--plugin", TOYS, "--pretrained")) == {"toys/middle", "toys/wide"}


def test_what_is_left_out_is_not_built() -> None:
    rows("toys/", "--plugin", TOYS, "--pretrained")

    assert sorted(Toys.built) == ["toys/middle", "toys/wide"]


def test_the_table_shows_what_the_json_says() -> None:
    result = invoke("models", "toys/*", "--plugin", TOYS)

    assert result.code == 0
    assert [line.split() for line in result.out.splitlines()] == [
        ["4", "networks"],
        ["network", "parameters", "input", "library", "weights"],
        ["toys/other-tiny", "0.00M", "8", "x", "8", "toys", "1", "none"],
        ["toys/tiny", "0.00M", "8", "x", "8", "toys", "1", "none"],
        ["toys/middle", "0.00M", "8", "x", "8", "toys", "1", "first"],
        ["toys/wide", "0.01M", "8", "x", "8", "toys", "1", "first"],
    ]


def test_the_table_shows_millions_and_the_first_weights() -> None:
    (line,) = [line for line in invoke("models", "timm/resnet18").out.splitlines() if line.startswith("timm/resnet18 ")]

    assert line.split()[1] == f"{real_count(timm.create_model('resnet18')) / 1e6:.2f}M"
    tags = [name.partition(".")[2] for name in timm.list_pretrained("resnet18.*")]
    assert line.endswith(f"{tags[0]}, {tags[1]} and {len(tags) - 2} more")


def test_a_forward_pass_can_be_measured() -> None:
    (measured,), (known,) = rows("timm/test_resnet", "--measure"), rows("timm/test_resnet")

    assert 0 < measured["milliseconds"] < 10_000
    assert known == measured | {"milliseconds": None}


def test_a_network_that_sees_in_grey_can_be_measured() -> None:
    (measured,) = rows("digits/cnn", "--measure")

    assert measured["milliseconds"] > 0


def test_measured_times_get_a_column_of_their_own() -> None:
    header, line = invoke("models", "toys/middle", "--plugin", TOYS, "--measure").out.splitlines()[1:]

    assert header.endswith("ms per image")
    assert float(line.split()[-1]) >= 0


def test_measuring_needs_a_pattern() -> None:
    assert "--measure needs a PATTERN" in refusal("--measure", "--plugin", TOYS)
    assert Toys.built == []


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    error = refusal("squeezent1_1")

    assert error.startswith("ftcore: no network matches 'squeezent1_1'; nearest: ")
    assert error.index("squeezenet1_1") < error.index("squeezenet1_0")


def test_the_nearest_are_named_once() -> None:
    near = refusal("resnt18").partition("nearest: ")[2].split(", ")

    assert len(near) == len(set(near)) == 5


def test_a_pattern_that_is_like_no_name_says_so() -> None:
    assert "no network matches 'qqqqqq'; nearest: none" in refusal("qqqqqq")


def test_a_bare_list_counts_nothing(cache: Path) -> None:
    found = rows("--plugin", TOYS)

    assert Toys.built == []
    assert not cache.exists()
    assert {row["parameters"] for row in found} == {None}
    assert {row["name"].partition("/")[0] for row in found} == {"timm", "torchvision", "digits", "toys"}
    assert len(found) > 1000
    assert [row["name"] for row in found] == sorted(row["name"] for row in found)


def test_a_bare_list_shows_what_was_counted_before_and_that_first() -> None:
    rows("toys/*i*", "--plugin", TOYS)
    built = list(Toys.built)

    listed = invoke("models", "--plugin", TOYS).out.splitlines()

    assert [line.split()[:2] for line in listed[2:7]] == [
        ["toys/other-tiny", "0.00M"],
        ["toys/tiny", "0.00M"],
        ["toys/middle", "0.00M"],
        ["toys/wide", "0.01M"],
        [listed[6].split()[0], "?"],
    ]
    assert sorted(Toys.built) == sorted(built) == ["toys/middle", "toys/other-tiny", "toys/tiny", "toys/wide"]


def test_a_network_is_built_once_and_then_remembered(cache: Path) -> None:
    first = rows("toys/tiny", "--plugin", TOYS)
    second = rows("toys/", "--plugin", TOYS)

    assert Toys.built == ["toys/tiny", "toys/wide", "toys/other-tiny", "toys/middle"]
    assert first[0] in second
    assert rows("toys/", "--plugin", TOYS) == second
    assert len(Toys.built) == 4
    assert kept(cache)["toys/tiny of toys 1"] == 192


def test_counting_other_networks_forgets_none() -> None:
    for name in ("tiny", "wide", "tiny", "wide"):
        rows(f"toys/{name}", "--plugin", TOYS)

    assert Toys.built == ["toys/tiny", "toys/wide"]


def test_another_version_of_a_library_is_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    rows("toys/tiny", "--plugin", TOYS)
    monkeypatch.setattr(Toys, "version", 2)

    rows("toys/tiny", "--plugin", TOYS)

    assert Toys.built == ["toys/tiny", "toys/tiny"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"toys/tiny of toys 1": 19', id="cut off"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param(b"[1, 2]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"toys/tiny of toys 1": null}', id="no number"),
        pytest.param(b'{"toys/tiny of toys 1": "many"}', id="a word"),
        pytest.param(b'{"toys/tiny of toys 1": Infinity}', id="infinity"),
        pytest.param(b'0123456789abcdef0123456789abcdef\n{"toys/tiny of toys 1": 7}', id="a lie with another's seal"),
    ],
)
def test_a_damaged_cache_is_counted_anew(cache: Path, content: bytes) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)

    result = invoke("models", "toys/*tiny", "--plugin", TOYS, "--json")

    assert [row["parameters"] for row in json.loads(result.out)] == [192, 192]
    assert f"{cache} was changed by another program" in result.err
    assert sorted(Toys.built) == ["toys/other-tiny", "toys/tiny"]
    assert kept(cache) == {
        "toys/tiny of toys 1": 192,
        "toys/other-tiny of toys 1": 192,
    }


def test_a_cache_that_cannot_be_written_to_is_done_without(cache: Path) -> None:
    cache.parent.parent.write_text("a file where the folder should be", encoding="utf-8")

    first, second = (invoke("models", "toys/wide", "--plugin", TOYS, "--json") for _ in range(2))

    assert [row["name"] for row in json.loads(first.out)] == ["toys/wide"]
    assert "this cache is not used" in first.err
    assert json.loads(second.out) == json.loads(first.out)
    assert Toys.built == ["toys/wide", "toys/wide"]


def test_a_count_that_breaks_off_keeps_what_it_counted() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            raise KeyError("width")

    known = list(Toys().list_models())
    known[2] = evolve(known[2], build=Broken)

    with pytest.raises(UserError, match="toys 1 cannot be built: KeyError: 'width'"):
        count_parameters(rows_from_cache(known), lambda todo: todo)

    assert [row.parameters for row in rows_from_cache(known)] == [5760, 192, None, None]


def test_the_bar_of_a_long_count_is_on_standard_error(tmp_path: Path) -> None:
    file = tmp_path / "many_hooks.py"
    file.write_text(HOOKS.replace("lambda: nn.Linear(4, 5))]", "lambda: nn.Linear(4, 5))] * 20"), encoding="utf-8")

    result = invoke("models", "mine/", "--plugin", file, "--json")

    assert "counting" in result.err
    assert [row["parameters"] for row in json.loads(result.out)] == [25] * 20


def test_a_hooks_file_can_list_networks(tmp_path: Path) -> None:
    file = tmp_path / "listing_hooks.py"
    file.write_text(HOOKS, encoding="utf-8")

    assert rows("mine/", "--plugin", file, err=f"executes the hooks file {file}\n") == [
        {
            "name": "mine/resnet5O",
            "parameters": 25,
            "size": [8, 16],
            "library": "mine 0.7",
            "weights": [],
            "milliseconds": None,
        }
    ]
    assert "no network matches 'mine/'" in refusal("mine/")


def test_a_plugin_that_lists_something_else_is_an_error_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "wrong_hooks.py"
    file.write_text(HOOKS.replace('return [ModelInfo("mine/resnet5O",', 'return [("mine/resnet5O",'), encoding="utf-8")

    error = refusal("mine/", "--plugin", str(file))

    assert "wrong_hooks.list_models" in error
    assert "returned tuple ('mine/resnet5O'," in error
    assert "expected ModelInfo" in error


def nearest_of_run(*plugins: str | Path) -> Sequence[str]:
    flags = [flag for plugin in plugins for flag in ("--plugin", plugin)]
    result = invoke("run", "--model", "resnet5O", "--data", "digits:5-6", *flags)
    assert result.code == 2
    assert "model.name = 'resnet5O'; expected PROVIDER/NETWORK; nearest: " in result.err
    return result.err.partition("nearest: ")[2].partition(";")[0].split(", ")


def test_a_network_without_a_provider_gets_the_nearest_of_all_providers() -> None:
    near = nearest_of_run()

    assert set(near[:2]) == {"timm/resnet50", "torchvision/resnet50"}
    assert len(near) == len(set(near)) == 5


def test_the_nearest_of_all_providers_include_those_of_a_hooks_file(tmp_path: Path) -> None:
    file = tmp_path / "near_hooks.py"
    file.write_text(HOOKS, encoding="utf-8")

    assert nearest_of_run(file)[0] == "mine/resnet5O"
