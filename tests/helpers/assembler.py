"""Pickles written instruction by instruction, and the containers around them."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


def text(value: str) -> bytes:
    """A str."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    """An int of 32 bits."""
    return b"J" + struct.pack("<i", value)


def binary(value: bytes) -> bytes:
    """A bytes object."""
    return b"B" + struct.pack("<I", len(value)) + value


def name(module: str, attribute: str) -> bytes:
    """A class or function."""
    return f"c{module}\n{attribute}\n".encode()


def row(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def integers(*values: int) -> bytes:
    """A tuple of ints."""
    return row(*map(integer, values))


def listed(*items: bytes) -> bytes:
    """A list."""
    return b"](" + b"".join(items) + b"e"


def filled(target: bytes, *pairs: tuple[bytes, bytes]) -> bytes:
    """A dict or an object, with items."""
    return target + b"(" + b"".join(key + value for key, value in pairs) + b"u"


def mapping(*pairs: tuple[bytes, bytes]) -> bytes:
    """A dict."""
    return filled(b"}", *pairs)


def attributes(**values: bytes) -> bytes:
    """A dict with text as keys."""
    return mapping(*((text(key), value) for key, value in values.items()))


def grouped(*items: bytes) -> bytes:
    """A set."""
    return b"\x8f(" + b"".join(items) + b"\x90"


def frozen(*items: bytes) -> bytes:
    """A frozenset."""
    return b"(" + b"".join(items) + b"\x91"


def call(func: bytes, *args: bytes) -> bytes:
    """The result of a call."""
    return func + row(*args) + b"R"


def made(cls: bytes, *args: bytes) -> bytes:
    """An object of a class."""
    return cls + row(*args) + b"\x81"


def built(obj: bytes, state: bytes) -> bytes:
    """An object with a state."""
    return obj + state + b"b"


def program(body: bytes, protocol: int = 4) -> bytes:
    """A whole pickle."""
    return b"\x80" + bytes([protocol]) + body + b"."


def zipped(data: bytes, storages: Mapping[str, bytes]) -> bytes:
    """A zip archive of ``torch.save``."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values)
        archive.writestr("archive/version", b"3\n")
    return out.getvalue()


def streamed(data: bytes, storages: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A stream of ``torch.save`` before 1.6; storages are (key, number of elements, bytes)."""
    storages = list(storages)
    facts = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {}}
    parts = [pickle.dumps(value, 2) for value in (MAGIC, VERSION, facts)]
    parts += [data, pickle.dumps([key for key, _, _ in storages], 2)]
    parts += [struct.pack("<q", count) + values for _, count, values in storages]
    return b"".join(parts)


def tarred(members: Mapping[str, bytes]) -> bytes:
    """A tar archive of torch 0.1."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.PAX_FORMAT) as tar:
        for member, raw in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return out.getvalue()
