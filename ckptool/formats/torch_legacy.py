"""``torch.save`` before 1.6, or today without its zip container: a row of pickles, then data.

Layout, without gaps::

    pickle   the magic number 0x1950a86a20f9469cfc6c
    pickle   the protocol version, 1001
    pickle   facts about the machine: byte order, sizes of C types
    pickle   the object, storages as ('storage', class, key, location, numel, view) persistent ids
    pickle   the keys of the storages, sorted: in which order their data follows
    data     for each key: int64 number of elements, then the elements; both little-endian

Rules, each with its reason:

* Where a storage lies is known only behind the object that views it. So the object is read twice:
  first for its storages alone, and, when the keys have put them in order, for its tree.
* The element count in the data must be that of the pickle, as torch demands.
* Values are little-endian whatever the machine: torch swapped them on the way out. The facts about
  the machine are ignored, as in torch.
* A *view* ``(key, offset, size)`` is a part of a storage. Torch before 0.4 wrote them.
* Keys and tags written by Python 2 are bytes; they are compared as text.
* Torch ignores what follows the last storage; its size is kept in the metadata.

Source: torch 2.13 ``torch/serialization.py``, ``_legacy_save`` and ``_legacy_load``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ckptool.dtypes import DType
from ckptool.errors import CkptError, DamagedError
from ckptool.formats.base import Checkpoint, SourceFile, TensorReader
from ckptool.formats.byte_sources import ByteSource, FileWindow, MemoryBytes
from ckptool.formats.pickle_tree import Builder, PickleMachine
from ckptool.formats.pickled import Pickles
from ckptool.formats.torch_objects import LocateStorage, TorchBuilder, storage_dtype
from ckptool.tree import ByteSpan, StorageRef

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
MAGIC_BYTES = 64  # the first pickle is shorter than this at every protocol
PROTOCOL_VERSION = 1001


class TorchLegacy:
    """See the module's docstring."""

    name = "torch-legacy"

    def matches(self, head: bytes) -> bool:
        """A pickle of the magic number, at any protocol."""
        return is_legacy(head)

    def open(self, file: SourceFile) -> Checkpoint:
        """The checkpoint in a row of pickles; reads those, and the element counts."""
        pickles = Pickles(file, "the object")
        with pickles.telling():
            stream = read_stream(FileWindow(file), pickles)
        note = pickles.listen_behind(FileWindow(file), stream.end)
        trailing = file.size - stream.end
        return Checkpoint(
            path=file.path,
            format_name=self.name,
            size_bytes=file.size,
            tree=stream.tree,
            reader=TensorReader(file),
            globals_named=pickles.globals_named,
            metadata={"trailing_bytes": trailing} if trailing else {},
            notes=(note,) if note else (),
        )


def is_legacy(head: bytes) -> bool:
    """Whether the bytes begin with a pickle of the magic number."""
    try:
        return bool(PickleMachine(MemoryBytes(head[:MAGIC_BYTES])).run() == MAGIC_NUMBER)
    except CkptError:
        return False


class LegacyStream(NamedTuple):
    """What :func:`read_stream` returns."""

    tree: Any
    end: int  # offset behind the last storage


def read_stream(source: ByteSource, pickles: Pickles) -> LegacyStream:
    """The object in a stream that begins with the magic number.

    Raises:
        DamagedError: the stream breaks the rules, or ends too soon.
    """
    begin = _object_offset(source, pickles)
    try:
        spans, end = _find_storages(source, pickles, begin)
    except CkptError:
        pickles.listen(source, begin)  # a loader runs the object before it misses the storages
        raise
    builder = TorchBuilder(_locator(spans), pickles.open_nested)
    tree, _ = pickles.read(source, builder, begin)
    return LegacyStream(tree, end)


def _find_storages(
    source: ByteSource, pickles: Pickles, begin: int
) -> tuple[dict[str, ByteSpan], int]:
    """Where the storages of the object at ``begin`` lie, and the offset behind the last."""
    finder = StorageFinder()
    machine = pickles.machine(source, finder, begin)
    machine.run()
    keys, data_at = pickles.read_short(source, machine.end, "the storage keys")
    return _place_storages(source, data_at, _as_keys(keys), finder.found)


def _object_offset(source: ByteSource, pickles: Pickles) -> int:
    """Where the fourth pickle begins; the first is known to be the magic number."""
    _magic, at = pickles.read_short(source, 0, "the magic number")
    version, at = pickles.read_short(source, at, "the version")
    if version != PROTOCOL_VERSION:
        raise DamagedError(f"the version of the stream is not {PROTOCOL_VERSION}")
    _facts, at = pickles.read_short(source, at, "the facts about the machine")
    return at


class StorageFinder(TorchBuilder):
    """The first pass: notes the storages by their keys and leaves all else inert."""

    call, new, build = Builder.call, Builder.new, Builder.build
    items_of, elements_of = Builder.items_of, Builder.elements_of

    def __init__(self) -> None:
        super().__init__(lambda _key, _nbytes: None)
        self.found: dict[str, tuple[DType, int]] = {}  # element type and count

    def _storage(self, cls: Any, key: str, location: str, numel: Any) -> StorageRef:
        """As torch does, the first mention decides the type of a storage."""
        dtype = storage_dtype(cls)
        if type(numel) is not int or numel < 0:
            raise DamagedError(f"the storage {key} has no count of elements")
        self.found.setdefault(key, (dtype, numel))
        return StorageRef(dtype, None, location)


def _as_keys(keys: Any) -> list[str]:
    if not isinstance(keys, list) or not all(isinstance(key, (str, bytes, int)) for key in keys):
        raise DamagedError("behind the object there is no list of storage keys")
    return [key.decode("latin-1") if isinstance(key, bytes) else str(key) for key in keys]


def _place_storages(
    source: ByteSource, at: int, keys: list[str], found: Mapping[str, tuple[DType, int]]
) -> tuple[dict[str, ByteSpan], int]:
    """Where each storage lies, and the offset behind the last."""
    _check_all_there(source, at, keys, found)
    spans: dict[str, ByteSpan] = {}
    for key in keys:
        dtype, numel = found[key]
        stored = int.from_bytes(source.read(at, 8), "little", signed=True)
        if stored != numel:
            raise DamagedError(f"the storage {key} has {stored} elements instead of {numel}")
        spans[key] = source.span(at + 8, numel * dtype.itemsize)
        at += 8 + numel * dtype.itemsize
    return spans, at


def _check_all_there(
    source: ByteSource, at: int, keys: list[str], found: Mapping[str, tuple[DType, int]]
) -> None:
    unknown = [key for key in keys if key not in found]
    if unknown:
        raise DamagedError(f"there is data for the storage {unknown[0]:.60}, which nothing uses")
    wanted = sum(8 + numel * dtype.itemsize for dtype, numel in map(found.__getitem__, keys))
    missing = at + wanted - source.size
    if missing > 0:
        raise DamagedError(
            f"truncated: the storages take {wanted} bytes from offset {at} on, "
            f"but there are only {source.size} ({missing} bytes short)"
        )


def _locator(spans: Mapping[str, ByteSpan]) -> LocateStorage:
    def locate(key: str, nbytes: int) -> ByteSpan:
        if key not in spans:
            raise DamagedError(
                f"no data for the storage {key:.60}, which should have {nbytes} bytes"
            )
        return spans[key]

    return locate
