r"""The sentence in which torch pickles a tensor, recognised at once instead of word by word.

``torch.save`` writes each tensor as the same thirty instructions, in which only numbers differ::

    ((hShC X<length>"7"rM hL K<numel> t rM Q    ("storage", class, "7", location, numel): a storage
    K<offset> K.K.\x86rM K.K.\x86rM \x89        offset, sizes, strides, requires_grad
    hO)R rM t rM R rM                           hooks, which are an empty OrderedDict; the call

The machine asks for it at each MARK. One pattern finds the numbers, and what follows is what the
machine and its builder would do: the same tensor, the same values in the memo, the same count in
the budget. Rules, each with its reason:

* A sentence is taken only if it is in every part as torch writes it, and its tensor fits into its
  storage. In every other case nothing has happened, and the machine goes on word by word. So it
  remains the only reader of everything else, and the only one that finds faults.
* Both functions have been called word by word before, so that their names have been noted.
* A sentence may store a value in the memo under an index that it reads later. The machine reads it.
* Sizes and numbers repeat, so each spelling is decoded once. But tuples in the memo are made anew:
  a pickle may put them into its tree, where one tuple at two places is not two tuples.
* The memo is only promised its entries (``memo.py``): almost none is ever read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from struct import Struct
from typing import Any, NamedTuple

from ckptool.dtypes import DType
from ckptool.errors import CkptError
from ckptool.formats.pickles.machine import Builder
from ckptool.formats.pickles.memo import Memo
from ckptool.formats.pickles.storages import Storages
from ckptool.formats.pickles.tensor_views import check_countable, storage_dtype
from ckptool.formats.pickles.torch_calls import TORCH_CALLS
from ckptool.sources.base import ByteSpan
from ckptool.tree.geometry import extent
from ckptool.tree.nodes import Chunk, GlobalRef, NotedDict, StorageRef, TensorRef, plain_tensor

_GET = rb"(h.|j....)"  # BINGET, LONG_BINGET
_PUT = rb"r(....)"  # LONG_BINPUT: all memo entries but the first 256
_INT = rb"(?:K.|M..|J....)"  # BININT1, BININT2, BININT
_ROW = rb"(" + _INT + rb"{1,3}[\x85-\x87]|\(" + _INT + rb"{4,32}t)"  # TUPLE1 to TUPLE3, TUPLE
_SENTENCE = re.compile(
    rb"\(\(" + _GET + _GET + rb"X([\x01-\x09])\0\0\0([0-9]{1,9})" + _PUT + _GET
    + rb"(" + _INT + rb")t" + _PUT + rb"Q"
    + rb"(" + _INT + rb")(?:\)\)|" + _ROW + _PUT + _ROW + _PUT + rb")"
    + rb"([\x88\x89])" + _GET + rb"\)R" + _PUT + rb"t" + _PUT + rb"R" + _PUT,
    re.DOTALL,
).match  # fmt: skip
HOOKS = "collections.OrderedDict"
_REBUILD = TORCH_CALLS["torch._utils._rebuild_tensor_v2"]
_INTS = re.compile(_INT, re.DOTALL).findall
_LENGTHS = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
_PUTS = {20: Struct("<5I").unpack, 28: Struct("<7I").unpack}  # by their bytes: a scalar has five


class _Numbers(dict[bytes, int]):
    """The numbers of instructions by their bytes: integers, and indices of the memo."""

    def __missing__(self, spelled: bytes) -> int:
        number = self[spelled] = _number(spelled)
        return number


class _Geometry(NamedTuple):
    """The sizes and strides of a tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    extent: int  # elements from the first to the last
    zeros: tuple[int, ...]  # where its only block begins


class _Geometries(dict[tuple[bytes, bytes], _Geometry]):
    """The sizes and strides of tensors by their bytes."""

    def __missing__(self, spelled: tuple[bytes, bytes]) -> _Geometry:
        shape, strides = map(_row, spelled)
        if len(shape) != len(strides):
            raise _UnusualError
        check_countable(shape, strides)
        made = _Geometry(shape, strides, extent(shape, strides), (0,) * len(shape))
        self[spelled] = made
        return made


class _UnusualError(Exception):
    """Error of a sentence that the machine has to read."""


def _number(spelled: bytes) -> int:
    return int.from_bytes(spelled[1:], "little", signed=spelled[:1] == b"J")


def _row(spelled: bytes) -> tuple[int, ...]:
    sizes = tuple(map(_number, _INTS(spelled.removeprefix(b"("))))
    taken = _LENGTHS.get(spelled[-1:], len(sizes))  # a shorter tuple leaves integers on the stack
    if taken != len(sizes) or min(sizes, default=0) < 0:
        raise _UnusualError
    return sizes


def _entries(
    head: tuple[Any, ...],
    key: str,
    numel: int,
    storage: StorageRef,
    offset: int,
    geometry: _Geometry,
    tensor: TensorRef,
) -> tuple[Any, ...]:
    """Return what a sentence puts into the memo; the empty tuple is no entry."""
    kind, cls, device, _ = head
    rows = (*geometry.shape,), (*geometry.strides,)
    hooks = NotedDict()
    args = storage, offset, *rows, tensor.requires_grad, hooks
    return key, (kind, cls, key, device, numel), *(rows if rows[0] else ()), hooks, args, tensor


class TensorSentence:
    """Reader of the sentences in one pickle.

    Args:
        builder: whose budget counts what is made.
        storages: those of the builder.
        calls: the builder's functions that were called, by the identities of their names.
    """

    def __init__(self, builder: Builder, storages: Storages, calls: Mapping[int, Any]) -> None:
        self._builder, self._storages, self._calls = builder, storages, calls
        self._numbers, self._geometries = _Numbers(), _Geometries()
        # Values of the memo that are as torch writes them, by their identities: the dtype of the
        # storage's class, and the values, so that nothing else takes their identities.
        self._heads: dict[tuple[int, ...], tuple[DType, tuple[Any, ...]]] = {}

    def read(self, window: bytes, at: int, stack: list[Any], memo: Memo) -> int:
        """Put the tensor of the sentence at ``at`` in place of the function on the stack.

        Returns:
            The offset behind the sentence; 0 if there is none, or if it is to be read word by word.
            Then nothing has been done.
        """
        found = _SENTENCE(window, at)
        if found is None or not stack or self._calls.get(id(stack[-1])) is not _REBUILD:
            return 0
        (
            kind_at, class_at, length, digits, put_key, device_at, count, put_id, first,
            sizes, put_sizes, strides, put_strides, flag, hooks_at, put_hooks, put_args, put_made,
        ) = found.groups(b"")  # fmt: skip
        puts = b"".join((put_key, put_id, put_sizes, put_strides, put_hooks, put_args, put_made))
        indices, numbers, key = _PUTS[len(puts)](puts), self._numbers, digits.decode()
        from_device, from_hooks = numbers[device_at], numbers[hooks_at]
        numel, first_put = numbers[count], indices[0]
        if (
            from_device == first_put
            or from_hooks in indices[:-3]
            or length[0] != len(key)
            or numel < 1  # a storage without bytes is made anew each time
        ):
            return 0
        try:
            kind, cls = memo[numbers[kind_at]], memo[numbers[class_at]]
            device, hooks = memo[from_device], memo[from_hooks]
            dtype, head = self._heads.get((id(kind), id(cls), id(device), id(hooks))) or self._meet(
                kind, cls, device, hooks
            )
            geometry = self._geometries[sizes, strides]
            storage = self._storages.known.get(key)
            if storage is None:
                storage = self._storages.add(dtype, key, device, numel)
            tensor = _view(storage, numbers[first], geometry, requires_grad=flag == b"\x88")
            self._builder.budget.count_copies(0)  # of the hooks
        except (_UnusualError, KeyError, CkptError):
            return 0
        parts = head, key, numel, storage, numbers[first], geometry, tensor
        if first_put < memo.free or indices != (*range(first_put, first_put + len(indices)),):
            for index, value in zip(indices, _entries(*parts), strict=True):
                memo.store(index, value)
        else:
            memo.promise(first_put, len(indices), (_entries, parts))
        stack[-1] = tensor
        return found.end()

    def _meet(self, kind: Any, cls: Any, device: Any, hooks: Any) -> tuple[DType, tuple[Any, ...]]:
        """Look at values of the memo, and remember those that are as torch writes them."""
        is_text = type(kind) is type(device) is str and kind == "storage" and device != "meta"
        is_named = type(cls) is type(hooks) is GlobalRef and hooks.qualname == HOOKS
        if not (is_text and is_named and id(hooks) in self._calls):
            raise _UnusualError
        met = storage_dtype(cls), (kind, cls, device, hooks)
        self._heads[id(kind), id(cls), id(device), id(hooks)] = met
        return met


def _view(
    storage: StorageRef, offset: int, geometry: _Geometry, *, requires_grad: bool
) -> TensorRef:
    """Return the tensor of a storage, if it fits and is of a usual kind."""
    dtype, span, shape = storage.dtype, storage.span, geometry.shape
    start, nbytes = offset * dtype.itemsize, geometry.extent * dtype.itemsize
    if span is None or not span.nbytes or dtype.kind == "quantized" or offset < 0:
        raise _UnusualError
    if (nbytes and start + nbytes > span.nbytes) or (requires_grad and not dtype.is_floating):
        raise _UnusualError
    if start or nbytes != span.nbytes:
        span = ByteSpan(span.source, span.offset + start, nbytes)
    chunk = Chunk(span, geometry.zeros, shape, geometry.strides)
    return plain_tensor(
        dtype, shape, chunk, storage.device, storage.byteorder, requires_grad=requires_grad
    )
