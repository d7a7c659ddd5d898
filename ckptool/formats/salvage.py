"""What is left of a file that cannot be opened: which tensors are whole, which have lost values.

The names and places of tensors stand before their values in all three containers (the pickle is a
torch zip's first record, the header a safetensors file's first bytes), so a file that was cut off
still knows everything that it has lost. Storages are given places as if each were a file of its
own; what the real file has of each is looked up afterwards.

A torch zip that lost the directory at its end is walked from the front. Its local headers do not
say how long a record is (torch streams, so sizes stand behind the data); the pickle does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ckptool.errors import CkptError, DamagedError
from ckptool.formats.base import SourceFile
from ckptool.formats.byte_sources import ByteSource, FileWindow
from ckptool.formats.pickled import Pickles
from ckptool.formats.safetensors_file import LENGTH_BYTES, METADATA, SafetensorsFile, parse_json
from ckptool.formats.torch_legacy import is_legacy
from ckptool.formats.torch_objects import TorchBuilder
from ckptool.formats.zip_records import LOCAL, STORED, ZipArchive, is_zip
from ckptool.tree import ByteSpan, Tree, format_address, tensors

HEAD_BYTES = 4096
MAX_SMALL = 1 << 16  # bytes of the records that are neither pickle nor storage


class Loss(NamedTuple):
    """A storage of which values are missing, and the tensors that lose some."""

    record: str
    wanted: int  # bytes
    present: int  # bytes
    tensors: tuple[str, ...]  # addresses


class Remains(NamedTuple):
    """What a damaged file still says of itself."""

    losses: tuple[Loss, ...]
    tensors: int  # in all
    is_cut: bool  # it ends too soon, rather than lacking something in the middle


class _Storages(NamedTuple):
    """Storages by key: how long each should be, and what of it is there."""

    wanted: dict[str, int]
    present: dict[str, int]


def salvage(path: Path) -> Remains | None:
    """What remains; None where not even the names can be read."""
    try:
        with SourceFile(path) as file:
            head = file.head(HEAD_BYTES)
            if is_zip(head):
                return _zip(file)
            if is_legacy(head):
                return _legacy(file)
            return _safetensors(file) if SafetensorsFile().matches(head) else None
    except CkptError:
        return None


# --------------------------------------------------------------------------------------- torch zip


def _zip(file: SourceFile) -> Remains:
    try:
        archive = ZipArchive(FileWindow(file))
    except DamagedError:
        return _cut_zip(file)
    records = {r.name.partition("/")[2]: r for r in archive.records}
    if "data.pkl" not in records or records["data.pkl"].method != STORED:
        raise DamagedError("no pickle to read the names from")
    tree, storages, _ = _read_pickle(file, archive.data_offset(records["data.pkl"]))
    sizes = {name[5:]: r.size for name, r in records.items() if name.startswith("data/")}
    storages.present.update({key: sizes.get(key, 0) for key in storages.wanted})
    return _remains(tree, storages, is_cut=False)


def _cut_zip(file: SourceFile) -> Remains:
    first = _local_header(file, 0)
    if first is None or not first[0].endswith("data.pkl"):
        raise DamagedError("the first record is not the pickle")
    tree, storages, end = _read_pickle(file, first[1])
    for name, start, size in _walk(file, end, storages.wanted):
        storages.present[name] = max(0, min(size, file.size - start))
    return _remains(tree, storages, is_cut=True)


def _walk(file: SourceFile, at: int, wanted: Mapping[str, int]) -> Iterator[tuple[str, int, int]]:
    """(key, offset, bytes) of the storages that follow ``at``, until the file ends."""
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


def _next_header(file: SourceFile, at: int) -> int | None:
    """The local header behind the record that ends at ``at``: past its descriptor."""
    window = file.read(at, min(MAX_SMALL, file.size - at)) if at < file.size else b""
    found = window.find(b"PK\x03\x04")
    return None if found < 0 else at + found


def _local_header(file: SourceFile, at: int) -> tuple[str, int] | None:
    """(name, offset of the data) of the record whose header stands at ``at``."""
    if at + LOCAL.size > file.size:
        return None
    header = LOCAL.unpack(file.read(at, LOCAL.size))
    if header[0] != b"PK\x03\x04" or at + LOCAL.size + header[-2] > file.size:
        return None
    name = file.read(at + LOCAL.size, header[-2]).decode("utf-8", "surrogateescape")
    return name, at + LOCAL.size + header[-2] + header[-1]


def _read_pickle(file: SourceFile, at: int) -> tuple[Tree, _Storages, int]:
    """The tree of the pickle at ``at``, its storages, and the offset behind it."""
    storages = _Storages({}, {})
    pickles = Pickles(file, "data.pkl")
    source: ByteSource = FileWindow(file, at)
    tree, end = pickles.read(source, TorchBuilder(_locator(storages), pickles.open_nested))
    return tree, storages, at + end


def _locator(storages: _Storages) -> Any:
    def locate(key: str, nbytes: int) -> ByteSpan:
        storages.wanted[key] = max(nbytes, storages.wanted.get(key, 0))
        return ByteSpan(Path(key), 0, nbytes)

    return locate


# ------------------------------------------------------------------------------- other containers


def _legacy(file: SourceFile) -> Remains:
    source, pickles = FileWindow(file), Pickles(file, "the object")
    at = 0
    for label in ("the magic number", "the version", "the facts about the machine"):
        _, at = pickles.read_short(source, at, label)
    storages = _Storages({}, {})
    tree, at = pickles.read(source, TorchBuilder(_locator(storages), pickles.open_nested), at)
    keys, at = pickles.read_short(source, at, "the storage keys")
    for key in map(str, keys if isinstance(keys, list) else ()):
        wanted = storages.wanted.get(key, 0)
        storages.present[key] = max(0, min(wanted, file.size - at - 8))
        at += 8 + wanted
    return _remains(tree, storages, is_cut=at > file.size)


def _safetensors(file: SourceFile) -> Remains:
    length = int.from_bytes(file.read(0, LENGTH_BYTES), "little")
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
    """The storages that are not whole, with the tensors that reach beyond what is there."""
    hit: dict[str, list[str]] = {}
    total = 0
    for address, ref in tensors(tree):
        total += 1
        for span in (chunk.span for chunk in ref.chunks):
            key = str(span.source)
            if span.offset + span.nbytes > storages.present.get(key, 0):
                hit.setdefault(key, []).append(format_address(address))
    losses = tuple(
        Loss(f"data/{key}", wanted, storages.present.get(key, 0), tuple(hit.get(key, ())))
        for key, wanted in storages.wanted.items()
        if storages.present.get(key, 0) < wanted
    )
    return Remains(losses, total, is_cut)
