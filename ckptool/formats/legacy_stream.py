"""The stream of pickles and values that ``torch.save`` writes without its zip container.

Layout, without gaps::

    pickle   the magic number 0x1950a86a20f9469cfc6c
    pickle   the protocol version, 1001
    pickle   facts about the machine: byte order, sizes of C types
    pickle   the object, storages as ('storage', class, key, location, numel, view) persistent ids
    pickle   the keys of the storages, sorted; their data follows in this order
    data     for each key: int64 number of elements, then the elements; both little-endian

Rules, each with its reason:

* The places of the storages are known only behind the object that views them. So the object is
  read twice: first for its storages alone, and for its tree once the keys have put them in order.
* The element count in the data must be that of the pickle, as torch demands.
* Values are little-endian for every machine, since torch swapped the bytes when it wrote them. The
  facts about the machine are ignored, as in torch.
* A *view* ``(key, offset, size)`` is a part of a storage. Torch before 0.4 wrote such views. Views
  and storages share their keys: the first mention of a key decides, whichever it is.
* Tags that Python 2 wrote are bytes, read as text. Keys are compared as Python compares them.
* Torch ignores the bytes behind the last storage; their number is kept in the metadata.

Source: torch 2.13 ``torch/serialization.py``, ``_legacy_save`` and ``_legacy_load``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptool.dtypes import DType
from ckptool.errors import CkptError, DamagedError, UnsupportedError
from ckptool.formats.pickles.literal import (
    OTHERWISE,
    Literal,
    Made,
    Persisted,
    made_in,
    read_literal,
)
from ckptool.formats.pickles.machine import Builder, PickleMachine
from ckptool.formats.pickles.reader import Pickles
from ckptool.formats.pickles.storages import LocateStorage, StorageKey, Storages, storage_key
from ckptool.formats.pickles.tensor_views import as_text
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan, Source
from ckptool.sources.memory import Memory
from ckptool.tree.nodes import StorageRef

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
MAGIC_BYTES = 64  # the first pickle is shorter than this at every protocol
PROTOCOL_VERSION = 1001
MAX_PREAMBLE = 1 << 12  # bytes of the three pickles before the object that are remembered


def is_legacy(head: bytes) -> bool:
    """Return whether the bytes begin with a pickle of the magic number."""
    try:
        return bool(PickleMachine(Memory(head[:MAGIC_BYTES])).run() == MAGIC_NUMBER)
    except CkptError:
        return False


class LegacyStream(NamedTuple):
    """The result of :func:`read_stream`."""

    tree: Any
    end: int  # offset behind the last storage


def read_stream(source: Source, pickles: Pickles) -> LegacyStream:
    """Return the object in a stream that begins with the magic number.

    Raises:
        DamagedError: the stream breaks the rules, or ends too soon.
    """
    begin = _object_offset(source, pickles)
    try:
        spans, end = _find_storages(source, pickles, begin)
    except CkptError:
        pickles.listen(source, begin)  # a loader runs the pickle before it needs the storages
        raise
    storages = Storages(_locator(spans), keeps_empty=True)
    builder = TorchBuilder(storages, pickles.open_nested, has_views=True)
    tree, _ = pickles.read(source, builder, begin)
    return LegacyStream(tree, end)


def literal_stream(source: Source, pickles: Pickles) -> Literal:
    """Return the object in a stream so that it can be written again.

    Raises:
        UnsupportedError: keys of storages differ in their type alone, or parts of storages are
            used for something else than tensors.
    """
    begin = _object_offset(source, pickles)
    spans, _ = _find_storages(source, pickles, begin)
    tree, _ = read_literal(source, begin)
    storages = {str(key): span for key, span in spans.items()}
    if len(storages) < len(spans):
        raise UnsupportedError("keys of storages that differ in their type alone", hint=OTHERWISE)
    for made in made_in(tree):
        _whole_storages(made)
    return Literal(tree, storages)


def _whole_storages(made: Made) -> None:
    """Make a tensor one of the whole storage instead of a part, as torch 0.3 wrote it."""
    is_set = isinstance(made.state, tuple) and made.name.endswith("Tensor")
    values = made.state if is_set else made.args
    part = values[0] if values else None
    if not isinstance(part, Persisted) or not part.offset:
        return
    if not is_set and not made.name.startswith("torch._utils._rebuild_tensor"):
        raise UnsupportedError("a part of a storage that is no tensor's", hint=OTHERWISE)
    moved = (Persisted(part.saved_id), part.offset + values[1], *values[2:])
    if is_set:
        made.state = moved
    else:
        made.args = moved


def stream_end(source: Source, begin: int) -> int | None:
    """Return the offset behind the stream that begins at ``begin``; None if there is no whole one.

    The names in it are not recorded.
    """
    pickles = Pickles("a stream", lambda _data, _pickles: None, depth=1)  # reads short runs
    try:
        return _find_storages(source, pickles, _object_offset(source, pickles, begin))[-1]
    except CkptError:
        return None


def _find_storages(
    source: Source, pickles: Pickles, begin: int
) -> tuple[dict[StorageKey, ByteSpan], int]:
    """Return the places of the storages of the object at ``begin``, and the offset behind them."""
    found = FoundStorages()
    finder = StorageFinder(found, has_views=True)
    machine = pickles.machine(source, finder, begin)
    machine.run()
    keys, data_at = pickles.read_short(source, machine.end, "the storage keys")
    return _place_storages(source, data_at, _as_keys(keys), found.found)


def _object_offset(source: Source, pickles: Pickles, begin: int = 0) -> int:
    """Return the offset of the fourth pickle; the first is known to be the magic number.

    Three pickles precede it. They are the same in all streams of one process, so they are read
    once where a file holds thousands of streams.
    """
    known = pickles.preamble
    if known and source.read(begin, min(len(known), source.size - begin)) == known:
        return begin + len(known)
    _magic, at = pickles.read_short(source, begin, "the magic number")
    version, at = pickles.read_short(source, at, "the version")
    if version != PROTOCOL_VERSION:
        raise DamagedError(f"the version of the stream is not {PROTOCOL_VERSION}")
    _facts, at = pickles.read_short(source, at, "the facts about the machine")
    if at - begin <= MAX_PREAMBLE:
        pickles.remember_preamble(source.read(begin, at - begin))
    return at


class FoundStorages(Storages):
    """The storages of the object by their keys, whose places are still unknown."""

    def __init__(self) -> None:
        super().__init__(lambda _key, _nbytes: None, keeps_empty=True)
        self.found: dict[StorageKey, tuple[DType, int]] = {}  # dtype and element count

    def make(self, dtype: DType, key: StorageKey, location: str, numel: Any) -> StorageRef:
        """Record a storage that is mentioned for the first time."""
        if type(numel) is not int or numel < 0:
            raise DamagedError(f"the storage {as_text(key):.60} has no count of elements")
        self.found[key] = dtype, numel
        return StorageRef(dtype, None, location)


class StorageFinder(TorchBuilder):
    """The first pass, which records the storages and leaves all else inert."""

    call, new, build, finish = Builder.call, Builder.new, Builder.build, Builder.finish
    items_of, elements_of = Builder.items_of, Builder.elements_of


def _as_keys(keys: Any) -> list[StorageKey]:
    if not isinstance(keys, list) or not all(isinstance(key, (str, bytes, int)) for key in keys):
        raise DamagedError("behind the object there is no list of storage keys")
    return [storage_key(key) for key in keys]


def _place_storages(
    source: Source, at: int, keys: list[StorageKey], found: Mapping[StorageKey, tuple[DType, int]]
) -> tuple[dict[StorageKey, ByteSpan], int]:
    """Return the place of each storage, and the offset behind the last."""
    _check_all_there(source, at, keys, found)
    spans: dict[StorageKey, ByteSpan] = {}
    for key in keys:
        dtype, numel = found[key]
        stored = int.from_bytes(source.read(at, 8), "little", signed=True)
        if stored != numel:
            raise DamagedError(
                f"the storage {as_text(key):.60} has {stored} elements instead of {numel}"
            )
        spans[key] = source.span(at + 8, numel * dtype.itemsize)
        at += 8 + numel * dtype.itemsize
    return spans, at


def _check_all_there(
    source: Source, at: int, keys: list[StorageKey], found: Mapping[StorageKey, tuple[DType, int]]
) -> None:
    unknown = [key for key in keys if key not in found]
    if unknown:
        raise DamagedError(
            f"there is data for the storage {as_text(unknown[0]):.60}, which nothing uses"
        )
    wanted = sum(8 + numel * dtype.itemsize for dtype, numel in map(found.__getitem__, keys))
    missing = at + wanted - source.size
    if missing > 0:
        raise DamagedError(
            f"truncated: the storages take {wanted} bytes from offset {at} on, "
            f"but there are only {source.size} ({missing} bytes short)"
        )


def _locator(spans: Mapping[StorageKey, ByteSpan]) -> LocateStorage:
    def locate(key: StorageKey, nbytes: int) -> ByteSpan:
        if key not in spans:
            raise DamagedError(
                f"no data for the storage {as_text(key):.60}, which should have {nbytes} bytes"
            )
        return spans[key]

    return locate
