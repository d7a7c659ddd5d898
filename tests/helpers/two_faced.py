"""Files that hide a pickle from a scanner and that a loader runs, by the feature of the container.

The payload makes the directory ``canary`` in the current folder. Each row of ``HIDDEN`` has the
loader that runs it; ``HONEST`` has files that use the same features and hide nothing.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

from helpers.crafted_zips import TORCH, crafted, deflated, entry, zip_of
from helpers.unpacked import agent, array, gzip_over, plain_array, storage, zlib_over

BLOCK = 512
CANARY = "canary"
RUN = b"cposix\nmkdir\n(S'canary'\ntR"  # leaves its value on the stack
BARE = RUN + b"."  # without the signature of a pickle
EVIL = b"\x80\x02" + BARE
NOTHING = b"\x80\x02}."

LOADERS = {
    "torch.load": "torch.load(PATH, weights_only=False)",
    # From bytes in memory, torch does not look for a tar.
    "from memory": "import io\ntorch.load(io.BytesIO(open(PATH, 'rb').read()), weights_only=False)",
    "in turn": "file = open(PATH, 'rb')\nwhile True: torch.load(file, weights_only=False)",
    "pickle": "import pickle\nfile = open(PATH, 'rb')\nwhile True: pickle.load(file)",
    "jit": "torch.jit.load(PATH)",
    "numpy": "import numpy\ndict(numpy.load(PATH, allow_pickle=True))",
    "old joblib": "import pickle, zlib\nraw = open(PATH, 'rb').read()\n"
    "pickle.loads(zlib.decompress(raw[21:], 15, int(raw[2:21], 16)))",
    "pickle, then numpy": "import pickle, numpy\nfile = open(PATH, 'rb')\npickle.load(file)\n"
    "numpy.load(file, allow_pickle=True)",
    "hub": "torch.hub._legacy_zip_load(PATH, '.', None, False)",
    "agent": "import base64, json, pickle, zipfile\n"
    "for value in json.loads(zipfile.ZipFile(PATH).read('data')).values():\n"
    "    pickle.loads(base64.b64decode(value[':serialized:']))",
    "record": "import pickle, zipfile\nfile = zipfile.ZipFile(PATH).open('a/x.pkl')\n"
    "while True: pickle.load(file)",
    "member": "import tarfile\nfile = tarfile.open(PATH).extractfile('notes')\n"
    "torch.load(file, weights_only=False)",
    "gzip": "import gzip, pickle\npickle.load(gzip.open(PATH))",
    "zlib": "import pickle, zlib\n"
    "pickle.loads(zlib.decompressobj().decompress(open(PATH, 'rb').read(), 65536))",
}


class Hidden(NamedTuple):
    """A file, and the loader that runs its payload."""

    loader: str
    make: Callable[[], bytes]


# ------------------------------------------------------------------------------------------ pickles


def prepended(body: bytes, made: bytes) -> bytes:
    """A pickle that first makes something and drops it."""
    return b"\x80\x03" + made + b"0" + made_of(body)


def made_of(data: bytes) -> bytes:
    """The instructions of a pickle of protocol 2."""
    return data.removeprefix(b"\x80\x02")


def nested(stream: bytes) -> bytes:
    """A call that loads a ``torch.save`` held as bytes."""
    length = struct.pack("<I", len(stream))
    return b"ctorch.storage\n_load_from_bytes\n(B" + length + stream + b"tR"


MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
VERSION = pickle.dumps(1001, 2)
KEYS = b"\x80\x02]."
WEIGHT = (
    b"\x80\x02}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage"
    b"\nX\1\0\0\0000X\3\0\0\0cpuK\2NtQK\0K\2\x85K\1\x85\x89ccollections\nOrderedDict\n)RtRs."
)


def legacy(body: bytes = NOTHING, keys: bytes = KEYS, **parts: bytes) -> bytes:
    """A stream of ``torch.save`` without values."""
    rows = {"magic": MAGIC, "version": VERSION, "facts": NOTHING, "object": body, "keys": keys}
    return b"".join((rows | parts).values())


def legacy_with_values() -> bytes:
    keys = pickle.dumps(["0"], 2)
    return legacy(WEIGHT, keys) + struct.pack("<q2f", 2, 1.0, 2.0)


# --------------------------------------------------------------------------------------------- tars


def header(name: str | bytes, size: int | bytes = 0, kind: bytes = b"0", **fields: bytes) -> bytes:
    """A header block, whose fields can be anything."""
    name = name.encode() if isinstance(name, str) else name
    places = {"mode": 100, "size": 124, "link": 157, "magic": 257, "major": 329, "prefix": 345}
    block = bytearray(BLOCK)
    signed = fields.pop("checksum", b"") == b"signed"
    sparse = fields.pop("sparse", b"")
    block[: len(name)], block[156:157] = name, kind
    block[386 : 386 + len(sparse)] = sparse
    plain = {
        "mode": b"0000644\0",
        "size": size if isinstance(size, bytes) else octal(size),
        "magic": b"ustar\00000",
    }
    for field, value in (plain | fields).items():
        block[places[field] : places[field] + len(value)] = value
    if fields.get("magic") == b"":
        block[257:265] = bytes(8)
    block[148:156] = b" " * 8
    total = sum(memoryview(bytes(block)).cast("b")) if signed else sum(block)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def octal(number: int) -> bytes:
    return b"%011o\0" % number


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: str | bytes, data: bytes = b"", kind: bytes = b"0", **fields: bytes) -> bytes:
    return header(name, len(data), kind, **fields) + padded(data)


def record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def pax(*records: tuple[str, str], kind: bytes = b"x") -> bytes:
    return member("PaxHeader", b"".join(record(*row) for row in records), kind)


def long_name(name: bytes) -> bytes:
    return member("././@LongLink", name + b"\0", b"L", magic=b"ustar  \0")


STORAGES, TENSORS = b"\x80\x02K\0." + KEYS, b"\x80\x02K\0."
FOUR = {"sys_info": NOTHING, "storages": STORAGES, "tensors": TENSORS, "pickle": NOTHING}
END = bytes(2 * BLOCK)
# Three of torch's members; all four, with nothing in them; one that torch would not look at.
THREE = b"".join(member(name, data) for name, data in FOUR.items() if name != "pickle")
GOOD = THREE + member("pickle", NOTHING)
OTHER = member("other", EVIL)
HIDES = header("other", 2 * BLOCK) + member("pickle", EVIL)  # whose size is overridden


def tar(*parts: bytes) -> Callable[[], bytes]:
    return lambda: b"".join((*parts, END))


def tar_of(**members: bytes) -> Callable[[], bytes]:
    return tar(*(member(name, data) for name, data in (FOUR | members).items()))


SPARSE = (("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "pickle"))
HOLES = octal(0) + octal(len(EVIL)) + bytes(72) + b"\0" + octal(len(EVIL))

TARS: dict[str, Callable[[], bytes]] = {
    "last-of-two": tar(GOOD, member("pickle", EVIL)),
    "gnu-long-name": tar(GOOD, long_name(b"pickle"), OTHER),
    "gnu-long-name-twice": tar(GOOD, long_name(b"pickle"), long_name(b"other"), OTHER),
    "gnu-long-name-beyond-its-size": tar(GOOD, header("x", 2, b"L"), padded(b"pickle"), OTHER),
    "gnu-long-link": tar(
        GOOD, OTHER, member("x", b"other\0", b"K"), member("pickle", kind=b"2", link=b"no")
    ),
    "pax-path": tar(GOOD, pax(("path", "pickle")), OTHER),
    "pax-path-with-slash": tar(GOOD, pax(("path", "pickle/")), OTHER),
    "pax-path-of-solaris": tar(GOOD, pax(("path", "pickle"), kind=b"X"), OTHER),
    "pax-path-of-all": tar(GOOD, pax(("path", "pickle"), kind=b"g"), OTHER),
    "pax-before-pax": tar(GOOD, pax(("path", "pickle")), pax(("mtime", "1")), OTHER),
    "pax-before-global": tar(GOOD, pax(("path", "pickle")), pax(("a", "b"), kind=b"g"), OTHER),
    "pax-before-long-name": tar(GOOD, pax(("path", "pickle")), long_name(b"other"), OTHER),
    "long-name-before-pax": tar(GOOD, long_name(b"pickle"), pax(("mtime", "1")), OTHER),
    "many-pax": tar(GOOD, pax(("path", "pickle")), *[pax(("mtime", "1"))] * 40, OTHER),
    "pax-behind-its-size": tar(
        GOOD, header("x", 3, b"x"), padded(record("path", "pickle")), OTHER
    ),
    "pax-and-junk": tar(GOOD, member("x", record("path", "pickle") + b"junk", b"x"), OTHER),
    "pax-without-newline": tar(GOOD, member("x", b"15 path=pickle ", b"x"), OTHER),
    "pax-behind-nul": tar(
        GOOD, member("x", record("path", "pickle") + b"\0" + record("path", "other"), b"x"), OTHER
    ),
    **{
        f"pax-size-{label}": tar(GOOD, pax(("size", size)), HIDES)
        for label, size in {
            "0": "0", "spaces": " 0 ", "sign": "+0", "underscore": "0_0", "word": "x",
            "arabic": "\u0660", "long": "0" * 30,
        }.items()
    },
    "pax-sparse-name": tar(GOOD, pax(("GNU.sparse.name", "pickle")), OTHER),
    "pax-sparse-0.1": tar(
        GOOD, pax(("path", "pickle"), ("GNU.sparse.map", f"0,{len(EVIL)}")), OTHER
    ),
    "pax-sparse-1.0": tar(
        GOOD, pax(*SPARSE, ("GNU.sparse.realsize", str(len(EVIL)))),
        member("other", padded(b"1\n0\n%d\n" % len(EVIL)) + EVIL),
    ),
    "gnu-sparse": tar(GOOD, member("pickle", EVIL, b"S", magic=b"ustar  \0", sparse=HOLES)),
    "unknown-kind": tar(GOOD, member("pickle", EVIL, b"Z")),
    "contiguous": tar(GOOD, member("pickle", EVIL, b"7")),
    "symbolic-link": tar(GOOD, OTHER, member("pickle", kind=b"2", link=b"other")),
    "symbolic-link-with-dots": tar(
        GOOD, member("d/other", EVIL), member("pickle", kind=b"2", link=b".//d/../d/other")
    ),
    "hard-link": tar(GOOD, OTHER, member("pickle", kind=b"1", link=b"other")),
    "hard-link-to-link": tar(
        GOOD, OTHER, member("b", kind=b"2", link=b"other"), member("pickle", kind=b"1", link=b"b")
    ),
    "hard-link-for-storages": tar(GOOD, OTHER, member("storages", kind=b"1", link=b"other")),
    "prefix-under-gnu": tar(
        THREE, member("pickle", EVIL), member("pickle", NOTHING, magic=b"ustar  \0", prefix=b"x")
    ),
    "prefix-without-magic": tar(
        THREE, member("pickle", EVIL), member("pickle", NOTHING, magic=b"", prefix=b"x")
    ),
    "dot-slash": tar(THREE, member("pickle", EVIL), member("./pickle", NOTHING)),
    "name-with-nul": tar(GOOD, member(b"pickle\0x", EVIL)),
    "old-directory": tar(GOOD, header("x/", 3 * BLOCK, b"\0"), member("pickle", EVIL)),
    "directory-with-size": tar(GOOD, header("x", 2 * BLOCK, b"5"), member("pickle", EVIL)),
    "pipe-with-size": tar(GOOD, header("x", 2 * BLOCK, b"6"), member("pickle", EVIL)),
    "size-0o": tar(GOOD, header("x", size=b"0o0".ljust(12, b"\0")), member("pickle", EVIL)),
    "size-sign": tar(GOOD, header("x", size=b"+0".ljust(12, b"\0")), member("pickle", EVIL)),
    "size-spaces": tar(GOOD, header("x", size=b"   0 \0      "), member("pickle", EVIL)),
    "size-base-256": tar(GOOD, header("x", size=b"\x80" + bytes(11)), member("pickle", EVIL)),
    "size-negative": tar(GOOD, header("x", size=b"\xff" * 11 + b"\0"), member("pickle", EVIL)),
    "signed-checksum": tar(
        member(b"sys_info\0\xff", NOTHING, checksum=b"signed"),
        member("storages", STORAGES), member("tensors", TENSORS), member("pickle", EVIL),
    ),
    "signed-checksum-later": tar(GOOD, member(b"pickle\0\xff", EVIL, checksum=b"signed")),
    "ends-at-bad-mode": tar(
        THREE, member("pickle", EVIL), member("pickle", NOTHING, mode=b"zzzzzzz\0")
    ),
    "ends-at-bad-device": tar(
        THREE, member("pickle", EVIL), member("pickle", NOTHING, major=b"zz")
    ),
    "ends-at-no-header": tar(
        THREE, member("pickle", EVIL), b"x" * BLOCK, member("pickle", NOTHING)
    ),
    "without-end": lambda: THREE + member("pickle", EVIL),
    **{
        f"{place}-{label}": tar_of(**{place: body})
        for place in ("storages", "tensors", "pickle")
        for label, body in {
            "signed": EVIL, "bare": BARE, "nested": prepended(FOUR[place], nested(legacy(EVIL))),
        }.items()
    },
    "views": tar_of(storages=b"\x80\x02K\0." + prepended(KEYS, RUN)),
}  # fmt: skip


# --------------------------------------------------------------------------------------------- zips


def zipped(*records: tuple[str, bytes], before: bytes = b"") -> bytes:
    """A zip, whose offsets count the bytes before it."""
    buffer = io.BytesIO()
    buffer.write(before)
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "a" if before else "w") as archive:
        warnings.simplefilter("ignore")
        for path, data in records:
            archive.writestr(zipfile.ZipInfo(path), data)
    return buffer.getvalue()[len(before) :]


def torch_zip(pickled: bytes, *more: tuple[str, bytes], before: bytes = b"") -> bytes:
    rows = (("a/data.pkl", pickled), ("a/version", b"3\n"), *more)
    return zipped(*rows, before=before)


# -------------------------------------------------------------------------------------- TorchScript

CODE = """class M(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
  def __getstate__(self: __torch__.m.M) -> bool:
    return self.training
  def __setstate__(self: __torch__.m.M, state: bool) -> NoneType:
    self.training = state
    {}
    return None
"""
SCRIPTED = b"\x80\x02c__torch__.m\nM\n)\x81\x89b."
ACT = 'torch.save(1, "canary")'
WRITE_FUNCTION = 'def write() -> NoneType:\n  torch.save(1, "canary")\n'


def script(
    line: str, *more: tuple[str, bytes], code: str = "a/code/__torch__/m.py", before: bytes = b""
) -> bytes:
    """An archive with a line in a function that loading runs."""
    rows = ((code, CODE.format(line).encode()), ("a/constants.pkl", b"\x80\x02)."), *more)
    return torch_zip(SCRIPTED, *rows, before=before)


SCRIPTS = {
    "a-call": lambda: script(ACT),
    "an-alias": lambda: script(f"f = torch.save\n    {ACT.replace('torch.save', 'f')}"),
    "an-alias-of-torch": lambda: script(f"t = torch\n    {ACT.replace('torch', 't')}"),
    "an-operator": lambda: script(ACT.replace("torch", "ops.aten")),
    "a-space": lambda: script(ACT.replace(".", " . ")),
    "a-broken-line": lambda: script(ACT.replace(".", ".\\\n      ")),
    "a-comment": lambda: script(f"({ACT.replace('.', '. # x' + chr(10) + '      ')})"),
    "getattr": lambda: script('getattr(torch, "save")(1, "canary")'),
    "getattr-in-two": lambda: script('getattr(torch, "sa" "ve")(1, "canary")'),
    "getattr-in-lines": lambda: script('getattr(torch,\n      "save")(1, "canary")'),
    "getattr-in-three-quotes": lambda: script('getattr(torch, """save""")(1, "canary")'),
    "another-module": lambda: script(
        "__torch__.n.write()", ("a/code/__torch__/n.py", WRITE_FUNCTION.encode())
    ),
    "names-in-upper-case": lambda: script(ACT, code="a/CODE/__TORCH__/M.PY"),
    "inside-a-pickle": lambda: b"\x80\x03" + nested(script(ACT)) + b".",
}


# ---------------------------------------------------------------------------------------- polyglots


def safetensors(fields: bytes, values: bytes, length: int = 0) -> bytes:
    """A file of one tensor of bytes; ``fields`` are JSON in front of it."""
    span = json.dumps({"dtype": "U8", "shape": [len(values)], "data_offsets": [0, len(values)]})
    head = b"{" + fields + b'"t":' + span.encode() + b"}"
    head = head.ljust(length - 1) + b"\n" if length else head
    return struct.pack("<Q", len(head)) + head + values


def safetensors_and_tar() -> bytes:
    """The first block is a header of both: to ``tarfile`` a number of spaces is 0."""
    values = THREE + member("pickle", EVIL) + END

    def with_spaces(count: int) -> bytearray:
        return bytearray(safetensors(b'"__metadata__":{"a":"%s"},' % (b" " * count), values))

    file = with_spaces(BLOCK + len(values) - len(with_spaces(0)))
    file[148:156] = b"%06o  " % sum(file[:BLOCK])
    return bytes(file)


def safetensors_and_pickle() -> bytes:
    """The length is an instruction that skips the zeros; a line of the JSON is a string."""
    skipped = 30
    fields = b'"__metadata__":{"a":"' + b"V" * 20 + b'"},'
    return safetensors(fields, b"0" + BARE, length=ord("X") | skipped << 8)


def pickle_and_tar() -> bytes:
    """A pickle whose first bytes have the signed checksum of a tar, and skip the rest of it."""
    body = THREE + member("pickle", EVIL) + END
    begin = b"\x80\x04B" + struct.pack("<I", BLOCK + len(body) - 7) + b"\xff" * 8
    return header(begin, magic=b"", checksum=b"signed") + body + b"0}."


def around(begin: bytes, end: bytes) -> bytes:
    """A pickle with a zip in its bytes, whose offsets count from the beginning of the file."""
    size = len(script(ACT))
    begin += struct.pack("<I", size)
    return begin + script(ACT, before=begin) + end


def safetensors_and_script() -> bytes:
    """The values of the only tensor are a zip, whose offsets count from the file's beginning."""
    size = len(script(ACT))
    begin = safetensors(b"", bytes(size))[:-size]
    return begin + script(ACT, before=begin)


POLYGLOTS = {
    "safetensors-and-script": Hidden("jit", safetensors_and_script),
    "pickle-and-script": Hidden("jit", lambda: NOTHING + script(ACT, before=NOTHING)),
    "pickle-around-script": Hidden("jit", lambda: around(b"\x80\x03}B", b"0.")),
    "tar-and-script": Hidden("jit", lambda: GOOD + END + script(ACT, before=GOOD + END)),
    "legacy-and-script": Hidden("jit", lambda: legacy() + script(ACT, before=legacy())),
    "safetensors-and-tar": Hidden("torch.load", safetensors_and_tar),
    "safetensors-and-pickle": Hidden("torch.load", safetensors_and_pickle),
    "pickle-and-tar": Hidden("torch.load", pickle_and_tar),
    "tar-named-like-a-pickle": Hidden("pickle", tar(member(BARE), GOOD)),
    "tar-from-memory": Hidden("from memory", tar(member(EVIL), GOOD)),
}

PICKLES = {
    **{
        f"legacy-{part}-nested": Hidden(
            "torch.load",
            lambda part=part, data=data: legacy(**{part: prepended(data, nested(legacy(EVIL)))}),
        )
        for part, data in {
            "magic": MAGIC,
            "version": VERSION,
            "facts": NOTHING,
            "object": NOTHING,
            "keys": KEYS,
        }.items()
    },
    **{
        f"legacy-{part}-bare": Hidden(
            "torch.load", lambda part=part, data=data: legacy(**{part: RUN + b"0" + made_of(data)})
        )
        for part, data in {
            "version": VERSION,
            "facts": NOTHING,
            "object": NOTHING,
            "keys": KEYS,
        }.items()
    },
    "legacy-magic-far-away": Hidden(
        "torch.load", lambda: legacy(BARE, magic=prepended(MAGIC, b"X\xff\0\0\0" + b"x" * 255))
    ),
    "legacy-magic-computed": Hidden(
        "torch.load",
        lambda: legacy(BARE, magic=b"cbuiltins\nint\n(S'%d'\ntR." % 0x1950A86A20F9469CFC6C),
    ),
    "legacy-in-text": Hidden(
        "torch.load", lambda: b"L%dL\n.I1001\n.(d.%s(l." % (0x1950A86A20F9469CFC6C, BARE)
    ),
    "legacy-then-legacy": Hidden("in turn", lambda: legacy_with_values() * 2 + legacy(BARE)),
    "legacy-150-times": Hidden("in turn", lambda: legacy() * 150 + legacy(BARE)),
    "legacy-then-zip": Hidden("in turn", lambda: legacy_with_values() + torch_zip(EVIL)),
    "pickle-then-bare": Hidden("pickle", lambda: NOTHING + BARE),
    "pickle-150-times": Hidden("pickle", lambda: NOTHING * 150 + BARE),
    "pickles-of-numbers": Hidden("pickle", lambda: b"\x80\x02K\1." + b"N." * 5 + BARE),
    "pickle-of-text-then-bare": Hidden("pickle", lambda: b"(dp0\n." + BARE),
    "pickle-then-nested": Hidden("pickle", lambda: NOTHING + nested(legacy(EVIL)) + b"."),
    "pickle-with-a-zip": Hidden("torch.load", lambda: b"\x80\x03" + nested(torch_zip(EVIL)) + b"."),
    "zip-nested": Hidden(
        "torch.load", lambda: torch_zip(b"\x80\x03" + nested(legacy(EVIL)) + b".")
    ),
}

ARRAYS = {
    "array-beside-storages": lambda: torch_zip(NOTHING, ("a/x.npy", array(EVIL))),
    "array-of-no-name": lambda: torch_zip(NOTHING, ("a/notes", array(EVIL))),
    "array-that-no-tensor-views": lambda: torch_zip(NOTHING, ("a/data/7", array(EVIL))),
    "array-as-a-storage": lambda: storage(array(EVIL)),
    "array-as-a-compressed-storage": lambda: storage(array(EVIL), zipfile.ZIP_DEFLATED),
    "array-beside-an-agent": lambda: agent(("notes", array(EVIL))),
}
CHECKPOINT = member("model_weights.ckpt", storage(b"1234")) + END
STREAMS = {
    "gzip-and-tar": Hidden("gzip", lambda: gzip_over(header, EVIL, CHECKPOINT)),
    "zlib-and-tar": Hidden("zlib", lambda: zlib_over(header, BARE, CHECKPOINT)),
}


def in_bytes(data: bytes) -> bytes:
    """A pickle of bytes, which end it."""
    return b"\x80\x03}X\1\0\0\0xB" + struct.pack("<I", len(data)) + data + b"s."


def old_joblib(pickled: bytes) -> bytes:
    return b"ZF" + (b"0x%x" % len(pickled)).ljust(19) + zlib.compress(pickled)


# Instructions that ckptool refuses and an unpickler follows, each of which leaves nothing behind.
REFUSED = {
    "a-hexadecimal": b"I0x10\n0",
    "an-octal": b"I010\n0",
    "a-zero-byte": b"I1\0x\n0",
    "a-long-hexadecimal": b"L0x10L\n0",
    "a-float-and-a-zero-byte": b"F1.0\0x\n0",
    "items-of-a-list": b"](K\1eK\0K\2s0",
    "items-of-nothing": b"N(u0",
    "elements-of-bytes": b"\x96\1\0\0\0\0\0\0\0aK\1a0",
    "a-deep-key": b"}N" + b"\x85" * 900 + b"Ns0",
}
SERIALIZED = b'{"x": {":serialized:": "%s"}}' % base64.b64encode(EVIL)
HEXADECIMAL = base64.b64encode(REFUSED["a-hexadecimal"] + BARE)
BEHIND = {
    **{
        f"{place}-{label}": Hidden(loader, lambda make=make, begin=begin: make(begin + BARE))
        for label, begin in REFUSED.items()
        for place, loader, make in (
            ("behind", "pickle", lambda body: NOTHING + body),
            ("behind-and-cut", "pickle", lambda body: NOTHING + body[:-1]),
            ("array", "numpy", lambda body: torch_zip(NOTHING, ("a/x.npy", array(body)))),
            ("record", "record", lambda body: torch_zip(NOTHING, ("a/x.pkl", body))),
        )
    },
    "legacy-then-hexadecimal": Hidden("in turn", lambda: legacy() + b"I0x1\n0" + BARE),
    "pickle-then-array": Hidden("pickle, then numpy", lambda: NOTHING + array(EVIL)),
    "record-of-two": Hidden("record", lambda: torch_zip(NOTHING, ("a/x.pkl", NOTHING + EVIL))),
    "record-that-is-longer": Hidden(
        "record", lambda: zip_of(*TORCH, entry(b"a/x.pkl", EVIL, deflated(EVIL + b"x"), method=8))
    ),
    "agent-with-a-zero-byte": Hidden(
        "agent",
        lambda: zip_of(entry(b"policy.pth", storage(b"1")), entry(b"data\0x", SERIALIZED)),
    ),
    "zip-in-safetensors": Hidden(
        "hub", lambda: safetensors(b"", zip_of(entry(b"x", legacy(EVIL))))
    ),
    "zip-that-counts-nothing": Hidden(
        "hub",
        lambda: safetensors(
            b"",
            zip_of(entry(b"x", legacy(EVIL))).replace(
                b"PK\5\6\0\0\0\0\1\0\1\0", b"PK\5\6" + bytes(8)
            ),
        ),
    ),
    "agent-with-a-hexadecimal": Hidden(
        "agent",
        lambda: zip_of(
            entry(b"policy.pth", storage(b"1")),
            entry(b"data", SERIALIZED.replace(base64.b64encode(EVIL), HEXADECIMAL)),
        ),
    ),
    "zip-in-a-pickle": Hidden("hub", lambda: in_bytes(zip_of(entry(b"x", EVIL)))),
    "tar-beside": Hidden("member", tar(GOOD, member("notes", legacy(EVIL)))),
    "tar-of-checkpoints": Hidden("member", lambda: member("notes", legacy(EVIL)) + CHECKPOINT),
    "old-joblib-and-tar": Hidden("old joblib", tar(member(old_joblib(EVIL)), GOOD)),
}


HIDDEN: dict[str, Hidden] = {
    **{name: Hidden("numpy", make) for name, make in crafted(EVIL).items()},
    **BEHIND,
    **{name: Hidden("numpy", make) for name, make in ARRAYS.items()},
    **STREAMS,
    **{f"script-{name}": Hidden("torch.load", make) for name, make in SCRIPTS.items()},
    **{f"tar-{name}": Hidden("torch.load", make) for name, make in TARS.items()},
    **PICKLES,
    **POLYGLOTS,
}

EMPTY = member("other", b"hello", magic=b"ustar  \0")
HONEST: dict[str, Callable[[], bytes]] = {
    "script": lambda: script("pass"),
    "script-with-words": lambda: script('self.training = torch.eq("save and exec", "")'),
    "script-that-prints-when-called": lambda: script(
        "pass", ("a/code/__torch__/n.py", b'def f() -> NoneType:\n  print("x")\n')
    ),
    "tar": tar(GOOD),
    "tar-gnu-long-name": tar(GOOD, long_name(b"d/" * 200 + b"f"), EMPTY),
    "tar-gnu-long-name-of-a-member": tar(
        THREE, long_name(b"pickle"), member("pickle", NOTHING, magic=b"ustar  \0")
    ),
    "tar-pax": tar(
        pax(("comment", "a commit"), kind=b"g"),
        *(pax(("mtime", "1.5")) + member(name, data) for name, data in FOUR.items()),
    ),
    "tar-base-256": tar(
        THREE, header("pickle", size=b"\x80" + len(NOTHING).to_bytes(11, "big")), padded(NOTHING)
    ),
    "tar-contiguous": tar(THREE, member("pickle", NOTHING, b"7")),
    "tar-with-links": tar(
        GOOD, member("other", kind=b"2", link=b"pickle"), member("dir/", kind=b"5")
    ),
    "legacy": legacy_with_values,
    "safetensors": lambda: safetensors(b"", b"abcd"),
    "safetensors-with-a-length-like-text": lambda: safetensors(b"", b"abcd", length=0x158),
    "pickle-with-a-zip": lambda: b"\x80\x03" + nested(torch_zip(NOTHING)) + b".",
    "zip": lambda: torch_zip(NOTHING),
    "array-of-numbers": lambda: torch_zip(NOTHING, ("a/x.npy", plain_array())),
    "array-of-numbers-as-a-storage": lambda: storage(plain_array()),
    "agent": agent,
    "torch-tar-that-ends-in-a-zip": lambda: CHECKPOINT,
    "pickle-that-ends-in-a-zip": lambda: in_bytes(torch_zip(NOTHING)),
    "record-of-two": lambda: torch_zip(NOTHING, ("a/x.pkl", NOTHING * 2)),
    "record-of-text": lambda: torch_zip(NOTHING, ("a/x", b"I love\ncats\nand\ndogs\n")),
    "compressed-records": lambda: storage(plain_array(), zipfile.ZIP_DEFLATED),
}
