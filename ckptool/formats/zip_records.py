r"""The records of a zip archive and where their bytes lie, also of one inside something else.

Layout, from the end of the bytes (APPNOTE.TXT 6.3.10, sections 4.3 and 4.5)::

    local header  PK\3\4  30 bytes + name + extra, then the data, then maybe a data descriptor
    …
    central entry PK\1\2  46 bytes + name + extra + comment, one a record
    …
    zip64 end     PK\6\6  56 bytes, and its locator PK\6\7, 20 bytes; when sizes need 64 bits
    end           PK\5\6  22 bytes + comment

Rules, each with its reason:

* The data begins behind the *local* header. torch pads that header's extra field so that storages
  are aligned to 64 bytes; the central entry does not know.
* Names are unique, whatever their case. Of two equal ones Python's ``zipfile`` takes the last, and
  torch's miniz either: it searches a sorted directory by halves, and takes upper for lower case.
  A file that two readers see differently is refused.
* Where readers could differ and torch is known to be of one mind, we follow torch, which goes by
  the directory and by absolute offsets, and the archive's ``doubts`` say what others could see:
  a local header that differs from the directory, a directory elsewhere than before the end record
  (``zipfile`` shifts all offsets by the difference), bytes behind the end.
* A CRC of 0 may mean "not computed" (``torch.serialization.set_crc32_options(False)``).
* Records must lie inside the archive, apart from each other, and may not be encrypted or patches
  by the directory's flags. Only stored records can be tensors; deflated ones are unpacked up to a
  limit, for the small records that other writers compress.
* 100,000 records are an ordinary checkpoint of a large mixture of experts, so the loop is plain.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import NamedTuple

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.byte_sources import ByteSource
from ckptool.tree import ByteSpan

END = Struct("<4s4H2IH")
ZIP64_LOCATOR = Struct("<4sIQI")
ZIP64_END = Struct("<4sQ2H2I4Q")
CENTRAL = Struct("<4s4B4H3I5H2I")
LOCAL = Struct("<4s2B4H3I2H")
LOOKED_AT = Struct("<4s2x2H4xI8x2H").unpack_from  # of a local header, for 100,000 of them

STORED, DEFLATED = 0, 8
ENCRYPTED = 0x1
UNREADABLE = ENCRYPTED | 0x20 | 0x40 | 0x2000  # encrypted, a patch, strongly, the directory too
HAS_DESCRIPTOR = 0x8
NO_CRC = 0
HEADER_WINDOW = 4096  # bytes read at a time for local headers,
MAX_HEADER_WINDOW = 1 << 16  # or so many where they follow each other
MAX_DOUBTS = 100  # records whose local headers are described
MAX_INFLATED = 64 << 20  # bytes of a deflated record that we unpack
MAX_DIRECTORY = 1 << 30  # bytes; of 100,000 records it has about ten million
_UINT16_MAX, _UINT32_MAX = 0xFFFF, 0xFFFFFFFF


class ZipRecord(NamedTuple):
    """One record, as the central directory lists it."""

    name: str
    method: int
    flags: int
    crc: int  # 0: may mean "not computed"
    compressed_size: int
    size: int
    header_offset: int  # of the local header, in the archive
    entry_offset: int  # of the central entry, in the archive


class Directory(NamedTuple):
    """The central directory, whole."""

    records: int  # how many it lists
    offset: int  # in the archive
    data: bytes
    doubts: tuple[str, ...]  # what other readers could take for the directory


class ZipArchive:
    """The directory of a zip archive; data offsets are looked up when asked for.

    Raises:
        DamagedError: no end record, or a directory that does not fit the bytes.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self._directory = _find_directory(source)
        self.records = _read_directory(self._directory)
        self._listed, self._listed_at = self._directory.data, self._directory.offset
        self._window, self._window_offset = b"", 0
        self._differing: dict[str, str] = {}  # record -> how its local header differs

    @property
    def doubts(self) -> Iterator[tuple[str, str]]:
        """(record, what other readers could see there), of what has been looked up so far."""
        yield from (("", doubt) for doubt in self._directory.doubts)
        yield from self._differing.items()

    @cached_property
    def _by_name(self) -> Mapping[str, ZipRecord]:
        by_name = {record.name.lower(): record for record in self.records}
        if len(by_name) != len(self.records):
            name = next(r.name for r in self.records if by_name[r.name.lower()] is not r)
            raise DamagedError(
                f"two records are called {name!r:.80}, but for the case; readers would disagree"
            )
        return by_name

    def get(self, name: str) -> ZipRecord | None:
        """The record of that name, whatever its case.

        Raises:
            DamagedError: two records of the archive have the same name.
        """
        return self._by_name.get(name.lower())

    def data_offset(self, record: ZipRecord) -> int:
        """Where the record's bytes begin in the archive.

        Raises:
            DamagedError: the local header is not where the directory says, or names something else.
        """
        _, method, flags, crc, packed, plain, offset, entry = record
        at = offset - self._window_offset
        if not 0 <= at <= len(self._window) - LOCAL.size:
            self._move_window(offset, is_next=0 <= at < 2 * len(self._window))
            at = 0
        window = self._window
        signature, local_flags, local_method, local_crc, width, extra = LOOKED_AT(window, at)
        if signature != b"PK\x03\x04":
            raise DamagedError(f"the record {record.name!r} has no header at {offset}")
        if flags & UNREADABLE:
            raise UnsupportedError(f"the record {record.name!r} is encrypted, or a patch")
        if method == STORED and packed != plain:
            raise DamagedError(f"the record {record.name!r} is stored in another size than its own")
        listed = entry - self._listed_at + CENTRAL.size
        at += LOCAL.size
        if (
            window[at : at + width] != self._listed[listed : listed + width]
            or local_flags != flags
            or local_method != method
            or not (flags & HAS_DESCRIPTOR or local_crc == crc)
        ):
            self._compare(record)
        start: int = offset + LOCAL.size + width + extra
        if start + packed > self.source.size:
            raise DamagedError(f"truncated: the record {record.name!r} reaches past the end")
        return start

    def _move_window(self, offset: int, *, is_next: bool) -> None:
        """Small tensors lie side by side: one read serves the headers of many, the next of more."""
        size = min(2 * len(self._window), MAX_HEADER_WINDOW) if is_next else HEADER_WINDOW
        available = min(size, self.source.size - offset)
        self._window = self.source.read(offset, max(available, LOCAL.size))
        self._window_offset = offset

    def _compare(self, record: ZipRecord) -> None:
        """Note how a local header differs from the directory, which torch goes by."""
        header = LOCAL.unpack(self.source.read(record.header_offset, LOCAL.size))
        name = self.source.read(record.header_offset + LOCAL.size, header[-2])
        pairs = (
            ("name", name.decode("utf-8", "surrogateescape"), record.name),
            ("flags", header[3], record.flags),
            ("method", header[4], record.method),
            ("checksum", header[7], header[7] if record.flags & HAS_DESCRIPTOR else record.crc),
        )
        differing = [
            f"{what} {one!r:.60} for {other!r:.60}" for what, one, other in pairs if one != other
        ]
        if differing and len(self._differing) < MAX_DOUBTS:
            self._differing[record.name] = f"its local header has the {', the '.join(differing)}"

    def span(self, record: ZipRecord, nbytes: int) -> ByteSpan:
        """The place of the first ``nbytes`` bytes of a stored record."""
        return self.source.span(self.data_offset(record), nbytes)

    def read(self, record: ZipRecord) -> bytes:
        """The record's content, unpacked where it is deflated.

        Raises:
            UnsupportedError: compressed with another method, or encrypted.
            DamagedError: the content is not what the directory says.
        """
        data = self.source.read(self.data_offset(record), record.compressed_size)
        if record.method == STORED:
            return data
        if record.method != DEFLATED:
            raise UnsupportedError(f"{record.name!r} is compressed with method {record.method}")
        return _inflated(record, data)


def has_end(source: ByteSource) -> bool:
    """Whether readers that look for a zip archive from its end on would find one."""
    return _find_end(source)[1] >= 0


def _find_end(source: ByteSource) -> tuple[bytes, int]:
    """The last bytes, in which an end record must be, and where it begins there; -1: there is none.

    Of several the last, as every reader takes it that has room for a whole record.
    """
    tail_size = min(source.size, END.size + _UINT16_MAX)
    tail = source.read(source.size - tail_size, tail_size)
    return tail, tail.rfind(b"PK\x05\x06", 0, max(0, len(tail) - END.size + 4))


def is_zip(head: bytes) -> bool:
    """Whether the bytes begin like a zip: what ``torch.load`` goes by."""
    return head[:4] == b"PK\x03\x04"


def _read_directory(found: Directory) -> list[ZipRecord]:
    count, offset, directory, _ = found
    records: list[ZipRecord] = []
    at = free = 0  # free: where the next record can begin at the earliest
    is_in_order = True
    unpack, width = CENTRAL.unpack_from, CENTRAL.size
    for _ in range(count):
        if at + width > len(directory) or directory[at : at + 4] != b"PK\x01\x02":
            raise DamagedError(
                f"the zip directory breaks off after {len(records)} of {count} records"
            )
        (
            _, _, _, _, _, flags, method, _, _, crc, packed, plain,
            name_length, extra_length, comment_length, _, _, _, header,
        ) = unpack(directory, at)  # fmt: skip
        name_end = at + width + name_length
        name = directory[at + width : name_end].decode("utf-8", "surrogateescape")
        if _UINT32_MAX in (packed, plain, header):
            extra = directory[name_end : name_end + extra_length]
            plain, packed, header = _zip64_sizes(extra, plain, packed, header)
        if header + packed > offset:
            raise DamagedError(f"truncated: the record {name!r} reaches into the directory")
        records.append(ZipRecord(name, method, flags, crc, packed, plain, header, offset + at))
        at = name_end + extra_length + comment_length
        if header < free:
            is_in_order = False
        free = header + packed + LOCAL.size
    if not is_in_order:
        _refuse_overlaps(records)
    return records


def _refuse_overlaps(records: list[ZipRecord]) -> None:
    """Records that share bytes are how small archives unpack to large ones."""
    free = 0
    for record in sorted(records, key=lambda record: record.header_offset):
        if record.header_offset < free:
            raise DamagedError(f"the record {record.name!r:.80} overlaps the one before it")
        free = record.header_offset + LOCAL.size + record.compressed_size


def _find_directory(source: ByteSource) -> Directory:
    tail, at = _find_end(source)
    if at < 0:
        raise DamagedError(
            "truncated: a zip archive without the directory at its end",
            hint="it was cut off while it was written or copied; get it again from its source",
        )
    _, _, _, _, count, size, offset, comment = END.unpack_from(tail, at)
    end = source.size - len(tail) + at
    behind = source.size - end - END.size
    locator_at = end - ZIP64_LOCATOR.size
    if locator_at >= 0:
        locator = source.read(locator_at, ZIP64_LOCATOR.size)
        if locator[:4] == b"PK\x06\x07":
            end = ZIP64_LOCATOR.unpack(locator)[2]
            record = source.read(end, ZIP64_END.size)
            if record[:4] != b"PK\x06\x06":
                raise DamagedError("the zip64 end record is not where its locator says")
            *_, count, size, offset = ZIP64_END.unpack(record)
    if offset + size > end:
        raise DamagedError("truncated: the zip directory does not fit the file")
    if count * CENTRAL.size > size:
        raise DamagedError(f"a zip directory of {size} bytes cannot list {count} records")
    if size > MAX_DIRECTORY:
        raise DamagedError(f"the zip directory of {size} bytes is larger than any real one")
    gap = end - offset - size
    doubts = (
        f"{gap} bytes lie between the directory and the end record: zipfile looks for another there"
        if gap
        else "",
        f"{behind} bytes lie behind the end record, which speaks of {comment}"
        if behind != comment
        else "",
    )
    return Directory(count, offset, source.read(offset, size), tuple(filter(None, doubts)))


def _zip64_sizes(extra: bytes, plain: int, packed: int, header: int) -> tuple[int, int, int]:
    """The 64-bit values in the extra field 0x0001, for those that are all ones in 32 bits."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = (
            int.from_bytes(extra[at : at + 2], "little"),
            extra[at + 2] + 256 * extra[at + 3],
        )
        if kind == 1:
            try:
                values = iter(Struct(f"<{length // 8}Q").unpack_from(extra, at + 4))
                plain, packed, header = (
                    next(values) if v == _UINT32_MAX else v for v in (plain, packed, header)
                )
            except (StopIteration, RuntimeError, StructError) as error:
                raise DamagedError("a zip64 field lacks the sizes it should hold") from error
            return plain, packed, header
        at += 4 + length
    return plain, packed, header


def _inflated(record: ZipRecord, data: bytes) -> bytes:
    if record.size > MAX_INFLATED:
        raise UnsupportedError(f"{record.name!r} is compressed and unpacks to {record.size} bytes")
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = unpacker.decompress(data, record.size + 1)
    except zlib.error as error:
        raise DamagedError(f"the record {record.name!r} cannot be unpacked: {error}") from error
    if len(content) != record.size:
        raise DamagedError(f"the record {record.name!r} does not unpack to {record.size} bytes")
    return content
