"""Folders and tables as people have them: each is read right, or ends with one message that says where to look."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from ftcore import UserError
from ftcore.config.load import CliOverrides, load_config
from ftcore.plugins.calls import HookCalls
from ftcore.plugins.startup import activate
from ftcore.testing import image_folder, invoke

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ftcore import Data, SampleDataset

    Make = Callable[[Path], Path]


def index(source: Path, *sets: str) -> Data:
    host = activate(load_config(None, CliOverrides("digits/cnn", str(source), sets=sets)))
    return HookCalls(host).build_data(host.config.data.source)


def found(data: Data, root: Path) -> dict[str, object]:
    """Path of each picture -> the names of its classes or labels, or its numbers."""
    return {
        os.path.relpath(samples.name(i), root): meaning(data, samples, i)
        for samples in (data.train, data.val)
        for i in range(len(samples))
    }


def meaning(data: Data, samples: SampleDataset, place: int) -> object:
    target = samples[place][1]
    if data.task.name == "classification":
        return data.task.names[target]
    if data.task.name == "multilabel":
        return tuple(name for name, has in zip(data.task.names, target, strict=True) if has)
    return target


def classes(data: Data, root: Path) -> Counter[object]:
    return Counter(found(data, root).values())


# Folders: each function makes one below an empty folder that it is given, and returns it.


def two(root: Path, per_class: int = 4) -> Path:
    return image_folder(root, ("cat", "dog"), per_class=per_class)


def hidden_folders(root: Path) -> Path:
    two(root)
    image_folder(root, (".git", ".ipynb_checkpoints"))
    image_folder(root / "cat", (".ipynb_checkpoints",))
    return root


def leftovers_of_other_programs(root: Path) -> Path:
    two(root)
    for name in ("._0.jpg", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (root / "cat" / name).write_bytes(b"\0\5\26\7")
    return root


def differing_in_case(root: Path) -> Path:
    return image_folder(root, ("Cat", "cat"), per_class=4)


def nested(root: Path) -> Path:
    image_folder(root, ("dog",), per_class=4)
    image_folder(root / "cat", ("big", "small"), per_class=2)
    return root


def long_and_unicode_names(root: Path) -> Path:
    image_folder(root, ("猫" * 66, "собака и \N{DOG FACE}"), per_class=3)
    first = next(iter(sorted(root.iterdir())))
    (first / "0.jpg").rename(first / f"{'x' * 200}.jpg")
    return root


def spaces(root: Path) -> Path:
    image_folder(root / "my pictures ", (" cat", "dog "), per_class=4)
    return root / "my pictures "


def newline_in_a_name(root: Path) -> Path:
    two(root)
    (root / "cat" / "0.jpg").rename(root / "cat" / "0\n1.jpg")
    return root


def bytes_in_a_name(root: Path) -> Path:
    two(root)
    (root / "cat" / "0.jpg").rename(root / "cat" / os.fsdecode(b"caf\xe9.jpg"))
    return root


def linked_class(root: Path) -> Path:
    image_folder(root / "elsewhere", ("dogs",), per_class=4)
    image_folder(root / "data", ("cat",), per_class=4)
    (root / "data" / "dog").symlink_to(root / "elsewhere" / "dogs", target_is_directory=True)
    return root / "data"


def linked_pictures(root: Path) -> Path:
    two(root / "data")
    shutil.move(root / "data" / "cat" / "0.jpg", root / "blob")
    (root / "data" / "cat" / "0.jpg").symlink_to(root / "blob")
    return root / "data"


def upper_case_splits(root: Path) -> Path:
    two(root / "Train")
    two(root / "VAL", per_class=2)
    return root


def upper_case_suffixes(root: Path) -> Path:
    two(root)
    (root / "cat" / "0.jpg").rename(root / "cat" / "0.JPG")
    return root


def class_called_test(root: Path) -> Path:
    return image_folder(root, ("test", "cat"), per_class=4)


def train_alone(root: Path) -> Path:
    two(root / "train")
    return root


def split_without_pictures(root: Path) -> Path:
    two(root / "train")
    (root / "val").mkdir()
    return root


def a_class_in_a_test_split_alone(root: Path) -> Path:
    for split in ("train", "val", "test"):
        two(root / split, per_class=2)
    image_folder(root / "test", ("owl",))
    return root


FOLDERS_READ: dict[str, tuple[Make, dict[object, int]]] = {
    "hidden folders": (hidden_folders, {"cat": 4, "dog": 4}),
    "resource forks and thumbnails": (leftovers_of_other_programs, {"cat": 4, "dog": 4}),
    "classes that differ in case": (differing_in_case, {"Cat": 4, "cat": 4}),
    "folders in classes": (nested, {"cat": 4, "dog": 4}),
    "long and unicode names": (long_and_unicode_names, {"猫" * 66: 3, "собака и \N{DOG FACE}": 3}),
    "spaces": (spaces, {" cat": 4, "dog ": 4}),
    "newline in a name": (newline_in_a_name, {"cat": 4, "dog": 4}),
    "bytes in a name that are no UTF-8": (bytes_in_a_name, {"cat": 4, "dog": 4}),
    "class that is a link": (linked_class, {"cat": 4, "dog": 4}),
    "pictures that are links": (linked_pictures, {"cat": 4, "dog": 4}),
    "splits in upper case": (upper_case_splits, {"cat": 6, "dog": 6}),
    "suffix in upper case": (upper_case_suffixes, {"cat": 4, "dog": 4}),
    "class called test": (class_called_test, {"test": 4, "cat": 4}),
    "train without val": (train_alone, {"cat": 4, "dog": 4}),
    "split without pictures": (split_without_pictures, {"cat": 4, "dog": 4}),
    "class in a test split alone": (a_class_in_a_test_split_alone, {"cat": 4, "dog": 4}),
}
"""How it is made, and how many pictures each class has."""


@pytest.mark.parametrize("case", FOLDERS_READ)
def test_a_folder_is_read_right(case: str, tmp_path: Path) -> None:
    make, counts = FOLDERS_READ[case]

    data = index(make(tmp_path))

    assert classes(data, tmp_path) == counts
    assert data.task.names == tuple(sorted(map(str, counts)))
    assert not any("checkpoints" in name or "._" in name for name in found(data, tmp_path))


def test_folders_may_be_deeper_than_functions_can_call_each_other(tmp_path: Path) -> None:
    depth = 1100
    two(tmp_path)
    here = os.open(tmp_path / "cat", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        above, here = here, os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(above)
    os.close(here)
    shutil.copy(tmp_path / "cat" / "0.jpg", tmp_path / "cat" / "/".join("d" * depth))
    try:
        assert classes(index(tmp_path), tmp_path) == {"cat": 5, "dog": 4}
    finally:
        subprocess.run(["rm", "-r", tmp_path / "cat" / "d"], check=True)  # shutil.rmtree calls itself


def empty(root: Path) -> Path:
    return root


def empty_class(root: Path) -> Path:
    (two(root) / "owl").mkdir()
    return root


def one_picture(root: Path) -> Path:
    return image_folder(root, ("cat",), per_class=1)


def lonely_class(root: Path) -> Path:
    image_folder(root, ("owl",), per_class=1)
    return two(root)


def loose_pictures(root: Path) -> Path:
    image_folder(root, ("cat",))
    return root / "cat"


def one_class(root: Path) -> Path:
    return image_folder(root, ("cat",))


def class_in_validation_alone(root: Path) -> Path:
    two(root / "train")
    image_folder(root / "val", ("cat", "owl"))
    return root


def validation_alone(root: Path) -> Path:
    two(root / "val")
    two(root / "test")
    return root


def split_without_classes(root: Path) -> Path:
    image_folder(root, ("train", "test"))
    return root


def class_of_a_split_without_pictures(root: Path) -> Path:
    two(root / "train")
    image_folder(root / "val", ("cat",))
    (root / "val" / "dog").mkdir()
    return root


def archive_leftovers(root: Path) -> Path:
    (two(root) / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._0.jpg").write_bytes(b"")
    return root


def loop(root: Path) -> Path:
    (two(root) / "cat" / "again").symlink_to(root, target_is_directory=True)
    return root


def link_to_itself(root: Path) -> Path:
    (two(root) / "cat" / "9.jpg").symlink_to("9.jpg")
    return root


def dangling_link(root: Path) -> Path:
    (two(root) / "cat" / "9.jpg").symlink_to("gone.jpg")
    return root


def pipe(root: Path) -> Path:
    os.mkfifo(two(root) / "cat" / "9.jpg")
    return root


def open_socket(root: Path) -> Path:
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:  # a socket's path is short
        server.bind(f"{short}/s")
        shutil.move(f"{short}/s", two(root) / "cat" / "9.jpg")
    return root


def empty_file(root: Path) -> Path:
    (two(root) / "cat" / "9.jpg").write_bytes(b"")
    return root


def bytes_in_a_class(root: Path) -> Path:
    two(root)
    (root / "dog").rename(root / os.fsdecode(b"d\xf6g"))
    return root


def page(root: Path) -> Path:
    (two(root) / "cat" / "9\n.jpg").write_text("<html>not found</html>", encoding="utf-8")
    return root


FOLDERS_REFUSED: dict[str, tuple[Make, str]] = {
    "empty folder": (empty, r"data folder {root} has no class folders; expected {root}/CLASS/PICTURE"),
    "empty class": (empty_class, "class folder {root}/owl has no images"),
    "one picture": (one_picture, "class 'cat' has one image"),
    "class of one picture": (lonely_class, "class 'owl' has one image"),
    "pictures without classes": (loose_pictures, "data folder {root}/cat has no class folders"),
    "one class": (one_class, "classification needs at least two classes; the data has cat"),
    "class in validation alone": (class_in_validation_alone, "class 'owl' is in validation but not in training"),
    "val without train": (validation_alone, r"{root}: no training split; expected .*train.*, found 'test' \(8\), 'val"),
    "splits without classes": (split_without_classes, "{root} has no class folders; expected {root}/train/CLASS/PICT"),
    "class of a split without pictures": (
        class_of_a_split_without_pictures,
        "class folder {root}/val/dog has no images",
    ),
    "what an archive left": (archive_leftovers, "class folder {root}/__MACOSX has no images"),
    "loop of links": (loop, "folder {root}/cat/again is a link to a folder above it"),
    "link to itself": (link_to_itself, "cannot read image {root}/cat/9.jpg: Too many levels of symbolic links"),
    "dangling link": (dangling_link, "cannot read image {root}/cat/9.jpg: No such file"),
    "named pipe": (pipe, "cannot read image {root}/cat/9.jpg: it is a named pipe"),
    "socket": (open_socket, "cannot read image {root}/cat/9.jpg: it is a socket"),
    "empty picture": (empty_file, "cannot read image {root}/cat/9.jpg: 0 bytes cannot be an image"),
    "class whose name is no UTF-8": (bytes_in_a_class, r"class folder '{root}/d\\udcf6g' is not UTF-8; rename it"),
    "page for a picture": (page, r"cannot read image {root}/cat/9\\n.jpg: it is not one of JPEG"),
}


def assert_refused(source: Path, root: Path, message: str, *sets: str) -> None:
    with pytest.raises(UserError, match=message.replace("{root}", re.escape(str(root)))):
        index(source, *sets)


@pytest.mark.parametrize("case", FOLDERS_REFUSED)
def test_a_folder_is_refused_with_its_name(case: str, tmp_path: Path) -> None:
    make, message = FOLDERS_REFUSED[case]

    assert_refused(make(tmp_path), tmp_path, message)


# Tables: bytes of the file; the pictures 0.png ... 9.png are beside it.


def table(rows: str = "", header: str = "path,label") -> str:
    """Eight good rows, and then some."""
    good = [f"{number}.png,{'cat' if number % 2 else 'dog'}" for number in range(8)]
    return "\n".join([header, *good]) + "\n" + rows


def row(cells: str) -> bytes:
    """A table whose line 10 is given."""
    return table(f"{cells}\n").encode()


def column(header: str, *values: str) -> bytes:
    """A table of a path and of one column or more, a row for each value."""
    return "\n".join([f"path,{header}", *(f"{place}.png,{value}" for place, value in enumerate(values))]).encode()


GOOD: dict[str, object] = {f"{number}.png": "cat" if number % 2 else "dog" for number in range(8)}

TABLES_READ: dict[str, tuple[bytes, tuple[str, ...], dict[str, object]]] = {
    "byte-order mark": (table().encode("utf-8-sig"), (), GOOD),
    "UTF-16": (table().encode("utf-16"), (), GOOD),
    "UTF-16, big end first": (b"\xfe\xff" + table().encode("utf-16-be"), (), GOOD),
    "CRLF": (table().replace("\n", "\r\n").encode(), (), GOOD),
    "CR": (table().replace("\n", "\r").encode(), (), GOOD),
    "no line end at the end": (table().rstrip().encode(), (), GOOD),
    "semicolons": (table().replace(",", ";").encode(), ("table.separator=;",), GOOD),
    "blank lines": (("\n\n" + table().replace("\n", "\n\n \n,\n")).encode(), (), GOOD),
    "trailing spaces": (table().replace(",", " , ").replace("\n", "  \n").encode(), (), GOOD),
    "quotes": (re.sub("cat|dog", r'"\g<0>"', table()).encode(), (), GOOD),
    "quoted comma, quote and line end": (
        table().replace("cat", '"cat, ""big""\nor small"').encode(),
        (),
        {name: str(label).replace("cat", 'cat, "big"\nor small') for name, label in GOOD.items()},
    ),
    "letters that only str.splitlines cuts at": (
        table().replace("cat", "c\x0ba\u2028t\x85s").encode(),
        (),
        {name: str(label).replace("cat", "c\x0ba\u2028t\x85s") for name, label in GOOD.items()},
    ),
    "unicode": (
        table().replace("cat", "猫").encode(),
        (),
        {n: str(label).replace("cat", "猫") for n, label in GOOD.items()},
    ),
    "007 is text": (
        column("label", "007", "7", "007", "7"),
        ("data.task=classification", "data.val_fraction=0.5"),
        {"0.png": "007", "1.png": "7", "2.png": "007", "3.png": "7"},
    ),
    "1.0 is text": (
        column("label", "1.0", "1", "1.0", "1"),
        ("data.task=classification", "data.val_fraction=0.5"),
        {"0.png": "1.0", "1.png": "1", "2.png": "1.0", "3.png": "1"},
    ),
    "numbers": (
        column("age", "1.5", "-2", "1e1", " 4 "),
        (),
        {"0.png": 1.5, "1.png": -2.0, "2.png": 10.0, "3.png": 4.0},
    ),
    "whole numbers, asked for": (
        column("age", "1", "2", "3", "4"),
        ("data.task=regression",),
        {"0.png": 1.0, "1.png": 2.0, "2.png": 3.0, "3.png": 4.0},
    ),
    "several labels in a cell": (
        column("tags,split", "a | b,train", ",train", "b,val", "a|a,train"),
        ("table.labels=|",),
        {"0.png": ("a", "b"), "1.png": (), "2.png": ("b",), "3.png": ("a",)},
    ),
    "columns of 0 and 1": (
        column("b,a,split", "1,0,train", "0,1,train", "1,1,val"),
        ('table.target=["b", "a"]',),
        {"0.png": ("b",), "1.png": ("a",), "2.png": ("b", "a")},
    ),
    "several numbers": (
        column("x,y,split", "1,0.5,train", "0,1,train", "1,1,val"),
        ('table.target=["x", "y"]',),
        {"0.png": (1.0, 0.5), "1.png": (0.0, 1.0), "2.png": (1.0, 1.0)},
    ),
    "splits in any case": (
        column("label,split", "a,Train", "b,TRAIN", "a,Val"),
        (),
        {"0.png": "a", "1.png": "b", "2.png": "a"},
    ),
    "split that is left out": (
        column("label,split", "a,train", "b,train", "a,val", "owl,test"),
        (),
        {"0.png": "a", "1.png": "b", "2.png": "a"},
    ),
    "label in a split that is left out": (
        column("tags,split", "a,train", "b,train", "a,val", "owl,test"),
        ("table.labels=|",),
        {"0.png": ("a",), "1.png": ("b",), "2.png": ("a",)},
    ),
    "column called split that is none": (
        column("label,split", "a,left", "b,right", "a,", "b,left"),
        ("table.split=", "table.target=label", "data.val_fraction=0.5"),
        {"0.png": "a", "1.png": "b", "2.png": "a", "3.png": "b"},
    ),
    "path by a detour": (table("./8.png,cat\n").encode(), (), {**GOOD, "8.png": "cat"}),
    "other columns": (
        column("label,note", "a,x", "b,", "a,x", "b,"),
        ("table.target=label", "data.val_fraction=0.5"),
        {"0.png": "a", "1.png": "b", "2.png": "a", "3.png": "b"},
    ),
}
"""Bytes, settings, and what each picture must mean."""

HUGE = "x" * 10_000_000
AB = 'table.target=["a", "b"]'
HALF = "data.val_fraction=0.5"
TABLES_REFUSED: dict[str, tuple[bytes, tuple[str, ...], str]] = {
    "empty file": (b"", (), ":1: the file is empty"),
    "blank lines alone": (b"\n \n", (), ":1: the file is empty"),
    "header alone": (b"path,label\n", (), " has a header and no rows"),
    "semicolons unsaid": (
        table().replace(",", ";").encode(),
        (),
        ":1: only one column.* looks separated by semicolon: table",
    ),
    "latin-1": (table("9.png,caf\xe9\n").encode("latin-1"), (), ":10: not UTF-8 at byte"),
    "latin-1 with old line ends": (
        table("9.png,caf\xe9\n").replace("\n", "\r").encode("latin-1"),
        (),
        ":10: not UTF-8",
    ),
    "UTF-16 without a mark": (table().encode("utf-16-le"), (), ":1: contains a NUL byte; save it as UTF-8"),
    "binary file": (bytes(range(256)) * 9, (), ":[0-9]+: (not UTF-8|contains a NUL byte)"),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", (), ":1: not UTF-8 at byte 0"),
    "unterminated quote": (table('8.png,"cat\n9.png,dog\n').encode(), (), ":10: unexpected end of data; a quote"),
    "letters behind a quote": (row('8.png,"cat"s'), (), ":10: .*expected after.*; a quote"),
    "missing column": (table(header="file,label").encode(), (), " has no column 'path'; it has file, label"),
    "target that is not there": (table().encode(), ("table.target=lable",), "no column 'lable'.*nearest: label"),
    "group that is not there": (table().encode(), ("table.group=patient",), "no column 'patient'; it has path, label"),
    "split that is not there": (table().encode(), ("table.split=fold",), "no column 'fold'; it has path, label"),
    "two columns of one name": (column("label,label", "a,b"), (), ":1: two columns are named 'label'"),
    "column without a name": (column("label,", "a,b"), (), ":1: column 3 of 3 has no name"),
    "index of a data frame": (b",path,label\n0,0.png,a\n", (), ":1: column 1 of 3 has no name"),
    "which target": (
        column("label,age", "a,1", "b,2"),
        (),
        r"2 columns that could be the target \(label, age\); choose: table.target=COLUMN",
    ),
    "no target": (column("split", "train", "val"), (), r"0 columns that could be the target \(none\)"),
    "column for two things": (
        column("label,split", "a,train", "b,val"),
        ("table.target=split",),
        "column 'split' is used twice",
    ),
    "path for a target": (table().encode(), ("table.target=path",), "column 'path' is used twice"),
    "numbers of a class or of an amount": (
        column("label", "1", "2"),
        (),
        "what label means is ambiguous.*data.task=",
    ),
    "zeros and ones": (column("label", "0", "1"), (), "what label means is ambiguous.*values such as 0, 1"),
    "numbers and words": (column("label", "1.5", "cat"), (), r"ambiguous \(values such as 1.5, cat\)"),
    "several columns of words": (column("a,b", "x,y", "y,x"), (AB,), "what a, b means is ambiguous"),
    "classes in two columns": (
        column("a,b", "x,y", "y,x"),
        ("data.task=classification", AB),
        "classification takes one target column, not 2: a, b",
    ),
    "words for labels": (
        column("tags", "a|b", "b"),
        ("data.task=multilabel",),
        ":2: tags must be 0 or 1.*table.labels",
    ),
    "2 for a label": (column("a,b", "0,1", "1,2"), ("data.task=multilabel", AB), ":3: b must be 0 or 1.*got '2'"),
    "one label": (
        column("a", "0", "1", "1", "0"),
        ("data.task=multilabel", HALF),
        "multilabel needs two labels; the data has",
    ),
    "labels of classes": (
        column("tags", "a|b", "b"),
        ("table.labels=|", "data.task=classification"),
        "makes the task multi-label, but data.task is classification",
    ),
    "label in validation alone": (
        column("tags,split", "a,train", "b,train", "owl,val"),
        ("table.labels=|",),
        "label 'owl' is in validation but not in training",
    ),
    "class in validation alone": (
        column("label,split", "a,train", "b,train", "owl,val"),
        (),
        "class 'owl' is in validation but not in training",
    ),
    "column of labels that nobody has": (
        column("a,b,split", "1,0,train", "0,0,train", "1,1,val"),
        (AB,),
        "no training image of 'b', so the model cannot learn it",
    ),
    "class NaN": (row("8.png,NaN"), (), ":10: label is missing, got 'NaN'"),
    "class empty": (row("8.png,"), (), ":10: label is missing, got ''"),
    "label NaN": (column("tags", "a|b", "b|nan"), ("table.labels=|",), r":3: tags 'b\|nan' has no label"),
    "number NaN": (column("age", "1.5", "2", "nan"), (), ":4: age must be a finite number, got 'nan'"),
    "number empty": (column("age", "1.5", "", "2"), (), ":3: age must be a finite number, got ''"),
    "number without end": (column("age", "1", "-inf"), ("data.task=regression",), ":3: age must be a finite .*'-inf'"),
    "number beyond floats": (column("age", "1", "1e999"), ("data.task=regression",), ":3: age must be a finite number"),
    "number beyond squares": (
        column("age,split", "1e200,train", "-1e200,train", "1,val"),
        ("data.task=regression",),
        r"targets with a finite variance; 'age' is -1e\+200 to 1e\+200",
    ),
    "number that is always the same": (
        column("age,split", *["0.1,train"] * 3, "1,val"),
        ("data.task=regression",),
        "targets with a finite variance; 'age' is 0.1 to 0.1 in all 3 training images",
    ),
    "row twice": (row("1.png,cat"), (), ":10: '1.png' occurs twice, first in .*:3"),
    "two labels of a picture": (row("1.png,dog"), (), ":10: '1.png' occurs twice, first in .*:3"),
    "a picture by two paths": (
        row("./1.png,cat"),
        (),
        ":10: './1.png' occurs twice, first in .*:3|:3: '1.png' occurs twice, first in .*:10",
    ),
    "path out of the folder": (
        row("../8.png,cat"),
        (),
        ":10: path '../8.png': is outside the folder; set table.root",
    ),
    "absolute path": (row("/etc/8.png,cat"), (), ":10: path '/etc/8.png': is absolute"),
    "backslashes": (row(r"a\8.png,cat"), (), r":10: path .*: contains a backslash; write /"),
    "drive": (row(r"C:\8.png,cat"), (), r":10: path .*: contains a backslash; write /"),
    "address": (row("https://x.org/8.png,cat"), (), ":10: path .*: is a URL"),
    "empty path": (row(",cat"), (), ":10: path '': is empty"),
    "NUL byte": (row("8.png\0,cat"), (), ":10: contains a NUL byte"),
    "cell of 10 MB": (row(f"8.png,{HUGE}"), (), r":10: field larger than field limit"),
    "path of 100 kB": (row(f"{HUGE[:100_000]},cat"), (), ":10: path 'xxx.{190,200}: File name too long"),
    "missing picture": (
        row("gone.png,cat"),
        (),
        ":10: path 'gone.png': No such file or directory\npaths are relative to",
    ),
    "missing pictures": (
        table("a.png,cat\n" * 12).encode(),
        (),
        r"(:1\d: path 'a.png': No such.*\n.*){10}\.\.\. and 2 m",
    ),
    "missing picture behind a cell of two lines": (
        table('8.png,"a\nb"\ngone.png,cat\n').encode(),
        (),
        ":12: path 'gone.png'",
    ),
    "missing picture behind blank lines": (table("\n\ngone.png,cat\n").encode(), (), ":12: path 'gone.png': No such"),
    "folder for a picture": (row("sub,cat"), (), ":10: path 'sub': is not a file"),
    "page for a picture": (row("page.png,cat"), (), ":10: cannot read image .*page.png: it is not one of JPEG"),
    "too few cells": (row("8.png"), (), r":10: 1 cells, but the header has 2 \(path, label\)"),
    "too many cells": (row("8.png,cat,big"), (), r":10: 3 cells, but the header has 2 \(path, label\)"),
    "unknown splits": (
        column("label,split", "a,A", "b,A", "a,B"),
        (),
        r"no training split; expected one called train or training, found 'a' \(2\), 'b' \(1\)",
    ),
    "split half empty": (column("label,split", "a,train", "b,", "a,val"), (), ":3: split is empty"),
    "training alone": (column("label,split", "a,train", "b,train"), (), "class 'a' has one image; at least two"),
    "group in both splits": (
        column("label,split,who", "a,train,x", "b,train,y", "a,val,y"),
        ("table.group=who",),
        "group 'y' is in both training and validation",
    ),
    "group half empty": (column("label,who", "a,x", "b,"), ("table.group=who",), ":3: who is empty"),
    "one group": (
        column("label,who", *["a,x", "b,x"] * 2),
        ("table.group=who",),
        r"1 groups \(x\)",
    ),
    "fraction beside splits": (
        column("label,split", "a,train", "b,train", "a,val"),
        (HALF,),
        r"data.val_fraction has no effect: .* has its own validation split \(--set data.val_fraction",
    ),
    "separator of two letters": (
        table().encode(),
        ("table.separator=||",),
        "separator must be one character, .*got '||'",
    ),
    "separator that is a quote": (table().encode(), ("table.separator='\"'",), "separator must be one character"),
}
"""Bytes, settings, and the message, which begins with the file unless it names no line."""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(10):
        Image.fromarray(np.full((4, 4), 20 * number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / "page.png").write_text("<html>not found</html>", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("case", TABLES_READ)
def test_a_table_is_read_right(case: str, pictures: Path) -> None:
    raw, sets, expected = TABLES_READ[case]
    (pictures / "table.csv").write_bytes(raw)

    assert found(index(pictures / "table.csv", *sets), pictures) == expected


@pytest.mark.parametrize("case", TABLES_REFUSED)
def test_a_table_is_refused_with_file_and_line(case: str, pictures: Path) -> None:
    raw, sets, message = TABLES_REFUSED[case]
    (pictures / "table.csv").write_bytes(raw)
    file = "{root}/table.csv" if message.startswith((":", " ")) else ""

    assert_refused(pictures / "table.csv", pictures, file + message, *sets)


def test_a_file_called_parquet_that_is_none_is_refused(pictures: Path) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    (pictures / "table.parquet").write_bytes(table().encode())

    assert_refused(
        pictures / "table.parquet", pictures, "cannot read {root}/table.parquet: Parquet magic bytes not found"
    )


def test_messages_stay_short_whatever_is_in_a_cell(pictures: Path) -> None:
    for case in ("cell of 10 MB", "path of 100 kB"):
        raw, sets, _ = TABLES_REFUSED[case]
        (pictures / "table.csv").write_bytes(raw)
        with pytest.raises(UserError, match=":10: ") as caught:
            index(pictures / "table.csv", *sets)
        assert len(str(caught.value)) < 1000


def test_there_are_enough_of_them() -> None:
    folders, tables = len(FOLDERS_READ) + len(FOLDERS_REFUSED), len(TABLES_READ) + len(TABLES_REFUSED)

    assert folders >= 30
    assert tables >= 95


def assert_one_message(*arguments: str | Path, message: str) -> None:
    result = invoke("explain", "--model", "digits/cnn", *arguments)

    assert result.code == 2, result
    assert result.out == ""
    assert re.search(message, result.err), result.err
    assert "Traceback" not in result.err
    assert [line.startswith("ftcore: ") for line in result.err.splitlines()].count(True) == 1, result.err


@pytest.mark.parametrize(
    "case", ["loop of links", "link to itself", "named pipe", "page for a picture", "empty folder"]
)
def test_a_refused_folder_ends_the_command_with_one_message(case: str, tmp_path: Path) -> None:
    make, message = FOLDERS_REFUSED[case]

    assert_one_message("--data", make(tmp_path), message=message.replace("{root}", re.escape(str(tmp_path))))


@pytest.mark.parametrize("case", ["latin-1", "unterminated quote", "NUL byte", "cell of 10 MB", "missing picture"])
def test_a_refused_table_ends_the_command_with_one_message(case: str, pictures: Path) -> None:
    raw, _, message = TABLES_REFUSED[case]
    (pictures / "table.csv").write_bytes(raw)

    assert_one_message("--data", pictures / "table.csv", message=f"{re.escape(str(pictures))}/table.csv{message}")


def test_names_that_differ_in_nothing_but_case_are_said(tmp_path: Path) -> None:
    result = invoke("explain", "--model", "digits/cnn", "--data", differing_in_case(tmp_path))

    assert result.code == 0, result.err
    assert "warning: names that differ only in case" in result.err
    assert "names=Cat, cat" in result.err.replace("'", "").replace('"', "")


def test_no_source_is_not_the_working_folder() -> None:
    assert_one_message("--data", "", message="data.source = ''")


def test_links_that_lead_nowhere_are_skipped_where_that_is_asked_for(tmp_path: Path) -> None:
    data = index(link_to_itself(tmp_path), "data.on_corrupt=skip")

    assert classes(data, tmp_path) == {"cat": 4, "dog": 4}
    ((_, reason),) = data.skipped
    assert "cat/9.jpg: Too many levels of symbolic links" in reason


def test_where_all_pictures_of_a_split_are_skipped_the_first_is_named(tmp_path: Path) -> None:
    two(tmp_path / "train")
    (tmp_path / "val" / "cat").mkdir(parents=True)
    (tmp_path / "val" / "cat" / "0.jpg").write_bytes(b"")

    assert_refused(
        tmp_path,
        tmp_path,
        "no images left for validation; the first of 1: cannot read .*val/cat/0.jpg",
        "data.on_corrupt=skip",
    )
