r"""The sentence in which torch pickles a tensor, recognised at once instead of word by word.

``torch.save`` writes each tensor as the same thirty instructions, in which only numbers differ::

    ((hShC X<length>"7"rM hL K<numel> t rM Q    ("storage", class, "7", location, numel): a storage
    K<offset> K.K.\x86rM K.K.\x86rM \x89        offset, sizes, strides, requires_grad
    hO)R rM t rM R rM                           hooks, which are an empty OrderedDict; the call

The machine asks for it at each MARK: that of a sentence, or the one before the items of a dict.
The **items** that follow are read in one call, a **run**: a key, if there is one, and a tensor or
the beginning of a dict. An optimizer has a small dict for each parameter::

    X<length>"exp_avg"rM hF ((…          a key, the function, the sentence of a tensor
    u K<number> }rM (                    the end of a dict, the next key, the next dict

One pattern finds what differs in an item, and what follows is what the machine and its builder
would do: the same tensor, the same values in the memo, the same count in the budget. Rules, each
with its reason:

* An item is taken only if it is in every part as torch writes it, its tensor fits into its storage,
  and it stores its values behind those that the memo has. In every other case nothing has happened,
  and the machine goes on word by word. So it remains the only reader of everything else, and the
  only one that finds faults.
* Both functions have been called word by word before, so that their names have been noted.
* A dict is filled here only if no rule about keys can be broken: it is small, and empty so far.
* The location is ``hL`` for ``"cpu"`` alone: torch makes the text of ``"cuda:0"`` anew for each
  tensor, so the pickle spells and stores it each time, ``X<length>"cuda:0" rM``.
* Most of a sentence repeats from tensor to tensor, so each wording is decoded once. But tuples in
  the memo are made anew: a pickle may put them into its tree, where one tuple at two places is not
  two tuples.
* The memo is only promised its entries (``memo.py``): almost none is ever read, but for the keys.
  Those of a run are promised when it ends, and stand above all others. So an item of the run that
  reads one of them finds nothing there. It ends the run, and is read again after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any

from ckptool.dtypes import DType
from ckptool.errors import CkptError
from ckptool.formats.pickles.budget import SHORT_KEY
from ckptool.formats.pickles.machine import Builder
from ckptool.formats.pickles.memo import Memo
from ckptool.formats.pickles.storages import Storages
from ckptool.formats.pickles.tensor_views import check_countable, storage_dtype
from ckptool.formats.pickles.torch_calls import TORCH_CALLS
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.sources.base import ByteSpan
from ckptool.tree.geometry import extent
from ckptool.tree.nodes import GlobalRef, NotedDict, StorageRef, TensorRef, plain_tensor

_GET = rb"(?:h.|j....)"  # BINGET, LONG_BINGET
_PUT = rb"r(....)"  # LONG_BINPUT: all memo entries but the first 256
_INT = rb"(?:K.|M..|J....)"  # BININT1, BININT2, BININT
_ROW = rb"\(?" + _INT + rb"{1,32}[\x85-\x87t]"  # TUPLE1 to TUPLE3; TUPLE has a MARK, see _row
# A text ends where its length says. The pattern cannot know; it ends it where an item could go on.
_KEY = rb"(?:X(.\0\0\0[ -~\x80-\xff]{0,255}?)" + _PUT + rb"|(" + _GET + rb"|" + _INT + rb"))?"
_TENSOR = (
    rb"(" + _GET + rb"\(\(" + _GET + _GET + rb"X[\x01-\x09])\0\0\0([0-9]{1,9})" + _PUT
    + rb"(?:X([\x02-\x14]\0\0\0[a-z0-9:]{2,20})" + _PUT + rb")?"
    + rb"(" + _GET + rb"?" + _INT + rb"t)" + _PUT
    + rb"(Q" + _INT + rb"(?:\)\)|" + _ROW + rb"))(?:" + _PUT + rb"(" + _ROW + rb")" + _PUT + rb")?"
    + rb"([\x88\x89]" + _GET + rb"\)R)" + _PUT + rb"t" + _PUT + rb"R" + _PUT
)  # fmt: skip
_ITEM = regex(rb"(u?)" + _KEY + rb"(?:" + _TENSOR + rb"|}" + _PUT + rb"\()", re.DOTALL)
HOOKS = "collections.OrderedDict"
_REBUILD = TORCH_CALLS["torch._utils._rebuild_tensor_v2"]
_BYTES = {**dict.fromkeys(b"hKX", 2), ord("M"): 3, **dict.fromkeys(b"jJ", 5)}  # of an instruction
_BINGET, _LONG_BINGET, _NEWTRUE = b"hj\x88"
_GETS = b"hj"
_LENGTHS = {b"\x85": 1, b"\x86": 2, b"\x87": 3}


# The 32-bit numbers n, n + 1, …, as a run stores its values under them: some at first, then more.
_FEW, _MORE = Struct("<64I").pack, Struct("<4096I").pack
_MOST_PUTS = 9 * 4  # bytes of the numbers in one item


class _UnusualError(Exception):
    """Error of an item that the machine has to read."""


# The last three come from reading behind the window, and from text that is none.
_ENDS_RUN = (_UnusualError, KeyError, CkptError, StructError, IndexError, ValueError)


class _Wording(NamedTuple):
    """The numbers of a sentence that are neither its storage's key nor indices it stores under."""

    function_at: int  # indices of the memo that it reads
    kind_at: int
    class_at: int
    device: int | str  # the index, or the device itself if it is spelled
    hooks_at: int
    length: int  # of the key
    numel: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    extent: int  # elements from the first to the last
    zeros: tuple[int, ...]  # where its only block begins
    requires_grad: bool


class _Wordings(dict[tuple[bytes, ...], _Wording]):
    """The wordings of sentences by their bytes."""

    def __missing__(self, spelled: tuple[bytes, ...]) -> _Wording:
        named, device, counted, viewed, strides, flagged = spelled
        function, _, _, kind, cls, length = _instructions(named)
        *placed, count, _ = _instructions(counted)
        _, offset, *sizes = _instructions(viewed)
        if bool(device) is bool(placed) or (device and device[0] != len(device) - 4):
            raise _UnusualError
        shape, steps = _row(sizes), _row(_instructions(strides or b"))"))
        if len(shape) != len(steps):
            raise _UnusualError
        check_countable(shape, steps)
        self[spelled] = made = _Wording(
            _number(function), _number(kind), _number(cls),
            device[4:].decode() if device else _number(*placed), _number(flagged[1:-2]),
            length[1], _number(count), _number(offset), shape, steps, extent(shape, steps),
            (0,) * len(shape), flagged[0] == _NEWTRUE,
        )  # fmt: skip
        return made


def _instructions(spelled: bytes) -> list[bytes]:
    """Return the instructions in a part of a sentence; of a text's length only the low byte."""
    found = []
    while spelled:
        size = _BYTES.get(spelled[0], 1)
        found.append(spelled[:size])
        spelled = spelled[size:]
    return found


def _number(spelled: bytes) -> int:
    """Return the number of an instruction: an integer, or an index of the memo."""
    return int.from_bytes(spelled[1:], "little", signed=spelled[:1] == b"J")


def _row(instructions: list[bytes]) -> tuple[int, ...]:
    """Return the tuple that the instructions make, of sizes or strides."""
    *spelled, end = instructions
    if end == b")":
        return ()
    is_marked = spelled[0] == b"("
    sizes = tuple(map(_number, spelled[is_marked:]))
    # A shorter tuple leaves integers on the stack.
    is_whole = end == b"t" if is_marked else _LENGTHS.get(end) == len(sizes)
    if not is_whole or min(sizes, default=0) < 0:
        raise _UnusualError
    return sizes


class _Plan(NamedTuple):
    """Makers of the tensors of one wording, with the memo values that these read."""

    length: int  # of the storage's key
    make: Callable[[str], StorageRef]  # makes the storage by its key
    view: Callable[[StorageRef], TensorRef]  # makes the tensor of the storage
    wording: _Wording
    kind: str
    cls: GlobalRef
    device: str


# The items of a run, one behind the other, five values each: the key if it is spelled there, the
# plan, the storage's key, the storage, and the tensor; for a dict no plan, and the dict.
# A flat list: there are 100,000 of them.
_WIDTH = 5


def _entries(run: list[Any]) -> tuple[Any, ...]:
    """Return what the items of a run put into the memo; the empty tuple is no entry."""
    made: list[Any] = []
    for text, plan, key, storage, value in zip(*[iter(run)] * _WIDTH, strict=True):
        made += () if text is None else (text,)
        if plan is None:
            made.append(value)
            continue
        *_, wording, kind, cls, device = plan
        rows = (*wording.shape,), (*wording.strides,)
        hooks = NotedDict()
        args = storage, wording.offset, *rows, wording.requires_grad, hooks
        made += (key,) if type(wording.device) is int else (key, device)
        made += (kind, cls, key, device, wording.numel), *(rows if rows[0] else ())
        made += hooks, args, value
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

    # One loop, as in the machine: a call for each step would take half of the time.
    def read(  # noqa: C901, PLR0912, PLR0915
        self, window: bytes, at: int, stack: list[Any], marks: list[list[Any]], memo: Memo
    ) -> tuple[int, list[Any]]:
        """Follow the items from the MARK at ``at`` on.

        Returns:
            The offset behind the last item, and the stack there; 0 if there is none, or if it is to
            be read word by word. Then nothing has been done.
        """
        is_sentence = window.startswith(b"((", at)
        begin = _getter(window, at, stack, memo) if is_sentence else at + 1
        found = _ITEM.match(window, begin) if begin else None
        if found is None:
            return 0, stack
        known, fill = self._storages.known, self._builder.set_items
        plans: dict[tuple[bytes, ...], _Plan] = {}  # a run changes no entry that it reads
        run: list[Any] = []
        plan: _Plan | None
        name: str | None
        storage: StorageRef | None
        texts: dict[int, str] = {}  # the keys that are spelled, by their indices
        room = self._builder.budget.room_for_containers  # a tensor makes one, its hooks
        end, tensors, first = 0, 0, memo.free
        function = stack.pop() if is_sentence else None  # the first item gets it, as all do
        if not is_sentence:
            marks.append(stack)
            stack = []
        depth = len(marks)
        try:
            while found and tensors < room:
                (
                    closes, text, put_text, got, named, digits, put_key, device, put_device,
                    counted, put_id, viewed, put_sizes, strides, put_strides, flagged, put_hooks,
                    put_args, put_made, put_dict,
                ) = found.groups(b"")  # fmt: skip
                puts = b"".join(
                    (
                        put_text, put_key, put_device, put_id, put_sizes, put_strides, put_hooks,
                        put_args, put_made, put_dict,
                    )
                )  # fmt: skip
                if not run:
                    first = free = max(first, int.from_bytes(puts[:4], "little"))
                    numbers, place = _FEW(*range(free, free + 64)), 0
                elif place + _MOST_PUTS > len(numbers):
                    numbers, place = _MORE(*range(free, free + 4096)), 0
                if not numbers.startswith(puts, place):
                    break
                if closes and not _can_be_filled(marks, stack):
                    break
                key = _key(text, got, memo) if text or got else None
                if named:
                    spelled = named, device, counted, viewed, strides, flagged
                    plan = plans.get(spelled)
                    if plan is None:
                        plan = plans[spelled] = self._plan(spelled, memo)
                    name = digits.decode()
                    length, make, view = plan[:3]
                    if length != len(name):
                        break
                    storage = known.get(name)
                    if storage is None:
                        storage = known[name] = make(name)
                    value: Any = view(storage)
                    tensors += 1
                else:
                    plan = name = storage = None
                    value = {}
                if closes:
                    items, stack = stack, marks.pop()
                    if len(marks) >= depth:  # a dict of the run, which nobody else knows
                        stack[-1].update(zip(items[::2], items[1::2], strict=True))
                    else:
                        fill(stack[-1], items[::2], items[1::2])
                if key is not None:
                    stack.append(key)
                    if text:
                        texts[free] = key
                stack.append(value)
                if not named:
                    marks.append(stack)
                    stack = []
                run += (key if text else None, plan, name, storage, value)
                place += len(puts)
                free += len(puts) // 4
                end = found.end()
                found = _ITEM.match(window, end)
        except _ENDS_RUN:
            pass
        if run:
            memo.promise(first, free - first, (_entries, (run,)))
            memo.update(texts)
            self._builder.budget.count_containers(tensors)
        elif is_sentence:
            stack.append(function)
        else:
            stack = marks.pop()
        return end, stack

    def _plan(self, spelled: tuple[bytes, ...], memo: Memo) -> _Plan:
        """Return the values that a sentence reads, which have to be as torch writes them."""
        wording = self._wordings[spelled]
        function, kind, cls = map(memo.__getitem__, wording[:3])
        placed, hooks = wording.device, memo[wording.hooks_at]
        device: Any = memo[placed] if type(placed) is int else placed
        is_called = self._calls.get(id(function)) is _REBUILD and id(hooks) in self._calls
        is_text = type(kind) is type(device) is str and kind == "storage" and device != "meta"
        is_named = type(cls) is type(hooks) is GlobalRef and hooks.qualname == HOOKS
        if not (is_called and is_text and is_named) or wording.numel < 1:
            raise _UnusualError  # a storage without bytes is made anew each time
        dtype = storage_dtype(cls)
        make = self._storages.maker(dtype, device, wording.numel)
        return _Plan(wording.length, make, _viewer(wording, dtype), wording, kind, cls, device)


def _getter(window: bytes, at: int, stack: list[Any], memo: Memo) -> int:
    """Return the offset of the instruction that got the function on the stack; 0: there is none."""
    if not stack:
        return 0
    if at >= 2 and window[at - 2] == _BINGET and memo.get(window[at - 1]) is stack[-1]:
        return at - 2
    is_long = at >= 5 and window[at - 5] == _LONG_BINGET
    return at - 5 if is_long and memo.get(_number(window[at - 5 : at])) is stack[-1] else 0


def _key(text: bytes, got: bytes, memo: Memo) -> Any:
    """Return the key of an item, whatever it is.

    Raises:
        _UnusualError: it is a text of another length than it says.
    """
    if not text:
        return memo[_number(got)] if got[0] in _GETS else _number(got)
    if text[0] != len(text) - 4:
        raise _UnusualError
    return text[4:].decode()


def _can_be_filled(marks: list[list[Any]], items: list[Any]) -> bool:
    """Return whether items can be set in the dict below them, and no rule about keys is asked.

    The last item is a value, so there is one for each key if all keys are texts.
    """
    target = marks[-1][-1] if marks and marks[-1] else None
    keys = items[::2]
    return (
        type(target) is dict
        and not target
        and set(map(type, keys)) == {str}
        and len("".join(keys)) <= SHORT_KEY
        and len(set(keys)) == len(keys)
    )


def _viewer(wording: _Wording, usual: DType) -> Callable[[StorageRef], TensorRef]:
    """Return a function that returns the tensor of a storage, which is mostly all of it.

    The function raises _UnusualError if the tensor does not fit, or is of an unusual kind.
    """
    *_, offset, shape, strides, length, zeros, requires_grad = wording
    is_whole = not offset and _is_usual(usual, requires_grad=requires_grad)
    whole = length * usual.itemsize if is_whole else -1

    def view(storage: StorageRef) -> TensorRef:
        dtype, span = storage.dtype, storage.span
        if span is None or span[2] != whole or dtype is not usual or not whole:
            span = _part(storage, wording)
        return plain_tensor(
            dtype, span, zeros, shape, strides, storage.device, storage.byteorder, requires_grad
        )

    return view


def _part(storage: StorageRef, wording: _Wording) -> ByteSpan:
    """Return the bytes of a storage that a tensor has."""
    dtype, span = storage.dtype, storage.span
    start, nbytes = wording.offset * dtype.itemsize, wording.extent * dtype.itemsize
    if span is None or not span.nbytes or start < 0 or (nbytes and start + nbytes > span.nbytes):
        raise _UnusualError
    if not _is_usual(dtype, requires_grad=wording.requires_grad):
        raise _UnusualError
    return ByteSpan(span.source, span.offset + start, nbytes)


def _is_usual(dtype: DType, *, requires_grad: bool) -> bool:
    """Return whether a dtype has a value in each element, and the gradient that is asked for."""
    return dtype.kind != "quantized" and (dtype.is_floating or not requires_grad)
