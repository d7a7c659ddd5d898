"""Records of a zip beside those of its own reader, which other readers may take for pickles.

``numpy.load`` takes any zip for an archive of arrays, and a record for one by its first bytes;
those of objects are unpickled. Scripts unpickle records by their names. All of them are followed:

* Records that readers would see differently are refused, whoever needs them: encrypted ones, those
  of contradictory sizes, and those of a method that torch does not know, which ``zipfile`` unpacks.
  A record without a header is passed over, since no reader opens it.
* ``zipfile`` may find another directory (``zips/zipfile_view.py``). Its records are followed too.
* Behind a URL each record takes a request. Those that cannot be looked at are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

from ckptool.errors import CkptError, UnsupportedError
from ckptool.formats.base import Note
from ckptool.formats.npy import HEAD_BYTES, MAX_TEXT, may_hold_objects, values_at
from ckptool.formats.other_zips import refuse_checkpoints
from ckptool.formats.pickles.reader import SHORT, Pickles
from ckptool.formats.rows import listen_to_row
from ckptool.formats.zips.directory import ZipRecord
from ckptool.formats.zips.records import STORED, HeaderError, ZipArchive, folded
from ckptool.formats.zips.zipfile_view import seen_by_zipfile
from ckptool.sources.base import Source
from ckptool.sources.memory import Memory
from ckptool.sources.window import Window

MAX_OTHERS = 64 << 20  # bytes of all other pickles together
MAX_UNNAMED = 1 << 14  # records, neither storages nor called pickles, that are looked into
PICKLE_SUFFIXES = (".pkl", ".pickle")
PICKLE_ENDS = frozenset("lLeE")  # last letters, which rule out 100,000 storages fast
_NAMING = (b"c", b"i", b"\x93", b"\x82", b"\x83", b"\x84")  # GLOBAL, INST, STACK_GLOBAL and EXT
_ORDERS = (b"little", b"big")  # whose first letters need a value on the stack


def content_of(archive: ZipArchive, record: ZipRecord) -> Source:
    """Return the content of a record, in place if it is stored."""
    if record.method == STORED:
        return Window(archive.source, archive.data_offset(record), record.size)
    return Memory(archive.read(record))


class OtherRecords:
    """The records of a zip that are no storages; the names of storages begin with ``storages``."""

    def __init__(
        self, archive: ZipArchive, pickles: Pickles, storages: tuple[str, ...] = ()
    ) -> None:
        self._archive, self._pickles = archive, pickles
        self._storages = tuple(map(folded, storages))

    def listen(self, own: ZipRecord | None = None) -> tuple[Note, ...]:
        """Record the names in all pickles but ``own``, which was read already.

        Returns:
            A note for each pickle that cannot be read.

        Raises:
            UnsupportedError: there are more than can be followed in useful time.
        """
        for record in self._unnamed(own):
            source = self._opened(record)
            if source is not None and not _is_nameless(source):
                listen_to_row(source, 0, self._pickles, record.name)
        for record in self._archive.not_looked_at:
            self._is_readable(record)
        self.listen_to_arrays([*self._archive.maybe_arrays.values()])
        unread = [r.name for r in self._called_pickles(own) if not self._listen(r)]
        if (other := seen_by_zipfile(self._archive)) is not None:
            refuse_checkpoints(record.name for record in other.records)
            OtherRecords(other, self._pickles).listen()
        message = "another pickle in the archive, which cannot be read to its end"
        return tuple(Note("CK113", name, message) for name in unread)

    def listen_to_arrays(self, records: Iterable[ZipRecord]) -> None:
        """Record the names in those of the records that are arrays of objects.

        Raises:
            UnsupportedError: there are more than can be followed in useful time.
        """
        found = 0
        for record in records:
            if not self._is_readable(record):
                continue
            begin = values_at(self._archive.head(record, HEAD_BYTES))
            if begin is not None and begin < record.size and self._is_of_objects(record, begin):
                found += 1
                if (source := self._opened(record)) is not None:
                    self._pickles.listen_aside(source, begin, record.name, SHORT)
            if found > MAX_UNNAMED:
                raise UnsupportedError(f"more than {MAX_UNNAMED:,} arrays of numpy in the archive")

    def _is_of_objects(self, record: ZipRecord, begin: int) -> bool:
        is_long = begin > MAX_TEXT
        return is_long or may_hold_objects(self._archive.head(record, begin)[HEAD_BYTES:])

    @cached_property
    def records(self) -> list[ZipRecord]:
        """The records that are no storages; nearly all are."""
        storages, records = self._storages, self._archive.records
        return [r for r in records if not folded(r.name).startswith(storages)]

    def _unnamed(self, own: ZipRecord | None) -> Iterator[ZipRecord]:
        """Yield the records that are neither storages nor called pickles: they could be some."""
        unnamed = [r for r in self.records if r is not own and not _is_called_pickle(r)]
        if len(unnamed) > MAX_UNNAMED:
            raise UnsupportedError(f"an archive with more than {MAX_UNNAMED:,} other records")
        yield from unnamed

    def _called_pickles(self, own: ZipRecord | None) -> Iterator[ZipRecord]:
        room = MAX_OTHERS
        for record in self._archive.records:
            if record is not own and record.name[-1:] in PICKLE_ENDS and _is_called_pickle(record):
                room -= record.size
                if room < 0:
                    raise UnsupportedError(f"its other pickles take more than {MAX_OTHERS} bytes")
                yield record

    def _listen(self, record: ZipRecord) -> bool:
        """Return whether a record is a pickle that can be read; record its names and those behind.

        Damage is told by the note.
        """
        try:
            source = content_of(self._archive, record)
        except HeaderError:
            return False
        end = self._pickles.listen(source, 0, record.name)
        if end is not None:
            listen_to_row(source, end, self._pickles, record.name, first=2)
        return end is not None

    def _opened(self, record: ZipRecord) -> Source | None:
        return content_of(self._archive, record) if self._is_readable(record) else None

    def _is_readable(self, record: ZipRecord) -> bool:
        """Return whether a record can be looked at.

        Raises:
            CkptError: it cannot, but another reader may read it.
        """
        try:
            self._archive.data_offset(record)
        except HeaderError:
            return False
        except CkptError:
            if self._archive.source.is_near:
                raise
            return False
        return True


def _is_nameless(source: Source) -> bool:
    return source.size <= SHORT and not may_name(source.read(0, source.size))


def may_name(data: bytes) -> bool:
    """Return whether a pickle anywhere in the bytes can name a function or a class.

    The short records that torch writes (a version, an alignment, an order of bytes) cannot.
    """
    return data not in _ORDERS and any(code in data for code in _NAMING)


def _is_called_pickle(record: ZipRecord) -> bool:
    return record.name.lower().endswith(PICKLE_SUFFIXES)
