"""A pickle without some items of its dicts, instruction for instruction as it was.

A pickle builds each value by a run of instructions, and the runs are nested as the values are. So
an item of a dict is a run too: from its key to the next key. That run is cut out. A pickler
describes a shared value (a class, a text, a container) where it first meets it, and refers to the
memo from then on. So what stays may refer to a description that was cut out. The description is
then moved to the first such reference. Shared values stay shared, and classes stay as they are.

Only what picklers write is cut. Programs that copy or drop values of the stack, or that change a
value by way of the memo, are refused.
"""

from __future__ import annotations

import pickletools
from array import array
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ckptool.errors import AddressError, UnsupportedError
from ckptool.writers.pickle_writer import fetched, memorized

Run = tuple[int, int]  # numbers of instructions: from, to
MAX_PICKLE = 8 << 20  # bytes
MAX_VALUES = 1 << 20  # in the memo, and on the stack: each takes some hundred bytes of memory here
MAX_PLACE = (1 << 32) - 1  # of the memo
NO_PLACE = -1
OTHERWISE = "load and save it again with torch, without these parts"


def without_items(pickle: bytes, dropped: Sequence[tuple[str, ...]]) -> bytes:
    """Return the pickle without the items at these key paths.

    Raises:
        AddressError: there is no item of a dict there, or not one of its own.
        UnsupportedError: the program is not one of a pickler, or it is too long.
    """
    if len(pickle) > MAX_PICKLE:
        raise UnsupportedError(f"a pickle of {len(pickle):,} bytes", hint=OTHERWISE)
    program = _Program(pickle, {key for path in dropped for key in path})
    return _Cut(pickle, program, [program.run_of(path) for path in dropped]).result()


@dataclass(slots=True, eq=False)
class _Value:
    """A value on the stack, and the run of instructions that makes it."""

    begin: int
    end: int
    text: str | None = None  # of a text, which may be a key
    is_shared: bool = False  # fetched from the memo
    items: dict[str, tuple[Run, _Value] | None] | None = None  # of a dict; None: a key set twice


class _Program:
    """The runs of all values in a pickle, found by following its stack without making any value."""

    def __init__(self, pickle: bytes, keys: Collection[str]) -> None:
        self._keys = keys  # that matter: the items of others are not noted
        self.offsets = array("I")  # of each instruction, and of the end
        self.places = array("q")  # of the memo, that each instruction fills or fetches; or NO_PLACE
        self.described: dict[int, _Value] = {}  # place of the memo -> its value
        self._stack: list[_Value] = []
        self._marks: list[Run] = []  # (values under the mark, instruction)
        try:
            for op, arg, at in pickletools.genops(pickle):
                self.offsets.append(at or 0)
                self.places.append(NO_PLACE)
                self._follow(op.name, arg, len(self.offsets) - 1)
        except (ValueError, UnicodeError) as error:
            raise _unusual("cannot be read") from error
        self.offsets.append(len(pickle))
        if len(self._stack) != 1 or self._marks:
            raise _unusual("leaves values on the stack")

    def run_of(self, path: tuple[str, ...]) -> Run:
        """Return the run of the item at a key path.

        Raises:
            AddressError: there is none, or it is shared with another place, or set twice.
        """
        (value,), run = self._stack, (0, 0)
        for at, key in enumerate(path):
            found = (value.items or {}).get(key)
            if found is None or value.is_shared:
                raise AddressError(
                    "no item of a dict of its own, so it cannot be left out",
                    address="/".join(path[: at + 1]),
                )
            run, value = found
        return run

    def _follow(self, name: str, arg: Any, at: int) -> None:
        """Follow one instruction."""
        if name in _PUSH:
            self._stack.append(_Value(at, at + 1, text=arg if name in _TEXTS else None))
        elif name in _GETS:
            self._fetch(int(arg), at)
        elif name in _PUTS:
            self._memorize(len(self.described) if name == "MEMOIZE" else int(arg), at)
        elif name in _TAKE:
            taken = self._pop(_TAKE[name])
            self._stack.append(_Value(taken[0].begin, at + 1))
        elif name in _FROM_MARK:
            begin, _ = self._pop_to_mark()
            self._stack.append(_Value(begin, at + 1))
        elif name in _INTO:
            self._change(name, at)
        elif name == "MARK":
            self._marks.append((len(self._stack), at))
        elif name not in _NOTHING:
            raise _unusual(f"uses {name}")
        if max(len(self._stack), len(self.described)) > MAX_VALUES:
            raise _unusual(f"holds more than {MAX_VALUES:,} values at once")

    def _fetch(self, place: int, at: int) -> None:
        found = self.described.get(place)
        if found is None:
            raise _unusual("refers to nothing in the memo")
        self.places[at] = place
        self._stack.append(_Value(at, at + 1, text=found.text, is_shared=True))

    def _memorize(self, place: int, at: int) -> None:
        value = self._pop(1)[0]
        if place in self.described or value.is_shared or not 0 <= place <= MAX_PLACE:
            raise _unusual("fills a place of the memo twice")
        self.places[at], self.described[place] = place, value
        value.end = at + 1
        self._stack.append(value)

    def _pop(self, count: int) -> list[_Value]:
        under = self._marks[-1][0] if self._marks else 0
        if len(self._stack) - under < count:
            raise _unusual("takes more values than there are")
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _pop_to_mark(self) -> tuple[int, list[_Value]]:
        """Return the instruction of the last mark, and the values above it."""
        if not self._marks:
            raise _unusual("misses a mark")
        under, at = self._marks.pop()
        taken = self._stack[under:]
        del self._stack[under:]
        return at, taken

    def _change(self, name: str, at: int) -> None:
        """Take values from the stack into the container or object under them."""
        count = _INTO[name]
        values = self._pop(count) if count else self._pop_to_mark()[1]
        holder = self._pop(1)[0]
        if holder.is_shared:
            raise _unusual("changes a value by way of the memo")
        if name in _SETTERS:
            self._set_items(holder, values, at + 1 if count else at)
        holder.end = at + 1
        self._stack.append(holder)

    def _set_items(self, holder: _Value, values: Sequence[_Value], last: int) -> None:
        """Note the run of each item: up to the key of the next one, or to ``last``."""
        keys = values[::2]
        ends = [*(key.begin for key in keys[1:]), last]
        if len(values) % 2:
            raise _unusual("sets a key without a value")
        for key, value, end in zip(keys, values[1::2], ends, strict=True):
            if key.text is not None and key.text in self._keys:
                holder.items = {} if holder.items is None else holder.items
                is_new = key.text not in holder.items
                holder.items[key.text] = ((key.begin, end), value) if is_new else None


class _Cut:
    """The program without some runs, and with descriptions where they are needed."""

    def __init__(self, pickle: bytes, program: _Program, runs: Sequence[Run]) -> None:
        self._pickle, self._program, self._runs = pickle, program, sorted(runs)
        # The descriptions that were moved: begin -> (end, place).
        self._moved: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._filled: set[int] = set()  # places of the memo that the output fills
        self._output = bytearray()

    def result(self) -> bytes:
        at = 0
        for begin, end in self._runs:
            self._copy(at, begin)
            at = max(at, end)
        self._copy(at, len(self._program.offsets) - 1)
        return bytes(self._output)

    def _copy(self, begin: int, end: int) -> None:
        """Copy instructions; instead of a reference to nothing, copy the description."""
        waiting = [(begin, end)]
        while waiting:
            at, end = waiting.pop()
            if at >= end:
                continue
            known = self._filled_from(at, end)
            if known is not None:  # it was moved to an earlier place
                after, place = known
                self._output += fetched(place)
                waiting.append((after, end))
                continue
            waiting.append((at + 1, end))
            place = self._program.places[at]
            start, after = self._program.offsets[at : at + 2]
            is_fetched = self._pickle[start] in _FETCHES
            if is_fetched and place not in self._filled:
                value = self._program.described[place]
                self._moved[value.begin].append((value.end, place))
                waiting.append((value.begin, value.end))
            elif is_fetched:
                self._output += fetched(place)
            elif place != NO_PLACE:
                self._filled.add(place)
                self._output += memorized(place)
            elif self._pickle[start] != _FRAME:
                self._output += self._pickle[start:after]

    def _filled_from(self, at: int, end: int) -> tuple[int, int] | None:
        """Return the end and the place of the longest run from here that was copied already."""
        known = [
            (after, place)
            for after, place in self._moved.get(at, ())
            if after <= end and place in self._filled
        ]
        return max(known, default=None)


_FRAME = 0x95  # announces the length of what follows, which is another now
_FETCHES = b"ghj"  # GET, BINGET, LONG_BINGET


def _unusual(how: str) -> UnsupportedError:
    return UnsupportedError(f"no pickler wrote this pickle: it {how}", hint=OTHERWISE)


# The instructions by what they do to the stack (https://docs.python.org/3/library/pickletools.html).
_TEXTS = frozenset({"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"})
_PUSH = _TEXTS | {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "NONE", "NEWTRUE", "NEWFALSE",
    "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT", "EMPTY_SET", "GLOBAL",
    "EXT1", "EXT2", "EXT4", "PERSID",
}  # fmt: skip
_TAKE = {  # values that become one
    "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3,
    "STACK_GLOBAL": 2, "BINPERSID": 1,
}  # fmt: skip
_FROM_MARK = frozenset({"LIST", "TUPLE", "DICT", "FROZENSET", "INST", "OBJ"})
_INTO = {  # values that go into the one under them; 0: all above the mark
    "APPEND": 1, "SETITEM": 2, "BUILD": 1, "APPENDS": 0, "SETITEMS": 0, "ADDITEMS": 0,
}  # fmt: skip
_SETTERS = frozenset({"SETITEM", "SETITEMS"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_NOTHING = frozenset({"PROTO", "FRAME", "STOP"})
