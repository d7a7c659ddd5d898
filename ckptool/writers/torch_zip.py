"""A writer of state dicts as ``torch.save`` writes them, without torch.

The archive has torch's records (see ``formats/torch_records.py``): the pickle, the byte order, and
one record a storage. Each record has its checksum, and is aligned to 64 bytes by padding in the
local header. The pickle names only classes that ``torch.load(weights_only=True)`` allows. Tensors
that view the same bytes of the source share one storage, so ties survive. They also survive a cast,
since the storage is cast, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from ckptool.dtypes import DType
from ckptool.errors import UnsupportedError
from ckptool.formats.base import TensorReader
from ckptool.formats.provenance import final
from ckptool.formats.torch_records import PROVENANCE
from ckptool.formats.zips.checksums import known_checksums
from ckptool.sources.base import ByteSpan
from ckptool.tensors.casting import Casting
from ckptool.tree.geometry import contiguous_strides, extent
from ckptool.tree.nodes import Chunk, TensorRef, plain_tensor
from ckptool.writers.files.whole_file import PartialFile
from ckptool.writers.pickle_writer import PickleWriter
from ckptool.writers.transfer import Move, Transfer, to_read_back, transfer
from ckptool.writers.values import WrittenRun
from ckptool.writers.zip_archive import ArchiveWriter

ARCHIVE = "archive"


def write(
    output: PartialFile,
    tensors: Mapping[str, TensorRef],
    how: Transfer,
    wrap: str | None = None,
    note: str | None = None,
    *,
    damaged: bool = False,
    storages: Sequence[Storage] | None = None,
) -> tuple[WrittenRun, ...]:
    """Write ``{name: tensor}``, or ``{wrap: {name: tensor}}``; ``note`` is the provenance.

    With ``damaged``, the source may be damaged and is taken all the same. Its whole records then
    keep their stored checksums, so that the copy shows the damage as the source did. ``storages``
    are those that were planned before.

    Returns:
        The runs of bytes that differ from the bytes read, to be read back.

    Raises:
        UnsupportedError: a tensor that has no values or no plain form.
    """
    storages = plan_storages(tensors, how.casting) if storages is None else storages
    archive = ArchiveWriter(output)
    archive.add_bytes(f"{ARCHIVE}/data.pkl", _pickle(tensors, storages, wrap))
    archive.add_bytes(f"{ARCHIVE}/byteorder", b"little")
    known = _stored_checksums(how.reader, storages) if damaged else {}
    checksums: dict[int, int] = {}
    moves = []
    for storage in storages:
        archive.begin(f"{ARCHIVE}/data/{storage.key}")
        moves.append(Move(storage.name, storage.values, output.skip(storage.nbytes)))
        archive.end(partial(checksums.__getitem__, storage.key))
    moved = transfer(moves, how, output)
    for storage, (run, _) in zip(storages, moved, strict=True):
        checksums[storage.key] = known.get(storage.key, run.crc)
    archive.add_bytes(f"{ARCHIVE}/version", b"3\n")
    if note is not None:
        archive.add_bytes(f"{ARCHIVE}/{PROVENANCE}", final(note).encode())
    archive.finish()
    return to_read_back(moved)


# ---------------------------------------------------------------------------------------- storages


@dataclass(slots=True)
class Storage:
    """A storage to write: a run of the source's bytes, or the reordered values of one tensor."""

    key: int
    values: TensorRef  # the run as a flat tensor, or the tensor
    is_run: bool
    dtype: DType  # as it is written
    views: dict[str, int] = field(default_factory=dict)  # tensor's name -> offset in elements

    @property
    def name(self) -> str:
        """The name of its first tensor, for the counts of what a cast loses."""
        return next(iter(self.views))

    @property
    def nbytes(self) -> int:
        """Size as it is written, in bytes."""
        return self.values.numel * self.dtype.itemsize

    @property
    def span(self) -> ByteSpan:
        """The run in the source."""
        return self.values.chunks[0].span

    @property
    def is_copied(self) -> bool:
        """Whether it is a run of the source's bytes that is written unchanged."""
        return self.is_run and self.dtype is self.values.dtype


def plan_storages(tensors: Mapping[str, TensorRef], casting: Casting) -> list[Storage]:
    """Return one storage for each run of overlapping bytes; rearranged tensors get their own.

    Raises:
        UnsupportedError: a tensor without plain stored values.
    """
    in_place = {name: ref for name, ref in tensors.items() if _keeps_bytes(name, ref, casting)}
    storages = _overlapping(in_place, casting)
    rearranged: dict[object, Storage] = {}
    for name, ref in tensors.items():
        if name not in in_place:
            place = (ref.chunks, ref.shape, ref.dtype.name, ref.lazy) if ref.numel else name
            own = Storage(0, ref, False, casting.dtype_of(ref))
            rearranged.setdefault(place, own).views[name] = 0
    storages += rearranged.values()
    for key, storage in enumerate(storages):
        storage.key = key
    return storages


def refuse_unplain(name: str, ref: TensorRef) -> None:
    """Refuse a tensor without plain stored values.

    Raises:
        UnsupportedError: it is one.
    """
    if not ref.chunks or ref.quantizer is not None:
        raise UnsupportedError("only tensors with plain stored values can be written", address=name)


def _keeps_bytes(name: str, ref: TensorRef, casting: Casting) -> bool:
    refuse_unplain(name, ref)
    swapped = ref.byteorder == "big" and ref.dtype.itemsize > 1
    in_place = len(ref.chunks) == 1 and not ref.lazy and not swapped
    return in_place and (not casting.is_cast(ref) or _is_dense(ref.chunks[0]))


def _is_dense(chunk: Chunk) -> bool:
    """Return whether nothing lies between the elements, which a cast would take for values."""
    numel = 1
    for size in chunk.shape:
        numel *= size
    return extent(chunk.shape, chunk.strides) == numel


def _overlapping(tensors: Mapping[str, TensorRef], casting: Casting) -> list[Storage]:
    spans = {name: ref.chunks[0].span for name, ref in tensors.items()}
    ordered = sorted(spans, key=lambda n: (id(spans[n].source), spans[n].offset, -spans[n].nbytes))
    storages: list[Storage] = []
    for name in ordered:
        span, ref = spans[name], tensors[name]
        last = storages[-1] if storages else None
        if last and _joins(last.span, span, last.values.dtype, ref.dtype):
            end = max(last.span.offset + last.span.nbytes, span.offset + span.nbytes)
            joined = ByteSpan(span.source, last.span.offset, end - last.span.offset)
            last.values = _flat(joined, ref)
            last.views[name] = (span.offset - joined.offset) // ref.dtype.itemsize
        else:
            storages.append(Storage(0, _flat(span, ref), True, casting.dtype_of(ref), {name: 0}))
    position = {name: at for at, name in enumerate(tensors)}
    return sorted(storages, key=lambda storage: min(position[name] for name in storage.views))


def _flat(span: ByteSpan, ref: TensorRef) -> TensorRef:
    """Return a run of bytes as a tensor of one dimension."""
    shape = (span.nbytes // ref.dtype.itemsize,)
    return plain_tensor(
        ref.dtype, span, (0,), shape, (1,), "cpu", ref.byteorder, requires_grad=False
    )


def _joins(last: ByteSpan, span: ByteSpan, one: DType, other: DType) -> bool:
    same_kind = last.source == span.source and one is other
    overlaps = span.nbytes > 0 and span.offset < last.offset + last.nbytes
    return same_kind and overlaps and (span.offset - last.offset) % one.itemsize == 0


def _stored_checksums(reader: TensorReader, storages: Sequence[Storage]) -> dict[int, int]:
    """Return the stored checksums of storages that are whole records of zips, by storage key."""
    copied = [storage for storage in storages if storage.is_copied]
    sources = {storage.span.source for storage in copied}
    known: dict[ByteSpan, int] = {}
    for source in sources.intersection(reader.opened):
        known |= known_checksums(source)
    return {storage.key: known[storage.span] for storage in copied if storage.span in known}


# ------------------------------------------------------------------------------------------- pickle


def _pickle(
    tensors: Mapping[str, TensorRef], storages: Sequence[Storage], wrap: str | None
) -> bytes:
    home = {
        name: (storage, offset) for storage in storages for name, offset in storage.views.items()
    }
    out = PickleWriter()
    if wrap is not None:
        out.raw(b"}").text(wrap)
    out.named("collections", "OrderedDict").raw(b")R(")
    for name, ref in tensors.items():
        out.text(name)
        add_tensor(out, ref, *home[name])
    out.raw(b"u")
    if wrap is not None:
        out.raw(b"s")
    return out.finish()


def add_tensor(out: PickleWriter, ref: TensorRef, storage: Storage, offset: int = 0) -> None:
    """Pickle a tensor that is a view of a storage, ``offset`` elements from its beginning."""
    dtype = storage.dtype
    strides = ref.chunks[0].strides if storage.is_run else contiguous_strides(ref.shape)
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
