"""Storages of a pickle by their keys, as torch keeps them while it loads.

A persistent id ``('storage', class, key, location, numel)`` names a storage; in the older container
a sixth value may be a view ``(key, offset, size)`` of it, in elements. The rules are those of
torch, each with its reason:

* Keys are compared as Python compares them: ``"9"``, ``b"9"`` and 9 are three storages.
* The first mention of a key decides the dtype, and so how many bytes of big-endian values are
  swapped at once. A storage without bytes in memory (empty or meta) is made anew each time; in the
  older container only its dtype is new.
* A view is kept under its own key, beside the storages: if the key is known, whatever it names is
  taken, and the offset is not looked at.

Source: torch 2.13 ``torch/serialization.py``, ``persistent_load`` in ``_load`` and
``_legacy_load``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckptool.dtypes import DType
from ckptool.errors import DamagedError
from ckptool.formats.pickles.tensor_views import (
    as_text,
    kind_of,
    sizes_of,
    storage_dtype,
    storage_view,
    swapped_bytes,
)
from ckptool.records import replace
from ckptool.sources.base import ByteSpan
from ckptool.tree.nodes import StorageRef, plain_storage

StorageKey = str | bytes | int
LocateStorage = Callable[[StorageKey, int], ByteSpan | None]  # (key, nbytes) -> its bytes

# The devices that torch's registry of deserializers knows, with those of other vendors.
_DEVICES = frozenset({"cpu", "meta", "mps"})
_NUMBERED = frozenset({
    "cuda", "hpu", "xpu", "npu", "mlu", "musa", "mtia", "maia", "xla", "privateuseone",
})  # fmt: skip
MAX_DEVICES = 1 << 10  # device tags that are looked at


class Storages:
    """The storages that a pickle has named so far."""

    def __init__(
        self, locate: LocateStorage, byteorder: str = "little", *, keeps_empty: bool = False
    ) -> None:
        self._locate = locate
        self._byteorder = byteorder
        self._keeps_empty = keeps_empty  # the older container
        self.known: dict[StorageKey, StorageRef] = {}  # with views, under keys of their own
        self._devices: set[str] = set()
        self.unknown_devices: dict[str, None] = {}  # tags that torch does not know

    @property
    def nbytes(self) -> int:
        """Bytes of all storages: ``torch.save`` writes them whole."""
        return sum(storage.nbytes for storage in self.known.values())

    def get(self, cls: Any, key: Any, location: Any, numel: Any, view: Any = None) -> StorageRef:
        """Return the storage, or the view of it, that a persistent id describes.

        Raises:
            DamagedError: it is not described as torch describes it, or its bytes are not there.
        """
        key, dtype = storage_key(key), storage_dtype(cls)
        known = self.known.get(key)
        if known is None or not (known.nbytes or self._keeps_empty):
            known = self.add(dtype, key, as_text(location), numel)
        elif not known.nbytes:
            known = replace(known, dtype=dtype)
        if view is None:
            return known
        if not isinstance(view, (tuple, list)) or len(view) != 3:
            raise DamagedError("a view of a storage is not described by three values")
        name = storage_key(view[0])
        if name not in self.known:
            self.known[name] = storage_view(known, view, dtype)
        return self.known[name]

    def add(self, dtype: DType, key: StorageKey, location: str, numel: Any) -> StorageRef:
        """Return a storage that is mentioned for the first time, and keep it under its key."""
        made = self.known[key] = self.make(dtype, key, location, numel)
        return made

    def make(self, dtype: DType, key: StorageKey, location: str, numel: Any) -> StorageRef:
        """Return a storage that is mentioned for the first time."""
        return self.maker(dtype, location, numel)(key)

    def maker(self, dtype: DType, location: str, numel: Any) -> Callable[[StorageKey], StorageRef]:
        """Return a function that returns such a storage by its key."""
        if type(numel) is not int or numel < 0:
            sizes_of((numel,))  # which says what is wrong
        locate, devices, nbytes = self._locate, self._devices, numel * dtype.itemsize
        is_swapped = self._byteorder != "little" and swapped_bytes(dtype) > 1
        order = self._byteorder if is_swapped else "little"

        def make(key: StorageKey) -> StorageRef:
            span = locate(key, nbytes)
            if location not in devices:
                self._note_device(location)
            return plain_storage(dtype, None if location == "meta" else span, location, order)

        return make

    def _note_device(self, location: str) -> None:
        if len(self._devices) < MAX_DEVICES:
            self._devices.add(location)
            kind, colon, number = location.partition(":")
            is_numbered = kind in _NUMBERED and (number.isdecimal() or not colon)
            if not (is_numbered or location in _DEVICES):
                self.unknown_devices.setdefault(location)


def storage_key(value: Any) -> StorageKey:
    """Return the key of a storage.

    Raises:
        DamagedError: it is something else than text, bytes or an integer.
    """
    if type(value) in {str, int} or isinstance(value, bytes):
        key: StorageKey = value
        return key
    raise DamagedError(f"the key of a storage is {kind_of(value)}, not text or a number")
