from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import pickle
import re
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import numpy as np
import pytest
from ftcore import DataError
from ftcore.testing import image_folder, invoke
from PIL import Image

from ftcore_webdataset.index import Store
from ftcore_webdataset.names import expand, find_shards, split_of
from ftcore_webdataset.samples import ShardImages, labelled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ftcore.testing import Result


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_shard(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def photos(root: Path, per_class: int = 6) -> dict[str, bytes]:
    """Members of samples, image before label, from real JPEG files; classes are mixed."""
    folder = image_folder(root, per_class=per_class)
    members = {}
    for number in range(per_class):
        for name in ("blue", "green", "red"):
            members[f"{name}/{number:04}.jpg"] = (folder / name / f"{number}.jpg").read_bytes()
            members[f"{name}/{number:04}.cls"] = name.encode()
    return members


def two_shards(root: Path) -> Path:
    write_shard(root / "train-000000.tar", photos(root / "a"))
    write_shard(root / "val-000000.tar", photos(root / "b", per_class=2))
    return root


def run(source: str, folder: Path, *more: str) -> Result:
    settings = ("train.epochs=1", "train.batch_size=4", f"run.folder={folder}", *more)
    return invoke(
        *("run", "--plugin", "webdataset", "--data", f"shards:{source}", "--model", "digits/cnn", "--json"),
        *(word for setting in settings for word in ("--set", setting)),
    )


def weights(folder: Path) -> bytes:
    (file,) = (folder / "model").glob("*.safetensors")
    return file.read_bytes()


def images_of(*shards: Path | str, label: str = "label") -> ShardImages:
    from attrs import evolve
    from ftcore import RunConfig

    from ftcore_webdataset import WebDatasetConfig

    store = Store.of(None, label)
    options = evolve(WebDatasetConfig(), label=label)
    found = labelled([store.shard(str(shard)) for shard in shards], options, RunConfig())
    assert isinstance(found.images, ShardImages)
    return found.images


@contextmanager
def serving(root: Path, *, ranges: bool = True) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Serve a folder over http on this machine; yield its address and what was sent: path and number of bytes."""
    sent: list[tuple[str, int]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            file = root / self.path.lstrip("/")
            if not file.is_file():
                self.send_error(404)
                return
            data, asked = file.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            part = data[int(asked[1]) : int(asked[2]) + 1] if asked and ranges else data
            self.send_response(206 if asked and ranges else 200)
            if asked and ranges:
                self.send_header("Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(data)}")
            self.send_header("ETag", f'"{file.stat().st_mtime_ns}"')
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if body:
                sent.append((self.path, len(part)))
                self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_run_learns_from_shards_that_name_their_split(tmp_path: Path) -> None:
    two_shards(tmp_path)

    result = run(f"{tmp_path}/{{train,val}}-{{000000..000000}}.tar", tmp_path / "run")

    assert result.code == 0, result.err
    assert result.report["hooks"]["build_data"] == "webdataset"
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]
    assert (manifest["train"], manifest["val"]) == (18, 6)


def test_it_learns_what_the_same_pictures_in_a_folder_teach(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 2)):
        image_folder(tmp_path / "folder" / split, per_class=count)
    # the order of a folder: class by class
    for split in ("train", "val"):
        files = sorted((tmp_path / "folder" / split).rglob("*.jpg"))
        members = {}
        for file in files:
            members[f"{file.parent.name}/{file.name}"] = file.read_bytes()
            members[f"{file.parent.name}/{file.stem}.cls"] = file.parent.name.encode()
        write_shard(tmp_path / f"{split}.tar", members)

    ours = run(f"{tmp_path}/*.tar", tmp_path / "ours")
    theirs = invoke(
        *("run", "--data", tmp_path / "folder", "--model", "digits/cnn", "--set", "train.epochs=1"),
        *("--set", "train.batch_size=4", "--set", f"run.folder={tmp_path / 'theirs'}"),
    )

    assert (ours.code, theirs.code) == (0, 0), ours.err + theirs.err
    assert weights(tmp_path / "ours") == weights(tmp_path / "theirs")


@pytest.mark.parametrize("where", ["disk", "http"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_workers_give_the_weights_of_none(where: str, tmp_path: Path) -> None:
    two_shards(tmp_path / "shards")

    with serving(tmp_path / "shards") as (url, _sent):
        source = f"{url if where == 'http' else tmp_path / 'shards'}/{{train,val}}-000000.tar"
        for workers in (0, 2):
            result = run(source, tmp_path / f"run{workers}", f"train.workers={workers}")
            assert result.code == 0, result.err

    assert weights(tmp_path / "run0") == weights(tmp_path / "run2")


def test_of_http_only_headers_are_fetched_and_the_second_time_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    members = {}
    for number in range(8):
        file = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(file, "PNG")
        members |= {f"{number}.png": file.getvalue(), f"{number}.cls": str(number % 2).encode()}
    shard = write_shard(tmp_path / "www" / "all.tar", members)

    with serving(tmp_path / "www") as (url, sent):
        store = Store.of(str(tmp_path / "index"), "label")
        store.shard(f"{url}/all.tar")
        first = sum(size for _, size in sent)
        sent.clear()
        store.shard(f"{url}/all.tar")
        assert sent == []
        shard.touch()
        store.shard(f"{url}/all.tar")
        again = sum(size for _, size in sent)

    assert first == again
    assert 8 * 512 <= first <= 10 * (8192 + 1024) < shard.stat().st_size / 20


def test_reading_an_image_fetches_its_bytes_alone(tmp_path: Path) -> None:
    members = photos(tmp_path / "photos")
    write_shard(tmp_path / "www" / "all.tar", members)

    with serving(tmp_path / "www") as (url, sent):
        images = images_of(f"{url}/all.tar")
        sent.clear()
        image = images.read(3, None)

    assert images.name(3).endswith("/all.tar!blue/0001.jpg")
    assert sent == [("/all.tar", len(members["blue/0001.jpg"]))]
    expected = Image.open(io.BytesIO(members["blue/0001.jpg"]))
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_images_are_small_to_send_to_another_process_and_work_there(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "all.tar", photos(tmp_path / "photos", per_class=200))
    images = images_of(shard)

    sent = pickle.dumps(images)

    assert len(sent) < 60 * len(images)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(images.read, (5, None)).size == (32, 24)


def test_a_server_that_fails_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    images = images_of(write_shard(tmp_path / "all.tar", photos(tmp_path / "photos")))
    monkeypatch.setattr("ftcore_webdataset.samples._WAITS", (0.0, 0.0))
    real, failures = LocalFileSystem.cat_file, iter([OSError("busy"), TimeoutError()])

    def sometimes(self: LocalFileSystem, path: str, **where: int) -> bytes:
        for failure in failures:
            raise failure
        return real(self, path, **where)  # type: ignore[no-any-return]

    monkeypatch.setattr(LocalFileSystem, "cat_file", sometimes)

    assert images.read(0, None).size == (32, 24)
    failures = iter([OSError("busy")] * 3)
    with pytest.raises(DataError, match=r"all\.tar!blue/0000\.jpg: busy"):
        images.read(0, None)


def test_a_shard_that_shrinks_is_named(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "all.tar", photos(tmp_path / "photos"))
    images = images_of(shard)
    shard.write_bytes(shard.read_bytes()[:700])

    with pytest.raises(DataError, match=r"all\.tar!blue/0000\.jpg: got \d+ bytes and not"):
        images.read(0, None)


def test_classes_from_json_and_txt(tmp_path: Path) -> None:
    picture = photos(tmp_path / "photos")["red/0000.jpg"]
    members = {}
    for number in range(4):
        members |= {
            f"a{number}.jpg": picture,
            f"a{number}.json": json.dumps({"breed": number % 2}).encode(),
            f"b{number}.JPG": picture,
            f"b{number}.txt": b" 1\n",
        }
    members |= {".hidden.jpg": picture, "__meta__.json": b"{}", "LICENSE": b"free"}
    write_shard(tmp_path / "all.tar", members)

    result = run(f"{tmp_path}/all.tar", tmp_path / "run", "webdataset.label=breed")

    assert result.code == 0, result.err
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]["train"] == 6
    assert re.search(r"^0 +\d+ +\d+ *\n1 +\d+ +\d+", result.err, re.MULTILINE), result.err


def test_of_several_images_the_first_named_counts(tmp_path: Path) -> None:
    pictures = photos(tmp_path / "photos")
    members = {}
    for number in range(6):
        members |= {
            f"{number}.jpg": b"no picture",
            f"{number}.left.jpg": pictures[f"red/000{number}.jpg"],
            f"{number}.cls": str(number % 2).encode(),
        }
    write_shard(tmp_path / "all.tar", members)

    result = run(f"{tmp_path}/all.tar", tmp_path / "run", 'webdataset.images=["left.jpg", "jpg"]')

    assert result.code == 0, result.err


def test_numbers_are_learnt_where_that_is_the_task(tmp_path: Path) -> None:
    picture = photos(tmp_path / "photos")["red/0000.jpg"]
    members = {}
    for number in range(8):
        members |= {f"{number}.jpg": picture, f"{number}.json": json.dumps({"label": number / 2}).encode()}
    write_shard(tmp_path / "all.tar", members)

    result = run(f"{tmp_path}/all.tar", tmp_path / "run", "data.task=regression")
    assert result.code == 0, result.err

    write_shard(tmp_path / "all.tar", members | {"3.json": b'{"label": "much"}'})
    result = run(f"{tmp_path}/all.tar", tmp_path / "again", "data.task=regression")
    assert result.code == 2
    assert "all.tar!3.jpg: the label must be a finite number, got 'much'" in result.err


def test_test_shards_never_validate_and_are_measured(tmp_path: Path) -> None:
    two_shards(tmp_path)
    (tmp_path / "val-000000.tar").rename(tmp_path / "test-000000.tar")

    result = run(f"{tmp_path}/*.tar", tmp_path / "run")

    assert result.code == 0, result.err
    data = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]
    assert (data["train"] + data["val"], data["test"]) == (18, 6)
    for arguments in (("--split", "test"), ("--data", f"shards:{tmp_path}/test-*.tar")):
        measured = invoke("evaluate", tmp_path / "run", *arguments, "--json")
        assert measured.report["images"] == 6, measured.err


def test_a_shard_of_one_split_is_split_by_ftcore(tmp_path: Path) -> None:
    two_shards(tmp_path)

    result = run(f"{tmp_path}/train-*.tar", tmp_path / "run", "data.val_fraction=0.5")

    assert result.code == 0, result.err
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]
    assert (manifest["train"], manifest["val"]) == (9, 9)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"red/0003.cls": None}, "all.tar!red/0003 has no label: no .cls, no .json with 'label', no .txt"),
        ({"red/0003.cls": b" "}, "all.tar!red/0003 has no label"),
        ({"red/0003.jpg": None}, "all.tar!red/0003 has no image, only cls"),
        ({"red/0003.cls": b"\xff"}, "all.tar!red/0003.cls is not a label: 'utf-8' codec"),
        ({"red/0003.json": b"{"}, "all.tar!red/0003.json is not a label: Expecting"),
        (
            {"red/0003.json": b'{"label": [1]}'},
            "all.tar!red/0003.json is not a label: 'label' must be a text or a number",
        ),
    ],
)
def test_a_sample_that_lacks_something_is_named(change: dict[str, bytes | None], reason: str, tmp_path: Path) -> None:
    members = photos(tmp_path / "photos") | change
    write_shard(tmp_path / "all.tar", {name: data for name, data in members.items() if data is not None})

    result = run(f"{tmp_path}/all.tar", tmp_path / "run")

    assert result.code == 2
    assert reason in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_damaged_picture_is_named(workers: int, tmp_path: Path) -> None:
    members = photos(tmp_path / "photos")
    members["red/0003.jpg"] = members["red/0003.jpg"][:200]
    write_shard(tmp_path / "train-0.tar", members)
    write_shard(tmp_path / "val-0.tar", photos(tmp_path / "more"))

    result = run(f"{tmp_path}/*.tar", tmp_path / "run", f"train.workers={workers}")
    assert result.code == 2
    assert "train-0.tar!red/0003.jpg" in result.err

    result = run(f"{tmp_path}/*.tar", tmp_path / "skipped", "data.on_corrupt=skip")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "skipped" / "manifest.json").read_text())["data"]["train"] == 17


def damaged(kind: str, whole: bytes) -> bytes:
    cut = {"cut in a body": 1100, "cut behind a body": 1536, "cut in a header": 1700}
    if kind in cut:
        return whole[: cut[kind]]
    if kind == "header":
        start = whole.index(b"green/0000.jpg")
        return whole[:start] + b"#" * 512 + whole[start + 512 :]
    return {"joined": whole + whole, "no tar": b"hello" * 1000, "empty": b""}[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("cut in a body", r"is damaged at byte \d+: unexpected end of data"),
        ("cut behind a body", r"is damaged at byte \d+: .+"),
        ("cut in a header", r"is damaged at byte \d+: .+"),
        ("header", r"is damaged at byte 2560: what is there is no header of a tar file"),
        ("joined", r"continues after its end mark at byte \d+; were several tar files joined to one\?"),
        ("no tar", r"is damaged at byte 0: .+"),
        ("empty", r"is damaged at byte 0: .+"),
    ],
)
def test_a_damaged_shard_is_named(kind: str, reason: str, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "all.tar", photos(tmp_path / "photos"))
    shard.write_bytes(damaged(kind, shard.read_bytes()))

    result = run(f"{tmp_path}/all.tar", tmp_path / "run")

    assert result.code == 2
    assert re.search(rf"all\.tar {reason}", result.err), result.err


def test_a_shard_cut_anywhere_is_refused(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "all.tar", photos(tmp_path / "photos", per_class=1))
    whole = shard.read_bytes()
    end = len(whole.rstrip(b"\0"))

    for length in range(0, end, 97):
        shard.write_bytes(whole[:length])
        with pytest.raises(DataError, match="damaged at byte"):
            Store.of(None, "label").shard(str(shard))


@pytest.mark.parametrize("name", ["all.tar.gz", "all.tgz", "all.tar"])
def test_a_compressed_shard_is_refused(name: str, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "plain.tar", photos(tmp_path / "photos"))
    (tmp_path / name).write_bytes(gzip.compress(shard.read_bytes()))

    result = run(f"{tmp_path}/{name}", tmp_path / "run")

    assert result.code == 2
    assert f"{name} is compressed" in result.err
    assert "unpack it to a plain .tar" in result.err


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("none/*.tar", "no shard matches 'none/*.tar'"),
        ("none/{0..3}.tar", "no such shard: none/0.tar"),
        ("", "no shard matches ''"),
        ("{9..0}.tar", "expected at most 100,000 numbers, the smallest first"),
        ("{0..9999}{0..9999}.tar", "more than 100,000 shards"),
        ("nope://x/0.tar", "cannot open nope://x/0.tar: Protocol not known: nope"),
        ("http://127.0.0.1:9/0.tar", "no such shard: http://127.0.0.1:9/0.tar (Cannot connect to host"),
    ],
)
def test_shards_that_are_not_there(source: str, reason: str, tmp_path: Path) -> None:
    result = run(source, tmp_path / "run")

    assert result.code == 2
    assert reason in result.err
    assert "Traceback" not in result.err


def test_a_folder_is_no_shard(tmp_path: Path) -> None:
    result = run(str(tmp_path), tmp_path / "run")

    assert result.code == 2
    assert "is a folder, no tar file" in result.err


def test_a_server_without_ranges_is_refused(tmp_path: Path) -> None:
    two_shards(tmp_path / "www")

    with serving(tmp_path / "www", ranges=False) as (url, _):
        result = run(f"{url}/{{train,val}}-000000.tar", tmp_path / "run")

    assert result.code == 2
    assert "does not serve byte ranges" in result.err
    assert "damaged" not in result.err


def test_shards_with_and_without_a_split_are_refused(tmp_path: Path) -> None:
    two_shards(tmp_path)
    write_shard(tmp_path / "more.tar", photos(tmp_path / "c"))

    result = run(f"{tmp_path}/*.tar", tmp_path / "run")

    assert result.code == 2
    assert re.search(r"more\.tar names no split, and .*train-000000\.tar does", result.err)


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "all.tar", photos(tmp_path / "photos"))
    with tarfile.open(shard, "a") as tar:
        tar.addfile(tarfile.TarInfo("red/0000.jpg"))

    with pytest.raises(DataError, match=r"all\.tar!red/0000\.jpg is there twice"):
        Store.of(None, "label").shard(str(shard))


def test_several_labels_are_refused(tmp_path: Path) -> None:
    result = run(f"{two_shards(tmp_path)}/*.tar", tmp_path / "run", "data.task=multilabel")

    assert result.code == 2
    assert "data.task cannot be multilabel" in result.err


def test_an_index_is_kept_used_and_made_anew_when_damaged(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "all.tar", photos(tmp_path / "photos"))
    store = Store.of(str(tmp_path / "index"), "label")
    made = store.shard(str(shard))
    (file,) = (tmp_path / "index").iterdir()
    assert store.shard(str(shard)) == made

    file.write_text(file.read_text()[:100])

    assert store.shard(str(shard)) == made
    assert json.loads(file.read_text())["members"]["red/0000.jpg"] == list(made.members["red/0000.jpg"])


def test_an_index_that_cannot_be_kept_is_said(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("a file")

    result = run(f"{two_shards(tmp_path)}/*.tar", tmp_path / "run", f"webdataset.index={tmp_path / 'index'}")

    assert result.code == 0, result.err
    assert "the index of shards could not be kept" in result.err


def test_braces_are_written_out_as_a_shell_does() -> None:
    assert expand("a.tar") == ["a.tar"]
    assert expand("{train,val}-{08..10}.tar") == [
        *("train-08.tar", "train-09.tar", "train-10.tar"),
        *("val-08.tar", "val-09.tar", "val-10.tar"),
    ]
    assert expand("{a,b{0..1}}.tar") == ["a.tar", "b0.tar", "b1.tar"]


def test_wildcards_of_other_file_systems() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/shards/b-1.tar", b"")
    memory.pipe("/shards/b-2.tar", b"")

    assert find_shards("memory://shards/b-*.tar") == ["memory:///shards/b-1.tar", "memory:///shards/b-2.tar"]


def test_a_query_is_no_wildcard_and_no_part_of_the_name() -> None:
    url = "https://example.org/val/train-0.tar?key=test.gz"

    assert find_shards(url) == [url]
    assert split_of(url) == "train"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-000.tar", "train"),
        ("imagenet1k-validation-00.tar", "validation"),
        ("data/test/000.tar", "test"),
        ("training_0.tar", "training"),
        ("s3://bucket/trains-0.tar", ""),
        ("val.tar", "val"),
        ("train/000.tar", "train"),
        ("test_data/000.tar", ""),
        ("000.tar", ""),
    ],
)
def test_the_split_is_a_word_of_the_name(name: str, split: str) -> None:
    assert split_of(name) == split
