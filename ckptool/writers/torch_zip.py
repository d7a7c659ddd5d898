"""Writes a state dict as ``torch.save`` would, without torch.

The archive has the records that torch's has (see ``formats/torch_zip.py``): the pickle, the byte
order, one record a storage, aligned to 64 bytes by padding in the local header, each with its
checksum. The pickle names only what ``torch.load(weights_only=True)`` allows. Tensors that view
the same bytes of the source share one storage, so ties survive.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from struct import Struct

from ckptool.dtypes import DType
from ckptool.errors import UnsupportedError
from ckptool.formats.base import TensorReader
from ckptool.formats.torch_zip import PROVENANCE
from ckptool.formats.zip_records import END, ZIP64_END, ZIP64_LOCATOR
from ckptool.numerics import BLOCK, Progress, no_progress, value_bytes
from ckptool.tree import ByteSpan, TensorRef, contiguous_strides
from ckptool.writers.base import PartialFile

ALIGNMENT = 64
ARCHIVE = "archive"
UTF8_NAME = 0x800
ZIP64_FROM = 0xFFFFFFFF  # sizes and offsets from here on need 64 bits
IN_EXTRA = 0xFFFFFFFF  # stands for a number that is in the 64-bit field
DOS_DATE = 0x21  # 1980-01-01: the same input gives the same bytes


def write(
    output: PartialFile,
    tensors: Mapping[str, TensorRef],
    reader: TensorReader,
    wrap: str | None = None,
    progress: Progress = no_progress,
    note: str | None = None,
) -> None:
    """Write ``{name: tensor}``, or ``{wrap: {name: tensor}}``; ``note`` is the provenance.

    Raises:
        UnsupportedError: a tensor that has no values or no plain form.
    """
    storages = _plan_storages(tensors)
    archive = _ArchiveWriter(output)
    archive.add(f"{ARCHIVE}/data.pkl", iter((_pickle(tensors, storages, wrap),)))
    archive.add(f"{ARCHIVE}/byteorder", iter((b"little",)))
    for storage in storages:
        archive.add(f"{ARCHIVE}/data/{storage.key}", storage.blocks(reader), progress)
    archive.add(f"{ARCHIVE}/version", iter((b"3\n",)))
    if note is not None:
        archive.add(f"{ARCHIVE}/{PROVENANCE}", iter((note.encode(),)))
    archive.finish()


# ---------------------------------------------------------------------------------------- storages


@dataclass(slots=True)
class _Storage:
    """A storage to write: a run of the source's bytes, or one tensor's values put in order."""

    key: int
    dtype: DType
    span: ByteSpan | None
    values: TensorRef | None = None
    views: dict[str, int] = field(default_factory=dict)  # tensor's name -> offset in elements

    @property
    def nbytes(self) -> int:
        return self.span.nbytes if self.span else self.values.nbytes if self.values else 0

    def blocks(self, reader: TensorReader) -> Iterator[bytes]:
        if self.span is not None:
            for start in range(0, self.span.nbytes, BLOCK):
                yield reader.read(self.span, start, min(BLOCK, self.span.nbytes - start))
        elif self.values is not None:
            yield from value_bytes(reader, self.values)


def _plan_storages(tensors: Mapping[str, TensorRef]) -> list[_Storage]:
    """One storage for each run of overlapping bytes; rearranged tensors get their own."""
    in_place = {name: ref for name, ref in tensors.items() if _keeps_bytes(name, ref)}
    storages = _overlapping(in_place)
    for name, ref in tensors.items():
        if name not in in_place:
            storages.append(_Storage(0, ref.dtype, None, ref, {name: 0}))
    for key, storage in enumerate(storages):
        storage.key = key
    return storages


def _keeps_bytes(name: str, ref: TensorRef) -> bool:
    if not ref.chunks or ref.quantizer is not None:
        raise UnsupportedError("only tensors with plain stored values can be written", address=name)
    swapped = ref.byteorder == "big" and ref.dtype.itemsize > 1
    return len(ref.chunks) == 1 and not ref.lazy and not swapped


def _overlapping(tensors: Mapping[str, TensorRef]) -> list[_Storage]:
    spans = {name: ref.chunks[0].span for name, ref in tensors.items()}
    ordered = sorted(spans, key=lambda n: (id(spans[n].source), spans[n].offset, -spans[n].nbytes))
    storages: list[_Storage] = []
    for name in ordered:
        span, dtype = spans[name], tensors[name].dtype
        last = storages[-1] if storages else None
        if last and last.span and _joins(last.span, span, last.dtype, dtype):
            end = max(last.span.offset + last.span.nbytes, span.offset + span.nbytes)
            last.span = ByteSpan(span.source, last.span.offset, end - last.span.offset)
            last.views[name] = (span.offset - last.span.offset) // dtype.itemsize
        else:
            storages.append(_Storage(0, dtype, span, None, {name: 0}))
    position = {name: at for at, name in enumerate(tensors)}
    return sorted(storages, key=lambda storage: min(position[name] for name in storage.views))


def _joins(last: ByteSpan, span: ByteSpan, one: DType, other: DType) -> bool:
    same_kind = last.source == span.source and one is other
    overlaps = span.nbytes > 0 and span.offset < last.offset + last.nbytes
    return same_kind and overlaps and (span.offset - last.offset) % one.itemsize == 0


# ------------------------------------------------------------------------------------------- pickle


def _pickle(tensors: Mapping[str, TensorRef], storages: list[_Storage], wrap: str | None) -> bytes:
    home = {
        name: (storage, offset) for storage in storages for name, offset in storage.views.items()
    }
    out = _PickleWriter()
    if wrap is not None:
        out.raw(b"}").text(wrap)
    out.named("collections", "OrderedDict").raw(b")R(")
    for name, ref in tensors.items():
        out.text(name)
        _pickle_tensor(out, ref, *home[name])
    out.raw(b"u")
    if wrap is not None:
        out.raw(b"s")
    return out.finish()


def _pickle_tensor(out: _PickleWriter, ref: TensorRef, storage: _Storage, offset: int) -> None:
    dtype = ref.dtype
    strides = contiguous_strides(ref.shape) if storage.values else ref.chunks[0].strides
    out.named("torch._utils", "_rebuild_tensor_v2" if dtype.storage_class else "_rebuild_tensor_v3")
    out.raw(b"((").text("storage")
    if dtype.storage_class:
        out.named("torch", dtype.storage_class)
    else:
        out.named("torch.storage", "UntypedStorage")
    numel = storage.nbytes // (dtype.itemsize if dtype.storage_class else 1)
    out.text(str(storage.key)).text("cpu").integer(numel).raw(b"tQ")
    out.integer(offset).integers(ref.shape).integers(strides).raw(b"\x89")
    out.named("collections", "OrderedDict").raw(b")R")
    if not dtype.storage_class:
        out.named("torch", dtype.name)
    out.raw(b"tR")


class _PickleWriter:
    """The few instructions of protocol 2 that a state dict needs."""

    def __init__(self) -> None:
        self._parts = [b"\x80\x02"]
        self._memo: dict[tuple[str, str], bytes] = {}

    def raw(self, code: bytes) -> _PickleWriter:
        self._parts.append(code)
        return self

    def text(self, text: str) -> _PickleWriter:
        data = text.encode("utf-8", "surrogatepass")
        return self.raw(b"X" + len(data).to_bytes(4, "little") + data)

    def named(self, module: str, name: str) -> _PickleWriter:
        """A class or function: spelled out once, fetched from the memo afterwards."""
        if (module, name) in self._memo:
            return self.raw(b"h" + self._memo[module, name])
        index = bytes([len(self._memo)])
        self._memo[module, name] = index
        return self.raw(f"c{module}\n{name}\n".encode() + b"q" + index)

    def integer(self, number: int) -> _PickleWriter:
        if 0 <= number < 1 << 8:
            return self.raw(b"K" + bytes([number]))
        if number < 1 << 31:
            return self.raw(b"J" + number.to_bytes(4, "little"))
        return self.raw(b"\x8a\x09" + number.to_bytes(9, "little"))

    def integers(self, numbers: tuple[int, ...]) -> _PickleWriter:
        self.raw(b"(")
        for number in numbers:
            self.integer(number)
        return self.raw(b"t")

    def finish(self) -> bytes:
        return b"".join([*self._parts, b"."])


# ---------------------------------------------------------------------------------------------- zip


@dataclass(frozen=True, slots=True)
class _Written:
    name: bytes
    crc: int
    size: int
    offset: int  # of the local header


LOCAL_HEAD = Struct("<4s5H3I2H")
CENTRAL_HEAD = Struct("<4s6H3I5H2I")
_SIZES64 = Struct("<2H2Q")
_CENTRAL64 = Struct("<2H3Q")


class _ArchiveWriter:
    """Stored records one after the other, then the directory."""

    def __init__(self, output: PartialFile) -> None:
        self._output = output
        self._written: list[_Written] = []

    def add(self, name: str, blocks: Iterator[bytes], progress: Progress = no_progress) -> None:
        """Append a record; its header is completed when its checksum is known."""
        output, encoded = self._output, name.encode()
        offset = output.position
        output.write(self._local(encoded, 0, 0, offset))
        start, crc = output.position, 0
        for block in blocks:
            crc = zlib.crc32(block, crc)
            output.write(block)
            progress(len(block))
        record = _Written(encoded, crc, output.position - start, offset)
        output.patch(self._local(encoded, crc, record.size, offset), offset)
        self._written.append(record)

    def _local(self, name: bytes, crc: int, size: int, offset: int) -> bytes:
        """The local header, padded so that the data begins at a multiple of ``ALIGNMENT``.

        The 64-bit sizes are always there: the size is not known when the header is written.
        """
        head = LOCAL_HEAD.size + len(name) + _SIZES64.size + 4
        padding = -(offset + head) % ALIGNMENT
        extra = _SIZES64.pack(1, 16, size, size) + b"FB" + padding.to_bytes(2, "little")
        extra += b"Z" * padding
        fixed = LOCAL_HEAD.pack(
            b"PK\x03\x04",
            45,
            UTF8_NAME,
            0,
            0,
            DOS_DATE,
            crc,
            IN_EXTRA,
            IN_EXTRA,
            len(name),
            len(extra),
        )
        return fixed + name + extra

    def finish(self) -> None:
        """The central directory and the end records."""
        start = self._output.position
        for record in self._written:
            self._output.write(_central(record))
        write_end(self._output, start, len(self._written))


def add_record(output: PartialFile, name: str, content: bytes) -> bytes:
    """Append one small record to an archive, and return its entry for the directory."""
    archive = _ArchiveWriter(output)
    archive.add(name, iter((content,)))
    return _central(archive._written[0])


def write_end(output: PartialFile, start: int, count: int) -> None:
    """The end records, behind a directory of ``count`` entries that began at ``start``."""
    size = output.position - start
    if count >= 0xFFFF or start >= ZIP64_FROM or size >= ZIP64_FROM:
        at = output.position
        output.write(ZIP64_END.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start))
        output.write(ZIP64_LOCATOR.pack(b"PK\x06\x07", 0, at, 1))
    ends = (
        min(count, 0xFFFF),
        min(count, 0xFFFF),
        size if size < ZIP64_FROM else IN_EXTRA,
        start if start < ZIP64_FROM else IN_EXTRA,
    )
    output.write(END.pack(b"PK\x05\x06", 0, 0, *ends, 0))


def _central(record: _Written) -> bytes:
    is_large = record.size >= ZIP64_FROM or record.offset >= ZIP64_FROM
    extra = _CENTRAL64.pack(1, 24, record.size, record.size, record.offset) if is_large else b""
    size = IN_EXTRA if is_large else record.size
    offset = IN_EXTRA if is_large else record.offset
    fixed = CENTRAL_HEAD.pack(
        b"PK\x01\x02", 45, 45, UTF8_NAME, 0, 0, DOS_DATE, record.crc, size, size,
        len(record.name), len(extra), 0, 0, 0, 0, offset,
    )  # fmt: skip
    return fixed + record.name + extra
