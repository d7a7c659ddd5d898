r"""The records of a zip archive and the places of their bytes, also inside another container.

Layout, from the end of the bytes (APPNOTE.TXT 6.3.10, sections 4.3 and 4.5)::

    local header  PK\3\4  30 bytes + name + extra, then the data, then maybe a data descriptor
    …
    central entry PK\1\2  46 bytes + name + extra + comment, one a record
    …
    zip64 end     PK\6\6  56 bytes, and its locator PK\6\7, 20 bytes; when sizes need 64 bits
    end           PK\5\6  22 bytes + comment

Rules, each with its reason:

* The data begins behind the *local* header. torch pads that header's extra field so that storages
  are aligned to 64 bytes; the central entry does not have that length.
* Names are unique, whatever their case. Of two equal names Python's ``zipfile`` reads the last, and
  torch's miniz either one: its binary search in the sorted directory ignores case. A file that two
  readers see differently is refused.
* Where readers could differ, but the choice of torch is known, we follow torch, which uses the
  directory and absolute offsets. The archive's ``doubts`` state what other readers could see: a
  local header that differs from the directory, a directory that does not end at the end record
  (``zipfile`` shifts all offsets by the difference), bytes behind the end.
* A CRC of 0 may mean "not computed" (``torch.serialization.set_crc32_options(False)``).
* Records must be inside the archive and must not overlap. By the directory's flags they must not be
  encrypted or patches. Only stored records can be read in place; deflated ones are unpacked up to a
  limit, for the records that other writers compress.
* An ordinary checkpoint of a large mixture of experts has 100,000 records, so the loop is plain.
* Behind a URL the local headers are not at hand, and to fetch each would take a request. A record's
  data ends where the next header begins, but for the data descriptor that torch writes (16 bytes,
  or 24 with 64-bit sizes), so its beginning follows from its size. Each header is checked when the
  data behind it is read, and nothing is handed out if it is another one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from operator import attrgetter
from struct import Struct

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.npy import MAGIC as ARRAY
from ckptool.formats.zips.directory import (
    Directory,
    ZipRecord,
    find_directory,
    read_directory,
)
from ckptool.formats.zips.headers import CENTRAL, LOCAL, UINT16_MAX, UINT32_MAX
from ckptool.sources.base import ByteSpan, Guard, Source

LOOKED_AT = Struct("<4s2x2H4xI8x2H").unpack_from  # only the checked fields of 100,000 local headers
_new_tuple = tuple.__new__
_ENTRY = attrgetter("entry_offset")

STORED, DEFLATED = 0, 8
ENCRYPTED = 0x1
UNREADABLE = ENCRYPTED | 0x20 | 0x40 | 0x2000  # patch, strong encryption, masked header
HAS_DESCRIPTOR = 0x8
NO_CRC = 0
HEADER_WINDOW = 4096  # bytes read at a time for local headers,
MAX_HEADER_WINDOW = 1 << 16  # or so many for adjacent headers
MAX_DOUBTS = 100  # records whose local headers are described


FETCH_IT = "the file cannot be read by parts: download it and name it"


def _start(record: ZipRecord, following: int) -> int:
    """Return where the data of a record begins that ends at the offset of the next header."""
    has_64 = max(record.size, record.header_offset) >= UINT32_MAX
    descriptor = 0 if not record.flags & HAS_DESCRIPTOR else 24 if has_64 else 16
    behind = descriptor if record.size else 0  # miniz writes none for an empty record
    return following - behind - record.compressed_size


def is_zip(head: bytes) -> bool:
    """Return whether the bytes begin like a zip, as ``torch.load`` decides."""
    return head[:4] == b"PK\x03\x04"


def folded(name: str) -> str:
    """Return a name in lower case as torch compares names: only the letters A to Z have a case."""
    return name.lower() if name.isascii() else name.translate(_LOWER)


_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


class HeaderError(DamagedError):
    """Error of a record that no reader opens, since there is no header at its offset."""


class ZipArchive:
    """The directory of a zip archive; data offsets are looked up on demand.

    Raises:
        DamagedError: there is no end record, or the directory does not fit the bytes.
    """

    def __init__(self, source: Source, directory: Directory | None = None) -> None:
        self.source, self._is_near = source, source.is_near
        self.directory = directory or find_directory(source)
        self.refusals = list(self.directory.refusals)  # faults for which torch refuses it
        self.unread: set[int] = set()  # entries of records of which torch reads no bytes
        self.records = read_directory(self.directory, self.refusals, self.unread)
        self._listed, self._listed_at = self.directory.data, self.directory.offset
        self._outermost, self._shift, _ = source.span(0, 0)  # as every span of the source has it
        self._window, self._window_offset = b"", 0
        # The offset of each record's data; 0 unless its local header was seen to be as listed. Most
        # ask for one record after the other, so there is no dict, which would take as long again.
        self._begins = [0] * len(self.records)
        self._at = -1  # the place of the record that was asked for last
        self._looked_at: set[int] = set()  # places of the other records that were looked up
        self._differing: dict[str, str] = {}  # record -> difference of its local header
        # Records looked up so far that may begin as an array of numpy: by their first bytes, or
        # these were not at hand.
        self.maybe_arrays: dict[str, ZipRecord] = {}

    @property
    def doubts(self) -> Iterator[tuple[str, str]]:
        """Pairs (record, what other readers could see), for the records looked up so far."""
        yield from (("", doubt) for doubt in self.directory.doubts)
        yield from self._differing.items()

    @cached_property
    def text_of_names(self) -> str:
        """The names of all records: what is in none of 100,000 is looked for at once."""
        return "\n".join([record.name for record in self.records])

    @cached_property
    def by_folded_name(self) -> Mapping[str, ZipRecord]:
        """The records by their names in lower case.

        Raises:
            DamagedError: two records of the archive have the same name.
        """
        text, names = self.text_of_names, [record.name for record in self.records]
        if "\0" in text:
            name = next(name for name in names if "\0" in name)
            raise DamagedError(
                f"the record {name!r:.80} has a zero byte in its name, at which zipfile cuts it"
            )
        if not text.isascii():
            names = list(map(folded, names))
        elif text.lower() != text:
            names = list(map(str.lower, names))
        by_name = dict(zip(names, self.records, strict=True))
        if len(by_name) != len(self.records):
            name = next(r.name for r in self.records if by_name[folded(r.name)] is not r)
            raise DamagedError(
                f"two records are called {name!r:.80}, but for the case; readers would disagree"
            )
        return by_name

    def get(self, name: str) -> ZipRecord | None:
        """Return the record of that name, whatever its case.

        Raises:
            DamagedError: two records of the archive have the same name.
        """
        return self.by_folded_name.get(folded(name))

    def data_offset(self, record: ZipRecord) -> int:
        """Return the offset of the record's bytes in the archive.

        Raises:
            DamagedError: there is no header at its offset, or the record's sizes do not fit.
            UnsupportedError: the record is encrypted, or a patch.
        """
        at = self._place(record)
        return self._begins[at] or self._look_up(record, at)

    def _place(self, record: ZipRecord) -> int:
        """Return the place of a record in the directory."""
        at = self._at + 1
        if at == len(self.records) or self.records[at] is not record:
            at = bisect_left(self.records, record.entry_offset, key=_ENTRY)
        self._at = at
        return at

    def _look_up(self, record: ZipRecord, place: int) -> int:
        self._looked_at.add(place)
        _, method, flags, crc, packed, plain, offset, entry = record
        if not self._is_near and not self._is_at_hand(record):
            return self._start_by_its_end(record)
        at = offset - self._window_offset
        if not 0 <= at <= len(self._window) - LOCAL.size:
            self._move_window(offset, is_next=0 <= at < 2 * len(self._window))
            self._find_usual(place)
            at = 0
        window = self._window
        signature, local_flags, local_method, local_crc, width, extra = LOOKED_AT(window, at)
        if signature != b"PK\x03\x04":
            raise HeaderError(f"the record {record.name!r} has no header at {offset}")
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
        at += width + extra
        if method != STORED or ARRAY.startswith(window[at : at + len(ARRAY)]):
            self.maybe_arrays[record.name] = record
        if start + packed > self.source.size:
            raise DamagedError(f"truncated: the record {record.name!r} reaches past the end")
        return start

    def _find_usual(self, place: int) -> None:
        """Look at the headers in the window at once, from that of a record on in the directory.

        The places of the data of stored records that are as the directory says, and begin as no
        array of numpy, are noted. All others are left to whoever asks for them: a record that
        nothing refers to may be damaged.
        """
        window, begun, begins = self._window, self._window_offset, self._begins
        listed, shift, unread = self._listed, CENTRAL.size - self._listed_at, self.unread
        last, limit = begun + len(window) - LOCAL.size, self.source.size
        for at in range(place, len(begins)):
            _, method, flags, crc, packed, plain, offset, entry = self.records[at]
            if not begun <= offset <= last:
                break
            begin = offset - begun
            signature, local_flags, local_method, local_crc, width, extra = LOOKED_AT(window, begin)
            begin += LOCAL.size
            entry += shift
            start = begin + width + extra
            if (
                local_flags == flags
                and local_method == method == STORED
                and packed == plain
                and signature == b"PK\x03\x04"
                and not flags & UNREADABLE
                and (flags & HAS_DESCRIPTOR or local_crc == crc)
                and window.startswith(listed[entry : entry + width], begin)
                and begun + start + packed <= limit
                and not ARRAY.startswith(window[start : start + len(ARRAY)])
                and not (unread and entry - shift in unread)
            ):
                begins[at] = begun + start

    def _move_window(self, offset: int, *, is_next: bool) -> None:
        """Read the headers of many small tensors at once, and of more if the next ones follow."""
        is_next = is_next and self._is_near
        size = min(2 * len(self._window), MAX_HEADER_WINDOW) if is_next else HEADER_WINDOW
        available = min(size, self.source.size - offset)
        self._window = self.source.read(offset, max(available, LOCAL.size))
        self._window_offset = offset

    def _compare(self, record: ZipRecord) -> None:
        """Note how a local header differs from the directory, which torch uses."""
        header = LOCAL.unpack(self.source.read(record.header_offset, LOCAL.size))
        name = self.source.read(record.header_offset + LOCAL.size, header[-2])
        pairs = (
            ("name", name.decode("utf-8", "surrogateescape"), record.name),
            ("flags", header[2], record.flags),
            ("method", header[3], record.method),
            ("checksum", header[6], header[6] if record.flags & HAS_DESCRIPTOR else record.crc),
        )
        differing = [
            f"{what} {one!r:.60} for {other!r:.60}" for what, one, other in pairs if one != other
        ]
        if differing and len(self._differing) < MAX_DOUBTS:
            self._differing[record.name] = f"its local header has the {', the '.join(differing)}"

    # ------------------------------------------------------------------------- headers not at hand

    def _is_at_hand(self, record: ZipRecord) -> bool:
        source, at = self.source, record.header_offset
        return source.is_at_hand(at, min(HEADER_WINDOW, source.size - at))

    @cached_property
    def _starts(self) -> Mapping[int, int]:
        """The offset of each record's data by that of its header, if nothing lies between records.

        The source is given a guard for each.
        """
        headers = sorted(record.header_offset for record in self.records)
        following = dict(zip(headers, [*headers[1:], self.directory.offset], strict=True))
        starts = {r.header_offset: _start(r, following[r.header_offset]) for r in self.records}
        self.source.guard(
            Guard(
                record.header_offset,
                start := starts[record.header_offset],
                start + record.compressed_size,
                partial(self._check_header, record),
            )
            for record in self.records
            if not self._is_at_hand(record)
        )
        return starts

    def _start_by_its_end(self, record: ZipRecord) -> int:
        """Return where a record's data begins, which its header has to confirm before it is read.

        Raises:
            UnsupportedError: something lies between the records, so that this cannot be known; or
                it is encrypted.
        """
        if record.flags & UNREADABLE:
            raise UnsupportedError(f"the record {record.name!r} is encrypted, or a patch")
        if record.method == STORED and record.compressed_size != record.size:
            raise DamagedError(f"the record {record.name!r} is stored in another size than its own")
        start = self._starts[record.header_offset]
        if not 0 <= start - record.header_offset - LOCAL.size <= 2 * UINT16_MAX:
            raise UnsupportedError(f"the place of the record {record.name!r:.80}", hint=FETCH_IT)
        return start

    def _check_header(self, record: ZipRecord, header: bytes) -> None:
        """Compare a local header, with name and extra field, with what the directory says."""
        found = LOCAL.unpack_from(header) if len(header) >= LOCAL.size else None
        listed = record.entry_offset - self._listed_at + CENTRAL.size
        width = len(header) if found is None else found[-2]
        name = header[LOCAL.size : LOCAL.size + width]
        if (
            found is None
            or found[0] != b"PK\x03\x04"
            or LOCAL.size + found[-2] + found[-1] != len(header)
            or name != self._listed[listed : listed + width]
            or (found[2], found[3]) != (record.flags, record.method)
            or not (record.flags & HAS_DESCRIPTOR or found[6] == record.crc)
        ):
            raise DamagedError(
                f"the local header of the record {record.name!r:.80} is not as the directory says",
                hint=FETCH_IT,
            )

    def span(self, record: ZipRecord, nbytes: int) -> ByteSpan:
        """Return the place of the first ``nbytes`` bytes of a stored record."""
        return self.source.span(self.data_offset(record), nbytes)

    def span_of_next(self, name: str, nbytes: int) -> ByteSpan | None:
        """Return the place of a whole stored record that is listed behind the one asked for last.

        None: it has another name or size, or its header has not been looked at.
        """
        at = self._at + 1
        start = self._begins[at] if at < len(self._begins) else 0
        if not start or self.records[at][0] != name or self.records[at][5] != nbytes:
            return None
        self._at = at
        return _new_tuple(ByteSpan, (self._outermost, self._shift + start, nbytes))

    @property
    def not_looked_at(self) -> list[ZipRecord]:
        """The records whose local headers nobody has looked at."""
        seen = self._looked_at
        places = enumerate(self._begins)
        return [self.records[at] for at, start in places if not start and at not in seen]

    def head(self, record: ZipRecord, nbytes: int) -> bytes:
        """Return the first bytes of a record's content; none if they cannot be unpacked.

        Raises:
            UnsupportedError: the record is compressed with another method, or encrypted.
        """
        if record.method == STORED:
            return self.source.read(self.data_offset(record), min(nbytes, record.size))
        start, read = self.data_offset(record), self.source.read
        if record.method != DEFLATED:
            raise _other_method(record)
        from ckptool.formats.zips.inflating import beginning  # noqa: PLC0415 - torch stores

        return beginning(record, lambda at, size: read(start + at, size), nbytes)

    def read(self, record: ZipRecord) -> bytes:
        """Return the record's content, unpacked if it is deflated.

        Raises:
            UnsupportedError: the record is compressed with another method, or encrypted.
            DamagedError: the content does not match the directory.
        """
        data = self.source.read(self.data_offset(record), record.compressed_size)
        if record.method == STORED:
            return data
        if record.method != DEFLATED:
            raise _other_method(record)
        from ckptool.formats.zips.inflating import inflated  # noqa: PLC0415 - torch stores

        return inflated(record, data)


def _other_method(record: ZipRecord) -> UnsupportedError:
    return UnsupportedError(f"{record.name!r} is compressed with method {record.method}")
