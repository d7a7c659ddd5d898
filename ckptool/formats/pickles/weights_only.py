"""The safe loader, ``torch.load(weights_only=True)``: what it refuses, and how to allow it.

Since torch 2.6 this is the default of ``torch.load``. It refuses every name that is not in a table
(below, torch 2.13's), and pickles of protocol 4 and above, whose opcodes it does not know. Its
unpickler allows each instruction for fewer objects than Python's: items only for three kinds of
dict, elements only for lists, states only for tensors, parameters, OrderedDicts and Counters. A
table of names alone cannot predict its answer. So the pickle is followed once more, with the kinds
of objects in place of the objects; nothing is imported, called or copied.

Source: torch 2.13 ``torch/_weights_only_unpickler.py``, ``Unpickler.load``.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Collection, Iterable
from keyword import iskeyword
from struct import Struct
from typing import Any

from ckptool.records import NamedTuple, record
from ckptool.tree.nodes import GlobalRef

_STORED = (
    "BFloat16", "Bool", "Byte", "Char", "ComplexDouble", "ComplexFloat", "Double", "Float", "Half",
    "Int", "Long", "Short",
)  # fmt: skip
_DENSE = ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
_SPARSE = ("BFloat16", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
_QUANTIZED = ("QInt32", "QInt8", "QUInt2x4", "QUInt4x2", "QUInt8")
_DTYPES = (
    "bfloat16", "bits16", "bits1x8", "bits2x4", "bits4x2", "bits8", "bool", "complex128",
    "complex32", "complex64", "float16", "float32", "float4_e2m1fn_x2", "float64", "float8_e4m3fn",
    "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "int16", "int32",
    "int64", "int8", "qint32", "qint8", "quint2x4", "quint4x2", "quint8", "uint16", "uint32",
    "uint64", "uint8", *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
)  # fmt: skip
_REBUILDERS = (
    "device_tensor_from_cpu_tensor", "device_tensor_from_numpy", "meta_tensor_no_storage",
    "nested_tensor", "parameter", "parameter_with_state", "qtensor", "sparse_tensor", "tensor",
    "tensor_v2", "tensor_v3", "wrapper_subclass",
)  # fmt: skip

ALLOWED = frozenset({
    "_codecs.encode", "builtins.bytearray", "builtins.complex", "builtins.set",
    "collections.Counter", "collections.OrderedDict", "torch.Size", "torch.Tensor", "torch.device",
    "torch.nn.parameter.Parameter", "torch.serialization._get_layout",
    "torch.storage.TypedStorage", "torch.storage.UntypedStorage",
    "torch._tensor._rebuild_from_type_v2",
    "torch.per_channel_affine", "torch.per_channel_affine_float_qparams",
    "torch.per_channel_symmetric", "torch.per_tensor_affine", "torch.per_tensor_symmetric",
    *(f"torch.{name}" for name in _DTYPES),
    *(f"torch._utils._rebuild_{name}" for name in _REBUILDERS),
    *(f"torch.{name}Storage" for name in (*_STORED, *_QUANTIZED)),
    *(f"torch.cuda.{name}Storage" for name in _STORED),
    *(f"{module}.{name}Tensor" for module in ("torch", "torch.cuda") for name in _DENSE),
    *(f"{m}.{name}Tensor" for m in ("torch.sparse", "torch.cuda.sparse") for name in _SPARSE),
})  # fmt: skip

BLOCKED = frozenset({"sys", "os", "posix", "nt"})  # modules: refused even if the user allows them


def as_torch_reads(ref: GlobalRef) -> str:
    """Return the name in Python 3: torch pickles with protocol 2, which has Python 2's names."""
    module, name = ref.module, ref.name
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def refused(refs: Iterable[GlobalRef]) -> list[str]:
    """Return the names that are not allowed by default, each once, in the order of the file."""
    return [name for name in dict.fromkeys(map(as_torch_reads, refs)) if name not in ALLOWED]


def allowing_line(names: Iterable[str]) -> str | None:
    """Return a line of Python that allows the names; None if no line can.

    A user pastes and runs this line, so each name must be a dotted path of identifiers, without
    keywords; else the result is None too.
    """
    wanted = list(names)
    for name in wanted:
        is_name = all(part.isidentifier() for part in name.split("."))
        is_keyword = any(map(iskeyword, name.split(".")))
        if not is_name or is_keyword or name.partition(".")[0] in BLOCKED or "." not in name:
            return None
    imports, items = _imported(wanted)
    modules = ["torch"]
    if "numpy.dtype" in wanted:  # each dtype has its own class, which the pickle does not name
        items.append('*(type(numpy.dtype(c)) for c in numpy.typecodes["All"])')
        modules = ["numpy", "torch"]
    lines = (*imports, f"import {', '.join(modules)}")
    return f"{'; '.join(lines)}; torch.serialization.add_safe_globals([{', '.join(items)}])"


def _imported(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return statements that import the names, and the expression for each name then.

    ``from a.b import C`` finds the module also where a function hides it: ``torch.nn.utils`` has a
    module and a function called ``weight_norm``.
    """
    statements: list[str] = []
    items: list[str] = []
    used = set(_TAKEN)
    for name in names:
        module, _, last = name.rpartition(".")
        own = last if last not in used else name.replace(".", "_")
        used.add(own)
        statements.append(f"from {module} import {last}{f' as {own}' if own != last else ''}")
        items.append(f'({own}, "{name}")' if _is_moved(name) else own)
    return statements, items


_TAKEN = ("numpy", "torch", "type", "c")  # names that the line itself uses


def _is_moved(name: str) -> bool:
    """Return whether numpy 2 moved the name: its classes state their new place, not the file's."""
    return name.startswith("numpy.core.")


# -------------------------------------------------------------------------------------- the machine


class Refusal(NamedTuple):
    """A step that the loader refuses."""

    at: int  # offset in the pickle
    what: str
    name: str | None = None  # the class or function, if one is refused


@record(slots=True, eq=False)
class Kind:
    """An object of which only the class matters; no tuple of the pickle equals it."""

    name: str


TENSOR, PARAMETER = Kind("torch.Tensor"), Kind("torch.nn.parameter.Parameter")
ORDERED, COUNTER = Kind("collections.OrderedDict"), Kind("collections.Counter")
STORAGE, OTHER = Kind("torch.storage.TypedStorage"), Kind("another object")

_MADE = {
    "collections.OrderedDict": ORDERED,
    "collections.Counter": COUNTER,
    "torch.nn.parameter.Parameter": PARAMETER,
    "torch._utils._rebuild_parameter": PARAMETER,
    "torch._utils._rebuild_parameter_with_state": PARAMETER,
    "torch._tensor._rebuild_from_type_v2": OTHER,
}
# Functions whose first argument is the class of their result.
_CLASS_FIRST = frozenset({
    "copyreg._reconstructor", "copyreg.__newobj__", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct", "torch._utils._rebuild_wrapper_subclass",
})  # fmt: skip
_SMALL_CLASSES = frozenset({
    "numpy.dtype", "numpy.ndarray", "functools.partial", "collections.defaultdict",
    "collections.deque", "builtins.list", "builtins.dict", "builtins.object", "itertools.count",
})  # fmt: skip
_INT32, _UINT16 = Struct("<i").unpack_from, Struct("<H").unpack_from
_UINT32, _DOUBLE = Struct("<I").unpack_from, Struct(">d").unpack_from
_CONSTANTS: dict[int, Any] = {0x4E: None, 0x89: False, 0x88: True, 0x29: ()}
_CONTAINERS: dict[int, Callable[[], Any]] = {0x7D: dict, 0x5D: list, 0x8F: set}


def first_refusal(pickle: bytes, more: Collection[str] = ()) -> Refusal | None:
    """Return the first step that the safe loader refuses; None if it reaches the end.

    The pickle must have been read before, so that it is bounded and complete.
    ``more`` are names that the user allows with ``torch.serialization.add_safe_globals``.
    """
    machine = _Machine(pickle, frozenset(more))
    try:
        return machine.run()
    except (IndexError, KeyError, TypeError, ValueError):
        return Refusal(machine.at, "an instruction that finds nothing to work on")


class _Refused(Exception):  # noqa: N818 - it is an answer
    def __init__(self, what: str, name: str | None = None) -> None:
        super().__init__(what)
        self.what, self.name = what, name


class _Machine:
    def __init__(self, pickle: bytes, more: frozenset[str]) -> None:
        self.pickle, self.at, self._more = pickle, 0, more

    def run(self) -> Refusal | None:
        try:
            self._run()
        except _Refused as refused:
            return Refusal(self.at, refused.what, refused.name)
        return None

    # One flat loop, as in ``formats/pickles/machine.py``: there are millions of instructions.
    def _run(self) -> None:  # noqa: C901, PLR0912, PLR0915
        data, i = self.pickle, 0
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: dict[int, Any] = {}
        while True:
            self.at = i
            op = data[i]
            i += 1
            if op == 0x72:  # LONG_BINPUT
                memo[_UINT32(data, i)[0]] = stack[-1]
                i += 4
            elif op == 0x71:  # BINPUT
                memo[data[i]] = stack[-1]
                i += 1
            elif op == 0x68:  # BINGET
                stack.append(memo[data[i]])
                i += 1
            elif op == 0x6A:  # LONG_BINGET
                stack.append(memo[_UINT32(data, i)[0]])
                i += 4
            elif op == 0x4B:  # BININT1
                stack.append(data[i])
                i += 1
            elif op == 0x58:  # BINUNICODE
                end = i + 4 + _UINT32(data, i)[0]
                stack.append(data[i + 4 : end].decode("utf-8", "surrogatepass"))
                i = end
            elif op == 0x28:  # MARK
                marks.append(stack)
                stack = []
            elif op == 0x74:  # TUPLE
                items, stack = stack, marks.pop()
                stack.append(tuple(items))
            elif op == 0x52:  # REDUCE
                args = stack.pop()
                stack[-1] = _called(stack[-1], args)
            elif op == 0x51:  # BINPERSID
                stack[-1] = _persistent(stack[-1])
            elif op in _CONSTANTS:
                stack.append(_CONSTANTS[op])
            elif op in _CONTAINERS:
                stack.append(_CONTAINERS[op]())
            elif op == 0x85:  # TUPLE1
                stack[-1] = (stack[-1],)
            elif op == 0x86:  # TUPLE2
                stack[-2:] = [(stack[-2], stack[-1])]
            elif op == 0x87:  # TUPLE3
                stack[-3:] = [(stack[-3], stack[-2], stack[-1])]
            elif op == 0x4D:  # BININT2
                stack.append(_UINT16(data, i)[0])
                i += 2
            elif op == 0x4A:  # BININT
                stack.append(_INT32(data, i)[0])
                i += 4
            elif op == 0x75:  # SETITEMS
                _, stack = stack, marks.pop()
                _check_items(stack[-1])
            elif op == 0x73:  # SETITEM
                del stack[-2:]
                _check_items(stack[-1])
            elif op == 0x65:  # APPENDS
                _, stack = stack, marks.pop()
                _check_elements(stack[-1])
            elif op == 0x61:  # APPEND
                stack.pop()
                _check_elements(stack[-1])
            elif op == 0x62:  # BUILD
                state = stack.pop()
                _check_state(stack[-1], state, self._more)
            elif op == 0x81:  # NEWOBJ
                args = stack.pop()
                stack[-1] = _made(stack[-1], args)
            elif op == 0x47:  # BINFLOAT
                stack.append(_DOUBLE(data, i)[0])
                i += 8
            elif op == 0x63:  # GLOBAL
                end = data.index(b"\n", i)
                last = data.index(b"\n", end + 1)
                names = data[i:end].decode(), data[end + 1 : last].decode()
                stack.append(_allowed(GlobalRef(*names), self._more))
                i = last + 1
            elif op == 0x8A:  # LONG1
                end = i + 1 + data[i]
                stack.append(int.from_bytes(data[i + 1 : end], "little", signed=True))
                i = end
            elif op == 0x55:  # SHORT_BINSTRING
                end = i + 1 + data[i]
                stack.append(_string(data[i + 1 : end]))
                i = end
            elif op == 0x80:  # PROTO
                i += 1
            elif op == 0x2E:  # STOP
                stack.pop()
                return
            else:
                raise _Refused(f"the instruction 0x{op:02x}, which it does not know")


def _string(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _Refused("a string of Python 2 that is no UTF-8") from None


def _allowed(ref: GlobalRef, more: frozenset[str]) -> GlobalRef:
    full = as_torch_reads(ref)
    if full.rpartition(".")[0] in BLOCKED or (full not in ALLOWED and full not in more):
        raise _Refused(f"the name {full}", full)
    return GlobalRef(*full.rsplit(".", 1))


def _called(func: Any, args: Any) -> Any:
    if not isinstance(func, GlobalRef):
        raise _Refused(f"a call of {_named(func)}, which is no function")
    if not isinstance(args, (tuple, list)):
        raise _Refused(f"a call of {func.qualname} with something else than a tuple")
    if func.qualname == "builtins.set":
        return set()
    if func.qualname.startswith("torch._utils._rebuild_"):
        return _MADE.get(func.qualname, TENSOR)
    if func.qualname in _CLASS_FIRST and args and isinstance(args[0], GlobalRef):
        return Kind(args[0].qualname)
    return _MADE.get(func.qualname) or _instance(func)


def _instance(cls: GlobalRef) -> Kind:
    """Return an object of the class; ``OTHER`` for a function, whose result's class is unknown."""
    is_class = cls.name.lstrip("_")[:1].isupper() or cls.qualname in _SMALL_CLASSES
    return Kind(cls.qualname) if is_class else OTHER


def _made(cls: Any, args: Any) -> Any:
    if not isinstance(cls, GlobalRef) or not isinstance(args, (tuple, list)):
        raise _Refused(f"an object made of {_named(cls)}, which is no class that it allows")
    if cls.qualname == "builtins.set":
        return set()
    return _MADE.get(cls.qualname) or Kind(cls.qualname)


def _persistent(saved_id: Any) -> Kind:
    if type(saved_id) is not tuple or not saved_id or saved_id[0] not in ("storage", b"storage"):
        raise _Refused("a persistent id that is none of a storage")
    return STORAGE


def _check_items(target: Any) -> None:
    if type(target) is not dict and target not in (ORDERED, COUNTER):
        raise _Refused(f"items set on {_named(target)}")


def _check_elements(target: Any) -> None:
    if type(target) is not list:
        raise _Refused(f"elements appended to {_named(target)}")


def _check_state(target: Any, state: Any, more: frozenset[str]) -> None:
    if target is TENSOR and isinstance(state, tuple) and len(state) == 4:
        return
    if target is PARAMETER and isinstance(state, tuple) and len(state) in {3, 4, 5}:
        return
    if target in (ORDERED, COUNTER) and isinstance(state, dict):
        return
    if isinstance(target, Kind) and target.name in more:
        return
    raise _Refused(f"a state set on {_named(target)}")


def _named(value: Any) -> str:
    if isinstance(value, GlobalRef):
        return value.qualname
    return value.name if isinstance(value, Kind) else f"a {type(value).__name__}"
