from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from ftcore.config.schema import PluginRef, RunConfig
from ftcore.plugins.libraries import library_versions

BUILT_IN = {name: metadata.version(name) for name in ("torchvision", "timm")}


def install(site: Path, *, version: str = "1.0") -> None:
    """Write what pip leaves of two packages: one with plugins, and one that it requires."""
    requires = ("acme-base>=1", "pluggy", "acme-more; extra == 'more'", "acme-windows; sys_platform == 'win32'")
    for name, lines in {"acme": [f"Requires-Dist: {text}" for text in requires], "acme-base": []}.items():
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines])
        )
    plugins = "[ftcore.plugins]\nacme_net = acme:Net\nacme_log = acme:Log\n"
    (site / f"acme-{version}.dist-info" / "entry_points.txt").write_text(plugins)
    hook = "    @hookimpl\n    def {}(self): ...\n"
    classes = f"class Net:\n{hook.format('build_model')}\nclass Log:\n{hook.format('make_observers')}"
    (site / "acme.py").write_text(f"from ftcore import hookimpl\n{classes}")


def versions(*plugins: str) -> dict[str, str]:
    return library_versions(RunConfig(plugins=tuple(PluginRef(text, "a test", Path()) for text in plugins)))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return tmp_path


def test_built_in_plugins_compute_with_what_the_defaults_declare() -> None:
    assert versions() == versions("sgd", "bce@ftcore") == BUILT_IN


@pytest.mark.parametrize("named", ["acme_net", "acme_net@acme"])
def test_a_plugin_of_another_distribution_brings_that_and_what_it_requires(named: str, site: Path) -> None:
    install(site)

    assert versions("sgd", named) == BUILT_IN | {
        "acme": "1.0",
        "acme-base": "1.0",
        "pluggy": metadata.version("pluggy"),
    }


def test_a_plugin_that_only_watches_changes_nothing(site: Path) -> None:
    install(site)

    assert versions("acme_log") == BUILT_IN
