"""``PYTHON_CALLS`` and ``NUMPY_CALLS``: the calls that make containers, scalars and arrays.

Sources: numpy 1.26 and 2.4 ``numpy/_core/src/multiarray/methods.c`` (``array_reduce``,
``array_setstate``); Python's ``copyreg``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from pathlib import PurePosixPath, PureWindowsPath
from struct import Struct
from typing import Any

from ckptool.errors import DamagedError
from ckptool.formats.pickles.budget import Budget
from ckptool.formats.pickles.machine import name_of
from ckptool.formats.pickles.tensor_views import MAX_INT64, Call, as_text, kind_of, sizes_of
from ckptool.records import names_of
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tree.describing import describe
from ckptool.tree.nodes import (
    ArrayRef,
    BytesRef,
    GlobalRef,
    NotedDict,
    NotedList,
    Opaque,
    PathText,
    SpannedBytes,
    WindowsPathText,
)


def _ordered_dict(pairs: Any = (), *, budget: Budget) -> NotedDict:
    made = NotedDict()
    if not pairs:  # every tensor has an empty one
        return made
    items = pairs.items() if isinstance(pairs, dict) else _finite(pairs)
    keys, values = zip(*((key, value) for key, value in items), strict=True)
    budget.set_items(made, keys, values)
    return made


def _counter(counts: Any = (), *, budget: Budget) -> NotedDict:
    if counts and not isinstance(counts, dict):  # torch.save writes a dict; a list is counted
        raise DamagedError(f"a Counter is built from {kind_of(counts)} instead of a dict")
    return _ordered_dict(counts, budget=budget)


def _default_dict(factory: Any = None, pairs: Any = (), *, budget: Budget) -> NotedDict:
    made = _ordered_dict(pairs, budget=budget)
    if factory is not None:
        made.made_with = {"default_factory": factory}
    return made


def _list(values: Any = ()) -> list[Any]:
    return list(_finite(values))


def _deque(values: Any = (), maxlen: Any = None) -> NotedList:
    made = NotedList(_finite(values))
    if maxlen is not None:
        if type(maxlen) is not int or maxlen < 0:
            raise DamagedError(f"the largest length of a deque is {describe(maxlen)}")
        made.made_with = {"maxlen": maxlen}
        keep_last(made)
    return made


def keep_last(row: NotedList) -> None:
    """Drop the first elements of a deque that has more than it may hold."""
    maxlen = row.made_with.get("maxlen")
    if maxlen is not None and len(row) > maxlen:
        del row[: len(row) - maxlen]


def _tuple(values: Any = ()) -> tuple[Any, ...]:
    return tuple(_finite(values))


def torch_size(values: Any = ()) -> tuple[Any, ...]:
    """Return ``torch.Size(values)`` as a tuple, if each is an integer of 64 bits."""
    made = _tuple(values)
    if not all(type(value) is int and -MAX_INT64 <= value <= MAX_INT64 for value in made):
        raise DamagedError("torch.Size is made of something else than integers")
    return made


def _set(values: Any = (), *, budget: Budget) -> set[Any]:
    made: set[Any] = set()
    budget.add(made, list(_finite(values)))
    return made


def _frozenset(values: Any = (), *, budget: Budget) -> frozenset[Any]:
    return frozenset(_set(values, budget=budget))


def _finite(values: Any) -> Any:
    """Return ``values`` if its elements are in memory, as those of ``range(10**12)`` are not."""
    if not isinstance(values, (list, tuple, set, frozenset, dict, str)):
        raise DamagedError(f"a container is built from {kind_of(values)}")
    return values


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    """Return the bytes of ``_codecs.encode``, by which protocols 0 to 2 write bytes."""
    if as_text(encoding) not in {"latin1", "latin-1", "utf-8", "ascii"}:
        raise DamagedError(f"bytes are encoded as {encoding!r:.40}")
    data: bytes = text.encode(encoding)
    return SpannedBytes.at(data, ByteSpan(Memory(data), 0, len(data)))


def _bytes(text: Any = b"", encoding: Any = None) -> bytes | BytesRef:
    if isinstance(text, BytesRef):  # a bytearray of protocols 3 and 4, too long to hold
        return text
    if isinstance(text, str):
        return _encode(text, encoding)
    if isinstance(text, (list, tuple, bytes)):
        return bytes(text)
    raise DamagedError(f"bytes are built from {kind_of(text)}")


def _complex(real: Any = 0.0, imag: Any = 0.0) -> complex:
    return complex(real, imag)


def _reconstructor(cls: Any, base: Any, state: Any) -> Any:
    """Return the object of ``copyreg._reconstructor``, as protocols 0 and 1 pickle objects."""
    made = Opaque(name_of(cls))
    if isinstance(base, GlobalRef) and base.name == "dict" and isinstance(state, dict):
        if made.qualname == "collections.OrderedDict" and state:
            raise DamagedError(
                "an OrderedDict gets items as a plain dict: it has them, and no loop finds them"
            )
        made.items = dict(state)
    elif isinstance(base, GlobalRef) and base.name == "list" and isinstance(state, list):
        made.elements = list(state)
    elif state is not None:
        made.args = (state,)
    return made


def _path(cls: str, *parts: Any) -> PathText:
    """Return a ``pathlib`` path as text, without what its class leaves out: ``a/./b/`` is a/b."""
    if "Windows" in cls:
        return WindowsPathText(PureWindowsPath(*map(as_text, parts)))
    return PathText(PurePosixPath(*map(as_text, parts)))


# numpy's type strings of scalars, without the byte order -> struct codes
_SCALARS = {
    "f8": "d", "f4": "f", "f2": "e", "b1": "?",
    "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H", "u1": "B",
}  # fmt: skip


def _numpy_dtype(code: Any, _align: Any = False, _copy: Any = False) -> Opaque:
    return Opaque("numpy.dtype", (code,))


def _type_string(dtype: Any) -> str:
    """Return ``<f4`` for a pickled numpy dtype, whose byte order is in the state from BUILD."""
    if not isinstance(dtype, Opaque) or not dtype.args:
        raise DamagedError(f"a numpy type is described by {kind_of(dtype)}")
    code = dtype.args[0]
    if isinstance(code, GlobalRef) and isinstance(dtype.state, tuple):  # numpy.record: a structure
        code = f"V{dtype.state[5]}"
    code = as_text(code)
    state = dtype.state if isinstance(dtype.state, tuple) else ()
    order = str(state[1]) if len(state) > 1 and isinstance(state[1], str) else "|"
    unit = _time_unit(state[8]) if code in {"M8", "m8"} and len(state) > 8 else ""
    return ("" if code[:1] in "<>|=" else order) + code + unit


def _time_unit(metadata: Any) -> str:
    """Return ``[7us]``, the unit of dates and durations, for ``(None, (b"us", 7, 1, 1))``."""
    _, (unit, count, *_) = metadata
    return f"[{count if type(count) is int and count != 1 else ''}{as_text(unit)}]"


def _numpy_itemsize(type_string: str) -> int:
    digits = type_string.lstrip("<>|=")[1:].partition("[")[0]
    if not digits.isdigit():
        return 0
    return int(digits) * (4 if type_string.lstrip("<>|=")[:1] == "U" else 1)


def _array(type_: Any, shape: tuple[int, ...], data: Any, *, fortran_order: bool) -> ArrayRef:
    dtype, fields = _type_string(type_), _fields_of(type_)
    if isinstance(data, list):
        return ArrayRef(dtype, shape, fortran_order, None, data)
    span = _span_of(data)
    wanted = prod(shape) * _numpy_itemsize(dtype)
    if span.nbytes < wanted or (wanted and span.nbytes != wanted):
        raise DamagedError(
            f"a numpy array {dtype} {list(shape)} takes {wanted} bytes, has {span.nbytes}"
        )
    return ArrayRef(dtype, shape, fortran_order, span, fields=fields)


def _fields_of(dtype: Opaque) -> Any:
    """Return (names, types and offsets) in a structured dtype's state; None for a plain dtype."""
    fields = dtype.state[3:5] if isinstance(dtype.state, tuple) else ()
    return fields if any(part is not None for part in fields) else None


def _span_of(data: Any) -> ByteSpan:
    if isinstance(data, (SpannedBytes, BytesRef)):
        return data.span
    if isinstance(data, str):  # a Python 2 pickle whose bytes happen to be text
        data = data.encode()
    if isinstance(data, (bytes, bytearray)):
        return ByteSpan(Memory(bytes(data)), 0, len(data))
    raise DamagedError(f"bytes are expected, not {kind_of(data)}")


def _numpy_frombuffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
    return _array(dtype, sizes_of(shape), data, fortran_order=order == "F")


def _numpy_reconstruct(_cls: Any, _shape: Any = (0,), _code: Any = b"b") -> ArrayRef:
    """Return an empty array, which BUILD fills in place: by then the memo may refer to it."""
    return ArrayRef("|i1", (0,), False, ByteSpan(Memory(b""), 0, 0))


NDARRAY = "numpy.ndarray"


def state_of(state: Any) -> tuple[Any, ...]:
    """Return ``(shape, dtype, is_fortran, data)``, without the version, which old numpy omits."""
    return state[-4:] if isinstance(state, tuple) else (state,)


def numpy_build(array: ArrayRef, shape: Any, dtype: Any, is_fortran: Any, data: Any) -> ArrayRef:
    """Return the same array with its contents, as ``ndarray.__setstate__`` sets them."""
    made = _array(dtype, sizes_of(shape), data, fortran_order=bool(is_fortran))
    for name in names_of(made):
        object.__setattr__(array, name, getattr(made, name))
    return array


def columns_of(form: Sequence[Any], data: Any) -> Iterator[tuple[bool, Any]]:
    """Yield the elements of an array by the fields of its type, and whether they are only kept.

    Of an element in a field of another type a number or a text would be made, by its own methods.
    """
    dtype = form[-2]
    state = dtype.state if isinstance(dtype, Opaque) and isinstance(dtype.state, tuple) else ()
    names, fields = state[3:5] if len(state) > 4 else (None, None)
    if names is None and fields is None:
        yield _letter(dtype) == "O", data
        return
    rows = data if isinstance(data, list) else [data]
    is_regular = isinstance(names, tuple) and isinstance(fields, dict)
    if not is_regular or any(type(row) is not tuple or len(row) != len(names) for row in rows):
        yield False, data
        return
    for at, name in enumerate(names):
        field = fields.get(name)
        kind = field[0] if isinstance(field, tuple) and field else None
        yield _letter(kind) == "O", [row[at] for row in rows]


def _letter(dtype: Any) -> str:
    """Return the letter of a numpy type; "" if it is none."""
    has_code = isinstance(dtype, Opaque) and dtype.args and type(dtype.args[0]) is str
    return dtype.args[0][:1] if has_code else ""


def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    type_string = _type_string(dtype)
    code = type_string.lstrip("<>|=")
    if not isinstance(data, (bytes, str)):
        return data  # an object scalar is the object
    raw = data.encode() if isinstance(data, str) else bytes(data)  # text by accident
    if code in _SCALARS:
        order = ">" if type_string.startswith(">") else "<"
        return Struct(order + _SCALARS[code]).unpack(raw)[0]
    if code in {"c8", "c16"}:
        order = ">" if type_string.startswith(">") else "<"
        return complex(*Struct(order + ("2f", "2d")[code == "c16"]).unpack(raw))
    if code[:1] in {"S", "U"}:
        _check_length(dtype, type_string, len(raw))
    if code[:1] == "U":
        return raw.decode("utf-32-be" if type_string.startswith(">") else "utf-32-le").rstrip("\0")
    return raw.rstrip(b"\0") if code[:1] == "S" else Opaque("numpy.scalar", (type_string, raw))


def _check_length(dtype: Opaque, type_string: str, nbytes: int) -> None:
    """Refuse bytes that are not as many as a text has by its type; numpy drops those behind it."""
    size = _numpy_itemsize(type_string)
    stated = dtype.state[5] if isinstance(dtype.state, tuple) and len(dtype.state) > 5 else -1
    if nbytes != size or stated not in {-1, size}:
        raise DamagedError(f"a numpy text {type_string} of {size} bytes is made of {nbytes}")


def _random(name: str, *args: Any) -> Opaque:
    """Return a random number generator, inert, by its name."""
    return Opaque(f"numpy.random._pickle.{name}", args, called=True)


def persistent_class(meta: Any) -> Any:
    """Return an object pickled with its class's source code (NVIDIA's StyleGAN and EDM snapshots).

    Source: https://github.com/NVlabs/stylegan3/blob/main/torch_utils/persistence.py
    """
    fields = meta.items if isinstance(meta, Opaque) else meta
    if not isinstance(fields, dict):
        raise DamagedError("a persistent object is described by no dict")
    more = {key: value for key, value in fields.items() if key not in {"class_name", "state"}}
    return Opaque(as_text(fields.get("class_name", "?")), kwargs=more, state=fields.get("state"))


def tensordict(cls: Any, state: Any) -> Any:
    """Return the dict in a TensorDict, with the rest of its state as ``state``.

    Other classes, such as lazy stacks, become an inert object with their state.

    Source: tensordict 0.14 ``tensordict/_reductions.py``.
    """
    held = state.get("_tensordict") if isinstance(state, dict) else None
    if not isinstance(held, dict):
        return Opaque(name_of(cls), state=state)
    made = NotedDict(held)
    made.made_with = {"class": name_of(cls)}
    made.state = {key: value for key, value in state.items() if value is not held}
    return made


# fmt: on

PYTHON_CALLS: dict[str, Call] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "collections.Counter": _counter,
    "collections.deque": _deque,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructor,
    **{
        f"{builtins}.{name}": call
        for builtins in ("builtins", "__builtin__")
        for name, call in (
            ("dict", _ordered_dict),
            ("list", _list),
            ("tuple", _tuple),
            ("set", _set),
            ("frozenset", _frozenset),
            ("bytes", _bytes),
            ("bytearray", _bytes),
            ("complex", _complex),
        )
    },
    **{
        f"pathlib{sub}.{cls}": partial(_path, cls)
        for sub in ("", "._local")
        for cls in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}
# Calls that fill dicts and sets: they take the file's budget.
FILLING_CALLS = frozenset(
    name
    for name, call in PYTHON_CALLS.items()
    if call in {_ordered_dict, _counter, _default_dict, _set, _frozenset}
)
# Containers that their __init__ fills: NEWOBJ calls only __new__, which ignores its arguments.
FILLED_LATER = frozenset(
    name
    for name in PYTHON_CALLS
    if name.rpartition(".")[2]
    in {"OrderedDict", "defaultdict", "Counter", "deque", "dict", "list", "set", "bytearray"}
)
PYTHON_CALLS["copy_reg._reconstructor"] = PYTHON_CALLS["copyreg._reconstructor"]

NUMPY_CALLS: dict[str, Call] = {
    "numpy.dtype": _numpy_dtype,
    **{
        f"numpy.{core}.{name}": call
        for core in ("core", "_core")
        for name, call in (
            ("multiarray._reconstruct", _numpy_reconstruct),
            ("multiarray.scalar", _numpy_scalar),
            ("numeric._frombuffer", _numpy_frombuffer),
        )
    },
}

NUMPY_CALLS.update(
    {
        f"numpy.random._pickle.{name}": partial(_random, name)
        for name in ("__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor")
    }
)
