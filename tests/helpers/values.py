"""The values behind a reference, for comparing with what other readers make of the same file."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ckptool.tree.nodes import ArrayRef, TensorRef


def element_bytes(reader, ref: TensorRef) -> bytes:
    """The elements in C order, each as a little-endian machine holds it."""
    if not ref.chunks:
        return b""
    (chunk,) = ref.chunks
    stored = reader.read(chunk.span)
    if ref.dtype.kind == "quantized" and ref.dtype.packed > 1:
        return stored  # several elements share a byte
    if ref.byteorder == "big":
        stored = swapped(stored, ref.dtype)
    return strided(stored, ref.dtype.itemsize, chunk.shape, chunk.strides)


def strided(stored: bytes, itemsize: int, shape, strides) -> bytes:
    """Elements picked from ``stored`` by their strides, which count elements."""
    if 0 in shape:
        return b""
    flat = np.frombuffer(stored, dtype=f"V{itemsize}")
    view = as_strided(flat, shape, [step * itemsize for step in strides], writeable=False)
    return np.ascontiguousarray(view).tobytes()


def swapped(stored: bytes, dtype) -> bytes:
    """Each number's bytes reversed; a complex element is two numbers."""
    width = dtype.itemsize // (2 if dtype.kind == "complex" else 1)
    return np.frombuffer(stored, dtype=np.uint8).reshape(-1, width)[:, ::-1].tobytes()


def numbers(reader, ref: TensorRef) -> np.ndarray:
    """The elements as numpy numbers; bfloat16 and the float8 family through ``ml_dtypes``."""
    import ml_dtypes

    name = ref.dtype.numpy
    assert name is not None, f"no arithmetic on {ref.dtype}"
    kind = getattr(ml_dtypes, name, None) or np.dtype(name)
    array = np.frombuffer(element_bytes(reader, ref), dtype=kind).reshape(ref.shape)
    if "conj" in ref.lazy:
        array = array.conj()
    return -array if "neg" in ref.lazy else array


def array_of(reader, ref: ArrayRef) -> np.ndarray:
    """A numpy array."""
    assert ref.span is not None, "an array of objects"
    order = "F" if ref.fortran_order else "C"
    flat = np.frombuffer(reader.read(ref.span), dtype=np.dtype(ref.dtype))
    return flat[: int(np.prod(ref.shape))].reshape(ref.shape, order=order)
