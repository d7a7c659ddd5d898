r"""Pickle machine that follows the instructions and calls nothing that they name.

A pickle is a program for a stack machine. It pushes scalars, gathers them into containers, and
asks for Python objects by naming a class or function (``GLOBAL``) and calling it (``REDUCE`` and
its kin). This module runs that machine with inert values in place of the dangerous ones:

* a name becomes a :class:`~ckptool.tree.nodes.GlobalRef`;
* a call becomes whatever the given :class:`Builder` makes of it: by default an
  :class:`~ckptool.tree.nodes.Opaque` that holds the arguments as data;
* a persistent id (``torch`` stores its storages so) is handed to the builder too.

Nothing that a pickle names is looked up or imported. The imports of this module show that.

The opcodes are those of protocols 0 to 5 (https://docs.python.org/3/library/pickletools.html).
Rules of this reader, each with its reason:

* The loop is flat and tests the frequent opcodes first: a checkpoint that names 100,000 tensors
  has 1.6 million of them.
* Bytes are fetched in windows. An instruction that runs off the window's end is restarted with
  more bytes (its handler has changed nothing yet), so the loop checks no bounds. Runs of bytes over
  ``LONG_BYTES`` stay in the file as :class:`~ckptool.tree.nodes.BytesRef`, so that a plain pickle
  of 3 GB with the storages inside is read in constant memory.
* Every length is checked against the bytes that are left before anything is allocated.
* The memo is a dict, so that a huge index costs nothing.
* ``EXT`` codes name classes through a registry in the loading process; here each code is a name of
  its own.
"""

from __future__ import annotations

import gc
from codecs import escape_decode
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any, Protocol

from ckptool.errors import DamagedError
from ckptool.formats.pickles.budget import Budget, WorkError
from ckptool.formats.pickles.memo import Memo
from ckptool.sources.base import ByteSpan, Source
from ckptool.tree.nodes import BytesRef, GlobalRef, Opaque, SpannedBytes

WINDOW = 1 << 20  # bytes fetched at a time
BETWEEN = 1 << 14  # bytes fetched behind a run that stays in the file: more such runs may follow
LONG_BYTES = 1 << 16  # a bytes object longer than this is left in the file
MAX_STACK = 1 << 23  # values; picklers put at most a thousand there, and the items of a tuple
MAX_MARKS = 1 << 20
MAX_SELDOM = 1 << 23  # rare instructions; the frequent ones of ordinary pickles are not counted
# The rare instructions that torch's safe loader knows: SETITEM, APPEND, BUILD, NEWOBJ, NONE,
# BINFLOAT, GLOBAL, LONG1, SHORT_BINSTRING, PROTO, STOP, EMPTY_SET.
SAFE_SELDOM = frozenset(b"sab\x81NGc\x8aU\x80.\x8f")
MAX_NAMES = 1 << 16  # classes and functions; a model of many parts has hundreds
MAX_MEMO = 1 << 24  # the largest memo index that Python's unpickler has memory for
MAX_ARGS = 1 << 10  # arguments of a call that are given as something else than a tuple
MAX_OBJECTIONS = 8
EXTENSION = "extension "  # and a code: the name of a class that a registry knows
LONG_INTEGER = 1 << 12  # digits of a decimal integer; Python's own limit is 4300

_INT32 = Struct("<i").unpack_from
_UINT16 = Struct("<H").unpack_from
_UINT32 = Struct("<I").unpack_from
_UINT64 = Struct("<Q").unpack_from
_DOUBLE = Struct(">d").unpack_from


class Sentences(Protocol):
    """Reader of several instructions at once, with the outcome that each by itself has."""

    def read(
        self, window: bytes, at: int, stack: list[Any], marks: list[list[Any]], memo: Memo
    ) -> tuple[int, list[Any]]:
        """Return the offset behind what was read from ``at`` on, and the stack there.

        The offset is 0 if nothing was done.
        """


class Builder:
    """Maker of the values for names, calls and persistent ids; this one leaves all of them inert.

    The arguments of its methods are complete values, except that the contents of containers and the
    state of objects may still change while the pickle is being read (pickles hold cycles).
    """

    sentences: Sentences | None = None

    def __init__(self) -> None:
        self.budget = Budget()  # of all pickles of the file, where it has several
        self.objections: list[str] = []  # followed here, but refused by every loader
        self.has_python2_bytes = False  # strings of Python 2 that are no UTF-8

    def object_to(self, what: str) -> None:
        """Note that Python's unpickler and torch's refuse an instruction; only the first few."""
        if len(self.objections) < MAX_OBJECTIONS:
            self.objections.append(what)

    def set_items(self, target: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
        """Set items of a dict (SETITEM, SETITEMS, DICT), within the budget."""
        self.budget.set_items(target, keys, values)

    def add(self, target: set[Any], keys: list[Any]) -> None:
        """Add elements to a set (ADDITEMS, FROZENSET), within the budget."""
        self.budget.add(target, keys)

    def append(self, target: list[Any], values: list[Any]) -> None:
        """Append elements to a list (APPEND, APPENDS)."""
        target.extend(values)

    def read_sentence(
        self, window: bytes, at: int, stack: list[Any], marks: list[list[Any]], memo: Memo
    ) -> tuple[int, list[Any]]:
        """Follow several instructions at once, from the MARK at ``at`` on.

        Returns:
            The offset behind them in the window, and the stack there; 0 if nothing was done.
        """
        if self.sentences is None:
            return 0, stack
        return self.sentences.read(window, at, stack, marks, memo)

    def finish(self, tree: Any) -> None:
        """Look over the tree once it is complete; this builder accepts any."""

    def call(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Return the value for ``func(*args)`` (REDUCE, OBJ, INST)."""
        return Opaque(name_of(func), args, called=True)

    def new(self, cls: Any, args: tuple[Any, ...], kwargs: dict[Any, Any] | None) -> Any:
        """Return the value for ``cls.__new__(cls, *args, **kwargs)`` (NEWOBJ has no ``kwargs``)."""
        return Opaque(name_of(cls), args, kwargs or {})

    def build(self, obj: Any, state: Any) -> Any:
        """Apply ``obj.__setstate__(state)`` (BUILD); return the object to go on with."""
        if isinstance(obj, Opaque):
            obj.state = state
        elif isinstance(obj, _STATELESS) and state is not None:
            self.object_to(f"a state is set on a {type(obj).__name__}, which has none")
        return obj

    def persistent(self, saved_id: Any) -> Any:
        """Return the value for ``persistent_load(saved_id)``."""
        self.object_to("a persistent id, which nothing in the file answers to")
        return Opaque("<persistent id>", (saved_id,))

    def integer(self, line: bytes) -> int:
        """Return the integer of INT; C reads one with leading zeros as octal, and so does torch."""
        if line.strip().lstrip(b"+-")[:1] == b"0" and int(line):
            said = f"the integer {line!r:.40} has leading zeros, which C reads as octal"
            raise DamagedError(said)
        return _decimal(line)

    def long(self, line: bytes) -> int:
        """Return the integer of LONG."""
        return _decimal(line.removesuffix(b"L"))

    def real(self, line: bytes) -> float:
        """Return the number of FLOAT."""
        return float(line)

    def items_of(self, target: Any) -> dict[Any, Any]:
        """Return the dict that takes ``target[key] = value`` (SETITEM, SETITEMS)."""
        if isinstance(target, Opaque):
            target.items = target.items if target.items is not None else {}
            return target.items
        if isinstance(target, GlobalRef):  # os.environ: there is no object here to keep it
            return {}
        raise DamagedError(f"items are set on a {type(target).__name__}")

    def elements_of(self, target: Any, how: str) -> list[Any]:
        """Return the list that takes ``target.append(value)`` (APPEND, APPENDS, ADDITEMS)."""
        if isinstance(target, Opaque):
            target.elements = target.elements if target.elements is not None else []
            return target.elements
        if isinstance(target, GlobalRef):  # sys.path
            return []
        raise DamagedError(f"elements are {how} to a {type(target).__name__}")


_STATELESS = (list, dict, tuple, set, frozenset, str, bytes, bytearray, int, float, complex,
              type(None), BytesRef)  # fmt: skip


def is_extension(ref: GlobalRef) -> bool:
    """Return whether a name stands for an ``EXT`` code, which the loading process would look up."""
    return ref.module == "copyreg" and ref.name.startswith(EXTENSION)


def name_of(func: Any) -> str:
    """Return the name of a callable; a computed one is named by the function that computed it."""
    if isinstance(func, GlobalRef):
        return func.qualname
    if isinstance(func, Opaque):
        name = func.qualname  # calls of calls of calls keep the first one's name
        return name if name.startswith("<") else f"<result of {name}>"
    return f"<{type(func).__name__}>"


class PickleMachine:
    """Machine that follows one pickle from ``offset`` on.

    After :meth:`run`, ``end`` is the offset behind its STOP (concatenated pickles go on there) and
    ``globals`` maps every name in it to the offset of the first mention.
    """

    def __init__(
        self,
        source: Source,
        offset: int = 0,
        builder: Builder | None = None,
        *,
        window: int = WINDOW,
    ) -> None:
        self.source = source
        # Bytes fetched at a time: fewer for short pickles in front of much data.
        self.window = window
        self.start = self.end = offset
        self.builder = builder or Builder()
        self.globals: dict[GlobalRef, int] = {}
        self.is_later = False  # it has instructions that torch's safe loader does not know
        self._frame_end = 0  # of the frame in which the window lies; 0: in none
        self._was_framed = False
        self._interned: dict[tuple[str, str], GlobalRef] = {}

    def run(self) -> Any:
        """Return the value that the pickle describes.

        Raises:
            DamagedError: the bytes are no pickle, or it ends before its STOP.
        """
        self.builder.budget.begin_memory(self.source.size)
        with collection_paused():
            return self._run()

    # The loop below is long on purpose: see the module's docstring.
    def _run(self) -> Any:  # noqa: C901, PLR0912, PLR0915
        base = self.start  # offset of window[0] in the source
        window = self._fetch(base, self.window)
        stack: list[Any] = []
        memo = Memo()
        marks: list[list[Any]] = []  # the stacks below each MARK
        builder = self.builder
        read_sentence = builder.read_sentence
        i = begin = seldom = 0
        allowed = MAX_SELDOM
        is_later = False
        while True:
            begin = i
            try:
                op = window[i]
                i += 1
                if op == 0x72:  # LONG_BINPUT
                    (index,) = _UINT32(window, i)
                    memo[index] = stack[-1]
                    if index >= memo.free:
                        memo.free = index + 1
                    i += 4
                elif op == 0x68:  # BINGET
                    stack.append(memo[window[i]])
                    i += 1
                elif op == 0x4B:  # BININT1
                    stack.append(window[i])
                    i += 1
                elif op == 0x58:  # BINUNICODE
                    start = i + 4
                    i = self._need(window, base, start + _UINT32(window, i)[0])
                    stack.append(_text(window[start:i]))
                elif op == 0x28:  # MARK
                    end, stack = read_sentence(window, begin, stack, marks, memo)
                    if end:
                        i = end
                    else:
                        marks.append(stack)
                        stack = []
                elif op == 0x74:  # TUPLE
                    items, stack = stack, marks.pop()
                    stack.append(tuple(items))
                elif op == 0x52:  # REDUCE
                    args = stack.pop()
                    if type(args) is not tuple:
                        builder.object_to("a function is called with something else than a tuple")
                    stack[-1] = builder.call(stack[-1], _args(args))
                elif op == 0x51:  # BINPERSID
                    stack[-1] = builder.persistent(stack[-1])
                elif op == 0x29:  # EMPTY_TUPLE
                    stack.append(())
                elif op == 0x89:  # NEWFALSE
                    stack.append(False)
                elif op == 0x85:  # TUPLE1
                    stack[-1] = (stack[-1],)
                elif op == 0x86:  # TUPLE2
                    stack[-2:] = [(stack[-2], stack[-1])]
                elif op == 0x6A:  # LONG_BINGET
                    stack.append(memo[_UINT32(window, i)[0]])
                    i += 4
                elif op == 0x71:  # BINPUT
                    memo[window[i]] = stack[-1]
                    i += 1
                elif op == 0x4D:  # BININT2
                    stack.append(_UINT16(window, i)[0])
                    i += 2
                elif op == 0x94:  # MEMOIZE
                    is_later = True
                    memo.add(stack[-1])
                elif op == 0x8C:  # SHORT_BINUNICODE
                    is_later = True
                    start = i + 1
                    i = self._need(window, base, start + window[i])
                    stack.append(_text(window[start:i]))
                elif op == 0x87:  # TUPLE3
                    stack[-3:] = [(stack[-3], stack[-2], stack[-1])]
                elif op == 0x88:  # NEWTRUE
                    stack.append(True)
                elif op == 0x4A:  # BININT
                    stack.append(_INT32(window, i)[0])
                    i += 4
                elif op == 0x7D:  # EMPTY_DICT
                    stack.append({})
                elif op == 0x5D:  # EMPTY_LIST
                    stack.append([])
                elif op == 0x75:  # SETITEMS
                    items, stack = stack, marks.pop()
                    _set_items(stack[-1], items, builder)
                elif op == 0x65:  # APPENDS
                    items, stack = stack, marks.pop()
                    _append(stack[-1], items, builder)
                elif (seldom := seldom + 1) > allowed:  # no pickler writes so many of the rest
                    raise WorkError("a program of instructions that make nothing")
                elif not is_later and op not in SAFE_SELDOM:
                    is_later, i = True, begin  # the next turn follows the instruction
                elif op == 0x73:  # SETITEM
                    value = stack.pop()
                    key = stack.pop()
                    _set_items(stack[-1], [key, value], builder)
                elif op == 0x61:  # APPEND
                    value = stack.pop()
                    _append(stack[-1], [value], builder)
                elif op == 0x62:  # BUILD
                    state = stack.pop()
                    stack[-1] = builder.build(stack[-1], state)
                elif op == 0x81:  # NEWOBJ
                    args = stack.pop()
                    if type(args) is not tuple:
                        builder.object_to("an object is made from something else than a tuple")
                    stack[-1] = builder.new(stack[-1], _args(args), None)
                elif op == 0x4E:  # NONE
                    stack.append(None)
                elif op == 0x47:  # BINFLOAT
                    stack.append(_DOUBLE(window, i)[0])
                    i += 8
                elif op == 0x63:  # GLOBAL
                    module, i = _line(window, i)
                    name, i = _line(window, i)
                    stack.append(self._global(_text(module), _text(name), base + begin))
                elif op == 0x93:  # STACK_GLOBAL
                    name = stack.pop()
                    stack[-1] = self._global(stack[-1], name, base + begin)
                elif op == 0x8A:  # LONG1
                    start = i + 1
                    i = self._need(window, base, start + window[i])
                    stack.append(int.from_bytes(window[start:i], "little", signed=True))
                elif op == 0x95:  # FRAME
                    (length,) = _UINT64(window, i)
                    i += 8
                    if base + i + length > self.source.size:
                        builder.object_to(f"a frame of {length} bytes, more than the pickle has")
                    elif base + i < self._frame_end:
                        builder.object_to("a frame inside another")
                    else:  # the window ends with the frame, so that nothing reaches over its end
                        base, i = base + i, 0
                        self._frame_end = base + length
                        window = self._fetch(base, min(self.window, length))
                elif op == 0x80:  # PROTO
                    if window[i] > 5:
                        raise DamagedError(f"pickle protocol {window[i]} is not known")
                    i += 1
                elif op == 0x2E:  # STOP
                    self.end, self.is_later = base + i, is_later
                    self._check_memo(memo)
                    tree = stack.pop()  # what lies below is ignored, as every loader does
                    builder.finish(tree)
                    return tree
                elif op in _BYTES_LENGTH:  # BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8
                    read, width = _BYTES_LENGTH[op]
                    (nbytes,) = read(window, i)
                    start = i + width
                    if nbytes <= LONG_BYTES:
                        i = self._need(window, base, start + nbytes)
                        span = self.source.span(base + start, nbytes)
                        stack.append(SpannedBytes.at(window[start:i], span))
                    else:
                        stack.append(BytesRef(self._span(base + start, nbytes)))
                        base, i = base + start + nbytes, 0
                        window = self._fetch(base, min(self.window, BETWEEN))
                elif op == 0x8D:  # BINUNICODE8
                    start = i + 8
                    i = self._need(window, base, start + _UINT64(window, i)[0])
                    stack.append(_text(window[start:i]))
                elif op in _STRING_LENGTH:  # BINSTRING, SHORT_BINSTRING
                    read, width = _STRING_LENGTH[op]
                    (nbytes,) = read(window, i)
                    start = i + width
                    i = self._need(window, base, start + nbytes)
                    stack.append(self._python2(window[start:i]))
                elif op == 0x8B:  # LONG4
                    start = i + 4
                    i = self._need(window, base, start + _UINT32(window, i)[0])
                    stack.append(int.from_bytes(window[start:i], "little", signed=True))
                elif op == 0x8F:  # EMPTY_SET
                    stack.append(set())
                elif op == 0x90:  # ADDITEMS
                    items, stack = stack, marks.pop()
                    _add(stack[-1], items, builder)
                elif op == 0x91:  # FROZENSET
                    items, stack = stack, marks.pop()
                    elements: set[Any] = set()
                    builder.add(elements, items)
                    stack.append(frozenset(elements))
                elif op == 0x92:  # NEWOBJ_EX
                    kwargs = stack.pop()
                    args = stack.pop()
                    stack[-1] = builder.new(stack[-1], _args(args), _kwargs(kwargs))
                elif op == 0x64:  # DICT
                    items, stack = stack, marks.pop()
                    made: dict[Any, Any] = {}
                    _set_items(made, items, builder)
                    stack.append(made)
                elif op == 0x6C:  # LIST
                    items, stack = stack, marks.pop()
                    stack.append(items)
                elif op == 0x30:  # POP
                    if stack:
                        stack.pop()
                    else:  # the MARK itself
                        stack = marks.pop()
                elif op == 0x31:  # POP_MARK
                    stack = marks.pop()
                elif op == 0x32:  # DUP
                    stack.append(stack[-1])
                elif op == 0x67:  # GET
                    line, i = _line(window, i)
                    stack.append(memo[_decimal(line)])
                elif op == 0x70:  # PUT
                    line, i = _line(window, i)
                    memo.store(_decimal(line), stack[-1])
                elif op == 0x49:  # INT
                    line, i = _line(window, i)
                    stack.append(_BOOLEANS[line] if line in _BOOLEANS else builder.integer(line))
                elif op == 0x4C:  # LONG
                    line, i = _line(window, i)
                    stack.append(builder.long(line))
                elif op == 0x46:  # FLOAT
                    line, i = _line(window, i)
                    stack.append(builder.real(line))
                elif op == 0x53:  # STRING
                    line, i = _line(window, i)
                    stack.append(self._python2(_quoted(line)))
                elif op == 0x56:  # UNICODE
                    line, i = _line(window, i)
                    stack.append(line.decode("raw-unicode-escape"))
                elif op == 0x50:  # PERSID
                    line, i = _line(window, i)
                    stack.append(builder.persistent(_text(line)))
                elif op == 0x69:  # INST
                    module, i = _line(window, i)
                    name, i = _line(window, i)
                    args, stack = stack, marks.pop()
                    func = self._global(_text(module), _text(name), base + begin)
                    stack.append(builder.call(func, tuple(args)))
                elif op == 0x6F:  # OBJ
                    items, stack = stack, marks.pop()
                    stack.append(builder.call(items[0], tuple(items[1:])))
                elif op in _EXT:
                    (code,) = _EXT[op].unpack_from(window, i)
                    i += _EXT[op].size
                    stack.append(self._global("copyreg", f"{EXTENSION}{code}", base + begin))
                elif op == 0x97:  # NEXT_BUFFER
                    stack.append(Opaque("<out-of-band buffer>"))
                elif op != 0x98:  # READONLY_BUFFER changes nothing
                    raise DamagedError(f"byte 0x{op:02x} is no pickle instruction")
            except _ShortError as short:
                allowed = self._allow(base + begin, stack, marks)
                self._leave_frame(base + begin, base + short.end)
                base, i = base + begin, 0
                window = self._fetch(base, max(self.window, short.end - begin))
            except (StructError, IndexError, ValueError, TypeError, KeyError) as error:
                if _ran_off(error, window, i) and base + len(window) < self.source.size:
                    allowed = self._allow(base + begin, stack, marks)
                    self._leave_frame(base + begin, base + len(window) + 1)
                    more = max(self.window, len(window) - begin)  # doubling: a line may be long
                    more = BETWEEN if begin == len(window) and self._was_framed else more
                    base, i, more = base + begin, 0, len(window) - begin + more
                    window = self._fetch(base, more)
                    continue
                raise self._broken(error, base + begin, window, i) from error
            except DamagedError as error:
                error.add(f" (at byte {base + begin} of the pickle)")
                raise

    def _leave_frame(self, begin: int, end: int) -> None:
        """Note an instruction whose bytes, ``begin`` to ``end``, reach over a frame's end.

        Python's unpickler then drops the rest of the frame. It goes on with other bytes than a
        reader that takes frames for hints, so names could be hidden this way.
        """
        if begin < self._frame_end < end:
            self.builder.object_to("an instruction that reaches over the end of its frame")
        self._was_framed = self._frame_end > 0
        if self._frame_end < end:
            self._frame_end = 0

    def _check_memo(self, memo: Memo) -> None:
        """Note a bad index: Python's unpickler has the memo in an array as long as the largest."""
        lowest, highest = memo.bounds
        if lowest < 0 or highest > max(MAX_MEMO, self.end):
            index = lowest if lowest < 0 else highest
            self.builder.object_to(f"a memo entry with the index {index}")

    def _python2(self, data: bytes) -> str | bytes:
        text = _text_or_bytes(data)
        if type(text) is bytes:
            self.builder.has_python2_bytes = True
        return text

    def _allow(self, at: int, stack: list[Any], marks: list[list[Any]]) -> int:
        """Return how many rare instructions there may be up to ``at``; called at each window.

        Raises:
            DamagedError: the pickle takes more memory than any useful one does.
        """
        if len(stack) > MAX_STACK or len(marks) > MAX_MARKS:
            raise WorkError("a program that only piles up values")
        self.builder.budget.check_memory(self.source.size)
        return MAX_SELDOM + (at - self.start) // 4

    def _fetch(self, offset: int, nbytes: int) -> bytes:
        end = self._frame_end if offset < self._frame_end else self.source.size
        return self.source.read(offset, min(nbytes, end - offset))

    def _need(self, window: bytes, base: int, end: int) -> int:
        """Return ``end`` if the window reaches it; else restart the instruction with more bytes."""
        if end <= len(window):
            return end
        if base + end > self.source.size:
            missing = base + end - self.source.size
            raise DamagedError(f"truncated: the pickle wants {missing} bytes more than there are")
        raise _ShortError(end)

    def _span(self, offset: int, nbytes: int) -> ByteSpan:
        if offset + nbytes > self.source.size:
            missing = offset + nbytes - self.source.size
            raise DamagedError(f"truncated: the pickle wants {missing} bytes more than there are")
        return self.source.span(offset, nbytes)

    def _global(self, module: Any, name: Any, offset: int) -> GlobalRef:
        if not isinstance(module, str) or not isinstance(name, str):
            # A name computed by the pickle itself. A loader would fail here or be tricked.
            module, name = f"<{type(module).__name__}>", f"<{type(name).__name__}>"
        ref = self._interned.get((module, name))
        if ref is None:
            if len(self.globals) == MAX_NAMES:
                raise WorkError(f"a program that names more than {MAX_NAMES} classes")
            ref = self._interned[module, name] = GlobalRef(module, name)
            self.globals[ref] = offset
        return ref

    def _broken(self, error: Exception, offset: int, window: bytes, i: int) -> DamagedError:
        if _ran_off(error, window, i):
            return DamagedError(f"truncated: the pickle ends at byte {offset} without its STOP")
        return DamagedError(f"not a valid pickle at byte {offset}: {_why(error)}")


class _ShortError(Exception):
    """Error of an instruction that needs the window to reach ``end``."""

    def __init__(self, end: int) -> None:
        super().__init__(end)
        self.end = end


class _NoLineError(IndexError):
    """Error of a line without a newline in the rest of the window."""


_BOOLEANS = {b"00": False, b"01": True}
_EXT = {0x82: Struct("<B"), 0x83: Struct("<H"), 0x84: Struct("<i")}
_UINT8 = Struct("<B").unpack_from
_BYTES_LENGTH = {0x42: (_UINT32, 4), 0x43: (_UINT8, 1), 0x8E: (_UINT64, 8), 0x96: (_UINT64, 8)}
_STRING_LENGTH = {0x54: (_UINT32, 4), 0x55: (_UINT8, 1)}


def _ran_off(error: Exception, window: bytes, i: int) -> bool:
    """Return whether an instruction failed because its bytes go on behind the window."""
    return isinstance(error, (_NoLineError, StructError)) or (
        isinstance(error, IndexError) and i >= len(window)
    )


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"memo entry {error.args[0]} was never stored"
    return {IndexError: "the stack is empty", TypeError: str(error)}.get(type(error), str(error))


def _set_items(target: Any, items: list[Any], builder: Builder) -> None:
    if len(items) % 2:
        raise DamagedError("a dict is given a key without a value")
    if not isinstance(target, dict):
        target = builder.items_of(target)
    builder.set_items(target, items[::2], items[1::2])


def _append(target: Any, items: list[Any], builder: Builder) -> None:
    if not isinstance(target, list):
        target = builder.elements_of(target, "appended")
    builder.append(target, items)


def _add(target: Any, items: list[Any], builder: Builder) -> None:
    if isinstance(target, set):
        builder.add(target, items)
    else:
        builder.append(builder.elements_of(target, "added"), items)


def _args(args: Any) -> tuple[Any, ...]:
    """Return the arguments of a call; torch's safe loader takes them from any container.

    What cannot be spread is kept as the only argument.
    """
    if type(args) is tuple:
        return args
    is_row = isinstance(args, (list, tuple, dict, set, frozenset)) and len(args) <= MAX_ARGS
    return tuple(args) if is_row else (args,)


def _kwargs(kwargs: Any) -> dict[Any, Any]:
    return kwargs if isinstance(kwargs, dict) else {"**": kwargs}


def _line(window: bytes, i: int) -> tuple[bytes, int]:
    end = window.find(b"\n", i)
    if end < 0:
        raise _NoLineError
    return window[i:end], end + 1


def _decimal(line: bytes) -> int:
    if len(line) > LONG_INTEGER:
        raise DamagedError(f"a decimal integer of {len(line)} digits")
    return int(line)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _text_or_bytes(data: bytes) -> str | bytes:
    """Return a Python 2 string as text, as most are; bytes that are no UTF-8 stay bytes."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def _quoted(line: bytes) -> bytes:
    r"""Return the bytes in a repr of protocol 0: ``'a\\x00b'``."""
    line = line.strip()
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
        raise DamagedError("a quoted string has no quotes")
    escaped: bytes = escape_decode(line[1:-1])[0]  # of bytes: Unicode escapes stay as they are
    return escaped


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause garbage collection: a pickle makes a million objects and frees none of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
