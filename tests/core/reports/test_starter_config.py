from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from ftcore.config import load_config
from ftcore.config.schema import SECTIONS, RunConfig
from ftcore.plugins.startup import activate
from ftcore.testing import invoke

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pictures(folder: Path, **counts: int) -> None:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), number).save(folder / name / f"{number}.png")


def test_what_is_written_is_read_with_the_same_data_and_says_why_it_names_what_it_names(tmp_path: Path) -> None:
    pictures(tmp_path / "photos", cat=40, dog=8)

    said = invoke("init", "photos")

    assert said.code == 0, said.err
    config = load_config(tmp_path / "config.toml")
    assert [named.text for named in config.plugins] == ["linear_probe", "weighted_ce"]
    assert config.data.source == "photos"
    assert config.model.name == "timm/mobilenetv3_large_100"
    assert "38 training and 10 validation images" in said.out
    assert "linear_probe: 19 training images per class or label (median); few images" in said.out
    assert "weighted_ce: the largest class has 5 times the images of the smallest" in said.out
    assert "start with: ftcore run config.toml" in said.out
    activate(config)


@pytest.mark.parametrize(("each", "recipe"), [(20, "linear_probe"), (100, "lp_ft"), (260, "fine_tune")])
def test_the_more_images_a_class_has_the_more_of_the_network_learns(tmp_path: Path, each: int, recipe: str) -> None:
    pictures(tmp_path / "photos", cat=each, dog=each)

    assert invoke("init", "photos").code == 0

    assert tomllib.loads((tmp_path / "config.toml").read_text(encoding="utf-8"))["plugins"] == [recipe]


def test_every_option_is_there_and_those_in_comments_have_their_defaults(tmp_path: Path) -> None:
    assert invoke("init", "digits:5-9", "--model", "digits/cnn", "--set", "train.epochs=3").code == 0

    text = (tmp_path / "config.toml").read_text(encoding="utf-8")
    assert "\nepochs = 3\n" in text
    all_set = "\n".join(line.removeprefix("# ") if " = " in line[:30] else line for line in text.splitlines())
    read, plain = tomllib.loads(all_set), RunConfig()
    for section, cls in SECTIONS.items():
        for option in cls.__annotations__:
            assert f"\n{option} = " in text or f"\n# {option} =" in text, option
            if option in read[section] and (section, option) not in {
                ("model", "name"),
                ("data", "source"),
                ("train", "epochs"),
            }:
                default = getattr(getattr(plain, section), option)
                assert read[section][option] == (list(default) if isinstance(default, tuple) else default)


def test_options_of_the_data_are_written_and_a_table_of_numbers_is_described(tmp_path: Path) -> None:
    pictures(tmp_path / "photos", a=30)
    rows = [f"a/{number}.png,{number * 1.5}" for number in range(30)]
    (tmp_path / "photos" / "ages.csv").write_text("\n".join(["path,age", *rows]), encoding="utf-8")

    said = invoke("init", "photos/ages.csv", "--set", "table.target=age", "--out", "ages.toml")

    assert said.code == 0, said.err
    assert "regression, 1: age" in said.out
    assert load_config(tmp_path / "ages.toml").options["table"] == {"target": "age"}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("mine", encoding="utf-8")

    said = invoke("init", "digits:5-9")

    assert said.code == 2
    assert "config.toml already exists and will not be overwritten; choose another file with --out" in said.err
    assert (tmp_path / "config.toml").read_text(encoding="utf-8") == "mine"
