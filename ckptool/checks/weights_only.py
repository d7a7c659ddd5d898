"""What ``torch.load(weights_only=True)`` takes by default, and the line that makes it take more.

Since torch 2.6 this is what ``torch.load`` does unless told otherwise. It refuses every name that
is not in a table (below, torch 2.13's), pickles of protocol 4 and above, whose opcodes it does not
know, and containers other than dict, OrderedDict, Counter and list that are filled in place,
allowed or not.

Source: torch 2.13 ``torch/_weights_only_unpickler.py``.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable

from ckptool.tree import GlobalRef

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

BLOCKED = frozenset({"sys", "os", "posix", "nt"})  # modules that no allowing helps
FILLED_IN_PLACE = frozenset({"collections.defaultdict", "collections.deque"})
LAST_PROTOCOL = 3  # of 4 it does not know the frames


def as_torch_reads(ref: GlobalRef) -> str:
    """The name as Python 3 has it: torch pickles with protocol 2, which has Python 2's names."""
    module, name = ref.module, ref.name
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def refused(refs: Iterable[GlobalRef]) -> list[str]:
    """The names that are not allowed by default, each once, in the order of the file."""
    return [name for name in dict.fromkeys(map(as_torch_reads, refs)) if name not in ALLOWED]


def allowing_line(names: Iterable[str]) -> str | None:
    """Python that allows the names; None where no line can, or where a name is no name.

    A name from a file becomes code that somebody pastes, so it must be made of identifiers alone.
    """
    wanted = list(names)
    for name in wanted:
        is_name = all(part.isidentifier() for part in name.split("."))
        if not is_name or name.partition(".")[0] in BLOCKED or name in FILLED_IN_PLACE:
            return None
    modules = sorted({name.rpartition(".")[0] for name in wanted} | {"torch.serialization"})
    items = [f'({name}, "{name}")' if _is_moved(name) else name for name in wanted]
    if "numpy.dtype" in wanted:  # each type has a class of its own, which the pickle does not name
        items.append('*(type(numpy.dtype(c)) for c in numpy.typecodes["All"])')
        modules = sorted({*modules, "numpy"})
    allowed = ", ".join(items)
    return f"import {', '.join(modules)}; torch.serialization.add_safe_globals([{allowed}])"


def _is_moved(name: str) -> bool:
    """Numpy 2 moved its core, and classes say where they are now, not where the file looks."""
    return name.startswith("numpy.core.")
