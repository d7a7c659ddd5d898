"""The object of a checkpoint as plain data: what ``torch.load(weights_only=True)`` takes.

The safe loader allows tensors, Python's scalars and containers, and few classes besides. Some other
values hold nothing that plain data cannot hold: a numpy scalar is a number, a path is a text, a
Namespace a dict. These are replaced, and each is named. Everything else that the loader would
refuse is listed, and the whole is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from struct import Struct, error
from typing import Any

from ckptool.dtypes import BY_NUMPY_CODE, STRUCT_CODES, DType
from ckptool.errors import UnsupportedError
from ckptool.formats.pickles.literal import Made, Persisted
from ckptool.formats.pickles.weights_only import ALLOWED, as_torch_reads
from ckptool.reports.write import PlainReport
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tree.addresses import format_address
from ckptool.tree.geometry import contiguous_strides
from ckptool.tree.nodes import Address, BytesRef, GlobalRef

SHOWN = 20  # refused values in a message
MAX_LEVELS = 100  # of values in values


@dataclass(slots=True)
class PlainData:
    """An object as plain data."""

    tree: Any = None
    replaced: list[PlainReport] = field(default_factory=list)
    storages: dict[str, ByteSpan] = field(default_factory=dict)  # of arrays, which became tensors


class _Lossy(Exception):  # noqa: N818 - it is an answer
    """A value that no plain data can hold."""


def as_plain_data(tree: Any, taken: Mapping[str, object]) -> PlainData:
    """Return the object with every value replaced that the safe loader refuses.

    Lists and dicts are changed in place. ``taken`` are the keys of the storages that there are.

    Raises:
        UnsupportedError: values that cannot be replaced without loss; all of them are counted.
    """
    work = _Work(taken)
    work.made.tree = work.plain(tree, ())
    if work.refused:
        rows = [f"{at or 'the top'} ({what})" for at, what in work.refused[:SHOWN]]
        more = len(work.refused) - SHOWN
        rest = f" and {more:,} more" if more > 0 else ""
        part = next((at.partition("/")[0] for at, _ in work.refused if at), "")
        raise UnsupportedError(
            f"no plain data can hold all of it: {', '.join(rows)}{rest}",
            hint=(f"leave them out: --drop {part}; or " if part else "")
            + "take the weights alone: PATH#@model",
        )
    return work.made


class _Work:
    """The replacement of one object's values."""

    def __init__(self, taken: Mapping[str, object]) -> None:
        self.made = PlainData()
        self.refused: list[tuple[str, str]] = []
        self._taken = set(taken)
        self._done: dict[int, Any] = {}  # id of a value -> what it became
        self._kept: list[Any] = []  # so that no id is given to another value

    def plain(self, value: Any, at: Address) -> Any:
        """Return a value as plain data; it is looked at once, however often it is met."""
        if type(value) in _SCALARS or isinstance(value, (bytes, BytesRef, Persisted)):
            return value
        if id(value) in self._done:
            return self._done[id(value)]
        if len(at) > MAX_LEVELS:
            raise UnsupportedError(f"values in more than {MAX_LEVELS} levels of containers")
        self._kept.append(value)
        if isinstance(value, (list, dict)):  # they may hold themselves
            self._done[id(value)] = value
            self._fill(value, at)
            return value
        if isinstance(value, Made):
            return self._object(value, at)
        made = self._leaf(value, at)
        self._done[id(value)] = made
        return made

    def _leaf(self, value: Any, at: Address) -> Any:
        if isinstance(value, tuple):
            parts = tuple(self.plain(part, (*at, key)) for key, part in enumerate(value))
            return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
        if isinstance(value, (set, frozenset)):
            parts = tuple(self.plain(part, at) for part in value)
            if any(map(_is_unhashable, parts)):
                return self._refuse_set(value, at)
            if isinstance(value, frozenset):
                self._note(at, "builtins.frozenset", "set")
            return set(parts)
        if isinstance(value, GlobalRef) and as_torch_reads(value) not in ALLOWED:
            self.refused.append((format_address(at), f"the class or function {value.qualname}"))
        return value

    def _fill(self, value: list[Any] | dict[Any, Any], at: Address) -> None:
        """Replace what a container holds."""
        if isinstance(value, list):
            value[:] = [self.plain(part, (*at, key)) for key, part in enumerate(value)]
            return
        items = [
            (self.plain(key, at), self.plain(part, (*at, _named(key))))
            for key, part in value.items()
        ]
        made = {} if any(_is_unhashable(key) for key, _ in items) else dict(items)
        if len(made) < len(value):
            self.refused.append((format_address(at), "keys that are no plain data"))
            return
        value.clear()
        value.update(made)

    def _note(self, at: Address, was: str, became: str) -> None:
        self.made.replaced.append(PlainReport(format_address(at), was, became))

    # --------------------------------------------------------------------------------- objects

    def _object(self, made: Made, at: Address) -> Any:
        name = as_torch_reads(made.func) if isinstance(made.func, GlobalRef) else ""
        if name in ALLOWED:
            self._done[id(made)] = made
            self._inside(made, at)
            return made
        try:
            result = next(filter(None, (row(self, made, name) for row in ROWS)), None)
        except (_Lossy, error, ValueError, TypeError, AttributeError, IndexError) as lossy:
            why = f": {lossy}" if isinstance(lossy, _Lossy) else ""
            return self._refuse(made, at, f"{name}{why}")
        if result is None:
            return self._refuse(made, at, name or "the result of a call")
        value, became = result
        if name != f"builtins.{became}":
            self._note(at, LABELS.get(name, name), became)
        self._done[id(made)] = value
        if isinstance(value, (list, dict)):
            self._fill(value, at)
        elif isinstance(value, Made):
            self._inside(value, at)
        return value

    def _inside(self, made: Made, at: Address) -> None:
        """Replace what an object that stays holds."""
        made.args = tuple(self.plain(part, at) for part in made.args)
        self._fill(made.elements, at)
        self._fill(made.items, at)
        made.state = self.plain(made.state, at)
        if as_torch_reads(made.func) == SET and any(map(_is_unhashable, _members(made))):
            self._refuse_set(made, at)

    def _refuse_set(self, value: Any, at: Address) -> Any:
        self.refused.append((format_address(at), "a set of frozensets, which become sets"))
        return value

    def _refuse(self, made: Made, at: Address, what: str) -> Made:
        self._done[id(made)] = made
        self.refused.append((format_address(at), what))
        return made

    def tensor(self, dtype: DType, shape: tuple[int, ...], strides: tuple[int, ...],
               span: ByteSpan) -> Made:  # fmt: skip
        """Return the call that makes a tensor of an array's bytes."""
        number = len(self.made.storages)
        key = next(f"array{n}" for n in range(number, number + len(self._taken) + 1)
                   if f"array{n}" not in self._taken)  # fmt: skip
        self._taken.add(key)
        self.made.storages[key] = span
        hooks = Made(GlobalRef("collections", "OrderedDict"), ())
        numel = span.nbytes // dtype.itemsize
        if dtype.storage_class:
            cls = GlobalRef("torch", dtype.storage_class)
            stored = Persisted(("storage", cls, key, "cpu", numel))
            args = (stored, 0, shape, strides, False, hooks)
            return Made(GlobalRef("torch._utils", "_rebuild_tensor_v2"), args)
        cls = GlobalRef("torch.storage", "UntypedStorage")
        stored = Persisted(("storage", cls, key, "cpu", span.nbytes))
        kind = GlobalRef("torch", dtype.name)
        return Made(GlobalRef("torch._utils", "_rebuild_tensor_v3"),
                    (stored, 0, shape, strides, False, hooks, kind))  # fmt: skip


def _named(key: Any) -> Any:
    return key if isinstance(key, (str, int)) else str(key)


def _members(made: Made) -> Any:
    return made.args[0] if made.args and isinstance(made.args[0], (list, tuple)) else ()


def _is_unhashable(value: Any) -> bool:
    """Return whether a loader makes of it what can be no key of a dict, and no member of a set."""
    if isinstance(value, tuple):
        return any(map(_is_unhashable, value))
    if isinstance(value, Made):
        return isinstance(value.func, GlobalRef) and as_torch_reads(value.func) in UNHASHABLE
    return isinstance(value, (list, dict, set))


_SCALARS = frozenset({type(None), bool, int, float, str})


# ------------------------------------------------------------------------------------ the classes

SET = "builtins.set"
UNHASHABLE = frozenset({
    SET, "builtins.bytearray", "collections.OrderedDict", "collections.Counter",
})  # fmt: skip

NAMESPACES = frozenset({"argparse.Namespace", "types.SimpleNamespace"})
# Dicts with attributes as items: an empty one shows no items.
DICTS = frozenset({
    "collections.defaultdict", "easydict.EasyDict", "addict.addict.Dict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
})  # fmt: skip
PATHS = frozenset(
    f"pathlib{module}.{pure}{system}Path"
    for module in ("", "._local")
    for pure, system in (("", ""), ("", "Posix"), ("", "Windows"), ("Pure", "Posix"),
                         ("Pure", "Windows"), ("Pure", ""))
)  # fmt: skip
ARRAYS = frozenset(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))
SCALARS = frozenset(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core"))
LABELS = {**dict.fromkeys(ARRAYS, "numpy.ndarray"), **dict.fromkeys(SCALARS, "numpy.generic")}

COMPLEX = {"complex64": "2f", "complex128": "2d"}  # how struct reads them
Result = tuple[Any, str] | None  # a value and its type; None: not of this row's classes


def _namespace(_work: _Work, made: Made, name: str) -> Result:
    if name not in NAMESPACES or made.args or made.items or made.elements:
        return None
    if not isinstance(made.state, dict):
        return ({}, "dict") if not made.has_state else None
    return made.state, "dict"


def _dict(_work: _Work, made: Made, name: str) -> Result:
    """Return the items of an object that holds nothing else: a subclass of dict."""
    is_known = name in DICTS
    arguments = made.args if name != "collections.defaultdict" else made.args[1:]
    if arguments or made.kwargs or made.elements or not (made.items or is_known):
        return None
    if not made.is_new and not _is_class(made):
        return None
    doubled = made.state is None or made.state == {} or _same(made.state, made.items)
    return (made.items, "dict") if doubled else None


def _is_class(made: Made) -> bool:
    """Return whether the name is one of a class, by its writing."""
    last = made.name.rpartition(".")[2].lstrip("_")
    return last[:1].isupper() or last == "defaultdict"


def _same(state: Any, items: dict[Any, Any]) -> bool:
    """Return whether the attributes are the items once more, as an EasyDict keeps them."""
    return (
        isinstance(state, dict)
        and state.keys() == items.keys()
        and all(state[key] is items[key] or state[key] == items[key] for key in items)
    )


def _list(_work: _Work, made: Made, name: str) -> Result:
    """Return the elements of an object that holds nothing else: a list's subclass, or a deque."""
    is_bounded = name == "collections.deque" and len(made.args) > 1
    empty = made.args in {(), ((),)} or made.args == ([],)
    if made.items or made.kwargs or made.has_state or not made.elements or is_bounded or not empty:
        return None
    is_one = made.is_new or _is_class(made) or name == "collections.deque"
    return (made.elements, "list") if is_one else None


def _frozen(_work: _Work, made: Made, name: str) -> Result:
    if name != "builtins.frozenset" or made.is_new:
        return None
    return Made(GlobalRef("builtins", "set"), made.args), "set"


def _no_bytes(_work: _Work, made: Made, name: str) -> Result:
    """Return the empty bytes, which protocol 2 writes as a call."""
    return (b"", "bytes") if name == "builtins.bytes" and made.args == () else None


def _path(_work: _Work, made: Made, name: str) -> Result:
    parts = [part for part in made.args if isinstance(part, str)]
    if name not in PATHS or len(parts) < len(made.args) or made.has_state:
        return None
    joint = "\\" if "Windows" in name else "/"
    text = parts[0] if parts else "."
    for part in parts[1:]:
        text += part if text.endswith(joint) else joint + part
    return text, "str"


def _scalar(_work: _Work, made: Made, name: str) -> Result:
    if name not in SCALARS:
        return None
    order, code, _ = _numpy_type(made.args[0])
    data = _bytes_of(made.args[1])
    if code[:1] == "U":
        return data.decode(f"utf-32-{'be' if order == '>' else 'le'}").rstrip("\0"), "str"
    if code not in BY_NUMPY_CODE:
        raise _Lossy(f"of the type {code}")
    dtype = BY_NUMPY_CODE[code].name
    values = Struct(order + (STRUCT_CODES | COMPLEX)[dtype]).unpack(data)
    if dtype in COMPLEX:
        return Made(GlobalRef("builtins", "complex"), values), "complex"
    return values[0], type(values[0]).__name__


def _array(work: _Work, made: Made, name: str) -> Result:
    if name not in ARRAYS:
        return None
    if made.args[0] != GlobalRef("numpy", "ndarray"):
        raise _Lossy("a subclass of ndarray")
    shape, kind, is_fortran, data = made.state[-4:]
    order, code, fields = _numpy_type(kind)
    if code not in BY_NUMPY_CODE or fields or not isinstance(shape, tuple):
        raise _Lossy(f"of the type {code}")
    dtype = BY_NUMPY_CODE[code]
    if order == ">" and dtype.itemsize > 1:
        raise _Lossy("big-endian")
    strides = contiguous_strides(shape)
    if is_fortran:
        strides = tuple(reversed(contiguous_strides(tuple(reversed(shape)))))
    return work.tensor(dtype, shape, strides, _span_of(data)), "torch.Tensor"


def _numpy_type(kind: Any) -> tuple[str, str, Any]:
    """Return the byte order, the code and the fields of a pickled dtype."""
    is_one = isinstance(kind, Made) and kind.name == "numpy.dtype"
    if not is_one or not isinstance(kind.state, tuple):
        raise _Lossy("of an unknown type")
    code = kind.args[0]
    order = kind.state[1]
    return ("<" if order in {"|", "="} else str(order)), str(code), kind.state[4]


def _bytes_of(data: Any) -> bytes:
    span = _span_of(data)
    return span.source.read(span.offset, span.nbytes)


def _span_of(data: Any) -> ByteSpan:
    """Return the bytes of a numpy object, which protocol 2 writes as text."""
    if isinstance(data, BytesRef):
        return data.span
    if isinstance(data, Made) and data.name == "_codecs.encode":
        data = data.args[0].encode(data.args[1])
    if isinstance(data, Made) and as_torch_reads(data.func) == "builtins.bytes":
        data = b"" if data.args == () else None
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin-1")
    if not isinstance(data, bytes):
        raise _Lossy("of objects")
    return ByteSpan(Memory(bytes(data)), 0, len(data))


ROWS: tuple[Callable[[_Work, Made, str], Result], ...] = (
    _namespace, _frozen, _no_bytes, _path, _scalar, _array, _dict, _list,
)  # fmt: skip
