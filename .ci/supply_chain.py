"""What ftcore is built from: is any of it known to be vulnerable, and a list of it for those who have to know.

    uv run python .ci/supply_chain.py advisories  # exit code 1 where there is one to be fixed
    uv run python .ci/supply_chain.py sbom >bom.json    # CycloneDX 1.6 of the wheel and all that it needs

Both need no network: the advisories are those of `advisories.toml` beside this file, the versions those that are
installed beside this Python and the lowest that `pyproject.toml` allows.
"""

from __future__ import annotations

import json
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

HERE = Path(__file__).parent

EXTRAS = ("onnx", "parquet", "plot", "serve")
"""Of ftcore, whose dependencies are listed too."""


def read_advisories(file: Path = HERE / "advisories.toml") -> list[dict[str, str]]:
    """Return the advisories: package, fixed (the first version without it), id, published (year-month), about."""
    found: list[dict[str, str]] = tomllib.loads(file.read_text(encoding="utf-8"))["advisory"]
    return found


def installed() -> dict[str, str]:
    """Return the distributions beside this Python: canonical name -> version."""
    return {canonicalize_name(dist.name): dist.version for dist in metadata.distributions()}


def lower_bounds(file: Path = HERE.parent / "pyproject.toml") -> dict[str, str]:
    """Return the lowest versions that a `pyproject.toml` allows: canonical name -> version."""
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    bounds = {}
    for requirement in map(Requirement, texts):
        lowest = [part.version for part in requirement.specifier if part.operator == ">="]
        bounds[canonicalize_name(requirement.name)] = lowest[0] if lowest else "0"
    return bounds


def find_vulnerable(versions: Mapping[str, str], advisories: Iterable[Mapping[str, str]]) -> Iterator[str]:
    """Yield a line for each version that is older than the first one without a vulnerability."""
    for advisory in advisories:
        version = versions.get(canonicalize_name(advisory["package"]))
        if version is not None and Version(version) < Version(advisory["fixed"]):
            words = "{package} {version}: {id} ({published}), fixed in {fixed}: {about}"
            yield words.format(version=version, **advisory)


def needs(name: str, extras: Iterable[str] = ()) -> list[str]:
    """Return the canonical names of the distributions that one needs here, and that are installed."""
    found = set()
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        wanted = [not requirement.marker or requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)]
        other = canonicalize_name(requirement.name)
        if any(wanted) and other in installed() and other != canonicalize_name(name):
            found.add(other)
    return sorted(found)


def sbom(name: str = "ftcore", extras: Iterable[str] = EXTRAS) -> dict[str, Any]:
    """Return a CycloneDX 1.6 list of a distribution and of all that it needs, as installed here."""
    graph, todo = {canonicalize_name(name): needs(name, extras)}, [*needs(name, extras)]
    while todo:
        other = todo.pop()
        if other not in graph:
            graph[other] = needs(other)
            todo += graph[other]
    components = {other: _component(other) for other in sorted(graph)}
    root = components.pop(canonicalize_name(name)) | {"type": "application"}
    refs = {other: _purl(other) for other in graph}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": list(components.values()),
        "dependencies": [
            {"ref": refs[other], "dependsOn": [refs[one] for one in below]} for other, below in sorted(graph.items())
        ],
    }


def _component(name: str) -> dict[str, Any]:
    facts = metadata.metadata(name)
    licence = facts.get("License-Expression") or facts.get("License") or ""
    licences = {"licenses": [{"license": {"name": licence.splitlines()[0][:200]}}]} if licence.strip() else {}
    return {
        "type": "library",
        "bom-ref": _purl(name),
        "name": name,
        "version": metadata.version(name),
        "purl": _purl(name),
        **licences,
    }


def _purl(name: str) -> str:
    return f"pkg:pypi/{name}@{metadata.version(name)}"


def main(words: list[str]) -> int:
    """Do what was asked for, and return the exit code."""
    if words == ["sbom"]:
        print(json.dumps(sbom(), indent=2))
        return 0
    if words != ["advisories"]:
        print(__doc__, file=sys.stderr)
        return 2
    advisories = read_advisories()
    found = [f"installed: {line}" for line in find_vulnerable(installed(), advisories)]
    found += [f"allowed by pyproject.toml: {line}" for line in find_vulnerable(lower_bounds(), advisories)]
    print("\n".join(found) or f"none of {len(advisories)} advisories is about a version that is installed or allowed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
