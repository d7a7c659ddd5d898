"""``torch.save`` since 1.6: a zip archive of stored records.

Layout: every name begins with one folder, the archive's name (by default the file's stem)::

    <name>/data.pkl            the object, storages as persistent ids:
                               ('storage', class, key, location, numel)
    <name>/byteorder           "little" or "big"; absent in old files: little
    <name>/data/<key>          the bytes of one storage, stored, aligned to 64
    <name>/version, <name>/.format_version, <name>/.storage_alignment, <name>/.data/serialization_id

Rules: the folder's name is that of the archive's first record, as in torch's own reader
(``caffe2/serialize/inline_container.cc``). A storage record may be longer than the pickle asks
for, never shorter, and must be stored: a compressed one cannot be a slice of the file.
TorchScript archives (``torch.jit.save``) have the same records and a ``constants.pkl``; their
objects read as inert data.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from ckptool.errors import CkptError, DamagedError, UnknownFormatError, UnsupportedError
from ckptool.formats.base import Checkpoint, Note, SourceFile, TensorReader
from ckptool.formats.byte_sources import ByteSource, FileWindow, MemoryBytes, SourceWindow
from ckptool.formats.pickled import Pickles
from ckptool.formats.torch_objects import TorchBuilder
from ckptool.formats.zip_records import (
    MAX_INFLATED,
    NO_CRC,
    STORED,
    ZipArchive,
    ZipRecord,
    is_zip,
)
from ckptool.tree import ByteSpan

PROVENANCE = "ckptool.json"  # the record that ckptool adds to what it writes; torch ignores it
MAX_PROVENANCE = 1 << 16  # bytes of it that are read
MAX_BYTEORDER = 16  # bytes of that record; it holds one word
MAX_OTHERS = 64 << 20  # bytes of all other pickles together
PICKLE_SUFFIXES = (".pkl", ".pickle")
PICKLE_ENDS = frozenset("lLeE")  # a quick no for 100,000 storages


class TorchZip:
    """See the module's docstring."""

    name = "torch-zip"

    def matches(self, head: bytes) -> bool:
        """A zip, by its first four bytes, as torch decides."""
        return is_zip(head)

    def open(self, file: SourceFile) -> Checkpoint:
        """The checkpoint in a zip; reads the directory, the pickle and the headers of storages."""
        archive = ZipArchive(FileWindow(file))
        pickles = Pickles(file, "data.pkl")
        with pickles.telling():
            records = TorchRecords(archive)
            tree = records.read_tree(pickles)
            others = records.listen_to_others(pickles)
        return Checkpoint(
            path=file.path,
            format_name=self.name,
            size_bytes=file.size,
            tree=tree,
            reader=TensorReader(file),
            globals_named=pickles.globals_named,
            metadata=records.metadata,
            notes=(*records.notes(), *others),
        )


class TorchRecords:
    """The records of a torch archive by their names inside it.

    Raises:
        UnknownFormatError: a zip, but not one of torch's.
    """

    def __init__(self, archive: ZipArchive) -> None:
        self.archive = archive
        first = archive.records[0].name if archive.records else ""
        self.folder = first.partition("/")[0] + "/" if "/" in first else ""
        found = self.get("data.pkl")
        if found is None:
            raise _not_from_torch(archive)
        self.pickle = found

    def get(self, name: str) -> ZipRecord | None:
        """The record called ``name`` in the archive's folder."""
        return self.archive.get(self.folder + name)

    @property
    def byteorder(self) -> str:
        """Of the stored values."""
        record = self.get("byteorder")
        if record and max(record.size, record.compressed_size) > MAX_BYTEORDER:
            raise DamagedError(f"the byte order is a record of {record.size} bytes")
        order = self.archive.read(record).decode("latin-1") if record else "little"
        if order not in {"little", "big"}:
            raise DamagedError(f"the byte order is {order!r:.20}, neither little nor big")
        return order

    @property
    def metadata(self) -> dict[str, Any]:
        """What ckptool left in a file that it wrote, as text."""
        record = self.get(PROVENANCE)
        if record is None or max(record.size, record.compressed_size) > MAX_PROVENANCE:
            return {}
        return {"ckptool": self.archive.read(record).decode("utf-8", "replace")}

    def read_tree(self, pickles: Pickles) -> Any:
        """The object in ``data.pkl``."""
        builder = TorchBuilder(self.locate, pickles.open_nested, self.byteorder)
        tree, _ = pickles.read(self._source(self.pickle), builder)
        return tree

    def listen_to_others(self, pickles: Pickles) -> tuple[Note, ...]:
        """Note what other pickles name: torch does not run them, what unpacks the archive may.

        Returns:
            A note for each that cannot be read.
        """
        unread = [r.name for r in self._other_pickles() if not self._listen(pickles, r)]
        message = "another pickle in the archive, which cannot be read to its end"
        return tuple(Note("CK113", "warning", name, message) for name in unread)

    def _other_pickles(self) -> Iterator[ZipRecord]:
        room = MAX_OTHERS
        for record in self.archive.records:
            if record.name[-1:] in PICKLE_ENDS and self._is_other_pickle(record):
                room -= record.size
                if room < 0:
                    raise UnsupportedError(f"its other pickles take more than {MAX_OTHERS} bytes")
                yield record

    def _is_other_pickle(self, record: ZipRecord) -> bool:
        return record is not self.pickle and record.name.lower().endswith(PICKLE_SUFFIXES)

    def _listen(self, pickles: Pickles, record: ZipRecord) -> bool:
        try:
            return pickles.listen(self._source(record), 0, record.name) is not None
        except CkptError:
            return False

    def notes(self) -> Iterator[Note]:
        """Where other readers could see another file, and whether the pickle is as written."""
        for name, doubt in self.archive.doubts:
            yield Note("CK111", "warning", name, f"{doubt}; torch and ckptool go by the directory")
        record = self.pickle
        if record.crc != NO_CRC and record.size <= MAX_INFLATED:
            content = self.archive.read(record)
            if zlib.crc32(content) != record.crc:
                message = "its checksum is wrong: bits have changed since it was written"
                yield Note("CK112", "error", record.name, message)

    def _source(self, record: ZipRecord) -> ByteSource:
        if record.method == STORED:
            offset = self.archive.data_offset(record)
            return SourceWindow(self.archive.source, offset, record.size)
        return MemoryBytes(self.archive.read(record))

    def locate(self, key: str, nbytes: int) -> ByteSpan | None:
        """Where the storage ``key`` lies.

        Raises:
            DamagedError: no such record, or too short.
        """
        record = self.archive.get(f"{self.folder}data/{key}")
        if record is None:
            raise DamagedError(
                f"the record data/{key} is missing, {nbytes} bytes of values with it"
            )
        if record.method != STORED:
            raise UnsupportedError(
                f"the record data/{key} is compressed, which torch never does",
                hint="load and save it again with torch",
            )
        if record.size < nbytes:
            raise DamagedError(f"the record data/{key} has {record.size} of {nbytes} bytes")
        return self.archive.span(record, nbytes)


_UNPACK = "unpack it and point ckptool at the checkpoint inside"

# How the records of other zips are called, what those are, and what to do.
_OTHER_ZIPS = (
    (
        ".npy",
        "a numpy .npz archive",
        "numpy.load reads it",
    ),
    (".weights.h5", "a Keras archive", "load it with Keras and save the weights as safetensors"),
    (".pt", "a zip archive of checkpoints", _UNPACK),
    (
        ".safetensors",
        "a zip archive of checkpoints",
        "unpack it and point ckptool at the one inside",
    ),
)


def _not_from_torch(archive: ZipArchive) -> UnknownFormatError:
    names = [record.name for record in archive.records]
    for suffix, what, hint in _OTHER_ZIPS:
        if any(name.endswith(suffix) for name in names):
            return UnknownFormatError(f"{what}, not written by torch.save", hint=hint)
    shown = ", ".join(repr(name)[:40] for name in names[:4]) or "nothing"
    return UnknownFormatError(
        f"a zip archive without data.pkl, so not written by torch.save; it holds {shown}",
        hint=_UNPACK,
    )
