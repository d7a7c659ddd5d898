"""The central directory of a zip archive, and the end records that lead to it.

``records.py`` has the layout and the rules.
"""

from __future__ import annotations

from struct import Struct, unpack_from
from struct import error as StructError  # noqa: N812

from ckptool.errors import DamagedError
from ckptool.formats.zips.headers import (
    CENTRAL,
    END,
    LOCAL,
    UINT16_MAX,
    UINT32_MAX,
    ZIP64_END,
    ZIP64_LOCATOR,
)
from ckptool.records import NamedTuple
from ckptool.sources.base import Source

WINDOW = 4096  # bytes that miniz, and so torch, reads at a time from the end on
AROUND = 4096  # bytes of small records that are read along with what they are next to
IS_FOLDER = 0x10  # an attribute of DOS
MAX_DIRECTORY = 1 << 30  # bytes; a directory of 100,000 records has about ten million
_READ = Struct("<8x2H4x3I4H2x2I").unpack_from  # of CENTRAL what is looked at
_FIELD = Struct("<2H").unpack_from  # the kind and the length of an extra field
UNICODE = b"up"  # the kind of the extra field with a name in UTF-8, 0x7075
MAX_TOLD = 100  # entries that are reported as unread by torch


class ZipRecord(NamedTuple):
    """A record, as the central directory lists it."""

    name: str
    method: int
    flags: int
    crc: int  # 0: may mean "not computed"
    compressed_size: int
    size: int
    header_offset: int  # of the local header, in the archive
    entry_offset: int  # of the central entry, in the archive


class Directory(NamedTuple):
    """The whole central directory."""

    records: int  # their number
    offset: int  # in the archive
    data: bytes
    doubts: tuple[str, ...]  # reasons why other readers could find another directory
    disk: int = 0
    refusals: tuple[str, ...] = ()  # faults for which torch refuses it
    end: End | None = None  # that leads to it


def _find_end(source: Source) -> tuple[bytes, int]:
    """Return the last bytes and the offset of the end record in them; -1: there is none.

    Of several it is the last with space for a whole record, as in every reader. Torch looks a
    window further back than a comment can be long.
    """
    tail_size = min(source.size, END.size + UINT16_MAX + WINDOW)
    tail = source.read(source.size - tail_size, tail_size)
    return tail, tail.rfind(b"PK\x05\x06", 0, max(0, len(tail) - END.size + 4))


def read_directory(found: Directory, refusals: list[str], unread: set[int]) -> list[ZipRecord]:
    """Return the records that the directory lists; add faults that torch refuses to ``refusals``.

    Records of which torch reads no bytes, as of folders, are added to ``unread``, by their entries:
    the values of a storage there are whatever the memory held.

    Raises:
        DamagedError: the directory breaks off, or records overlap.
    """
    count, offset, directory, _, own_disk, *_ = found
    records: list[ZipRecord] = []
    at = free = 0  # free: the earliest offset for the next record
    is_in_order = True
    width, last, disks = CENTRAL.size, len(directory) - CENTRAL.size, {own_disk, 1}
    new, add = tuple.__new__, records.append
    for _ in range(count):
        if at > last or not directory.startswith(b"PK\x01\x02", at):
            raise DamagedError(
                f"the zip directory breaks off after {len(records)} of {count} records"
            )
        (
            flags, method, crc, packed, plain,
            name_length, extra_length, comment_length, disk, attributes, header,
        ) = _READ(directory, at)  # fmt: skip
        name_end = at + width + name_length
        name = directory[at + width : name_end].decode("utf-8", "surrogateescape")
        if extra_length and UNICODE in directory[name_end : name_end + extra_length]:
            _refuse_other_name(directory[name_end : name_end + extra_length], name)
        if packed == UINT32_MAX or plain == UINT32_MAX or header == UINT32_MAX:  # noqa: PLR1714
            extra = directory[name_end : name_end + extra_length]
            plain, packed, header = _zip64_sizes(extra, plain, packed, header)
        if header + packed > offset:
            raise DamagedError(f"truncated: the record {name!r} reaches into the directory")
        add(new(ZipRecord, (name, method, flags, crc, packed, plain, header, offset + at)))
        at = name_end + extra_length + comment_length
        is_folder = attributes & IS_FOLDER or name[-1:] == "/"
        if disk not in disks or (plain and (not packed or is_folder)):
            _refuse(name, disk in disks, refusals)
            unread.add(records[-1].entry_offset)
        if header < free:
            is_in_order = False
        free = header + packed + LOCAL.size
    if at > len(directory):
        refusals.append("the last entry of the directory reaches beyond its end")
    if not is_in_order:
        _refuse_overlaps(records)
    return records


def _refuse(name: str, is_here: bool, refusals: list[str]) -> None:  # noqa: FBT001
    """Note an entry that torch refuses, or whose bytes it does not read."""
    what = "is marked as a folder, or has no bytes" if is_here else "lies on another disk"
    if len(refusals) < MAX_TOLD:
        refusals.append(f"the record {name!r:.80} {what}: torch does not read it")


def _refuse_overlaps(records: list[ZipRecord]) -> None:
    """Refuse records that share bytes: by them small archives unpack to large ones."""
    free = 0
    for record in sorted(records, key=lambda record: record.header_offset):
        if record.header_offset < free:
            raise DamagedError(f"the record {record.name!r:.80} overlaps the one before it")
        free = record.header_offset + LOCAL.size + record.compressed_size


class End(NamedTuple):
    """The end of a zip archive: the fields of the last end record, or of its 64-bit form."""

    offset: int  # of the end record, in the archive
    comment: int  # bytes of the comment, as the record states
    behind: int  # bytes that really follow the record
    directory_end: int  # offset of the first end record, where the directory has to end
    records: int
    directory_size: int
    directory_offset: int
    disk: int = 0  # the number of this disk, in archives on several disks
    refusals: tuple[str, ...] = ()  # faults for which torch refuses it, though it can be read

    @property
    def gap(self) -> int:
        """The bytes between the directory and the end records."""
        return self.directory_end - self.directory_offset - self.directory_size

    @property
    def follows(self) -> int:
        """The offset behind the first of the end records."""
        is_64 = self.directory_end != self.offset
        return self.directory_end + (ZIP64_END.size if is_64 else END.size)

    @property
    def next(self) -> int:
        """The offset of the second end record; without a 64-bit one, the same as ``follows``."""
        is_64 = self.directory_end != self.offset
        return self.offset - ZIP64_LOCATOR.size if is_64 else self.follows


def find_end(source: Source, *, is_certain: bool = True) -> End | None:
    """Return the end of the archive, as torch finds it; None if there is none.

    The locator has the offset of the 64-bit record, which need not be directly before it. Torch
    follows the locator, so all code here that reads the directory calls this function.

    Raises:
        DamagedError: a locator leads to no 64-bit record, and the source is certainly a zip.
    """
    tail, at = _find_end(source)
    if at < 0:
        return None
    _, disk, first_disk, here, count, size, offset, comment = END.unpack_from(tail, at)
    disks, length = 1, ZIP64_END.size - 12
    where = source.size - len(tail) + at
    behind, end = source.size - where - END.size, where
    locator_at = where - ZIP64_LOCATOR.size
    if locator_at >= ZIP64_END.size:  # closer to the start torch looks for no locator
        locator = source.read(locator_at, ZIP64_LOCATOR.size)
        if locator[:4] == b"PK\x06\x07":
            at_64 = ZIP64_LOCATOR.unpack(locator)[2]
            is_there = is_certain or at_64 + ZIP64_END.size <= source.size
            record = source.read(at_64, ZIP64_END.size) if is_there else b""
            if record[:4] == b"PK\x06\x06":
                end, disks = at_64, ZIP64_LOCATOR.unpack(locator)[3]
                _, length, _, _, disk, first_disk, here, count, size, offset = ZIP64_END.unpack(
                    record
                )
            elif is_certain:
                raise DamagedError("the zip64 end record is not where its locator says")
    is_cut = disks != 1 or here != count or (disk, first_disk) not in {(0, 0), (1, 1)}
    refusals = (
        "the end record describes an archive on several disks" if is_cut else "",
        "the zip64 end record is too short" if length < ZIP64_END.size - 12 else "",
    )
    told = tuple(filter(None, refusals))
    return End(where, comment, behind, end, count, size, offset, disk, told)


def find_directory(source: Source) -> Directory:
    """Return the directory that the end records lead to.

    Raises:
        DamagedError: there is no directory that fits the bytes.
    """
    found = find_end(source)
    if found is None:
        raise DamagedError(
            "truncated: a zip archive without the directory at its end",
            hint="it was cut off while it was written or copied; get it again from its source",
        )
    count, size, offset = found.records, found.directory_size, found.directory_offset
    if found.gap < 0:
        raise DamagedError("truncated: the zip directory does not fit the file")
    if count * CENTRAL.size > size:
        raise DamagedError(f"a zip directory of {size} bytes cannot list {count} records")
    if size > MAX_DIRECTORY:
        raise DamagedError(f"the zip directory of {size} bytes is larger than any real one")
    doubts = (
        f"{found.gap} bytes lie between the directory and the end record: "
        "zipfile looks for another there"
        if found.gap
        else "",
        f"{found.behind} bytes lie behind the end record, which states {found.comment}"
        if found.behind != found.comment
        else "",
    )
    ahead = min(offset, AROUND)  # torch puts its last few small records there
    source.bring(offset - ahead, size + ahead)
    directory = source.read(offset, size)
    told = tuple(filter(None, doubts))
    return Directory(count, offset, directory, told, found.disk, found.refusals, found)


def _refuse_other_name(extra: bytes, name: str) -> None:
    """Refuse an extra field with another name, which newer versions of ``zipfile`` take.

    Raises:
        DamagedError: there is one.
    """
    at = 0
    while at + 4 <= len(extra):
        _, length = _FIELD(extra, at)
        # A version and the checksum of the name that it stands for come first.
        other = extra[at + 9 : at + 4 + length].decode("utf-8", "surrogateescape")
        if extra.startswith(UNICODE, at) and other != name:
            raise DamagedError(f"the record {name!r:.80} has a second name, {other!r:.80}")
        at += 4 + length


def _zip64_sizes(extra: bytes, plain: int, packed: int, header: int) -> tuple[int, int, int]:
    """Return the sizes and offset; extra field 0x0001 has those that are all ones in 32 bits."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = _FIELD(extra, at)
        if kind == 1:
            try:
                values, taken = unpack_from(f"<{length // 8}Q", extra, at + 4), 0
                if plain == UINT32_MAX:
                    plain, taken = values[taken], taken + 1
                if packed == UINT32_MAX:
                    packed, taken = values[taken], taken + 1
                if header == UINT32_MAX:
                    header = values[taken]
            except (IndexError, StructError) as error:
                raise DamagedError("a zip64 field lacks the sizes it should hold") from error
            return plain, packed, header
        at += 4 + length
    return plain, packed, header
