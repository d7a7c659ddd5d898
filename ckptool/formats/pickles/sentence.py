r"""The sentence in which torch pickles a tensor, recognised at once instead of word by word.

``torch.save`` writes each tensor as the same thirty instructions, in which only numbers differ::

    ((hShC X<length>"7"rM hL K<numel> t rM Q    ("storage", class, "7", location, numel): a storage
    K<offset> K.K.\x86rM K.K.\x86rM \x89        offset, sizes, strides, requires_grad
    hO)R rM t rM R rM                           hooks, which are an empty OrderedDict; the call

The machine asks for it at each MARK. One pattern finds what differs, and what follows is what the
machine and its builder would do: the same tensor, the same values in the memo, the same count in
the budget. In a dict the next key and the next tensor follow; such a **run** is read in one call.
Rules, each with its reason:

* A sentence is taken only if it is in every part as torch writes it, and its tensor fits into its
  storage. In every other case nothing has happened, and the machine goes on word by word. So it
  remains the only reader of everything else, and the only one that finds faults.
* Both functions have been called word by word before, so that their names have been noted.
* A sentence may store a value in the memo under an index that it reads later. The machine reads it.
* The location is ``hL`` for ``"cpu"`` alone: torch makes the text of ``"cuda:0"`` anew for each
  tensor, so the pickle spells and stores it each time, ``X<length>"cuda:0" rM``.
* Most of a sentence repeats from tensor to tensor, so each wording is decoded once. But tuples in
  the memo are made anew: a pickle may put them into its tree, where one tuple at two places is not
  two tuples.
* The memo is only promised its entries (``memo.py``): almost none is ever read. Those of a run are
  promised when it ends, and stand above all others. So a sentence of the run that reads one of them
  finds nothing there. It ends the run, and is read again after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any

from ckptool.dtypes import DType
from ckptool.errors import CkptError
from ckptool.formats.pickles.machine import Builder
from ckptool.formats.pickles.memo import Memo
from ckptool.formats.pickles.storages import Storages
from ckptool.formats.pickles.tensor_views import check_countable, storage_dtype
from ckptool.formats.pickles.torch_calls import TORCH_CALLS
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan
from ckptool.tree.geometry import extent
from ckptool.tree.nodes import GlobalRef, NotedDict, StorageRef, TensorRef, plain_tensor

_GET = rb"(?:h.|j....)"  # BINGET, LONG_BINGET
_PUT = rb"r(....)"  # LONG_BINPUT: all memo entries but the first 256
_INT = rb"(?:K.|M..|J....)"  # BININT1, BININT2, BININT
_DEVICE = rb"(" + _GET + rb")|(X[\x02-\x14]\0\0\0[a-z0-9:]{2,20})" + _PUT
_ROW = rb"(" + _INT + rb"{1,3}[\x85-\x87]|\(" + _INT + rb"{4,32}t)"  # TUPLE1 to TUPLE3, TUPLE
_SENTENCE = re.compile(
    rb"\(\((" + _GET + _GET + rb"X[\x01-\x09])\0\0\0([0-9]{1,9})" + _PUT
    + rb"(?:" + _DEVICE + rb")(" + _INT + rb")t" + _PUT + rb"Q"
    + rb"(" + _INT + rb")(?:\)\)|" + _ROW + _PUT + _ROW + _PUT + rb")"
    + rb"([\x88\x89]" + _GET + rb")\)R" + _PUT + rb"t" + _PUT + rb"R" + _PUT,
    re.DOTALL,
).match  # fmt: skip
HOOKS = "collections.OrderedDict"
_REBUILD = TORCH_CALLS["torch._utils._rebuild_tensor_v2"]
_INTS = re.compile(_INT, re.DOTALL).findall
_WORDS = re.compile(_GET, re.DOTALL).findall
_LENGTHS = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
# By their bytes: a scalar has two less, and a device that is spelled one more.
_PUTS = {4 * count: Struct(f"<{count}I").unpack for count in (5, 6, 7, 8)}
_UINT32 = Struct("<I").unpack_from
_BINUNICODE, _LONG_BINPUT, _BINGET, _LONG_BINGET = b"Xrhj"


def _ascending(count: int) -> tuple[int, int]:
    """Return a and b: the 32-bit numbers n, n + 1, …, together, are the number ``n * a + b``."""
    places = [1 << 32 * place for place in range(count)]
    return sum(places), sum(step * place for step, place in enumerate(places))


_ASCENDING = {nbytes: _ascending(nbytes // 4) for nbytes in _PUTS}


class _Geometry(NamedTuple):
    """The sizes and strides of a tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    extent: int  # elements from the first to the last
    zeros: tuple[int, ...]  # where its only block begins


class _Wording(NamedTuple):
    """The numbers of a sentence that are neither its storage's key nor indices it stores under."""

    kind_at: int  # indices of the memo that it reads
    class_at: int
    device: int | str  # the index, or the device itself if it is spelled
    hooks_at: int
    length: int  # of the key
    numel: int
    offset: int
    geometry: _Geometry
    requires_grad: bool


class _Wordings(dict[tuple[bytes, ...], _Wording]):
    """The wordings of sentences by their bytes."""

    def __missing__(self, spelled: tuple[bytes, ...]) -> _Wording:
        named, got, device, counted, offset, sizes, strides, flagged = spelled
        kind_at, class_at = map(_number, _WORDS(named[:-2]))
        if device and device[1] != len(device) - 5:
            raise _UnusualError
        placed = device[5:].decode() if device else _number(got)
        places = kind_at, class_at, placed, _number(flagged[1:])
        form, numel = _geometry(sizes, strides), _number(counted)
        made = _Wording(*places, named[-1], numel, _number(offset), form, flagged[0] == 0x88)
        self[spelled] = made
        return made


class _UnusualError(Exception):
    """Error of a sentence that the machine has to read."""


def _number(spelled: bytes) -> int:
    return int.from_bytes(spelled[1:], "little", signed=spelled[:1] == b"J")


def _geometry(*spelled: bytes) -> _Geometry:
    shape, strides = map(_row, spelled)
    if len(shape) != len(strides):
        raise _UnusualError
    check_countable(shape, strides)
    return _Geometry(shape, strides, extent(shape, strides), (0,) * len(shape))


def _row(spelled: bytes) -> tuple[int, ...]:
    sizes = tuple(map(_number, _INTS(spelled.removeprefix(b"("))))
    taken = _LENGTHS.get(spelled[-1:], len(sizes))  # a shorter tuple leaves integers on the stack
    if taken != len(sizes) or min(sizes, default=0) < 0:
        raise _UnusualError
    return sizes


# The last three come from reading behind the window, and from text that is none.
_ENDS_RUN = (_UnusualError, KeyError, CkptError, StructError, IndexError, ValueError)


class _Head(NamedTuple):
    """The values of the memo that a sentence reads, and the dtype of the storage's class."""

    dtype: DType
    kind: str
    cls: GlobalRef
    device: str
    hooks: GlobalRef


# A tensor that was read: the key in the dict if it was spelled there, the head, the storage's key,
# the wording, the storage, and the tensor. A plain tuple: there are 100,000.
_Told = tuple[str | None, _Head, str, _Wording, StorageRef, TensorRef]


def _entries(run: Iterable[_Told]) -> tuple[Any, ...]:
    """Return what the sentences of a run put into the memo; the empty tuple is no entry."""
    made: list[Any] = []
    for name, (_, kind, cls, device, _), key, wording, storage, tensor in run:
        _, _, placed, _, _, numel, offset, (shape, strides, *_), requires_grad = wording
        rows = (*shape,), (*strides,)
        hooks = NotedDict()
        args = storage, offset, *rows, requires_grad, hooks
        made += () if name is None else (name,)
        made += (key,) if type(placed) is int else (key, device)
        made += (kind, cls, key, device, numel), *(rows if shape else ()), hooks, args, tensor
    return tuple(made)


class TensorSentence:
    """Reader of the sentences in one pickle.

    Args:
        builder: whose budget counts what is made.
        storages: those of the builder.
        calls: the builder's functions that were called, by the identities of their names.
    """

    def __init__(self, builder: Builder, storages: Storages, calls: Mapping[int, Any]) -> None:
        self._builder, self._storages, self._calls = builder, storages, calls
        self._wordings = _Wordings()
        # Heads by the identities of their values, which they keep from being taken by others.
        self._heads: dict[tuple[int, ...], _Head] = {}
        self._last: dict[int, _Head] = {}  # the last head of a wording, by its identity

    # One loop, as in the machine: a call for each step would take half of the time.
    def read(self, window: bytes, at: int, stack: list[Any], memo: Memo) -> int:  # noqa: C901
        """Put the tensor of the sentence at ``at`` in place of the function on the stack.

        The keys and tensors that follow in a dict are put on the stack too.

        Returns:
            The offset behind the last sentence; 0 if there is none, or if it is to be read word by
            word. Then nothing has been done.
        """
        found = _SENTENCE(window, at)
        if found is None or not stack or self._calls.get(id(stack[-1])) is not _REBUILD:
            return 0
        getter = _getter(window, at, memo, stack[-1])
        wordings, known, add = self._wordings, self._storages.known, self._storages.add
        heads: dict[int, _Head] = {}  # by the wording: a run changes none of the entries it reads
        run: list[_Told] = []
        room = self._builder.budget.room_for_containers  # a sentence makes one, its hooks
        first = free = max(memo.free, _UINT32(found[3])[0])  # where the run's entries begin and end
        end, entry, name = 0, None, None  # the key in the dict, and the same if it is spelled there
        try:
            while found and len(run) < room:
                (
                    named, digits, put_key, got, placed, put_device, counted, put_id, offset,
                    sizes, put_sizes, strides, put_strides, flagged, put_hooks, put_args, put_made,
                ) = found.groups(b"")  # fmt: skip
                wording = wordings[named, got, placed, counted, offset, sizes, strides, flagged]
                head = heads.get(id(wording))
                if head is None:
                    head = heads[id(wording)] = self._head(wording, memo)
                key, numel = digits.decode(), wording.numel
                if wording.length != len(key) or numel < 1:
                    break  # a storage without bytes is made anew each time
                puts = b"".join(
                    (
                        put_key, put_device, put_id, put_sizes, put_strides, put_hooks, put_args,
                        put_made,
                    )
                )  # fmt: skip
                times, steps = _ASCENDING[len(puts)]
                start = free if name is None else free + 1
                is_usual = int.from_bytes(puts, "little") == start * times + steps
                if not is_usual and (run or _reads_its_own(wording, puts)):
                    break
                storage = known.get(key) or add(head.dtype, key, head.device, numel)
                tensor = _view(storage, wording)
                if run:
                    stack.append(entry)
                    stack.append(tensor)
                else:
                    stack[-1] = tensor
                run.append((name, head, key, wording, storage, tensor))
                end = found.end()
                if not is_usual:
                    _store(run, puts, memo)
                    break
                free = start + len(puts) // 4
                entry, name, at = _next_key(window, end, free, memo)
                if not getter or not window.startswith(getter, at):
                    break
                found = _SENTENCE(window, at + len(getter))
        except _ENDS_RUN:
            found = None
        if free > first:
            memo.promise(first, free - first, (_entries, (run,)))
        self._builder.budget.count_containers(len(run))
        return end

    def _head(self, wording: _Wording, memo: Memo) -> _Head:
        """Return the values that a sentence reads, which have to be as torch writes them."""
        last = self._last.get(id(wording))
        if last is not None and _is_still(last, wording, memo):
            return last
        kind, cls = memo[wording.kind_at], memo[wording.class_at]
        placed, hooks = wording.device, memo[wording.hooks_at]
        device: Any = memo[placed] if type(placed) is int else placed
        places = id(kind), id(cls), id(device), id(hooks)
        known = self._heads.get(places)
        if known is None:
            is_text = type(kind) is type(device) is str and kind == "storage" and device != "meta"
            is_named = type(cls) is type(hooks) is GlobalRef and hooks.qualname == HOOKS
            if not (is_text and is_named and id(hooks) in self._calls):
                raise _UnusualError
            known = self._heads[places] = _Head(storage_dtype(cls), kind, cls, device, hooks)
        self._last[id(wording)] = known
        return known


def _is_still(head: _Head, wording: _Wording, memo: Memo) -> bool:
    """Return whether the memo holds the values of a head that was read before."""
    placed = wording.device
    return (
        memo.get(wording.kind_at) is head.kind
        and memo.get(wording.class_at) is head.cls
        and memo.get(wording.hooks_at) is head.hooks
        and (type(placed) is not int or memo.get(placed) is head.device)
    )


def _getter(window: bytes, at: int, memo: Memo, function: Any) -> bytes:
    """Return the instruction that gets the function from the memo; empty if it is none."""
    if at >= 2 and window[at - 2] == _BINGET and memo.get(window[at - 1]) is function:
        return window[at - 2 : at]
    is_long = at >= 5 and window[at - 5] == _LONG_BINGET
    if is_long and memo.get(_UINT32(window, at - 4)[0]) is function:
        return window[at - 5 : at]
    return b""


def _next_key(window: bytes, at: int, free: int, memo: Memo) -> tuple[Any, str | None, int]:
    """Return the next key in a dict, the same if it is spelled there, and the offset behind it.

    Raises:
        _UnusualError: it is spelled, and stored elsewhere than behind the entries so far.
        KeyError: there is no key.
    """
    op = window[at]
    if op == _BINUNICODE:
        stop = at + 5 + _UINT32(window, at + 1)[0]
        if window[stop] != _LONG_BINPUT or _UINT32(window, stop + 1)[0] != free:
            raise _UnusualError
        name = window[at + 5 : stop].decode("utf-8", "surrogatepass")
        return name, name, stop + 5
    if op == _BINGET:
        return memo[window[at + 1]], None, at + 2
    if op == _LONG_BINGET:
        return memo[_UINT32(window, at + 1)[0]], None, at + 5
    raise KeyError


def _reads_its_own(wording: _Wording, puts: bytes) -> bool:
    """Return whether a sentence reads an entry of the memo that it has stored before."""
    indices = _PUTS[len(puts)](puts)
    return wording.device == indices[0] or wording.hooks_at in indices[:-3]


def _store(run: list[_Told], puts: bytes, memo: Memo) -> None:
    """Store the entries of a sentence under any indices."""
    for index, value in zip(_PUTS[len(puts)](puts), _entries(run), strict=True):
        memo.store(index, value)


def _view(storage: StorageRef, wording: _Wording) -> TensorRef:
    """Return the tensor of a storage, if it fits and is of a usual kind."""
    dtype, span = storage.dtype, storage.span
    _, _, _, _, _, _, offset, (shape, strides, length, zeros), requires_grad = wording
    start, nbytes = offset * dtype.itemsize, length * dtype.itemsize
    if span is None or not span.nbytes or dtype.kind == "quantized" or start < 0:
        raise _UnusualError
    if (nbytes and start + nbytes > span.nbytes) or (requires_grad and not dtype.is_floating):
        raise _UnusualError
    if start or nbytes != span.nbytes:
        span = ByteSpan(span.source, span.offset + start, nbytes)
    return plain_tensor(
        dtype, span, zeros, shape, strides, storage.device, storage.byteorder, requires_grad
    )
