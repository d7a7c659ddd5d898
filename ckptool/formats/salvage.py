"""The remains of a file that cannot be opened: whole tensors, and those that lost values.

In all three containers the names and places of tensors come before their values (the pickle is the
first record of a torch zip, the header the first bytes of a safetensors file). So a file that was
cut off still lists everything that it has lost. Each storage gets a place as if it were a file of
its own; the bytes that the real file has of it are looked up afterwards.

A torch zip without the central directory at its end is walked from the front. Its local headers do
not have the length of a record (torch streams, so sizes come behind the data), but the pickle has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ckptool.errors import CkptError, DamagedError
from ckptool.formats.legacy_stream import is_legacy
from ckptool.formats.nested import pickles_of
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.formats.safetensors_file import (
    LENGTH_BYTES,
    METADATA,
    SafetensorsFile,
    header_length,
    parse_json,
)
from ckptool.formats.zips.headers import LOCAL
from ckptool.formats.zips.records import STORED, ZipArchive, is_zip
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan, Source
from ckptool.sources.memory import Memory
from ckptool.sources.places import open_file
from ckptool.sources.window import Window
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import Tree
from ckptool.tree.walking import tensors

HEAD_BYTES = 4096
MAX_SMALL = 1 << 16  # bytes of the records that are neither pickle nor storage


class Loss(NamedTuple):
    """A storage with missing values, and the tensors that lose some of them."""

    record: str
    wanted: int  # bytes
    present: int  # bytes
    tensors: tuple[str, ...]  # key paths


class Remains(NamedTuple):
    """The contents and the losses of a damaged file."""

    losses: tuple[Loss, ...]
    tensors: int  # their number in the file
    is_cut: bool  # True: the file ends too soon; False: a part in the middle is missing


class _Storages(NamedTuple):
    """Storages by key, with the bytes that each should have and those that it has."""

    wanted: dict[str, int]
    present: dict[str, int]
    places: dict[str, Source]  # a source for each, for the spans of tensors


def salvage(path: Path) -> Remains | None:
    """Return what remains of a file; None if not even the names can be read."""
    try:
        with open_file(path) as file:
            head = file.head(HEAD_BYTES)
            if is_zip(head):
                return _zip(file)
            if is_legacy(head):
                return _legacy(file)
            return _safetensors(file) if SafetensorsFile().matches(head) else None
    except CkptError:
        return None


# --------------------------------------------------------------------------------------- torch zip


def _zip(file: Source) -> Remains:
    try:
        archive = ZipArchive(file)
    except DamagedError:
        return _cut_zip(file)
    records = {r.name.partition("/")[2]: r for r in archive.records}
    if "data.pkl" not in records or records["data.pkl"].method != STORED:
        raise DamagedError("no pickle to read the names from")
    tree, storages, _ = _read_pickle(file, archive.data_offset(records["data.pkl"]))
    sizes = {name[5:]: r.size for name, r in records.items() if name.startswith("data/")}
    storages.present.update({key: sizes.get(key, 0) for key in storages.wanted})
    return _remains(tree, storages, is_cut=False)


def _cut_zip(file: Source) -> Remains:
    first = _local_header(file, 0)
    if first is None or not first[0].endswith("data.pkl"):
        raise DamagedError("the first record is not the pickle")
    tree, storages, end = _read_pickle(file, first[1])
    for name, start, size in _walk(file, end, storages.wanted):
        storages.present[name] = max(0, min(size, file.size - start))
    return _remains(tree, storages, is_cut=True)


def _walk(file: Source, at: int, wanted: Mapping[str, int]) -> Iterator[tuple[str, int, int]]:
    """Yield (key, offset, bytes) of the storages that follow ``at``, until the file ends."""
    while (start := _next_header(file, at)) is not None:
        header = _local_header(file, start)
        if header is None:
            return
        name, data_at = header
        key = name.partition("/")[2].removeprefix("data/")
        is_storage = "/data/" in name and key in wanted
        if is_storage:
            yield key, data_at, wanted[key]
        at = data_at + (wanted[key] if is_storage else 0)


def _next_header(file: Source, at: int) -> int | None:
    """Return the offset of the next local header at or behind ``at``, past a descriptor."""
    window = file.read(at, min(MAX_SMALL, file.size - at)) if at < file.size else b""
    found = window.find(b"PK\x03\x04")
    return None if found < 0 else at + found


def _local_header(file: Source, at: int) -> tuple[str, int] | None:
    """Return (name, offset of the data) of the record whose header is at ``at``."""
    if at + LOCAL.size > file.size:
        return None
    header = LOCAL.unpack(file.read(at, LOCAL.size))
    if header[0] != b"PK\x03\x04" or at + LOCAL.size + header[-2] > file.size:
        return None
    name = file.read(at + LOCAL.size, header[-2]).decode("utf-8", "surrogateescape")
    return name, at + LOCAL.size + header[-2] + header[-1]


def _read_pickle(file: Source, at: int) -> tuple[Tree, _Storages, int]:
    """Return the tree of the pickle at ``at``, its storages, and the offset behind it."""
    storages = _Storages({}, {}, {})
    pickles = pickles_of("data.pkl")
    tree, end = pickles.read(
        Window(file, at), TorchBuilder(_locator(storages), pickles.open_nested)
    )
    return tree, storages, at + end


def _locator(storages: _Storages) -> Any:
    def locate(key: str, nbytes: int) -> ByteSpan:
        storages.wanted[key] = max(nbytes, storages.wanted.get(key, 0))
        return ByteSpan(storages.places.setdefault(key, Memory(b"", key)), 0, nbytes)

    return locate


# ------------------------------------------------------------------------------- other containers


def _legacy(file: Source) -> Remains:
    pickles, at = pickles_of("the object"), 0
    for label in ("the magic number", "the version", "the facts about the machine"):
        _, at = pickles.read_short(file, at, label)
    storages = _Storages({}, {}, {})
    tree, at = pickles.read(file, TorchBuilder(_locator(storages), pickles.open_nested), at)
    keys, at = pickles.read_short(file, at, "the storage keys")
    for key in map(str, keys if isinstance(keys, list) else ()):
        wanted = storages.wanted.get(key, 0)
        storages.present[key] = max(0, min(wanted, file.size - at - 8))
        at += 8 + wanted
    return _remains(tree, storages, is_cut=at > file.size)


def _safetensors(file: Source) -> Remains:
    length = header_length(file)
    fields = parse_json(file.read(LENGTH_BYTES, length))
    room = file.size - LENGTH_BYTES - length
    losses, end = [], 0
    for name, entry in fields.items():
        if name != METADATA:
            begin, stop = _offsets(entry)
            end = max(end, stop)
            if stop > room:
                present = max(0, room - begin)
                losses.append(Loss(name, stop - begin, present, (format_address((name,)),)))
    return Remains(tuple(losses), len(fields) - (METADATA in fields), end > room)


def _offsets(entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or [type(value) for value in offsets] != [int, int]:
        raise DamagedError("no offsets")
    return offsets[0], offsets[1]


# --------------------------------------------------------------------------------------------------


def _remains(tree: Tree, storages: _Storages, *, is_cut: bool) -> Remains:
    """Return the incomplete storages, with the tensors that reach beyond their bytes."""
    hit: dict[str, list[str]] = {}
    total = 0
    for address, ref in tensors(tree):
        total += 1
        for span in (chunk.span for chunk in ref.chunks):
            key = span.source.name
            if span.offset + span.nbytes > storages.present.get(key, 0):
                hit.setdefault(key, []).append(format_address(address))
    losses = tuple(
        Loss(f"data/{key}", wanted, storages.present.get(key, 0), tuple(hit.get(key, ())))
        for key, wanted in storages.wanted.items()
        if storages.present.get(key, 0) < wanted
    )
    return Remains(losses, total, is_cut)
