from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftcore import UserError
from ftcore.config.load import CliOverrides, apply_demo_defaults, load_config
from ftcore.config.schema import SECTIONS, DataConfig, ModelConfig, PluginRef, RunConfig, RunSection, TrainConfig
from ftcore.config.structure import structure
from ftcore.plugins.activation import Plugin, activate, activate_all
from ftcore.plugins.discovery import InstalledPlugin, discover
from ftcore.plugins.references import PluginReference, resolve
from ftcore.runs.folder import config_toml


def written(folder: Path, text: str) -> Path:
    file = folder / "run.toml"
    file.write_text(text, encoding="utf-8")
    return file


def activated(name: str, config: RunConfig) -> Plugin:
    return activate(resolve(PluginRef(name, f"--plugin {name}", Path()), discover()), f"--plugin {name}", config)


def test_without_a_file_and_flags_everything_is_the_default() -> None:
    assert load_config() == RunConfig()


def test_a_file_fills_the_sections_the_plugins_and_their_options(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        'plugins = ["sgd", "./hooks.py"]\nwithout = ["progress"]\n[train]\nepochs = 3\n[model]\nstd = [0.1, 0.2]\n'
        '[hooks]\nmake_loss = ["focal", "sgd"]\n[plugin.sgd]\nlr = 0.1\n',
    )

    config = load_config(file)

    assert config.train == TrainConfig(epochs=3)
    assert config.model == ModelConfig(std=(0.1, 0.2))
    assert [named.text for named in config.plugins] == ["sgd", "./hooks.py"]
    assert config.without == ("progress",)
    assert config.hooks == {"make_loss": ("focal", "sgd")}
    assert config.options == {"sgd": {"lr": 0.1}}


def test_flags_beat_the_file_and_the_last_flag_beats_the_others(tmp_path: Path) -> None:
    file = written(tmp_path, '[model]\nname = "timm/resnet18"\n[data]\nsource = "a"\n[train]\nepochs = 3\nseed = 4\n')
    flags = CliOverrides(model="timm/resnet50", data="b", sets=["train.epochs=5", "train.epochs=6"])

    config = load_config(file, flags)

    assert (config.model.name, config.data.source) == ("timm/resnet50", "b")
    assert (config.train.epochs, config.train.seed) == (6, 4)


def test_plugins_of_flags_come_behind_those_of_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, 'plugins = ["sgd"]\nwithout = ["progress"]\n')

    config = load_config(file, CliOverrides(plugins=["bf16"], without=["cosine"]))

    assert [named.text for named in config.plugins] == ["sgd", "bf16"]
    assert config.without == ("progress", "cosine")


def test_every_value_knows_where_it_was_set(tmp_path: Path) -> None:
    file = written(tmp_path, 'plugins = ["sgd"]\n[train]\nepochs = 3\nseed = 1\n[plugin.sgd]\nlr = 0.1\n')

    config = load_config(
        file, CliOverrides(model="timm/resnet18", plugins=["bf16"], sets=["train.epochs=5", "sgd.momentum=0"])
    )

    assert config.origins == {
        "train.epochs": "--set train.epochs=5",
        "train.seed": str(file),
        "plugin.sgd.lr": str(file),
        "plugin.sgd.momentum": "--set sgd.momentum=0",
        "model.name": "--model timm/resnet18",
    }
    assert [named.origin for named in config.plugins] == [f"{file} plugins[0]", "--plugin bf16"]


def test_a_hooks_file_is_looked_for_beside_the_config_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    hooks = tmp_path / "elsewhere" / "beside_the_config.py"
    hooks.write_text("", encoding="utf-8")
    file = written(hooks.parent, 'plugins = ["./beside_the_config.py"]\n')

    (named,) = load_config(file).plugins

    assert resolve(named, ()).file == hooks.resolve()


def test_a_hooks_file_of_a_flag_is_relative_to_the_working_folder() -> None:
    (named,) = load_config(None, CliOverrides(plugins=["./hooks.py"])).plugins

    assert named.base == Path.cwd()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3", "unknown key 'epochs' in"),
        ("[trian]\nepochs = 3", "unknown key 'trian' in"),
        (
            "[trian]\nepochs = 3",
            "did you mean 'train'?; allowed: model, data, train, run, observers, hooks, plugin",
        ),
        ("[train]\nepoch = 3", "unknown option 'train.epoch'; did you mean 'epochs'?"),
        ("[train]\nepochs = 0.9", "train.epochs: expected an integer, got 0.9"),
        ("[train]\nepochs = 0", "train.epochs: 'epochs' must be > 0: 0"),
        ("[data]\nval_fraction = 1.0", "data.val_fraction: 'val_fraction' must be < 1.0: 1.0"),
        ("[model]\nname = 3", "model.name: expected text, got 3"),
        ("[model]\nmean = '123'", "model.mean: "),
        ("train = 3", "must be a table: [train]"),
        ("plugin = 'sgd'", "plugin"),
        ("plugin = ['sgd']", "plugin"),
        ("[plugin]\nsgd = 3", "must be a table: [plugin.sgd]"),
        ("plugins = 'sgd'", "must be a list of names"),
        ("plugins = [3]", "must be a list of names"),
        ("without = 'sgd'", "without"),
        ("[hooks]\nmake_loss = 'sgd'", "hooks.make_loss must be a list of plugin names"),
        ("[train\n", "cannot read"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_name(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)

    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_config(file)

    assert str(file) in str(caught.value)


def test_a_file_that_is_missing_is_named_with_the_place_that_was_looked_at() -> None:
    with pytest.raises(UserError, match=r"config file not found: missing\.toml \(looked at /.*missing\.toml\)"):
        load_config(Path("missing.toml"))


def test_a_folder_is_no_config_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"cannot read {re.escape(str(tmp_path))}"):
        load_config(tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(UserError, match=f"cannot read {re.escape(str(file))}"):
        load_config(file)


@pytest.mark.parametrize(
    ("text", "section", "option", "value"),
    [
        ("train.epochs=3", "train", "epochs", 3),
        ("train.clip_norm=1", "train", "clip_norm", 1.0),
        ("model.weights=weights/epoch=3.pth", "model", "weights", "weights/epoch=3.pth"),
        ("model.weights=none", "model", "weights", "none"),
        ("run.folder=2024", "run", "folder", "2024"),
        ("run.folder=runs/first", "run", "folder", "runs/first"),
        ("data.source=C:\\photos", "data", "source", "C:\\photos"),
        ("data.source=digits:5-9", "data", "source", "digits:5-9"),
        ("data.source='a b'", "data", "source", "a b"),
        ("model.mean=0.5", "model", "mean", 0.5),
        ("model.mean=[0.1, 0.2, 0.3]", "model", "mean", (0.1, 0.2, 0.3)),
        ("train.monitor=f1", "train", "monitor", "f1"),
    ],
)
def test_set_reads_text_where_the_option_is_text_and_toml_where_it_is_not(
    text: str, section: str, option: str, value: object
) -> None:
    config = load_config(None, CliOverrides(sets=[text]))

    assert getattr(getattr(config, section), option) == value


def test_set_takes_lists_and_inline_tables_for_a_plugin() -> None:
    sets = ["weighted_ce.weights={5 = 2, 6 = 0.5}", "weighted_ce.divide_by=samples", "adam.betas=[0.8, 0.9]"]

    config = load_config(None, CliOverrides(sets=sets))

    weighted, adam = activated("weighted_ce", config), activated("adam", config)
    assert weighted.config.weights == {"5": 2.0, "6": 0.5}
    assert weighted.config.divide_by == "samples"
    assert adam.config.betas == (0.8, 0.9)


def test_set_can_order_the_plugins_of_a_hook() -> None:
    config = load_config(None, CliOverrides(sets=['hooks.make_loss=["focal", "weighted_ce"]']))

    assert config.hooks == {"make_loss": ("focal", "weighted_ce")}
    assert config.options == {}


@pytest.mark.parametrize("text", ["train.epochs", "epochs=3", "train.=3", ".epochs=3", "a.b.c=3", "=3", ""])
def test_a_malformed_set_shows_the_form_that_is_expected(text: str) -> None:
    message = f"--set {text}: expected SECTION.KEY=VALUE or PLUGIN.KEY=VALUE, e.g. train.epochs=3"

    with pytest.raises(UserError, match=re.escape(message)):
        load_config(None, CliOverrides(sets=[text]))


def test_a_wrong_flag_is_quoted_in_the_message() -> None:
    with pytest.raises(UserError, match=re.escape("got 'many' (--set train.epochs=many)")):
        load_config(None, CliOverrides(sets=["train.epochs=many"]))


def test_a_wrong_plugin_option_is_named_as_it_was_written() -> None:
    config = load_config(None, CliOverrides(sets=["sgd.lr=fast"]))

    with pytest.raises(UserError, match=re.escape("sgd.lr: expected a finite number, got 'fast' (--set sgd.lr=fast)")):
        activated("sgd", config)


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
LINE = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(1, 10**6)
FROM_ZERO = st.integers(0, 10**6)
STATISTICS = st.none() | NUMBERS | st.lists(NUMBERS).map(tuple)

MODELS = st.builds(
    ModelConfig,
    name=st.none() | TEXT,
    weights=TEXT,
    head=st.none() | TEXT,
    image_size=st.none() | st.integers(1, 65536),
    channels=st.none() | st.integers(1, 1024),
    mean=STATISTICS,
    std=STATISTICS,
)
DATA = st.builds(
    DataConfig,
    source=st.none() | TEXT,
    task=st.sampled_from(["classification", "regression"]),
    val_fraction=st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
    split_seed=st.none() | FROM_ZERO,
    folds=st.none() | st.integers(2, 10**6),
    fold=st.none() | FROM_ZERO,
    on_corrupt=st.sampled_from(["fail", "skip"]),
    cache=st.sampled_from([None, "ram", "disk"]),
    cache_gb=st.none() | st.floats(0, 10**6, exclude_min=True),
)
TRAIN = st.builds(
    TrainConfig,
    epochs=COUNTS,
    batch_size=COUNTS,
    accumulate=COUNTS,
    clip_norm=st.floats(min_value=0, allow_infinity=False),
    seed=FROM_ZERO,
    workers=st.none() | st.integers(0, 1024),
    log_every=COUNTS,
    monitor=st.none() | TEXT,
)
CONFIGS = st.builds(
    RunConfig,
    model=MODELS,
    data=DATA,
    train=TRAIN,
    run=st.builds(RunSection, folder=st.none() | TEXT),
    origins=st.dictionaries(st.sampled_from(["model.name", "train.epochs", "plugin.acme.weights"]), LINE),
)


@frozen
class AcmeConfig:
    weights: str | tuple[float, ...] | dict[str, float]
    switch: bool
    rate: float
    words: tuple[str, ...]
    perhaps: str | None = None


OPTIONS = st.builds(
    AcmeConfig,
    weights=TEXT | st.lists(NUMBERS).map(tuple) | st.dictionaries(TEXT, NUMBERS),
    switch=st.booleans(),
    rate=NUMBERS,
    words=st.lists(TEXT).map(tuple),
    perhaps=st.none() | TEXT,
)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(config=CONFIGS, options=OPTIONS)
def test_a_config_that_was_written_and_read_again_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, config: RunConfig, options: AcmeConfig
) -> None:
    plugin = Plugin(PluginReference("acme", "acme.hooks", "Acme", "acme 1.0", "acme"), "--plugin acme", options, ())

    again = load_config(written(tmp_path_factory.getbasetemp(), config_toml(config, [plugin])))

    assert {name: getattr(again, name) for name in SECTIONS} == {name: getattr(config, name) for name in SECTIONS}
    assert structure(again.options["acme"], AcmeConfig, "plugin.acme", again.origins) == options
    assert [named.text for named in again.plugins] == ["acme"]


def test_a_written_config_says_where_each_value_was_set(tmp_path: Path) -> None:
    file = written(tmp_path, 'plugins = ["sgd"]\n[train]\nepochs = 3\n')
    config = load_config(file, CliOverrides(sets=["sgd.lr=0.5"]))

    lines = config_toml(config, [activated("sgd", config)]).splitlines()

    assert f"epochs = 3 # {file}" in lines
    assert "batch_size = 32 # default" in lines
    assert "lr = 0.5 # --set sgd.lr=0.5" in lines
    assert "momentum = 0.9 # default" in lines


def test_a_flag_of_two_lines_does_not_break_the_written_config(tmp_path: Path) -> None:
    config = load_config(None, CliOverrides(sets=["adam.betas=[0.8,\n0.9]"]))
    text = config_toml(config, [activated("adam", config)])

    again = load_config(written(tmp_path, text))

    assert activated("adam", again).config.betas == (0.8, 0.9)


def test_a_written_config_that_left_out_a_named_plugin_means_the_same_plugins(tmp_path: Path) -> None:
    file = written(tmp_path, 'plugins = ["weighted_ce", "sgd"]\n')
    config = load_config(file, CliOverrides(without=["weighted_ce"]))
    plugins = activate_all(config, discover(), ())

    again = load_config(written(tmp_path, config_toml(config, plugins)))

    assert [plugin.name for plugin in activate_all(again, discover(), ())] == ["sgd"]


def test_a_written_config_keeps_switched_off_defaults_and_orders(tmp_path: Path) -> None:
    config = load_config(None, CliOverrides(without=["progress"], sets=['hooks.make_loss=["a", "b"]']))

    again = load_config(written(tmp_path, config_toml(config, [])))

    assert again.without == ("progress",)
    assert again.hooks == {"make_loss": ("a", "b")}


def test_a_written_config_names_the_distribution_of_a_plugin_that_needed_it() -> None:
    available = (
        InstalledPlugin("focal", "acme-losses", "1.0", "acme:Focal"),
        InstalledPlugin("focal", "other", "2.0", "b:Focal"),
    )
    reference = resolve(PluginRef("focal@acme-losses", "--plugin", Path()), available)

    text = config_toml(RunConfig(), [Plugin(reference, "--plugin", None, ())])

    assert 'plugins = ["focal@acme-losses"]' in text


def test_the_demo_sets_threads_and_a_value_that_was_set_stays() -> None:
    demo: dict[str, dict[str, Any]] = {
        "model": {"name": "digits/cnn"},
        "data": {"source": "digits"},
        "train": {"threads": 1},
    }

    assert apply_demo_defaults(load_config(None), demo).train.threads == 1
    assert apply_demo_defaults(load_config(None, CliOverrides(sets=["train.threads=2"])), demo).train.threads == 2
    assert apply_demo_defaults(load_config(None, CliOverrides(model="timm/resnet18")), demo).train.threads is None
