"""Types of numpy's arrays: whether the state of one says of its parts what they are.

numpy believes the sizes, the places of fields and the flags in a pickled type. With flags that
deny a field of objects, it takes bytes of the file for the addresses of objects, and crashes or
runs what lies there. So it does where a number lies over such a field, and where a type gets it
after an array of bytes was made. A type counts only if it is written as numpy writes it: of every
other code (``i4,O``, a class of the user's) numpy may make one of objects.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

from ckptool.regex import regex
from ckptool.tree.nodes import GlobalRef, Opaque

DTYPE = "numpy.dtype"
# Flags of numpy: of all types with objects in them, and those that no other type has.
_OF_OBJECTS = 0x01 | 0x02 | 0x08 | 0x10
_ONLY_OF_OBJECTS = 0x01 | 0x02 | 0x04
_COMPUTES_FLAGS = 3  # the first version of states whose flags numpy believes
_WRITTEN = regex(r"[<>|=]?([?bBhHiIlLqQpPuefdgFDGcSaUVMmO])(\d*)(\[\w+\])?")
_LARGEST = 32  # bytes of a plain type whose code does not say its size
# Classes by which types are named: those of numpy's values, and numbers of other packages.
_OBJECTS = frozenset({"builtins.object", "__builtin__.object", "numpy.object_", "numpy.object"})
_VALUES = regex(
    r"(builtins|__builtin__)\.(bool|bytes|complex|float|int|long|str|unicode)"
    r"|numpy(\.\w+)*\.(bool_?|bytes_|datetime64|record|str_|timedelta64|void)"
    r"|\w+(\.\w+)*\.(bfloat|complex|float|u?int)\d+\w*"
)


def is_true_to_parts(dtype: Opaque, state: Any) -> bool:
    """Return whether the state of a type has its size and flags, and fields that lie inside it."""
    if not isinstance(state, tuple) or len(state) < 7:
        return state is None or not any(isinstance(part, (tuple, dict)) for part in state)
    version, _, subarray, names, fields, size = state[:6]
    parts = _parts(subarray, fields)
    if parts is None or type(size) is not int or not _is_size_of(dtype, size):
        return False
    if any(end > size for _, end in parts) or (names is not None and fields is None):
        return False
    has_objects = _is_object(dtype) or any(_has_objects(part) for part, _ in parts)
    are_written = all(map(is_written, (dtype, *(part for part, _ in parts))))
    if not are_written or (has_objects and not _are_apart(fields, names)):
        return False
    if len(state) == 7:  # of numpy 1.0, which computes the flags
        return type(version) is int and version < _COMPUTES_FLAGS and not has_objects
    flags = state[7]
    is_sound = flags & _OF_OBJECTS == _OF_OBJECTS if has_objects else not flags & _ONLY_OF_OBJECTS
    return type(flags) is int and is_sound


def is_written(dtype: Any) -> bool:
    """Return whether a value is a type with a code that numpy writes, which says what it is."""
    if not isinstance(dtype, Opaque) or dtype.qualname != DTYPE:
        return False
    code = _code(dtype)
    if isinstance(code, GlobalRef):
        return code.qualname in _OBJECTS or _VALUES.fullmatch(code.qualname) is not None
    return _match(code) is not None


def _parts(subarray: Any, fields: Any) -> list[tuple[Opaque, int]] | None:
    """Return the types in a type and where each ends; None if it is not as numpy writes it."""
    rows = list(fields.values()) if isinstance(fields, dict) else []
    if not isinstance(fields, (dict, type(None))) or not all(map(_is_field, rows)):
        return None
    parts = [(part, start + _size(part)) for part, start, *_ in rows]
    if subarray is None:
        return parts
    if not isinstance(subarray, tuple) or len(subarray) != 2:
        return None
    part, shape = subarray
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if not isinstance(part, Opaque) or not all(type(n) is int and n >= 0 for n in sizes):
        return None
    return [*parts, (part, _size(part) * prod(sizes))]


def _are_apart(fields: Any, names: Any) -> bool:
    """Return whether fields share no bytes, and each has one name; a title lists it once more."""
    rows = dict(fields or {})
    spans = []
    for name in names or ():
        row = rows.pop(name, None)
        if row is None or (len(row) > 2 and rows.pop(row[2], None) != row):
            return False
        spans.append((row[1], row[1] + _size(row[0])))
    spans.sort()
    return not rows and all(end <= start for (_, end), (start, _) in pairwise(spans))


def _is_field(row: Any) -> bool:
    is_row = isinstance(row, tuple) and len(row) in {2, 3} and isinstance(row[0], Opaque)
    return is_row and type(row[1]) is int and row[1] >= 0


def _state(dtype: Opaque) -> tuple[Any, ...]:
    return dtype.state if isinstance(dtype.state, tuple) and len(dtype.state) > 7 else ()


def _code(dtype: Opaque) -> Any:
    """Return the code of a type as text, or its class."""
    code = dtype.args[0] if dtype.args else None
    return code.decode("latin-1") if isinstance(code, bytes) else code


def _match(code: Any) -> Any:
    return _WRITTEN.fullmatch(code) if isinstance(code, str) and len(code) < 20 else None


def _size(dtype: Opaque) -> int:
    """Return how many bytes a value of a type takes."""
    state = _state(dtype)
    if state and type(state[5]) is int and state[5] >= 0:
        return state[5]
    return _written_size(_code(dtype)) or _LARGEST


def _written_size(code: Any) -> int | None:
    """Return the bytes that a code such as ``<f4`` or ``U10`` says."""
    written = _match(code)
    if written is None or not written[2]:
        return None
    return int(written[2]) * (4 if written[1] == "U" else 1)


def _is_size_of(dtype: Opaque, size: int) -> bool:
    """Return whether a type with this code has the size; the code of a record is its class."""
    code = _code(dtype)
    return isinstance(code, GlobalRef) or size in {-1, _written_size(code)}


def _is_object(dtype: Opaque) -> bool:
    code = _code(dtype)
    if isinstance(code, GlobalRef):
        return code.qualname in _OBJECTS
    return (written := _match(code)) is not None and written[1] == "O"


def _has_objects(dtype: Opaque) -> bool:
    """Return whether a part holds objects: its own state was looked at when it was set."""
    state = _state(dtype)
    is_flagged = bool(state) and type(state[7]) is int and state[7] & _OF_OBJECTS == _OF_OBJECTS
    return _is_object(dtype) or is_flagged
