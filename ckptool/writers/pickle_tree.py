"""A pickle of protocol 2 of what ``formats/pickles/literal.py`` reads, written without ``pickle``.

Values that are one object stay one. Sets are sorted, so that the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import pack
from typing import Any

from ckptool.errors import UnsupportedError
from ckptool.formats.pickles.literal import Made, Persisted
from ckptool.tree.nodes import BytesRef, GlobalRef
from ckptool.writers.pickle_writer import fetched, memorized, text_of

MAX_LEVELS = 100  # of values in values; each takes a few levels of Python's stack


def pickled(tree: Any) -> bytes:
    """Return the pickle.

    Raises:
        UnsupportedError: values are nested too deep, or of a kind that the reader does not make.
    """
    return _Pickler().whole(tree)


class _Pickler:
    def __init__(self) -> None:
        self._out = bytearray(b"\x80\x02")
        self._places: dict[Any, int] = {}  # of the memo: by the value of texts and names, or by id
        self._kept: list[Any] = []  # so that no id is given to another object
        self._open: set[int] = set()  # tuples that are being written
        self._levels = 0

    def whole(self, tree: Any) -> bytes:
        self._value(tree)
        return bytes(self._out) + b"."

    def _value(self, value: Any) -> None:
        kind = type(value)
        if kind in _SCALARS:
            self._out += _SCALARS[kind](value)
            return
        key = value if kind in {str, GlobalRef} else id(value)
        if key in self._places:
            self._out += fetched(self._places[key])
            return
        self._levels += 1
        if self._levels > MAX_LEVELS:
            raise UnsupportedError(f"values in more than {MAX_LEVELS} levels of containers")
        if kind is str:
            self._out += text_of(value)
        elif kind is GlobalRef:
            self._out += f"c{value.module}\n{value.name}\n".encode()
        elif kind is tuple:
            self._tuple(value)
            key = id(value)
        elif kind is Made:
            self._made(value)
        elif kind is Persisted:
            self._value(value.saved_id)
            self._out += b"Q"
        else:
            self._container(value)
        self._levels -= 1
        if kind in {list, dict, Made}:
            return  # their place was filled before their content
        self._memorize(key, value)

    def _memorize(self, key: Any, value: Any) -> None:
        if type(value) is tuple and not value:
            return
        place = self._places[key] = len(self._places)
        self._kept.append(value)
        self._out += memorized(place)

    def _tuple(self, values: tuple[Any, ...]) -> None:
        if id(values) in self._open:
            raise UnsupportedError("a tuple that holds itself")
        self._open.add(id(values))
        if len(values) in _TUPLES:
            for value in values:
                self._value(value)
            self._out += _TUPLES[len(values)]
        else:
            self._out += b"("
            for value in values:
                self._value(value)
            self._out += b"t"
        self._open.discard(id(values))

    def _container(self, value: Any) -> None:
        if type(value) is list:
            self._out += b"]"
            self._memorize(id(value), value)
            self._elements(value)
        elif type(value) is dict:
            self._out += b"}"
            self._memorize(id(value), value)
            self._items(value)
        elif type(value) in {set, frozenset}:
            self._value(GlobalRef("builtins", type(value).__name__))
            self._value((sorted(value, key=_order),))
            self._out += b"R"
        elif isinstance(value, (bytes, BytesRef)):
            data = value.span.source.read(*value.span[1:]) if isinstance(value, BytesRef) else value
            self._value(GlobalRef("_codecs", "encode"))
            self._value((data.decode("latin-1"), "latin1"))
            self._out += b"R"
        else:
            raise UnsupportedError(f"a {type(value).__name__} cannot be written")

    def _made(self, made: Made) -> None:
        """Write the call, and then what is put into the object, in the order of picklers."""
        if made.kwargs:
            raise UnsupportedError(f"{made.name} is made with keywords, which protocol 2 lacks")
        self._value(made.func)
        self._value(made.args)
        self._out += b"\x81" if made.is_new else b"R"
        self._memorize(id(made), made)
        self._elements(made.elements)
        self._items(made.items)
        if made.has_state:
            self._value(made.state)
            self._out += b"b"

    def _elements(self, values: Sequence[Any]) -> None:
        if values:
            self._out += b"("
            for value in values:
                self._value(value)
            self._out += b"e"

    def _items(self, items: dict[Any, Any]) -> None:
        if items:
            self._out += b"("
            for key, value in items.items():
                self._value(key)
                self._value(value)
            self._out += b"u"


def _order(value: Any) -> tuple[str, str]:
    return type(value).__name__, repr(value)


def _integer(number: int) -> bytes:
    if 0 <= number < 1 << 8:
        return b"K" + bytes([number])
    if -(1 << 31) <= number < 1 << 31:
        return b"J" + number.to_bytes(4, "little", signed=True)
    size = number.bit_length() // 8 + 1
    if size > 255:
        raise UnsupportedError(f"an integer of {size} bytes")
    return b"\x8a" + bytes([size]) + number.to_bytes(size, "little", signed=True)


_SCALARS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N",
    bool: lambda flag: b"\x88" if flag else b"\x89",
    int: _integer,
    float: lambda number: b"G" + pack(">d", number),
}
_TUPLES = {0: b")", 1: b"\x85", 2: b"\x86", 3: b"\x87"}
