"""Files that want to run code, to crash their reader or to fill its memory; written with nothing but bytes.

Each maker takes an empty folder and a command's trace: a path that exists once the file has run anything. It returns
the file that a user would hand to ftcore.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Maker = Callable[[Path, Path], Path]

# The opcodes of pickle that the files below need; the names are those of `pickletools`.
PROTO, MARK, TUPLE, REDUCE, STOP, DICT, SETITEMS, PERSID, FALSE = (
    b"\x80\x02",
    b"(",
    b"t",
    b"R",
    b".",
    b"}",
    b"u",
    b"Q",
    b"\x89",
)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def several(*items: bytes) -> bytes:
    return MARK + b"".join(items) + TUPLE


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + several(*arguments) + REDUCE


def mapping(**items: bytes) -> bytes:
    return DICT + MARK + b"".join(text(key) + value for key, value in items.items()) + SETITEMS


def tensor(  # noqa: PLR0913 - what a pickled tensor consists of
    numel: int = 4,
    offset: int = 0,
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    key: str = "0",
    kind: str = "FloatStorage",
    device: str = "cpu",
) -> bytes:
    storage = several(text("storage"), name("torch", kind), text(key), text(device), number(numel)) + PERSID
    shape = several(*map(number, size)), several(*map(number, stride))
    hooks = name("collections", "OrderedDict") + b")R"
    return call("torch._utils", "_rebuild_tensor_v2", storage, number(offset), *shape, FALSE, hooks)


def archive(pickled: bytes, members: Mapping[str, bytes] | None = None, packed: int = zipfile.ZIP_STORED) -> bytes:
    """Return what `torch.save` would write, with this pickle and these storages in it."""
    stored = {"data.pkl": pickled, "byteorder": b"little", "data/0": bytes(16), "version": b"3\n", **(members or {})}
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", packed) as file:
        for place, data in stored.items():
            file.writestr(f"weights/{place}" if not place.startswith((".", "/")) else place, data)
    return target.getvalue()


def of(data: bytes | Callable[[Path], bytes], called: str = "weights.pth") -> Maker:
    """Write these bytes, or what they are for a trace, to a file."""

    def make(folder: Path, trace: Path) -> Path:
        (folder / called).write_bytes(data if isinstance(data, bytes) else data(trace))
        return folder / called

    return make


def pickled(state: bytes, **members: bytes) -> Maker:
    return of(archive(PROTO + state + STOP, members))


def gadgets(trace: PurePath) -> dict[str, bytes]:
    """Calls that would leave a trace, or harm, if what a pickle names was called."""
    touch, code = text(f"touch {trace}"), text(f"open({str(trace)!r}, 'w')")
    words = b"(" + text("touch") + text(str(trace)) + b"l"
    return {
        "posix.system": call("posix", "system", touch),
        "os.system": call("os", "system", touch),
        "nt.system": call("nt", "system", touch),
        "os.popen": call("os", "popen", touch),
        "os.execvp": call("os", "execvp", text("touch"), words),
        "os.spawnvp": call("os", "spawnvp", number(0), text("touch"), words),
        "os.mkdir": call("os", "mkdir", text(str(trace))),
        "subprocess.Popen": call("subprocess", "Popen", words),
        "subprocess.call": call("subprocess", "call", words),
        "subprocess.check_output": call("subprocess", "check_output", words),
        "pty.spawn": call("pty", "spawn", words),
        "builtins.eval": call("builtins", "eval", code),
        "builtins.exec": call("builtins", "exec", code),
        "__builtin__.eval": call("__builtin__", "eval", code),
        "builtins.compile": call("builtins", "compile", code, text("x"), text("exec")),
        "builtins.open": call("builtins", "open", text(str(trace)), text("w")),
        "builtins.__import__": call("builtins", "__import__", text("antigravity")),
        "builtins.getattr": call("builtins", "getattr", name("builtins", "eval"), text("__call__")),
        "importlib.import_module": call("importlib", "import_module", text("antigravity")),
        "runpy.run_path": call("runpy", "run_path", text(str(trace))),
        "runpy._run_code": call("runpy", "_run_code", code, DICT),
        "timeit.timeit": call("timeit", "timeit", code),
        "cProfile.run": call("cProfile", "run", code),
        "pdb.run": call("pdb", "run", code),
        "code.interact": call("code", "interact"),
        "webbrowser.open": call("webbrowser", "open", text("http://127.0.0.1:9/")),
        "urllib.request.urlopen": call("urllib.request", "urlopen", text("http://127.0.0.1:9/")),
        "socket.create_connection": call("socket", "create_connection", several(text("127.0.0.1"), number(9))),
        "shutil.rmtree": call("shutil", "rmtree", text(str(trace.parent))),
        "ctypes.CDLL": call("ctypes", "CDLL", text("libc.so.6")),
        "pickle.loads": call("pickle", "loads", b"C\x01."),
        "_pickle.loads": call("_pickle", "loads", b"C\x01."),
        "marshal.loads": call("marshal", "loads", b"C\x01N"),
        "torch.load": call("torch", "load", text(str(trace))),
        "torch.storage._load_from_bytes": call("torch.storage", "_load_from_bytes", b"C\x01."),
        "torch.hub.load": call("torch.hub", "load", text("a/b"), text("c")),
        "torch.jit.load": call("torch.jit", "load", text(str(trace))),
        "torch.ops.load_library": call("torch", "ops.load_library", text("libc.so.6")),
        "torch.utils.cpp_extension.load": call("torch.utils.cpp_extension", "load", text("x"), text("x.cpp")),
        "numpy.load": call("numpy", "load", text(str(trace))),
        "functools.partial": call("functools", "partial", name("os", "system"), touch),
        "operator.attrgetter": call("operator", "attrgetter", text("__class__")),
        "types.FunctionType": call("types", "FunctionType", DICT),
        "timm.models.load_checkpoint": call("timm.models", "load_checkpoint", DICT, text(str(trace))),
    }


GADGETS = tuple(gadgets(PurePath("/trace")))
RAW = (
    "posix.system",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "runpy.run_path",
    "torch.storage._load_from_bytes",
)


def in_archive(gadget: str, trace: Path) -> bytes:
    return archive(PROTO + mapping(weight=gadgets(trace)[gadget]) + STOP)


def raw(gadget: str, trace: Path) -> bytes:
    return PROTO + gadgets(trace)[gadget] + STOP


def before_an_archive(trace: Path) -> bytes:
    return raw("posix.system", trace) + archive(PROTO + mapping(weight=tensor()) + STOP)


def twice(trace: Path) -> bytes:
    """An archive with two pickles of one name: one reader may look at the first, and another run the second."""
    members = {"data.pk2": raw("posix.system", trace)}
    return archive(PROTO + mapping(weight=tensor()) + STOP, members).replace(b"data.pk2", b"data.pkl")


def tarred(trace: Path) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as file:
        for place in ("sys_info", "pickle", "storages", "tensors"):
            data = raw("posix.system", trace)
            info = tarfile.TarInfo(place)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return target.getvalue()


def compressed(_trace: Path) -> bytes:
    weight = tensor(2**25, size=(2**25,))
    return archive(PROTO + mapping(weight=weight) + STOP, {"data/0": bytes(2**27)}, zipfile.ZIP_DEFLATED)


def wrong_checksum(_trace: Path) -> bytes:
    data = bytearray(archive(PROTO + mapping(weight=tensor()) + STOP, {"data/0": b"0123456789abcdef"}))
    data[data.index(b"0123456789abcdef")] ^= 1
    return bytes(data)


SOUND = archive(PROTO + mapping(weight=tensor()) + STOP)

PICKLES: dict[str, Maker] = {
    **{f"{gadget} in an archive": of(partial(in_archive, gadget)) for gadget in GADGETS},
    **{f"{gadget} bare": of(partial(raw, gadget)) for gadget in RAW},
    **{
        f"posix.system, called {end}": of(partial(in_archive, "posix.system"), f"weights.{end}")
        for end in ("pt", "bin")
    },
    "a payload before an archive": of(before_an_archive),
    "two pickles of one name": of(twice),
    "the tar of old versions": of(tarred),
    "gzip": of(lambda trace: gzip.compress(raw("posix.system", trace))),
    "7z": of(b"7z\xbc\xaf\x27\x1c" + bytes(100)),
    "TorchScript": of(archive(PROTO + mapping() + STOP, {"code/__torch__.py": b"x", "constants.pkl": b"\x80\x02)."})),
    "a member called ../../outside": of(archive(PROTO + mapping(weight=tensor()) + STOP, {"../../outside": b"x"})),
    "compressed zeros": of(compressed),
    "a wrong checksum": of(wrong_checksum),
    "no pickle": of(archive(b"", {}).replace(b"data.pkl", b"data.txt")),
    "half an archive": of(SOUND[: len(SOUND) // 2]),
    "an archive's end alone": of(SOUND[-22:]),
    "the start of an archive": of(b"PK\x03\x04" + bytes(1000)),
    "no byte": of(b""),
    "one byte": of(b"\x80"),
    "text": of(b"not weights at all\n"),
    "a page": of(b"<!DOCTYPE html><html>404</html>"),
    "zeros": of(bytes(10_000)),
    "a storage that is not there": pickled(mapping(weight=tensor(key="7"))),
    "a storage called ../../../etc/passwd": pickled(mapping(weight=tensor(key="../../../etc/passwd"))),
    "a short storage": pickled(mapping(weight=tensor(400, size=(400,)))),
    "2**40 elements": pickled(mapping(weight=tensor(2**40, size=(2**40,)))),
    "2**62 elements": pickled(mapping(weight=tensor(2**62, size=(2**62,)))),
    "more elements than its storage": pickled(mapping(weight=tensor(size=(4000,)))),
    "an offset behind its storage": pickled(mapping(weight=tensor(offset=2**33))),
    "a negative offset": pickled(mapping(weight=tensor(offset=-1))),
    "a negative stride": pickled(mapping(weight=tensor(stride=(-1,)))),
    "a negative size": pickled(mapping(weight=tensor(size=(-4,)))),
    "one element seen 2**32 times": pickled(mapping(weight=tensor(size=(2**16, 2**16), stride=(0, 0)))),
    "one element seen 2**40 times": pickled(mapping(weight=tensor(size=(2**20, 2**20), stride=(0, 0)))),
    "a storage that is no class": pickled(mapping(weight=tensor(kind="save"))),
    "a storage that torch does not have": pickled(mapping(weight=tensor(kind="EvilStorage"))),
    "a place that torch does not have": pickled(mapping(weight=tensor(device="elsewhere"))),
    "a device that is not there": pickled(mapping(weight=tensor(device="xla:99"))),
    "items set on a tensor": pickled(mapping(weight=tensor() + MARK + number(0) + number(7) + SETITEMS)),
    "a state given to a tensor": pickled(mapping(weight=tensor() + mapping(grad=number(1)) + b"b")),
    "something appended to a number": pickled(number(1) + number(2) + b"a"),
    "a tensor made of numbers": pickled(call("torch._utils", "_rebuild_tensor_v2", number(1), number(2))),
    "a parameter made of a number": pickled(call("torch._utils", "_rebuild_parameter", number(1), FALSE, DICT)),
    "nothing": pickled(b""),
    "a call of nothing": pickled(REDUCE),
    "an empty stack popped": pickled(b"0"),
    "a memory that is empty": pickled(b"h\x05"),
    "200,000 lists in each other": pickled(b"]" * 200_000 + b"a" * 199_999),
    "a million marks": pickled(MARK * 1_000_000),
    "a million copies": pickled(DICT + b"2" * 1_000_000),
    "a number of a million digits": pickled(b"I" + b"9" * 1_000_000 + b"\n"),
    "a number longer than the file": pickled(b"\x8b\xff\xff\xff\x7f"),
    "a text longer than the file": pickled(b"X\xff\xff\xff\x7f"),
    "bytes longer than the file": pickled(b"\x8e" + b"\xff" * 7 + b"\x7f"),
    "a frame longer than the file": pickled(b"\x95" + b"\xff" * 7 + b"\x7f"),
    "protocol 255": of(archive(b"\x80\xff.")),
    "an extension": pickled(b"\x82\x01"),
    "an instance": pickled(MARK + text("touch x") + b"ios\nsystem\n"),
    "an object": pickled(MARK + name("os", "system") + text("touch x") + b"o"),
    "a class called": pickled(name("collections", "Counter") + several(number(2**62)) + b"\x81"),
    "no opcode": pickled(b"\xff"),
    "a name that is no text": pickled(b"c\xff\xfe\n\xff\n"),
    "no stop": of(archive(PROTO + mapping(weight=tensor()))),
    "a list of tensors": pickled(b"]" + tensor() + b"a"),
    "a number": pickled(number(3)),
}
"""Name -> maker of a pickled weights file."""


def header(fields: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    raw = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(start: int = 0, end: int = 16, shape: tuple[Any, ...] = (4,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


SAFETENSORS: dict[str, bytes] = {
    "no byte": b"",
    "seven bytes": bytes(7),
    "a header longer than the file": header({"weight": entry()}, length=10_000),
    "a header of 2**63 bytes": header({"weight": entry()}, length=2**63),
    "a header of 2**64 - 1 bytes": header({"weight": entry()}, length=2**64 - 1),
    "no header": header(b""),
    "a header that is no object": header([1, 2]),
    "a header that is no text": header(b"\xff\xfe{}"),
    "a header of 100,000 lists": header(b"[" * 100_000),
    "60 MB of metadata": header({"__metadata__": {"a": "b" * 60_000_000}, "weight": entry()}),
    "metadata that are numbers": header({"__metadata__": {"a": 1}, "weight": entry()}),
    "two tensors in one place": header({"weight": entry(), "other": entry()}),
    "a hole": header({"weight": entry(), "other": entry(32, 48)}, bytes(48)),
    "one name twice": header(
        b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    ),
    "2**64 elements": header({"weight": entry(shape=(2**32, 2**32))}),
    "2**62 elements": header({"weight": entry(shape=(2**62,))}),
    "a negative size": header({"weight": entry(shape=(-4,))}),
    "a size that is no number": header({"weight": entry(shape=("4",))}),
    "offsets the wrong way round": header({"weight": entry(16, 0)}),
    "offsets behind the file": header({"weight": entry(0, 2**40, (2**38,))}),
    "negative offsets": header({"weight": entry(-16, 0)}),
    "a dtype that does not exist": header({"weight": entry(dtype="EVIL")}),
    "a pickle behind the tensors": header({"weight": entry()}) + PROTO + call("posix", "system", text("true")) + STOP,
    "100,000 names": header({f"w{place}": entry(0, 0, (0,)) for place in range(100_000)}, b""),
    "an archive": SOUND,
    "a pickle": PROTO + call("posix", "system", text("true")) + STOP,
    "numbers that are not finite": header({"weight": entry()}, struct.pack("<4f", 1, float("nan"), float("inf"), 2)),
    "another shape": header({"weight": entry(shape=(2, 2))}),
    "other names": header({"wight": entry()}),
}
"""Name -> bytes of a .safetensors file; the network has one parameter, ``weight``, of shape (4,)."""
