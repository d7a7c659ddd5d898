"""The records that ``torch.save`` writes into a zip archive, since torch 1.6.

Layout: every name begins with one directory, the archive's name (by default the file's stem)::

    <name>/data.pkl            the object, storages as persistent ids:
                               ('storage', class, key, location, numel)
    <name>/byteorder           "little" or "big"; absent in old files: little
    <name>/data/<key>          the bytes of one storage, stored, aligned to 64
    <name>/version, <name>/.format_version, <name>/.storage_alignment, <name>/.data/serialization_id

Rules: that directory's name is taken from the archive's first record, as in torch's own reader
(``caffe2/serialize/inline_container.cc``). A storage record is never shorter than the pickle asks
for. Other archives that torch refuses (a longer record, another version, records outside the
directory) are read, with a note.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ckptool.errors import CkptError, DamagedError, UnsupportedError
from ckptool.formats.base import Note
from ckptool.formats.other_records import OtherRecords, content_of
from ckptool.formats.other_zips import not_from_torch, refuse_checkpoints, refuse_programs
from ckptool.formats.pickles.reader import Pickles
from ckptool.formats.pickles.storages import StorageKey
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.formats.rows import listen_to_row
from ckptool.formats.script_code import NO_CODE, is_torchscript, read_code
from ckptool.formats.zips.checksums import known_crc
from ckptool.formats.zips.directory import AROUND, ZipRecord
from ckptool.formats.zips.records import DEFLATED, NO_CRC, STORED, ZipArchive, folded
from ckptool.regex import regex
from ckptool.sources.base import ByteSpan, Source
from ckptool.sources.memory import Memory

if TYPE_CHECKING:
    from ckptool.formats.pickles.literal import Literal
    from ckptool.formats.zips.deflated import DeflatedRecord

PROVENANCE = "ckptool.json"  # the record that ckptool adds to what it writes; torch ignores it
MAX_PROVENANCE = 1 << 16  # bytes of it that are read
STORAGE, CONSTANTS = "data/", "constants/"  # how the names of storages begin
OF_TORCH = frozenset({  # records that torch makes anew with each archive
    "data.pkl", "byteorder", "version", ".format_version", ".storage_alignment",
    ".data/serialization_id",
})  # fmt: skip
OPENED_BY_TORCH = (".format_version", ".data/serialization_id", "byteorder")
MAX_ID = 1 << 16  # bytes of the serialization id
MAX_WORD = 64  # bytes of records that hold a number
VERSION = regex(rb"\s*\+?(\d+)")  # a number as C reads it
NUMBER = regex(rb"\s*[+-]?\d+(_\d+)*\s*")  # as Python reads it
MIN_VERSION, MAX_VERSION = 1, 10  # of archives that torch 2.13 reads
MAX_TOO_LONG = 100
MAX_BYTEORDER = 16  # bytes of that record, which holds one word
BLOCK = 1 << 20  # bytes of the pickle that its checksum reads at a time


class TorchRecords:
    """The records of a torch archive by their names inside it.

    Raises:
        UnknownFormatError: the zip is not one of torch's.
    """

    def __init__(self, archive: ZipArchive) -> None:
        self.archive = archive
        first = archive.records[0].name if archive.records else ""
        self.folder = first.partition("/")[0] + "/" if "/" in first else ""
        found = self.get("data.pkl")
        if found is None:
            raise not_from_torch(archive)
        self.pickle = found
        self.too_long: list[tuple[str, int, int]] = []  # (key, bytes of record, of storage)
        self.code = NO_CODE
        self._end = 0  # offset behind the pickle in its record
        self.storage_bytes = 0  # of all storages in the pickle, once it is read

    def get(self, name: str) -> ZipRecord | None:
        """Return the record called ``name`` in the archive's own directory."""
        return self.archive.get(self.folder + name)

    @property
    def byteorder(self) -> str:
        """The byte order of the stored values."""
        record = self.get("byteorder")
        if record and max(record.size, record.compressed_size) > MAX_BYTEORDER:
            raise DamagedError(f"the byte order is a record of {record.size} bytes")
        order = self.archive.read(record).decode("latin-1") if record else "little"
        if order not in {"little", "big"}:
            raise DamagedError(f"the byte order is {order!r:.20}, neither little nor big")
        return order

    @property
    def metadata(self) -> dict[str, Any]:
        """The note that ckptool left in a file that it wrote, as text."""
        record = self.get(PROVENANCE)
        if record is None or max(record.size, record.compressed_size) > MAX_PROVENANCE:
            return {}
        return {"ckptool": self.archive.read(record).decode("utf-8", "replace")}

    def read_tree(self, pickles: Pickles) -> Any:
        """Return the object in ``data.pkl``; record the names in it and in code that loading runs.

        Raises:
            UnsupportedError: the compressed records unpack to too much.
        """
        packed = [record for record in self.archive.records if record.method != STORED]
        if packed:
            pickles.count_unpacked(
                max(packed, key=lambda r: r.size).name, sum(r.size for r in packed)
            )
        self.code = read_code(self.archive, self.folder)
        pickles.add(self.code.all_run)
        begin = self.archive.data_offset(self.pickle)
        self.archive.source.bring(begin, self.pickle.compressed_size + AROUND)
        builder = TorchBuilder(self.locate, pickles.open_nested, self.byteorder)
        try:
            tree, self._end = pickles.read(self._source(self.pickle), builder)
        except DamagedError as error:
            self._date(error)
            raise
        self.storage_bytes = builder.storages.nbytes
        return tree

    def literal(self) -> Literal:
        """Return the object in ``data.pkl`` so that it can be written again, and the records.

        Raises:
            DamagedError: the pickle does not fit its checksum.
        """
        if self._pickle_is_as_written is False:
            raise DamagedError(
                f"the bytes of the record {self.pickle.name} do not fit its checksum",
                hint="get the file again or take an earlier one",
            )
        from ckptool.formats.pickles.literal import Literal, read_literal  # noqa: PLC0415

        tree, _ = read_literal(self._source(self.pickle))
        spans: dict[str, ByteSpan] = {}
        checksums: dict[ByteSpan, int] = {}
        for record in self.archive.records:
            span = self._unpacked_span(record)
            spans[record.name.removeprefix(self.folder)] = span
            if (crc := known_crc(record)) is not None:
                checksums[span] = crc
        storages = {n.removeprefix(STORAGE): s for n, s in spans.items() if n.startswith(STORAGE)}
        others = {n: s for n, s in spans.items() if not n.startswith(STORAGE) and n not in OF_TORCH}
        return Literal(tree, storages, self.byteorder, others, checksums)

    def _unpacked_span(self, record: ZipRecord) -> ByteSpan:
        if record.method == STORED:
            return self.archive.span(record, record.size)
        return ByteSpan(self._unpacked(record) if record.size else Memory(b""), 0, record.size)

    def _date(self, error: DamagedError) -> None:
        """Add to the error whether the pickle was damaged after it was written, by its checksum."""
        if self._pickle_is_as_written is None:
            error.add("; whether it was written so is not known: it has no checksum")
        elif self._pickle_is_as_written:
            error.add("; it was written so: the checksum of data.pkl holds")
        else:
            error.add("; it was damaged after it was written: the checksum of data.pkl differs")
            error.hint = "get the file again from where it was written"
            error.rule = "CK112"

    @cached_property
    def _pickle_is_as_written(self) -> bool | None:
        """True if the checksum of the pickle holds; None: it has no checksum."""
        record = self.pickle
        if record.crc == NO_CRC:
            return None
        source, crc = self._source(record), 0
        for at in range(0, source.size, BLOCK):
            crc = zlib.crc32(source.read(at, min(BLOCK, source.size - at)), crc)
        return crc == record.crc

    def listen_to_others(self, pickles: Pickles) -> tuple[Note, ...]:
        """Note the names in other pickles; torch does not run them, but other readers may.

        Returns:
            A note for each pickle that cannot be read.

        Raises:
            CkptError: the archive holds other checkpoints too, or a program; or a record that
                readers may take for a pickle cannot be read.
        """
        beside = OtherRecords(self.archive, pickles, (f"{self.folder}{STORAGE}", *self._constants))
        refuse_checkpoints(record.name for record in beside.records)
        refuse_programs(self.archive, self.folder)
        listen_to_row(self._source(self.pickle), self._end, pickles, self.pickle.name, first=2)
        return beside.listen(self.pickle)

    @property
    def _constants(self) -> tuple[str, ...]:
        """The beginning of the names of TorchScript's constants, which are values too."""
        return (f"{self.folder}{CONSTANTS}",) if is_torchscript(self.archive, self.folder) else ()

    def notes(self) -> Iterator[Note]:
        """Yield notes on refusals of torch, on ambiguous records and on a changed pickle."""
        yield from self._refusals()
        yield from self.code.notes
        for name, doubt in self.archive.doubts:
            yield Note("CK111", name, f"{doubt}; torch and ckptool go by the directory")
        if self._pickle_is_as_written is False:
            message = "its checksum is wrong: bits have changed since it was written"
            yield Note("CK112", self.pickle.name, message)

    def _refusals(self) -> Iterator[Note]:
        """Yield notes on readable records that torch's reader of archives refuses."""
        own = (self._outside(), self._version(), self._alignment(), *self._small_records())
        for what in filter(None, (*self.archive.refusals, *own)):
            yield Note("CK122", "", what)
        for key, size, wanted in self.too_long:
            what = f"the record has {size} bytes, and its storage {wanted}: torch wants them equal"
            yield Note("CK122", f"{self.folder}data/{key}", what)

    def _outside(self) -> str | None:
        if not _is_utf8(self.archive.text_of_names):
            return "the name of a record is no UTF-8"
        outside = [r.name for r in self.archive.records if not r.name.startswith(self.folder)]
        if not outside:
            return None
        return f"{len(outside)} records lie outside the folder {self.folder}: {outside[0]!r:.80}"

    def _small_records(self) -> Iterator[str]:
        """Yield the faults of records that torch reads when it opens an archive, unlike ckptool."""
        for name in OPENED_BY_TORCH:
            record = self.get(name)
            if record is None:
                continue
            try:
                self._source(record)
            except CkptError as error:
                yield error.message
            if name.endswith("_id") and not _can_be_text(self._short(record, MAX_ID)):
                yield f"the record {name} is no UTF-8"
            if record.method not in {STORED, DEFLATED}:
                yield f"the record {name} is compressed with method {record.method}"

    def _version(self) -> str | None:
        record = self.get("version")
        if record is None:
            return "the record version is missing"
        said = self._short(record, MAX_WORD).strip()
        digits = said if said.isdigit() else _digits(said)  # digits alone, as torch writes it
        if not digits or not MIN_VERSION <= int(digits) <= MAX_VERSION:
            shown = digits.decode() or "no number"
            return (
                f"the record version says {shown:.20}; torch reads {MIN_VERSION} to {MAX_VERSION}"
            )
        return None

    def _alignment(self) -> str | None:
        record = self.get(".storage_alignment")
        said = b"0" if record is None else self._short(record, MAX_WORD)
        if said.isdigit() or NUMBER.fullmatch(said):  # digits alone, as torch writes it
            return None
        return "the record .storage_alignment holds no number"

    def _short(self, record: ZipRecord, limit: int) -> bytes:
        """Return the content of a record of one word; nothing if it is longer than ``limit``."""
        if max(record.size, record.compressed_size) > limit:
            return b""
        return self.archive.read(record)

    def _source(self, record: ZipRecord) -> Source:
        return content_of(self.archive, record)

    def _unpacked(self, record: ZipRecord) -> DeflatedRecord:
        if record.method != DEFLATED:
            method = f"{record.name!r:.80} is compressed with method {record.method}"
            raise UnsupportedError(method, hint="load and save it again with torch")
        from ckptool.formats.zips.deflated import DeflatedRecord  # noqa: PLC0415 - torch stores

        return DeflatedRecord(self.archive, record)

    @cached_property
    def _storages(self) -> str:
        return folded(f"{self.folder}{STORAGE}")

    def locate(self, key: StorageKey, nbytes: int) -> ByteSpan | None:
        """Return the place of the storage ``key``; torch names its record ``f"data/{key}"``.

        Raises:
            DamagedError: there is no such record, or it is too short.
        """
        name = key if isinstance(key, str) else repr(key)
        usual = self.archive.span_of_next(f"{self.folder}{STORAGE}{name}", nbytes)
        if usual is not None:
            return usual
        name_in_archive = name.lower() if name.isascii() else folded(name)
        record = self.archive.by_folded_name.get(self._storages + name_in_archive)
        if record is None:
            raise DamagedError(
                f"the record data/{name} is missing, {nbytes} bytes of values with it"
            )
        if self.archive.unread and nbytes and record.entry_offset in self.archive.unread:
            raise DamagedError(
                f"the record data/{name:.80} is marked as a folder, of which torch reads no values"
            )
        if record.size < nbytes:
            raise DamagedError(f"the record data/{name} has {record.size} of {nbytes} bytes")
        if record.size > nbytes and len(self.too_long) < MAX_TOO_LONG:
            self.too_long.append((name, record.size, nbytes))
        if record.method != STORED:
            blob = self._unpacked(record)
            return ByteSpan(blob if nbytes else Memory(b""), 0, nbytes)
        return self.archive.span(record, nbytes)


def _digits(said: bytes) -> bytes:
    """Return the digits that a text begins with, as C reads a number; empty if it has none."""
    found = VERSION.match(said)
    return found[1] if found else b""


def _can_be_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_utf8(name: str) -> bool:
    """Return whether the name was UTF-8; other bytes are lone surrogates in it."""
    return name.isascii() or not any("\udc80" <= char <= "\udcff" for char in name)
