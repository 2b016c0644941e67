"""The pages of the documentation: their blocks, which are executed, and the commands, plugins and keys that they name.

Every block of a page is executed, in order, in one folder a page:

- ``sh``: each line is a command; those of ftcore run in this process, networks with random weights on small images, as
  there are no pre-trained weights without the internet.
- ``python`` and ``toml`` whose first line is ``# FILE``: written to that file. Other python is executed, other toml
  must be a configuration.
- ``text`` below a comment ``output``: what the commands before it print, but for numbers; ``...`` stands for any lines.

A comment above a block says what else holds: ``not run: REASON``, or ``exit code N: REASON``. Other text is only shown.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from attrs import define, field, fields, frozen
from PIL import Image

from ftcore.cli import main
from ftcore.config import SECTIONS, PluginRef
from ftcore.config.load import load_config
from ftcore.hooks import HOOK_ARGUMENTS
from ftcore.plugins import describe_plugin, discover
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "contrib" / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in DOCS.rglob("*.md") if page.relative_to(DOCS).parts[0] not in {"reference", "README.md"}),
]

_BLOCK = re.compile(r"^(?:<!-- ([^\n]*?) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

_PLUGINS = {plugin.name for plugin in discover()}

_ELSEWHERE = {
    name
    for file in (ROOT / "contrib").glob("*/pyproject.toml")
    for name in re.findall(r"^(\w+) = \"ftcore_", file.read_text(encoding="utf-8"), re.MULTILINE)
}
"""Plugins of the packages in contrib."""

_FILES = {"toml", "json", "jsonl", "py", "csv", "html", "md", "txt", "sh"}


_NARROW = "timm/test_resnet.r160_in1k"
"""A ResNet of timm with the modules of a ResNet-18, and a small share of its parameters."""

_SHELL = {">", "|", "&&"}


@frozen
class Block:
    """A fenced block of a page.

    Attributes:
        language: behind the fence; empty where there is none.
        text: between the fences.
        mark: the comment above it.
        line: in the page, from 1.
    """

    language: str
    text: str
    mark: str
    line: int

    @property
    def file(self) -> str:
        """Return the file that the block is, if its first line names one."""
        found = re.match(r"# ([\w./-]+\.(?:py|toml))\n", self.text)
        return found[1] if found and self.language in {"python", "toml"} else ""

    @property
    def is_run(self) -> bool:
        """Whether it is executed."""
        return not self.mark.startswith("not run: ")

    def commands(self) -> list[list[str]]:
        """Return its lines as words, without comments, those that go on joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    def ftcore_commands(self) -> Iterator[list[str]]:
        """Yield the arguments of each command of ftcore."""
        for words in map(_without_uv, self.commands()):
            command = words[words.index("ftcore") + 1 :] if "ftcore" in words else None
            if command is not None and words[0] in {"ftcore", "srun", "torchrun"}:
                yield command


def _without_uv(words: list[str]) -> list[str]:
    """Leave out what makes the environment that the tests run in."""
    for made in (["pip", "install", "uv", "&&", "uv", "run"], ["uv", "run"]):
        if words[: len(made)] == made:
            return words[len(made) :]
    return words


def blocks(text: str) -> list[Block]:
    """Return the blocks of a page in order."""
    return [
        Block(found[2], found[3], found[1] or "", text.count("\n", 0, found.start()) + 1)
        for found in _BLOCK.finditer(text)
    ]


def make_inputs(folder: Path) -> None:
    """Make what the pages speak of: a folder per class, one with a long tail, tables, and images to predict."""
    image_folder(folder / "photos", ("cat", "dog", "fox"), per_class=16)
    image_folder(folder / "new", ("cat", "dog", "fox"), per_class=1)
    for name, count in (("cardboard", 16), ("glass", 8), ("trash", 4)):
        image_folder(folder / "waste", (name,), per_class=count)
    noise = np.random.default_rng(0)
    rows = [("path", "labels", "weight", "patient", "split", "label")]
    (folder / "scans").mkdir()
    for number in range(24):
        pixels = noise.integers(0, 120, size=(32, 32, 3))
        pixels[: 1 + number] += 100
        Image.fromarray(pixels.astype("uint8")).save(folder / "scans" / f"{number}.png")
        labels = "|".join(label for place, label in enumerate(("dog", "grass", "snow")) if (number + 1) >> place & 1)
        split = ("train", "train", "val", "test")[number // 2 % 4]
        label = ("small", "large")[number % 2]
        rows.append((f"scans/{number}.png", labels, f"{number / 3:.2f}", f"p{number // 3}", split, label))
    for file, columns in {"labels": (0, 1), "numbers": (0, 2), "patients": (0, 5, 3), "splits": (0, 5, 4)}.items():
        lines = [",".join(row[column] for column in columns) for row in rows]
        (folder / f"{file}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@define
class Session:
    """One page that is executed.

    Attributes:
        folder: where it is.
        said: what the commands of the last block have printed.
        names: what its python has defined.
    """

    folder: Path
    said: str = ""
    names: dict[str, Any] = field(factory=dict)

    def run(self, block: Block) -> None:
        """Execute a block."""
        if block.file:
            file = self.folder / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            wanted = re.match(r"exit code (\d+): ", block.mark)
            code = int(wanted[1]) if wanted else 0
            self.said = "".join([self.call(_without_uv(words), code) for words in block.commands()])
        elif block.language == "python":
            exec(compile(block.text, f"line {block.line}", "exec"), self.names)
        elif block.language == "toml":
            file = self.folder / "fragment.toml"
            file.write_text(block.text, encoding="utf-8")
            load_config(file)
        elif block.mark == "output":
            assert_printed(block.text, self.said)

    def call(self, words: Sequence[str], code: int) -> str:
        """Run one command; return what it prints."""
        site = self.folder / "site"
        words = ["ftcore", *quickened(words[1:])] if words[0] == "ftcore" else words
        if words[0] == "ftcore" and not _SHELL & set(words) and not site.exists():
            result = invoke(*words[1:])
            assert result.code == code, f"{shlex.join(words)}\n{result.out}\n{result.err}"
            return result.out + result.err
        install = f"uv pip install -q --python {sys.executable} --no-deps --target {site}"
        line = " ".join(word if word in _SHELL else shlex.quote(word) for word in words)
        done = subprocess.run(
            ["bash", "-c", line.replace("pip install -e", install)],
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(site),
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr


def quickened(arguments: Sequence[str]) -> list[str]:
    """Give a pre-trained network random weights and small images, unless a command says which; replace a ResNet-18."""
    text = " ".join(arguments)
    builds = arguments[0] in {"run", "explain", "find"} and re.search(r"--model (timm|torchvision)/", text)
    small = {("model.weights", "--weights"): "none", ("model.image_size", "--image-size"): "32"} if builds else {}
    at = next((place for place, word in enumerate(arguments) if word in _SHELL), len(arguments))
    sets = [
        word
        for (key, flag), value in small.items()
        if key not in text and flag not in text
        for word in ("--set", f"{key}={value}")
    ]
    words = [*arguments[:at], *sets, *arguments[at:]]
    return [_NARROW if builds and word == "timm/resnet18" else word for word in words]


def execute(page: Path, folder: Path) -> None:
    """Execute the blocks of a page in a folder."""
    make_inputs(folder)
    session = Session(folder)
    with chdir(folder):
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.is_run:
                try:
                    session.run(block)
                except BaseException as error:
                    error.add_note(f"{page.name}, line {block.line}")
                    raise


def masked(text: str) -> list[str]:
    """Lines of what a command shows, without what differs between machines: times, folders, decimals, best epochs."""
    text = re.sub(r"(?:, [\d:]+ left)?(?: \*)?$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\d+ images/s|runs/[\w-]+", "_", text)
    return [" ".join(re.sub(r"\d+\.\d+|(?<=in epoch )\d+", "_", line).split()) for line in text.splitlines()]


def assert_printed(shown: str, said: str) -> None:
    """Check that lines were printed, in their order; any may come in the place of ``...``."""
    printed = iter(masked(said))
    for group in re.split(r"^\.\.\.\n", shown, flags=re.MULTILINE):
        lines = masked(group)
        if lines:
            assert lines[0] in printed, f"not printed: {lines[0]}\n{said}"
            assert lines[1:] == [next(printed, "nothing") for _ in lines[1:]], said


def check_command(arguments: Sequence[str], page: str) -> None:
    """Check that a command, its options, plugins and keys exist; values in capitals stand for any."""
    command: click.Command = main
    words = list(arguments)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{page}: no command {words[0]}"
        command = command.commands[words.pop(0)]
    options = {name for option in command.params for name in option.opts + option.secondary_opts} | {"--help", "-h"}
    unknown = {word.partition("=")[0] for word in words if word.startswith("-") and word not in {"-", "--"}} - options
    assert not unknown, f"{page}: {command.name} has no {unknown}"
    named = [words[place + 1] for place, word in enumerate(words[:-1]) if word in {"--plugin", "--recipe", "--without"}]
    for name in ",".join(named).split(",") if named else ():
        check_plugin(name, page)
    for place, word in enumerate(words[:-1]):
        if word == "--set":
            check_key(words[place + 1].partition("=")[0], page)


def check_plugin(name: str, page: str) -> None:
    """Check that a plugin exists: built in, of contrib, or one that the page makes (a file, or acme...)."""
    made_here = re.match(r"acme|poly|focal@|[\w./-]*hooks|.*\.py", name) or not name.islower()
    assert name in _PLUGINS | _ELSEWHERE or made_here, f"{page}: no plugin {name}"


def check_key(key: str, page: str) -> None:
    """Check that ``section.key`` or ``plugin.option`` exists, if the section is ftcore's or a built-in plugin."""
    owner, _, name = key.partition(".")
    if owner in SECTIONS:
        known = {entry.name for entry in fields(SECTIONS[owner])}
    elif owner in _PLUGINS:
        known = {row[0] for row in describe_plugin(PluginRef(owner, page, Path()))[2].rows}
    else:
        known = {name} if owner in {"hooks", *HOOK_ARGUMENTS} or re.match("acme|penalty|poly", owner) else set()
        known |= {name} if owner in _ELSEWHERE else set()
    assert name in known, f"{page}: no {key}"


def check_inline_code(text: str, page: str) -> None:
    """Check commands, plugins and keys that a page names within its sentences and tables."""
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", _BLOCK.sub("", text))
    for span in spans:
        for name in re.findall(r"--plugin ([a-z][\w]*)", span):
            check_plugin(name, page)
        key = re.match(r"(?:--set '?)?([a-z_0-9]+\.[a-zA-Z_]+)(?:=|$)", span)
        if key and key[1].partition(".")[0] in {*SECTIONS, *_PLUGINS} and key[1].rpartition(".")[2] not in _FILES:
            check_key(key[1], page)
        command = re.match(r"ftcore ([a-z]+)\b", span)
        if command:
            assert command[1] in main.commands, f"{page}: no command {command[1]}"
