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

from typing import Any

from ckptool.errors import DamagedError, UnknownFormatError, UnsupportedError
from ckptool.formats.base import Checkpoint, SourceFile, TensorReader
from ckptool.formats.byte_sources import ByteSource, FileWindow, MemoryBytes, SourceWindow
from ckptool.formats.pickled import Pickles
from ckptool.formats.torch_objects import TorchBuilder
from ckptool.formats.zip_records import STORED, ZipArchive, ZipRecord, is_zip
from ckptool.tree import ByteSpan

PROVENANCE = "ckptool.json"  # the record that ckptool adds to what it writes; torch ignores it
MAX_PROVENANCE = 1 << 16  # bytes of it that are read
MAX_BYTEORDER = 16  # bytes of that record; it holds one word


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
        records = TorchRecords(archive)
        tree = records.read_tree(pickles)
        return Checkpoint(
            path=file.path,
            format_name=self.name,
            size_bytes=file.size,
            tree=tree,
            reader=TensorReader(file),
            globals_named=pickles.globals_named,
            metadata=records.metadata,
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
        if self.folder + "data.pkl" not in archive.by_name:
            raise _not_from_torch(archive)

    def get(self, name: str) -> ZipRecord | None:
        """The record called ``name`` in the archive's folder."""
        return self.archive.by_name.get(self.folder + name)

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
        record = self.archive.by_name[self.folder + "data.pkl"]
        builder = TorchBuilder(self.locate, pickles.open_nested, self.byteorder)
        tree, _ = pickles.read(self._source(record), builder)
        return tree

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
        record = self.archive.by_name.get(f"{self.folder}data/{key}")
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
