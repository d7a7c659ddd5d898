"""The directory of a zip as Python's ``zipfile`` finds it, where it is another than torch's.

``zipfile`` differs in three points. It takes the 64-bit end record right before its locator, and
not where the locator says. It takes the directory right before the end records, and shifts all
offsets by its distance from where it should be. And it reads entries up to the directory's size,
whatever their number.

Source: Python 3.11 to 3.14 ``zipfile.py``, ``_EndRecData64`` and ``_RealGetContents``.
"""

from __future__ import annotations

from ckptool.errors import DamagedError
from ckptool.formats.zips.directory import MAX_DIRECTORY, Directory, End
from ckptool.formats.zips.headers import CENTRAL, END, ZIP64_END, ZIP64_LOCATOR
from ckptool.formats.zips.records import ZipArchive
from ckptool.sources.base import Source
from ckptool.sources.window import Window

_ENTRY = b"PK\1\2"


def seen_by_zipfile(archive: ZipArchive) -> ZipArchive | None:
    """Return the archive of the directory that ``zipfile`` reads; None if it is the same.

    Raises:
        DamagedError: there is another one, which cannot be read.
    """
    source, own = archive.source, archive.directory
    if own.end is None:
        return None
    begin, size, _ = _place(source, own.end)
    if (begin, size) == (own.offset, len(own.data)) and _is_filled(archive):
        return None
    found = directory_of_zipfile(source, own.end)
    if found is None:
        return None
    shift, directory = found
    if shift < 0:
        raise DamagedError("zipfile finds another directory in the archive, before its beginning")
    return ZipArchive(Window(source, shift), directory)


def directory_of_zipfile(source: Source, end: End) -> tuple[int, Directory] | None:
    """Return the shift of offsets, and the directory that ``zipfile`` reads; None if it is none."""
    begin, size, offset = _place(source, end)
    if begin < 0 or size > MAX_DIRECTORY:
        return None
    data = source.read(begin, size)
    count = _entries(data)
    return (begin - offset, Directory(count, offset, data, ())) if count else None


def _place(source: Source, end: End) -> tuple[int, int, int]:
    """Return where ``zipfile`` finds the directory, its size, and where it should be."""
    _, _, _, _, _, size, offset, _ = END.unpack(source.read(end.offset, END.size))
    stop = end.offset
    before = stop - ZIP64_LOCATOR.size - ZIP64_END.size
    if before >= 0:
        records = source.read(before, stop - before)
        locator = ZIP64_LOCATOR.unpack_from(records, ZIP64_END.size)
        if (records[:4], locator[0]) == (b"PK\6\6", b"PK\6\7"):
            stop, (size, offset) = before, ZIP64_END.unpack_from(records)[-2:]
    return stop - size, size, offset


def _is_filled(archive: ZipArchive) -> bool:
    """Return whether a directory ends behind the last entry that torch reads."""
    data, records = archive.directory.data, archive.records
    if not records:
        return not data
    return _after(data, records[-1].entry_offset - archive.directory.offset) >= len(data)


def _after(data: bytes, at: int) -> int:
    """Return the offset behind an entry: its name, extra fields and comment follow it."""
    lengths: tuple[int, ...] = CENTRAL.unpack_from(data, at)[10:13]
    return at + CENTRAL.size + sum(lengths)


def _entries(data: bytes) -> int:
    """Return the number of entries that fill a directory; 0 if something else is in it."""
    at = count = 0
    while at < len(data):
        if not data.startswith(_ENTRY, at) or at + CENTRAL.size > len(data):
            return 0
        at = _after(data, at)
        count += 1
    return count
