"""The dtypes of tensors: one table, and its inverses.

A row gives the name that torch uses, the size in memory, the numpy type that can do arithmetic on
it (bfloat16 and the float8 family come from ``ml_dtypes``), the storage class that ``torch.save``
pickles for it, and the tag in a safetensors header.

Sources: torch 2.13 ``torch/storage.py`` (``_dtype_to_storage_type_map``, ``_new_dtypes``),
safetensors 0.8 ``safetensors/src/tensor.rs`` (``Dtype``).
"""

from __future__ import annotations

from ckptool.records import NamedTuple


class DType(NamedTuple):
    """One dtype."""

    name: str  # torch's name without "torch."
    itemsize: int  # bytes of one element as torch counts elements
    kind: str  # float, int, uint, bool, complex, quantized, bits
    numpy: str | None  # name for numpy or ml_dtypes; None: no arithmetic
    # In torch pickles; None: UntypedStorage and _rebuild_tensor_v3.
    storage_class: str | None = None
    safetensors: str | None = None  # tag in the header; None: cannot be stored there
    packed: int = 1  # logical values in one element, which safetensors counts: 2 for float4

    @property
    def is_floating(self) -> bool:
        """Whether averaging makes sense and NaN is possible: float or complex."""
        return self.kind in {"float", "complex"}

    def __str__(self) -> str:
        return self.name


# fmt: off
DTYPES = (
    DType("float64", 8, "float", "float64", "DoubleStorage", "F64"),
    DType("float32", 4, "float", "float32", "FloatStorage", "F32"),
    DType("float16", 2, "float", "float16", "HalfStorage", "F16"),
    DType("bfloat16", 2, "float", "bfloat16", "BFloat16Storage", "BF16"),
    DType("float8_e4m3fn", 1, "float", "float8_e4m3fn", None, "F8_E4M3"),
    DType("float8_e5m2", 1, "float", "float8_e5m2", None, "F8_E5M2"),
    DType("float8_e4m3fnuz", 1, "float", "float8_e4m3fnuz", None, "F8_E4M3FNUZ"),
    DType("float8_e5m2fnuz", 1, "float", "float8_e5m2fnuz", None, "F8_E5M2FNUZ"),
    DType("float8_e8m0fnu", 1, "float", "float8_e8m0fnu", None, "F8_E8M0"),
    DType("float4_e2m1fn_x2", 1, "float", None, None, "F4", packed=2),
    DType("int64", 8, "int", "int64", "LongStorage", "I64"),
    DType("int32", 4, "int", "int32", "IntStorage", "I32"),
    DType("int16", 2, "int", "int16", "ShortStorage", "I16"),
    DType("int8", 1, "int", "int8", "CharStorage", "I8"),
    DType("uint8", 1, "uint", "uint8", "ByteStorage", "U8"),
    DType("uint16", 2, "uint", "uint16", None, "U16"),
    DType("uint32", 4, "uint", "uint32", None, "U32"),
    DType("uint64", 8, "uint", "uint64", None, "U64"),
    DType("bool", 1, "bool", "bool", "BoolStorage", "BOOL"),
    DType("complex64", 8, "complex", "complex64", "ComplexFloatStorage", "C64"),
    DType("complex128", 16, "complex", "complex128", "ComplexDoubleStorage"),
    DType("complex32", 4, "complex", None),
    DType("qint8", 1, "quantized", "int8", "QInt8Storage"),
    DType("quint8", 1, "quantized", "uint8", "QUInt8Storage"),
    DType("qint32", 4, "quantized", "int32", "QInt32Storage"),
    DType("quint4x2", 1, "quantized", None, "QUInt4x2Storage", packed=2),
    DType("quint2x4", 1, "quantized", None, "QUInt2x4Storage", packed=4),
    DType("bits8", 1, "bits", None),
    DType("bits16", 2, "bits", None),
    DType("bits1x8", 1, "bits", None),
    DType("bits2x4", 1, "bits", None),
    DType("bits4x2", 1, "bits", None),
)
# fmt: on

BY_NAME = {row.name: row for row in DTYPES}
BY_STORAGE_CLASS = {row.storage_class: row for row in DTYPES if row.storage_class}
BY_SAFETENSORS_TAG = {row.safetensors: row for row in DTYPES if row.safetensors}

# How ``struct`` calls them.
STRUCT_CODES = {
    "float64": "d", "float32": "f", "float16": "e", "int64": "q", "int32": "i", "int16": "h",
    "int8": "b", "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q", "bool": "?",
}  # fmt: skip
# How numpy calls those that it has by itself: f4, i8, c16.
BY_NUMPY_CODE = {
    f"{row.kind[0]}{row.itemsize}": row
    for row in DTYPES
    if row.name in STRUCT_CODES or row.name in {"complex64", "complex128"}
}

UINT8 = BY_NAME["uint8"]
