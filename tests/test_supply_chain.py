"""What ftcore is built from has no known vulnerability, at its lowest either, and can be listed for those who ask."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "supply_chain.py"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

_spec = importlib.util.spec_from_file_location("supply_chain", SCRIPT)
assert _spec
assert _spec.loader
supply_chain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(supply_chain)


def advisory(fixed: str) -> dict[str, str]:
    return {"package": "Some.Thing", "fixed": fixed, "id": "CVE-1", "published": "2026-01", "about": "it breaks"}


def test_nothing_that_is_installed_or_allowed_is_known_to_be_vulnerable() -> None:
    found = subprocess.run([sys.executable, SCRIPT, "advisories"], capture_output=True, text=True, check=False)

    assert (found.returncode, found.stderr) == (0, "")
    assert re.fullmatch(r"none of \d\d advisories is about a version that is installed or allowed\n", found.stdout)


def test_no_bound_allows_the_last_version_before_a_fix() -> None:
    """Compared by the specifiers of pip, not by the lowest version that the script reads from them."""
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    bounds: dict[str, SpecifierSet] = {canonicalize_name(r.name): r.specifier for r in map(Requirement, texts)}
    for entry in supply_chain.read_advisories():
        if entry["package"] in bounds:
            assert f"{entry['fixed']}.dev0" not in bounds[entry["package"]], entry
            assert "99999" in bounds[entry["package"]]


@pytest.mark.parametrize(
    ("version", "fixed", "is_found"),
    [("2.9.1", "2.10.0", True), ("2.10.0", "2.10.0", False), ("2.10", "2.10.0", False), ("2.10.0rc1", "2.10.0", True)],
)
def test_a_version_is_vulnerable_before_the_one_that_is_fixed(version: str, fixed: str, *, is_found: bool) -> None:
    lines = list(supply_chain.find_vulnerable({"some-thing": version}, [advisory(fixed)]))

    expected = f"Some.Thing {version}: CVE-1 (2026-01), fixed in {fixed}: it breaks"
    assert lines == ([expected] if is_found else [])


def test_what_is_not_installed_is_not_vulnerable() -> None:
    assert list(supply_chain.find_vulnerable({"other": "1.0"}, [advisory("2.0")])) == []


@pytest.mark.parametrize("entry", supply_chain.read_advisories(), ids=lambda entry: entry["id"])
def test_an_advisory_says_what_when_and_since_which_version(entry: dict[str, str]) -> None:
    assert re.fullmatch(r"(CVE-\d{4}-\d{4,}|PYSEC-\d{4}-\d+|GHSA(-[0-9a-z]{4}){3})", entry["id"])
    assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", entry["published"])
    assert re.fullmatch(r"\d+(\.\d+)*", entry["fixed"])
    assert entry["about"]


def test_the_list_of_dependencies_is_cyclonedx() -> None:
    """The rules of the schema of CycloneDX 1.6 for what is in it."""
    printed = subprocess.run([sys.executable, SCRIPT, "sbom"], capture_output=True, text=True, check=True).stdout
    bom: dict[str, Any] = json.loads(printed)

    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.6", 1)
    components = [bom["metadata"]["component"], *bom["components"]]
    references = [component["bom-ref"] for component in components]
    assert len(set(references)) == len(references)
    for component in components:
        assert set(component) <= {"type", "bom-ref", "name", "version", "purl", "licenses"}
        assert component["type"] in {"application", "library"}
        assert component["purl"] == f"pkg:pypi/{component['name']}@{component['version']}"
    assert {entry["ref"] for entry in bom["dependencies"]} == set(references)
    assert {other for entry in bom["dependencies"] for other in entry["dependsOn"]} <= set(references)


def test_the_list_holds_the_dependencies_that_pip_would_install_with_their_versions() -> None:
    bom = supply_chain.sbom()
    direct = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    versions = {component["name"]: component["version"] for component in bom["components"]}

    assert direct <= versions.keys()
    assert all(metadata.version(name) == version for name, version in versions.items())
    assert {"markupsafe", "sympy", "threadpoolctl", "h11"} <= versions.keys()  # of jinja2, torch, scikit-learn, uvicorn
    assert not {"pytest", "mypy", "ruff", "sphinx"} & versions.keys()
