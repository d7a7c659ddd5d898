"""Which pickled calls mean a tensor, a parameter, an OrderedDict, a numpy array.

The table ``CALLS`` maps the name of a function to one of ours that turns the same arguments into
inert data. Our functions allocate nothing and read nothing: they check sizes against the storage
and make references. Whatever is not in the table becomes an :class:`~ckptool.tree.Opaque`.

Sources: torch 2.13 ``torch/_utils.py``, ``torch/_tensor.py``, ``torch/storage.py``; numpy 1.26 and
2.4 ``numpy/_core/src/multiarray/methods.c`` (``array_reduce``, ``array_setstate``); Python's
``copyreg``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from struct import Struct
from typing import Any

from ckptool.dtypes import BY_NAME, BY_STORAGE_CLASS, UINT8, DType
from ckptool.errors import CkptError, DamagedError
from ckptool.formats.pickle_tree import Builder, Clashes, check_keys, name_of
from ckptool.tree import (
    ArrayRef,
    Blob,
    ByteSpan,
    BytesRef,
    Chunk,
    CompositeTensor,
    GlobalRef,
    NotedDict,
    NotedList,
    Opaque,
    Quantizer,
    SpannedBytes,
    StorageRef,
    TensorRef,
    extent,
    stored_nbytes,
)

LocateStorage = Callable[[str, int], ByteSpan | None]  # (key, nbytes) -> where it lies
LoadNested = Callable[[Any], Any]  # the bytes of a nested torch.save -> its tree

# ----------------------------------------------------------------------------------------- tensors


def _sizes(values: Any) -> tuple[int, ...]:
    """A shape or strides as a tuple of non-negative integers, whatever sequence they came in."""
    if isinstance(values, Opaque):
        values = values.args[0] if len(values.args) == 1 else values.elements
    sizes = tuple(values)
    for size in sizes:  # a loop: four times a tensor, and half the time of all()
        if type(size) is not int or size < 0:
            shown = size if type(size) is int else _kind(size)
            raise DamagedError(f"sizes must be integers of at least 0, not {shown}")
    return sizes


def tensor_view(
    storage: Any, offset: Any, shape: Any, strides: Any, dtype: DType | None = None, **more: Any
) -> TensorRef:
    """A tensor that views ``storage`` from element ``offset`` on."""
    if not isinstance(storage, StorageRef):
        raise DamagedError(f"a tensor is built on {_kind(storage)} instead of a storage")
    dtype = dtype or storage.dtype
    shape, strides = _sizes(shape), _sizes(strides)
    if len(shape) != len(strides):
        raise DamagedError(f"a tensor has {len(shape)} sizes but {len(strides)} strides")
    (offset,) = _sizes((offset,))
    if dtype.kind == "quantized" and dtype.packed > 1:  # torch has no strided views of these
        start, nbytes = offset // dtype.packed, stored_nbytes(dtype, shape)
    else:
        start, nbytes = offset * dtype.itemsize, extent(shape, strides) * dtype.itemsize
    if storage.span is None:
        return TensorRef(dtype, shape, (), device=storage.device, **more)
    if nbytes and start + nbytes > storage.span.nbytes:
        raise DamagedError(
            f"a {dtype} tensor of shape {list(shape)} needs bytes {start} to {start + nbytes} "
            f"of its storage, which has {storage.span.nbytes}"
        )
    span = ByteSpan(storage.span.source, storage.span.offset + start, nbytes)
    chunk = Chunk(span, (0,) * len(shape), shape, strides)
    return TensorRef(
        dtype, shape, (chunk,), device=storage.device, byteorder=storage.byteorder, **more
    )


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorRef:
    return tensor_view(storage, offset, shape, strides)


def _rebuild_tensor_v2(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    _hooks: Any = None,
    metadata: Any = None,
) -> TensorRef:
    lazy = _lazy(metadata) if metadata else ()
    return tensor_view(
        storage, offset, shape, strides, requires_grad=bool(requires_grad), lazy=lazy
    )


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    _hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> TensorRef:
    more: dict[str, Any] = {"requires_grad": bool(requires_grad), "lazy": _lazy(metadata)}
    return tensor_view(storage, offset, shape, strides, dtype_of(dtype), **more)


def _lazy(metadata: Any) -> tuple[str, ...]:
    return tuple(bit for bit in ("conj", "neg") if isinstance(metadata, dict) and metadata.get(bit))


def _rebuild_qtensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    params: Any,
    requires_grad: Any,
    _hooks: Any,
) -> TensorRef:
    scheme, scale, zero_point, *axis = params
    quantizer = Quantizer(_last_name(scheme), scale, zero_point, axis[0] if axis else None)
    more: dict[str, Any] = {"requires_grad": bool(requires_grad), "quantizer": quantizer}
    return tensor_view(storage, offset, shape, strides, **more)


def _rebuild_meta_tensor(dtype: Any, shape: Any, _strides: Any, requires_grad: Any) -> TensorRef:
    return TensorRef(
        dtype_of(dtype), _sizes(shape), (), device="meta", requires_grad=bool(requires_grad)
    )


def _rebuild_parameter(data: Any, requires_grad: Any, _hooks: Any) -> Any:
    if isinstance(data, TensorRef) and data.requires_grad is not bool(requires_grad):
        return replace(data, requires_grad=bool(requires_grad))
    return data


def _rebuild_parameter_with_state(data: Any, requires_grad: Any, hooks: Any, state: Any) -> Any:
    made = _rebuild_parameter(data, requires_grad, hooks)
    return replace(made, state=state) if isinstance(made, TensorRef) else made


def _parameter(data: Any = None, requires_grad: Any = True) -> Any:
    return _rebuild_parameter(data, requires_grad, None)


def _variable(data: Any = None, *_flags: Any) -> Any:
    """Before torch 0.4 a tensor that has a gradient was wrapped in this."""
    return data


def _rebuild_device_tensor(data: Any, _dtype: Any, device: Any, requires_grad: Any) -> Any:
    """XLA and other devices without storage: saved as a CPU tensor, or as a numpy array."""
    if isinstance(data, TensorRef):
        return replace(data, device=_last_name(device), requires_grad=bool(requires_grad))
    return data


_COMPRESSED = {
    "sparse_csr": ("crow_indices", "col_indices"),
    "sparse_csc": ("ccol_indices", "row_indices"),
    "sparse_bsr": ("crow_indices", "col_indices"),
    "sparse_bsc": ("ccol_indices", "row_indices"),
}


def _rebuild_sparse_tensor(layout: Any, data: Any) -> CompositeTensor:
    name = _last_name(layout)
    if name == "sparse_coo":
        indices, values, shape = data[:3]
        parts = {"indices": indices, "values": values}
    else:
        compressed, plain, values, shape = data
        parts = dict(zip(_COMPRESSED[name], (compressed, plain), strict=True))
        parts["values"] = values
    return _composite(name, values, _sizes(shape), parts)


def _rebuild_nested_tensor(values: Any, sizes: Any, strides: Any, offsets: Any) -> CompositeTensor:
    parts = {"values": values, "sizes": sizes, "strides": strides, "storage_offsets": offsets}
    return _composite("nested", values, values.shape, parts)


def _composite(
    layout: str, values: Any, shape: tuple[int, ...], parts: dict[str, Any]
) -> CompositeTensor:
    wrong = [name for name, part in parts.items() if not isinstance(part, TensorRef)]
    if wrong:
        raise DamagedError(f"a {layout} tensor whose {wrong[0]} are no tensor")
    return CompositeTensor(layout, values.dtype, shape, parts)


def _rebuild_wrapper_subclass(cls: Any, *args: Any) -> Opaque:
    """A tensor subclass without data of its own (DTensor and the like): its parts are its state."""
    return Opaque(name_of(cls), args)


def _same(value: Any, _type: Any = None) -> Any:
    """TorchScript's tags for the types of lists: the value as it is."""
    return value


def _last_name(value: Any) -> str:
    """``strided`` for the global ``torch.strided``, however the file's version spelled it."""
    if isinstance(value, GlobalRef):
        return value.name
    if isinstance(value, Opaque) and value.args:  # torch.serialization._get_layout('torch.strided')
        value = value.args[0]
    return _as_text(value).rpartition(".")[2]


def dtype_of(value: Any) -> DType:
    """The element type that a pickled ``torch.dtype`` names.

    Raises:
        DamagedError: an unknown one.
    """
    name = _last_name(value)
    if name not in BY_NAME:
        raise DamagedError(f"the element type {name!r:.60} is not known")
    return BY_NAME[name]


def _kind(value: Any) -> str:
    return value.qualname if isinstance(value, (Opaque, GlobalRef)) else f"a {type(value).__name__}"


# ---------------------------------------------------------------------------------------- built-ins


def _ordered_dict(pairs: Any = ()) -> NotedDict:
    if not pairs:  # every tensor has an empty one
        return NotedDict()
    if not isinstance(pairs, dict):
        pairs = [(key, value) for key, value in _finite(pairs)]
        check_keys([key for key, _ in pairs], Clashes())
    return NotedDict(pairs)


def _default_dict(factory: Any = None, pairs: Any = ()) -> NotedDict:
    made = _ordered_dict(pairs)
    if factory is not None:
        made.made_with = {"default_factory": factory}
    return made


def _list(values: Any = ()) -> list[Any]:
    return list(_finite(values))


def _deque(values: Any = (), maxlen: Any = None) -> NotedList:
    made = NotedList(_finite(values))
    if maxlen is not None:
        made.made_with = {"maxlen": maxlen}
    return made


def _tuple(values: Any = ()) -> tuple[Any, ...]:
    return tuple(_finite(values))


def _set(values: Any = ()) -> set[Any]:
    return set(_hashable(values))


def _frozenset(values: Any = ()) -> frozenset[Any]:
    return frozenset(_hashable(values))


def _hashable(values: Any) -> list[Any]:
    made = list(_finite(values))
    check_keys(made, Clashes())
    return made


def _finite(values: Any) -> Any:
    """Only containers that are already there; ``list(range(10**12))`` would not be."""
    if not isinstance(values, (list, tuple, set, frozenset, dict, str)):
        raise DamagedError(f"a container is built from {_kind(values)}")
    return values


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    """``_codecs.encode``: how protocols 0 to 2 spell bytes."""
    if _as_text(encoding) not in {"latin1", "latin-1", "utf-8", "ascii"}:
        raise DamagedError(f"bytes are encoded as {encoding!r:.40}")
    data: bytes = text.encode(encoding)
    return SpannedBytes.at(data, ByteSpan(Blob(data), 0, len(data)))


def _bytes(text: Any = b"", encoding: Any = None) -> bytes | BytesRef:
    if isinstance(text, BytesRef):  # a bytearray of protocols 3 and 4, too long to hold
        return text
    if isinstance(text, str):
        return _encode(text, encoding)
    if isinstance(text, (list, tuple, bytes)):
        return bytes(text)
    raise DamagedError(f"bytes are built from {_kind(text)}")


def _complex(real: Any = 0.0, imag: Any = 0.0) -> complex:
    return complex(real, imag)


def _reconstructor(cls: Any, base: Any, state: Any) -> Any:
    """``copyreg._reconstructor``: objects in protocols 0 and 1."""
    made = Opaque(name_of(cls))
    if isinstance(base, GlobalRef) and base.name == "dict" and isinstance(state, dict):
        made.items = dict(state)
    elif isinstance(base, GlobalRef) and base.name == "list" and isinstance(state, list):
        made.elements = list(state)
    elif state is not None:
        made.args = (state,)
    return made


def _newobj(cls: Any, *args: Any) -> Any:
    return Opaque(name_of(cls), args)


def _path(*parts: Any) -> str:
    """``pathlib``: the path as text."""
    return "/".join(_as_text(part) for part in parts).replace("//", "/")


# -------------------------------------------------------------------------------------------- numpy

# numpy's type strings without the byte order, as struct codes: for scalars
_SCALARS = {
    "f8": "d", "f4": "f", "f2": "e", "b1": "?",
    "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H", "u1": "B",
}  # fmt: skip


def _numpy_dtype(code: Any, _align: Any = False, _copy: Any = False) -> Opaque:
    return Opaque("numpy.dtype", (code,))


def _type_string(dtype: Any) -> str:
    """``<f4`` for a pickled numpy dtype; the byte order is in the state that BUILD gave it."""
    if not isinstance(dtype, Opaque) or not dtype.args:
        raise DamagedError(f"a numpy type is described by {_kind(dtype)}")
    code = _as_text(dtype.args[0])
    state = dtype.state if isinstance(dtype.state, tuple) else ()
    order = str(state[1]) if len(state) > 1 and isinstance(state[1], str) else "|"
    unit = _time_unit(state[8]) if code in {"M8", "m8"} and len(state) > 8 else ""
    return ("" if code[:1] in "<>|=" else order) + code + unit


def _time_unit(metadata: Any) -> str:
    """``[7us]`` for ``(None, (b"us", 7, 1, 1))``: what integers of dates and durations count."""
    _, (unit, count, *_) = metadata
    return f"[{count if type(count) is int and count != 1 else ''}{_as_text(unit)}]"


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
    if span.nbytes < wanted:
        raise DamagedError(
            f"a numpy array {dtype} {list(shape)} takes {wanted} bytes, has {span.nbytes}"
        )
    return ArrayRef(dtype, shape, fortran_order, span, fields=fields)


def _fields_of(dtype: Opaque) -> Any:
    """(names, types and places) of a structured type, as its state has them; None: it is plain."""
    fields = dtype.state[3:5] if isinstance(dtype.state, tuple) else ()
    return fields if any(part is not None for part in fields) else None


def _span_of(data: Any) -> ByteSpan:
    if isinstance(data, (SpannedBytes, BytesRef)):
        return data.span
    if isinstance(data, str):  # a Python 2 pickle whose bytes happen to be text
        data = data.encode()
    if isinstance(data, (bytes, bytearray)):
        return ByteSpan(Blob(bytes(data)), 0, len(data))
    raise DamagedError(f"bytes are expected, not {_kind(data)}")


def _numpy_frombuffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
    return _array(dtype, _sizes(shape), data, fortran_order=order == "F")


def _numpy_reconstruct(_cls: Any, _shape: Any = (0,), _code: Any = b"b") -> Opaque:
    return Opaque(_NDARRAY)


_NDARRAY = "numpy.ndarray"


def _state_of(state: Any) -> tuple[Any, ...]:
    """``(version, shape, dtype, is_fortran, data)``, the version being left out by old numpy."""
    return state[-4:] if isinstance(state, tuple) else (state,)


def _numpy_build(shape: Any, dtype: Any, is_fortran: Any, data: Any) -> Any:
    """``ndarray.__setstate__``."""
    return _array(dtype, _sizes(shape), data, fortran_order=bool(is_fortran))


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
        return complex(*Struct(("<2f", "<2d")[code == "c16"]).unpack(raw))
    if code[:1] == "U":
        return raw.decode("utf-32-be" if type_string.startswith(">") else "utf-32-le").rstrip("\0")
    return raw.rstrip(b"\0") if code[:1] == "S" else Opaque("numpy.scalar", (type_string, raw))


def _random(name: str, *args: Any) -> Opaque:
    """Generators of random numbers, told by their names."""
    return Opaque(f"numpy.random._pickle.{name}", args, called=True)


# -------------------------------------------------------------------------------- whole-class rules


def _persistent_class(meta: Any) -> Any:
    """NVIDIA's StyleGAN and EDM snapshots: an object with the source code of its class beside it.

    Source: https://github.com/NVlabs/stylegan3/blob/main/torch_utils/persistence.py
    """
    fields = meta.items if isinstance(meta, Opaque) else meta
    if not isinstance(fields, dict):
        raise DamagedError("a persistent object is described by no dict")
    more = {key: value for key, value in fields.items() if key not in {"class_name", "state"}}
    return Opaque(_as_text(fields.get("class_name", "?")), kwargs=more, state=fields.get("state"))


Call = Callable[..., Any]

# fmt: off
_TORCH: dict[str, Call] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_qtensor": _rebuild_qtensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter_with_state,
    "torch._utils._rebuild_sparse_tensor": _rebuild_sparse_tensor,
    "torch._utils._rebuild_sparse_csr_tensor": _rebuild_sparse_tensor,
    "torch._utils._rebuild_nested_tensor": _rebuild_nested_tensor,
    "torch._utils._rebuild_meta_tensor_no_storage": _rebuild_meta_tensor,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _rebuild_device_tensor,
    "torch._utils._rebuild_device_tensor_from_numpy": _rebuild_device_tensor,
    "torch._utils._rebuild_xla_tensor": _rebuild_device_tensor,
    "torch._utils._rebuild_wrapper_subclass": _rebuild_wrapper_subclass,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.nn.parameter.Buffer": _parameter,
    "torch.autograd.variable.Variable": _variable,
    "torch.Size": _tuple,
    **{
        f"torch.jit._pickle.{name}": _same
        for name in (
            "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist",
            "restore_type_tag",
        )
    },
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_class,
}
# fmt: on

_PYTHON: dict[str, Call] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "collections.Counter": _ordered_dict,
    "collections.deque": _deque,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructor,
    "copyreg.__newobj__": _newobj,
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
        f"pathlib{sub}.{cls}": _path
        for sub in ("", "._local")
        for cls in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}
_PYTHON["copy_reg._reconstructor"] = _PYTHON["copyreg._reconstructor"]

_NUMPY: dict[str, Call] = {
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

_NUMPY.update(
    {
        f"numpy.random._pickle.{name}": partial(_random, name)
        for name in ("__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor")
    }
)

CALLS: Mapping[str, Call] = {**_TORCH, **_PYTHON, **_NUMPY}

# Two calls need the builder itself: they call further, or open what is nested.
_FROM_TYPE = {"torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"}
_FROM_TYPE |= {name.replace("_tensor", "tensor") for name in _FROM_TYPE}  # before torch 1.9
_NESTED = {"torch.storage._load_from_bytes"}

# Saved so when they carry attributes.
_NO_SUBCLASS = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}

# Calls that copy what they are given. A pickle may give one thing to a million of them.
_COPYING = frozenset(_PYTHON) | frozenset(_NUMPY) | {"torch.Size", _NDARRAY}
_SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset)
MIN_COPIES = 1 << 24

# Functions that call what they are given, at these places.
_CALLING: Mapping[str, tuple[int, ...]] = {
    "copyreg._reconstructor": (1,),  # base.__init__(obj, state)
    "copy_reg._reconstructor": (1,),
    "numpy.random._pickle.__bit_generator_ctor": (0,),
    "numpy.random._pickle.__generator_ctor": (1,),
    "numpy.random._pickle.__randomstate_ctor": (1,),
}
# Functions that call these attributes of what they are given, where it has them of its own: the
# object's state may put any function there. ``Parameter(data)`` is ``data.detach()``.
_ASKING: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer",
            "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
        ),
        ("detach",),
    ),
    **dict.fromkeys(
        ("copyreg.__newobj__", "copyreg.__newobj_ex__", "numpy.ma.core._mareconstruct"),
        ("__new__",),
    ),
    **dict.fromkeys(("copyreg._reconstructor", "copy_reg._reconstructor"), ("keys",)),
    **dict.fromkeys(
        (
            "collections.OrderedDict", "collections.Counter", "collections.defaultdict",
            "builtins.dict", "__builtin__.dict",
        ),
        ("keys", "items"),
    ),
}  # fmt: skip
# What an instruction calls of an object: APPEND and its kin look for these, BUILD for the last.
_FILLING = ("append", "extend", "add")
# Constructors of plain values. Of plain values they run nothing; of an object they ask for its
# text, its number or its array, and some classes of Python have those made by their attributes.
PLAIN_CONSTRUCTORS = frozenset({
    *(f"builtins.{name}" for name in ("int", "float", "str", "bool", "range")),
    *(f"__builtin__.{name}" for name in ("int", "float", "str", "bool", "unicode", "long",
                                         "xrange")),
    *(f"numpy.{name}" for name in (
        "bool_", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8",
        "uint16", "uint32", "uint64", "complex64", "complex128", "str_", "bytes_", "longdouble",
    )),
    "decimal.Decimal", "fractions.Fraction", "uuid.UUID", "re._compile", "torch.device",
    "torch.Tensor", "torch.torch_version.TorchVersion", "numpy.random.mtrand.RandomState",
    "numpy.random._mt19937.MT19937", "numpy.random._pcg64.PCG64", "numpy.random._sfc64.SFC64",
    "numpy.random._pcg64.PCG64DXSM", "numpy.random._philox.Philox",
    "numpy.random.bit_generator.SeedSequence", "random.Random", "ipaddress.IPv4Address",
    "ipaddress.IPv6Address",
})  # fmt: skip
_PLAIN = (str, bytes, bytearray, int, float, complex, type(None), BytesRef, TensorRef, ArrayRef)
_MAX_PLAIN = 64  # parts of a tuple or list of plain values

# Functions that run source code which the file holds: a module around a class.
RUNS_SOURCE = frozenset({"torch_utils.persistence._reconstruct_persistent_obj"})
# ``getattr(Class, "name")``: how Python 2 and mmengine pickle a method; nothing runs until it is
# called, which would be a call of something that is no name.
LOOKUPS = frozenset({"builtins.getattr", "__builtin__.getattr"})
_SETSTATE = "__setstate__"
MAX_INERT = 1 << 20  # objects and calls that we leave alone; more would take too long to look at
MAX_USES = 3  # calls of one name that are kept to be shown

VETTED_CALLS = frozenset(CALLS) | _FROM_TYPE | _NESTED


def _part(target: GlobalRef | Opaque, name: str) -> GlobalRef:
    """A part of what a name, or a part of something that was looked up, stands for."""
    if isinstance(target, GlobalRef):
        return GlobalRef(target.module, f"{target.name}.{name}")
    if not _is_part_of_class(target.args):  # of what a call made
        return GlobalRef("", f"{name_of(target)}.{name}")
    owner, part = target.args
    return GlobalRef(owner.module, f"{owner.name}.{part}.{name}")


def _UNSEEN() -> None:  # noqa: N802
    """Marks a function that has not been looked up yet."""


def _is_part_of_class(args: tuple[Any, ...]) -> bool:
    """Whether they name a class, by its capital, and one of its public parts.

    ``torch.os`` is a module, and so is much else that a module imports.
    """
    if len(args) != 2 or not isinstance(args[0], GlobalRef):
        return False
    name, of_class = args[1], args[0].name.lstrip("_")[:1].isupper()
    return of_class and isinstance(name, str) and name.isidentifier() and not name.startswith("_")


def _is_plain(arg: Any) -> bool:
    """A plain value, a name, or a short row of plain values."""
    if isinstance(arg, (tuple, list)) and len(arg) <= _MAX_PLAIN:
        return all(isinstance(part, _PLAIN) for part in arg)
    return isinstance(arg, (*_PLAIN, GlobalRef))


def _own_attributes(obj: Any) -> dict[Any, Any]:
    return obj.attributes if isinstance(obj, Opaque) else {}


def _is_the_loaders(target: Any) -> bool:
    """Whether it exists in the loading process: a name, or a part of a class looked up."""
    return isinstance(target, GlobalRef) or (
        isinstance(target, Opaque) and target.called and target.qualname in LOOKUPS
    )


class TorchBuilder(Builder):
    """Turns the calls in ``CALLS`` into tensors and plain containers, and storages into places."""

    def __init__(
        self,
        locate: LocateStorage,
        load_nested: LoadNested | None = None,
        byteorder: str = "little",
    ) -> None:
        super().__init__()
        self._locate = locate
        self._load_nested = load_nested
        self._byteorder = byteorder
        self._storages: dict[str, StorageRef] = {}
        self._by_id: dict[int, Call | None] = {}  # the machine interns names: identity is enough
        self._inert = 0
        self._merged: dict[int, Opaque] = {}  # objects with a state that is a copy of our own
        self.called: dict[GlobalRef, list[Opaque]] = {}  # with the first that we leave inert
        self.looked_up: set[GlobalRef] = set()  # called to hand out parts of classes
        self.copies_left = (
            MIN_COPIES  # elements or bytes; whoever reads a larger pickle allows more
        )

    def call(self, func: Any, args: tuple[Any, ...]) -> Any:
        """The row of ``CALLS`` for ``func``, or an inert object."""
        if not isinstance(func, GlobalRef):
            return self._noted(func, args)
        known = self._by_id.get(id(func), _UNSEEN)
        if known is not None and known is not _UNSEEN:  # most calls: millions in a large file
            return _checked(known, func, args)
        if func.qualname in LOOKUPS and _is_part_of_class(args):
            self.looked_up.add(func)
            return Opaque(func.qualname, args, called=True)
        if known is _UNSEEN:
            self.called.setdefault(func, [])
            known = self._by_id[id(func)] = self._find(func.qualname)
        if known is None:
            self._ask(func.qualname, args)
            return self._noted(func, args)
        return _checked(known, func, args)

    def _ask(self, qualname: str, args: tuple[Any, ...]) -> None:
        """Note what a vetted function would call of its arguments."""
        asked = _ASKING.get(qualname, ())
        for arg in args:
            if qualname in PLAIN_CONSTRUCTORS and not _is_plain(arg):
                self._noted(arg, ())
            self._note_attributes(arg, asked)

    def _note_attributes(self, obj: Any, asked: tuple[str, ...]) -> None:
        own = _own_attributes(obj) if asked else {}
        for name in asked:
            if name in own:
                self._noted(own[name], ())

    def new(self, cls: Any, args: tuple[Any, ...], kwargs: dict[Any, Any] | None) -> Any:
        """Plain containers are made through ``__new__`` too, by newer protocols."""
        known = self._plain(cls.qualname) if isinstance(cls, GlobalRef) else None
        if known is not None and not kwargs:
            return _checked(known, cls, args)
        if kwargs is None and isinstance(cls, GlobalRef):
            self._count()
            return super().new(cls, args, kwargs)
        return self._noted(cls, args, kwargs)

    def build(self, obj: Any, state: Any) -> Any:
        """Arrays are finished by their state."""
        if isinstance(obj, Opaque) and obj.qualname == _NDARRAY:
            return _checked(partial(self._metered, _numpy_build), _NDARRAY, _state_of(state))
        if _is_the_loaders(obj):  # the attributes of a class, or of a module's function
            self._noted(_part(obj, "__dict__"), (state,))
        for given in state if isinstance(state, tuple) else (state,):
            if isinstance(given, dict) and _SETSTATE in given:  # the next BUILD would call it
                self._noted(given[_SETSTATE], ())
        if isinstance(obj, (NotedDict, NotedList)):
            obj.state = state
        if isinstance(obj, Opaque) and obj.attributes:
            state = self._both(obj, state)
        return super().build(obj, state)

    def _both(self, obj: Opaque, state: Any) -> Any:
        """The state of an object that is built again: its attributes are updated."""
        new = Opaque("", state=state).attributes
        self._meter((new,))
        if id(obj) not in self._merged:
            self._merged[id(obj)] = obj
            self._meter((obj.attributes,))
            obj.state = dict(obj.attributes)
        obj.state.update(new)
        return obj.state

    def items_of(self, target: Any) -> dict[Any, Any]:
        """Items of what only has a name (``os.environ``) are set in the loading process."""
        if _is_the_loaders(target):
            self._noted(_part(target, "__setitem__"), ())
        return super().items_of(target)

    def elements_of(self, target: Any, how: str) -> list[Any]:
        """Likewise (``sys.path``); of an object whatever is called so is asked to take them."""
        if _is_the_loaders(target):
            self._noted(_part(target, "append"), ())
        self._note_attributes(target, _FILLING)
        return super().elements_of(target, how)

    def _noted(self, func: Any, args: tuple[Any, ...], kwargs: dict[Any, Any] | None = None) -> Any:
        """A call that we do not understand, as the object that it would have made."""
        self._count()
        name = name_of(func)
        made = Opaque(name, args, kwargs or {}, called=True)
        ref = func if isinstance(func, GlobalRef) else GlobalRef("", name)
        uses = self.called.setdefault(ref, [])
        if len(uses) < MAX_USES:
            uses.append(made)
        return made

    def _count(self) -> None:
        self._inert += 1
        if self._inert > MAX_INERT:
            raise DamagedError(f"a program that makes more than {MAX_INERT} objects")

    def persistent(self, saved_id: Any) -> Any:
        """``('storage', class, key, location, numel, view)`` as a storage, or a module's class."""
        if not isinstance(saved_id, tuple) or not saved_id:
            return super().persistent(saved_id)
        kind, *rest = saved_id
        if kind in ("module", b"module") and rest:  # legacy: (class, source file, source)
            return rest[0]
        if kind not in ("storage", b"storage") or len(rest) < 4:
            return super().persistent(saved_id)
        cls, key, location, numel, *view = rest
        storage = self._storage(cls, _as_text(key), _as_text(location), numel)
        return storage_view(storage, view[0]) if view and view[0] is not None else storage

    def _storage(self, cls: Any, key: str, location: str, numel: Any) -> StorageRef:
        if key in self._storages:  # as torch does, the first mention decides the type
            return self._storages[key]
        dtype = storage_dtype(cls)
        (count,) = _sizes((numel,))
        span = self._locate(key, count * dtype.itemsize)
        storage = StorageRef(dtype, span, location, self._byteorder)
        if count:  # torch does not remember empty storages
            self._storages[key] = storage
        return storage

    def _find(self, qualname: str) -> Call | None:
        if qualname in _FROM_TYPE:
            return self._rebuild_from_type
        if qualname in _NESTED:
            return self._load_nested
        known = self._plain(qualname)
        if known and qualname in _ASKING:
            known = partial(self._asking, qualname, known)
        if known and qualname in RUNS_SOURCE:
            return partial(self._running, GlobalRef(*qualname.rsplit(".", 1)), known)
        positions = _CALLING.get(qualname)
        return partial(self._calling, positions, known) if positions and known else known

    def _running(self, ref: GlobalRef, call: Call, *args: Any) -> Any:
        """``call(*args)``, which a loader would not understand but run."""
        self._noted(ref, args)
        return call(*args)

    def _asking(self, qualname: str, call: Call, *args: Any) -> Any:
        """``call(*args)``, which calls attributes of its arguments."""
        self._ask(qualname, args)
        return call(*args)

    def _calling(self, positions: tuple[int, ...], call: Call, *args: Any) -> Any:
        """``call(*args)``, which calls some of its arguments in turn."""
        for i in positions:
            if i < len(args) and isinstance(args[i], (GlobalRef, Opaque)):
                self._noted(args[i], args[:i] + args[i + 1 :])
        return call(*args)

    def _plain(self, qualname: str) -> Call | None:
        known = CALLS.get(qualname)
        return partial(self._metered, known) if known and qualname in _COPYING else known

    def _metered(self, call: Call, *args: Any) -> Any:
        """``call(*args)``, unless the pickle has copied more than it could have spelled out."""
        self._meter(args)
        return call(*args)

    def _meter(self, args: tuple[Any, ...]) -> None:
        for arg in args:
            if isinstance(arg, _SIZED):
                self.copies_left -= len(arg)
        if self.copies_left < 0:
            raise DamagedError("the pickle copies the same data again and again")

    def _rebuild_from_type(self, func: Any, cls: Any, args: Any, state: Any) -> Any:
        """A tensor subclass: the plain tensor, marked with its class."""
        made = self.call(func, args)
        self._note_attributes(made, ("as_subclass",))
        if isinstance(made, TensorRef):
            name = name_of(cls)
            return replace(made, subclass=None if name in _NO_SUBCLASS else name, state=state)
        return self.build(made, state)


def storage_dtype(cls: Any) -> DType:
    """The element type of a storage class: ``torch.FloatStorage``, ``torch.cuda.HalfStorage``."""
    name = cls.name if isinstance(cls, GlobalRef) else _as_text(cls)
    if name in BY_STORAGE_CLASS:
        return BY_STORAGE_CLASS[name]
    if name in {"UntypedStorage", "_UntypedStorage"}:
        return UINT8
    raise DamagedError(f"the storage class {name!r:.60} is not known")


def storage_view(storage: StorageRef, view: Any) -> StorageRef:
    """A part of a storage (legacy files): (key, offset, size), in elements."""
    _key, offset, size = view
    start, nbytes = (n * storage.dtype.itemsize for n in _sizes((offset, size)))
    span = storage.span
    if span is None:
        return storage
    if start + nbytes > span.nbytes:
        raise DamagedError(f"a view of {nbytes} bytes at {start} in a storage of {span.nbytes}")
    return replace(storage, span=ByteSpan(span.source, span.offset + start, nbytes))


def _as_text(value: Any) -> str:
    """A name: text, or what Python 2 wrote as bytes. Nothing else has one in bounded time."""
    if type(value) is str:
        return value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if type(value) is int:
        return str(value)
    raise DamagedError(f"a name is expected, not {_kind(value)}")


def _checked(call: Call, what: GlobalRef | str, args: tuple[Any, ...]) -> Any:
    """``call(*args)``; ``what`` is its name, for messages."""
    try:
        return call(*args)
    except CkptError:
        raise
    except Exception as error:  # struct.error and the like have no common base
        name = what if isinstance(what, str) else what.qualname
        raise DamagedError(f"{name} is given what it cannot take: {error}") from error
