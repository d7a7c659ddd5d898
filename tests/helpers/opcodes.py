"""Pickles written opcode by opcode, and the containers of torch around them.

A value is the bytes that leave it on the stack: ``dct((text("w"), tensor("0", 4)))``.
"""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
FACTS = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"long": 4}}
FLOATS = "torch.FloatStorage"

# ------------------------------------------------------------------------------------------- values

NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def real(value: float) -> bytes:
    return b"G" + struct.pack(">d", value)


def raw(value: bytes) -> bytes:
    """Bytes, of protocol 3."""
    return b"C" + bytes([len(value)]) + value


def name(qualname: str) -> bytes:
    module, _, last = qualname.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def tup(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def row(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def dct(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"}" + items(*pairs)


def items(*pairs: tuple[bytes, bytes]) -> bytes:
    """Set on the value below: SETITEMS."""
    return b"(" + b"".join(key + value for key, value in pairs) + b"u"


def attributes(**values: bytes) -> bytes:
    return dct(*((text(key), value) for key, value in values.items()))


def numbers(*values: int) -> bytes:
    return tup(*map(integer, values))


def call(function: str, *args: bytes) -> bytes:
    return name(function) + tup(*args) + b"R"


def new(cls: str, *args: bytes) -> bytes:
    return name(cls) + tup(*args) + b"\x81"


def build(obj: bytes, state: bytes) -> bytes:
    return obj + state + b"b"


HOOKS = call("collections.OrderedDict")


# ------------------------------------------------------------------------------------------ tensors


def storage(
    key: bytes, numel: int, cls: str = FLOATS, *more: bytes, location: bytes = text("cpu")
) -> bytes:
    return tup(text("storage"), name(cls), key, location, integer(numel), *more) + b"Q"


def view(of: bytes, numel: int, *more: bytes, offset: int = 0) -> bytes:
    """A flat tensor on a storage."""
    args = (of, integer(offset), numbers(numel), numbers(1), FALSE, HOOKS, *more)
    return call("torch._utils._rebuild_tensor_v2", *args)


def tensor(key: str, numel: int, cls: str = FLOATS, *more: bytes) -> bytes:
    return view(storage(text(key), numel, cls), numel, *more)


# --------------------------------------------------------------------------------------- containers


def zipped(body: bytes, records: Mapping[str, bytes], byteorder: bytes = b"little") -> bytes:
    """A zip of ``torch.save``."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("archive/byteorder", byteorder)
        for key, data in records.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")
    return out.getvalue()


def stream(body: bytes, records: Iterable[tuple[object, bytes]], itemsize: int = 4) -> bytes:
    """A stream of the older container; its storages in the order of ``records``."""
    rows = list(records)
    heads = b"".join(pickle.dumps(part, 2) for part in (MAGIC, VERSION, FACTS))
    data = (struct.pack("<q", len(data) // itemsize) + data for _, data in rows)
    keys = pickle.dumps([key for key, _ in rows], 4)
    return heads + b"\x80\x02" + body + b"." + keys + b"".join(data)


def tarred(
    body: bytes,
    storages: Iterable[tuple[bytes, bytes]],
    tensors: Iterable[tuple[bytes, bytes, int]],
    views: bytes = b"]",
) -> bytes:
    """A tar of torch 0.1: (key, floats) of storages, (key, storage's key, numel) of tensors."""
    held, made = list(storages), list(tensors)
    values = pickle.dumps(len(held), 2)
    for key, data in held:
        values += _pickled(tup(key, text("cpu"), name(FLOATS)))
        values += struct.pack("<q", len(data) // 4) + data
    values += _pickled(views)
    shapes = pickle.dumps(len(made), 2)
    for key, root, numel in made:
        shapes += _pickled(tup(key, root, name("torch.FloatTensor")))
        shapes += struct.pack("<iiqqq", 1, 0, numel, 1, 0)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member, data in (("storages", values), ("tensors", shapes), ("pickle", _pickled(body))):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."
