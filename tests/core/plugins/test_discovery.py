from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ftcore import UserError
from ftcore.config.schema import PluginRef, RunConfig
from ftcore.plugins.activation import activate
from ftcore.plugins.discovery import (
    InstalledPlugin,
    default_module,
    discover,
    find_installed,
    source_file,
    static_hooks,
)
from ftcore.plugins.references import resolve
from ftcore.testing import invoke

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAVY = ("torch", "torchvision", "timm", "sklearn", "torchmetrics", "safetensors")
BUILT_IN = [plugin for plugin in discover() if plugin.distribution == "ftcore"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A folder of installed packages; what was imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    path, modules = list(sys.path), set(sys.modules)
    sys.path.append(str(folder))
    yield folder
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if Path(getattr(sys.modules[name], "__file__", None) or ".").is_relative_to(folder):
            del sys.modules[name]


def install(site: Path, distribution: str, **plugins: str) -> None:
    """Write what pip leaves of a distribution: its metadata."""
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
    lines = "".join(f"{name} = {target}\n" for name, target in plugins.items())
    (info / "entry_points.txt").write_text(f"[ftcore.plugins]\n{lines}", encoding="utf-8")


def imported_by(code: str, *arguments: str) -> set[str]:
    """Run Python code in a fresh process and return every module that is imported there at the end."""
    end = "import sys; open(sys.argv[1], 'w').write('\\n'.join(sys.modules))"
    program = f"import sys\ntry:\n    {code}\nfinally:\n    {end}\n"
    reading = Path(arguments[0])
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True)
    return set(reading.read_text(encoding="utf-8").splitlines())


def test_importing_ftcore_imports_nothing_but_attrs_and_pluggy(tmp_path: Path) -> None:
    before = imported_by("pass", str(tmp_path / "before"))
    modules = imported_by("import ftcore", str(tmp_path / "after")) - before

    others = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    assert others == {"attr", "attrs", "ftcore", "pluggy"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["plugins"],
        ["plugins", "--json", "--plugin", "weighted_ce"],
        ["explain", "--static", "--plugin", "weighted_ce"],
    ],
    ids=" ".join,
)
def test_a_command_that_only_lists_leaves_torch_alone(tmp_path: Path, arguments: list[str]) -> None:
    command = "from ftcore.cli import main; main(sys.argv[2:], standalone_mode=False)"

    modules = imported_by(command, str(tmp_path / "modules"), *arguments)

    assert "ftcore.cli.group" in modules
    assert modules.isdisjoint(HEAVY)


def test_listing_imports_no_plugin(tmp_path: Path) -> None:
    command = "from ftcore.cli import main; main(sys.argv[2:], standalone_mode=False)"

    modules = imported_by(command, str(tmp_path / "modules"), "plugins", "--json")

    assert modules.isdisjoint(plugin.target.partition(":")[0] for plugin in BUILT_IN)


def test_every_built_in_is_listed_with_its_distribution_and_its_hooks() -> None:
    rows = {row["name"]: row for row in json.loads(invoke("plugins", "--json").out)}

    assert {plugin.name for plugin in BUILT_IN} <= rows.keys()
    assert rows["weighted_ce"]["distribution"] == "ftcore"
    assert rows["digits"]["hooks"] == "build_data, build_model, list_models"
    assert (rows["weighted_ce"]["active"], rows["cross_entropy"]["active"]) == ("no", "default")


def test_the_listing_marks_what_a_run_with_these_arguments_would_activate(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('plugins = ["weighted_ce"]\n', encoding="utf-8")

    listed = invoke("plugins", "--config", config, "--plugin", "sgd", "--without", "cosine", "--json")

    active = {row["name"]: row["active"] for row in json.loads(listed.out)}
    assert [active[name] for name in ("weighted_ce", "sgd", "cosine", "timm")] == ["yes", "yes", "no", "default"]


def test_the_listing_shows_a_hooks_file_that_was_named(tmp_path: Path) -> None:
    file = tmp_path / "listed_hooks.py"
    file.write_text("from ftcore import hookimpl\n\n@hookimpl\ndef make_loss():\n    return print\n", encoding="utf-8")

    rows = {row["name"]: row for row in json.loads(invoke("plugins", "--plugin", file, "--json").out)}

    assert (rows["listed_hooks"]["hooks"], rows["listed_hooks"]["active"]) == ("make_loss", "yes")


@pytest.mark.parametrize("plugin", BUILT_IN, ids=lambda plugin: plugin.name)
def test_the_hooks_that_are_read_are_those_that_importing_finds(plugin: InstalledPlugin) -> None:
    reference = resolve(PluginRef(f"{plugin.name}@ftcore", "test", Path()), (plugin,))

    needed: dict[str, dict[str, Any]] = {
        "exponential": {"gamma": 0.9},
        "multistep": {"milestones": (1,)},
        "step": {"size": 1},
    }
    options = {**needed, "timm_optim": {"name": "lion"}}  # those that have no default

    imported = activate(reference, "test", RunConfig(options=options))

    assert static_hooks(plugin.target) == tuple(sorted({impl.hook for impl in imported.hooks}))


def test_the_defaults_are_named_by_ftcores_own_distribution_alone(site: Path) -> None:
    install(site, "acme-defaults")
    entries = site / "acme_defaults-1.0.dist-info" / "entry_points.txt"
    entries.write_text("[ftcore.defaults]\nbuiltin = acme.defaults\n", encoding="utf-8")

    assert default_module() == "ftcore_plugins.defaults"


def test_hooks_of_a_module_of_a_base_class_and_by_attribute_are_read(site: Path) -> None:
    (site / "acme_read.py").write_text(
        "import ftcore\nfrom ftcore import hookimpl\nraise RuntimeError('imported')\n"
        "@hookimpl\ndef freeze(): ...\n"
        "class Base:\n    @ftcore.hookimpl\n    def make_loss(self): ...\n    def make_metrics(self): ...\n"
        "class Child(Base):\n    @hookimpl(wrapper=True)\n    def build_head(self): ...\n",
        encoding="utf-8",
    )

    assert static_hooks("acme_read") == ("freeze",)
    assert static_hooks("acme_read:Child") == ("build_head", "make_loss")
    assert static_hooks("acme_read:Missing") is None


def test_hooks_without_readable_source_are_unknown(site: Path) -> None:
    (site / "acme_garbled.py").write_text("def (", encoding="utf-8")

    assert static_hooks("acme_garbled") is None
    assert static_hooks("acme_nowhere.deep:Focal") is None
    assert static_hooks("itertools") is None


def test_the_source_of_a_module_is_found_without_importing_its_package(site: Path) -> None:
    package = site / "acme_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    (package / "losses.py").write_text("", encoding="utf-8")

    assert source_file("acme_package.losses") == package / "losses.py"
    assert source_file("acme_package.missing") is None
    assert "acme_package" not in sys.modules


def test_two_distributions_may_have_a_plugin_of_one_name_and_both_are_listed(site: Path) -> None:
    install(site, "other-losses", tilted="other_losses:Tilted")
    install(site, "acme-losses", tilted="acme_losses:Tilted")

    assert [plugin.source for plugin in discover() if plugin.name == "tilted"] == [
        "acme-losses 1.0",
        "other-losses 1.0",
    ]


def test_a_name_that_two_distributions_have_must_be_told_apart(site: Path) -> None:
    install(site, "acme-losses", tilted="acme_losses:Tilted")
    install(site, "other-losses", tilted="other_losses:Tilted")

    with pytest.raises(UserError, match="plugin name 'tilted' is provided by 2 installed packages") as caught:
        find_installed("tilted", None, discover())

    assert "  acme-losses 1.0: acme_losses:Tilted\n  other-losses 1.0: other_losses:Tilted\n" in str(caught.value)
    assert "choose one, e.g. --plugin tilted@acme-losses" in str(caught.value)
    assert find_installed("tilted", "other-losses", discover()).target == "other_losses:Tilted"


def test_a_built_ins_name_in_another_distribution_does_not_disturb_the_default(site: Path) -> None:
    install(site, "acme-losses", cross_entropy="acme_losses:CrossEntropy")

    result = invoke("explain", "--static")

    assert (result.code, result.err) == (0, "")
    assert "cross_entropy" in result.out


def test_a_distribution_that_does_not_have_the_plugin_is_refused() -> None:
    with pytest.raises(UserError, match="plugin 'sgd' is not in distribution 'acme'; it is provided by ftcore"):
        find_installed("sgd", "acme", discover())


def test_an_unknown_name_shows_the_nearest_and_where_all_are_listed() -> None:
    with pytest.raises(UserError, match=r"no plugin named 'wieghted_ce'; did you mean 'weighted_ce'\?") as caught:
        find_installed("wieghted_ce", None, discover())

    assert "\n  weighted_ce: Cross-entropy with class" in str(caught.value)
    assert "`ftcore plugins` lists all" in str(caught.value)
    assert "for a file ./hooks.py" in str(caught.value)


def test_a_broken_plugin_is_listed_and_disturbs_no_run_that_does_not_name_it(site: Path) -> None:
    install(site, "acme-broken", broken="acme_broken:Broken")
    (site / "acme_broken.py").write_text("raise OSError('no licence')\n", encoding="utf-8")

    rows = {row["name"]: row for row in json.loads(invoke("plugins", "--json").out)}

    assert rows["broken"]["distribution"] == "acme-broken"
    assert invoke("explain", "--static", "--plugin", "weighted_ce").code == 0


def test_the_run_that_names_a_broken_plugin_says_plugin_distribution_and_cause(site: Path) -> None:
    install(site, "acme-broken", broken="acme_broken:Broken")
    (site / "acme_broken.py").write_text("raise OSError('no licence')\n", encoding="utf-8")

    result = invoke("explain", "--static", "--plugin", "broken")

    assert result.code == 2
    assert result.err.startswith(
        "ftcore: plugin 'broken' (from acme-broken 1.0) failed to import acme_broken: OSError: no licence\n"
    )


@pytest.mark.parametrize("name", ["model", "hooks", "plugin", "without"])
def test_an_installed_plugin_that_is_called_like_a_section_is_refused_when_it_is_named(name: str) -> None:
    plugin = InstalledPlugin(name, "acme-losses", "1.0", "acme_losses:Focal")

    with pytest.raises(
        UserError, match=rf"acme-losses 1\.0 has an invalid plugin name '{name}': .* use none of data, hooks"
    ):
        resolve(PluginRef(name, "--plugin", Path()), (plugin,))


CIRCLES = {
    "a sum of 200,000 terms": ("x = 1" + " + 1" * 200_000 + "\n\nclass A:\n    pass\n"),
    "brackets 100,000 deep": "x = " + "(" * 100_000 + ")" * 100_000,
    "a decorator 5,000 deep": "class A:\n    @"
    + "a." * 5000
    + "hookimpl\n    def make_loss(self):\n        return 0\n",
    "classes that are each other's bases": "class A(B):\n    pass\n\n\nclass B(A):\n    pass\n",
    "a circle over two modules": "from circle2 import B\n\n\nclass A(B):\n    pass\n",
    "five thousand bases": "".join(f"class A{i}(A{i + 1}):\n    pass\n" for i in range(5000)).replace("A0", "A"),
    "bytes that are no text": "\0",
    "ten megabytes": "x = 1\n" * 2_000_000,
}
"""Sources at which reading them could end a command."""


@pytest.mark.parametrize("source", CIRCLES)
def test_a_source_that_cannot_be_read_ends_no_listing(site: Path, source: str) -> None:
    (site / "circle1.py").write_text(CIRCLES[source], encoding="utf-8")
    (site / "circle2.py").write_text("from circle1 import A\n\n\nclass B(A):\n    pass\n", encoding="utf-8")
    install(site, "circling", circling="circle1:A")

    (row,) = [row for row in json.loads(invoke("plugins", "--json").out) if row["distribution"] == "circling"]

    assert (row["name"], row["active"]) == ("circling", "no")


GARBAGE = {
    "no name": ("Metadata-Version: 2.1\n", "[ftcore.plugins]\nx = a:B\n"),
    "a section without an end": ("Metadata-Version: 2.1\nName: g\nVersion: 1\n", "[ftcore.plugins\nx = a:B\n"),
    "no equals sign": ("Metadata-Version: 2.1\nName: g\nVersion: 1\n", "[ftcore.plugins]\nx\n"),
    "targets that are none": (
        "Metadata-Version: 2.1\nName: g\nVersion: 1\n",
        "[ftcore.plugins]\nx = ..:\ny = a b!!\nz = \n",
    ),
    "NUL in a target": ("Metadata-Version: 2.1\nName: g\nVersion: 1\n", "[ftcore.plugins]\nx = ftcore.a\0b:C\n"),
}
"""Metadata and entry points -> as pip would never leave them."""


@pytest.mark.parametrize("kind", GARBAGE)
def test_metadata_that_are_garbage_end_no_listing(site: Path, kind: str) -> None:
    install(site, "garbage")
    for name, text in zip(("METADATA", "entry_points.txt"), GARBAGE[kind], strict=True):
        (site / "garbage-1.0.dist-info" / name).write_text(text, encoding="utf-8")

    result = invoke("plugins", "--json")

    assert result.code == 0
    assert {plugin.name for plugin in BUILT_IN} <= {row["name"] for row in json.loads(result.out)}
