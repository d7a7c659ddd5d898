"""Measurement of a run of two tensors: choice of type and kernel, on either backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ckptool.comparison.arrays import BLOCK, Array, Arrays, Buffer, NumpyArrays
from ckptool.comparison.kernels import (
    Partial,
    complexes,
    counted_pairs,
    equal_unseen,
    floats,
    floats_of_rows,
    floats_unseen,
    integers,
    lost,
    merged,
    of_two_types,
    within_ulp,
    worst_pairs,
)
from ckptool.comparison.tolerances import Tolerance
from ckptool.comparison.values import Job
from ckptool.dtypes import DType
from ckptool.errors import DamagedError

LONG = frozenset({"int64", "uint64"})
UNSIGNED = "float8_e8m0fnu"  # has no sign bit
CODE = bytes(range(256))
ROWS = b"".join(bytes([code]) * 256 for code in CODE)


def measured(arrays: Arrays, a: Buffer, b: Buffer, job: Job) -> Partial:
    """Measure two runs of bytes."""
    xp = arrays.xp
    one, other = arrays.view(a, job.a.dtype), arrays.view(b, job.b.dtype)
    x, y = arrays.convert(one, job.form, 0), arrays.convert(other, job.form, 1)
    if job.form == "int64":
        return integers(xp, x, y, flipped=job.a.dtype.name == "uint64")
    rest = _lost(arrays, one, x, job.a.dtype) - _lost(arrays, other, y, job.b.dtype)
    if job.form == "complex128":
        return complexes(xp, x, y, job.rule, rest)
    if not job.is_one_type:
        return of_two_types(xp, x, y, job.rule, rest)
    return floats(xp, x, y, job.rule, _nearness(arrays, a, b, job), arrays.room(len(x), 2))


def measured_in_blocks(arrays: NumpyArrays, a: bytes, b: bytes, job: Job) -> Partial:
    """Measure a run in blocks: one whose bytes had to be made is long."""
    size, other_size = job.a.dtype.itemsize, job.b.dtype.itemsize
    whole = Partial(0)
    with arrays.quietly():
        for start in range(0, len(a) // size, BLOCK):
            one = a[start * size : (start + BLOCK) * size]
            other = b[start * other_size : (start + BLOCK) * other_size]
            whole = merged(whole, measured(arrays, one, other, job), start)
    return whole


def measured_together(
    arrays: NumpyArrays, pairs: Sequence[tuple[bytes, bytes]], job: Job
) -> list[Partial | None]:
    """Measure short runs of floats that are as long as ``job`` and have its dtype and tolerance.

    None stands for a run that has to be measured by itself: see ``floats_of_rows``.
    """
    a, b = (b"".join(sides) for sides in zip(*pairs, strict=True))
    shape = (len(pairs), -1)
    flat = _nearness(arrays, a, b, job)
    near = None if flat is None else lambda: flat().reshape(shape)
    with arrays.quietly():
        x, y = (
            arrays.convert(arrays.view(data, job.a.dtype), "float64", slot).reshape(shape)
            for slot, data in enumerate((a, b))
        )
        return list(floats_of_rows(arrays.xp, x, y, job.rule, near))


def measured_unseen(arrays: Arrays, a: Buffer, b: Buffer, job: Job) -> list[Array]:
    """Measure two runs of floats without reading the numbers: see ``floats_unseen``."""
    xp, dtype = arrays.xp, job.a.dtype
    x = arrays.convert(arrays.view(a, dtype), "float64", 0)
    if job.is_one_sided:
        return equal_unseen(xp, x)
    y = arrays.convert(arrays.view(b, dtype), "float64", 1)
    near = _nearness(arrays, a, b, job)
    return floats_unseen(xp, x, y, job.rule, near, arrays.room(len(x), 2))


def _lost(arrays: Arrays, array: Array, rounded: Array, dtype: DType) -> Array:
    """Return the part of 64-bit integers that the wider type could not hold."""
    if dtype.name not in LONG:
        return 0.0
    words, xp = arrays.convert(array, "int64", 2), arrays.xp
    return lost(xp, words, xp.real(rounded), flipped=dtype.name == "uint64")


def _nearness(arrays: Arrays, a: Buffer, b: Buffer, job: Job) -> Callable[[], Array] | None:
    if not job.rule.ulp or job.a.ref.quantizer is not None:
        return None
    return lambda: _are_near(arrays, a, b, job.a.dtype, job.rule)


def _are_near(arrays: Arrays, a: Buffer, b: Buffer, dtype: DType, rule: Tolerance) -> Array:
    """Return the mask of the elements that are within ``rule.ulp``."""
    size = dtype.itemsize
    one, other = arrays.bits(a, size), arrays.bits(b, size)
    if dtype.name == UNSIGNED:
        return within_ulp(arrays.xp, one & 255, other & 255, rule.ulp, 9)
    return within_ulp(arrays.xp, one, other, rule.ulp, 8 * size)


def measured_by_counts(arrays: NumpyArrays, counts: Array, job: Job) -> Partial:
    """Measure a run by how often each pair of codes occurs: see ``counted_pairs``."""
    dtype = job.a.dtype
    rule = job.rule if dtype.is_floating else Tolerance()

    def near() -> Array:  # for all pairs
        return _are_near(arrays, ROWS, CODE * 256, dtype, rule)

    with arrays.quietly():
        found = counted_pairs(arrays.xp, counts, _meanings(arrays, dtype), rule, near)
    return found if dtype.is_floating else found._replace(max_abs=int(found.max_abs))


def worst_place(
    arrays: NumpyArrays, found: Partial, dtype: DType, pieces: Iterable[tuple[bytes, bytes]]
) -> int:
    """Return the position of the first one-byte element as bad as the worst in ``found``."""
    with arrays.quietly():
        wanted = worst_pairs(arrays.xp, found, _meanings(arrays, dtype))
    start = 0
    for a, b in pieces:
        hits = wanted[arrays.pairs(a, b)]
        if hits.any():
            return start + int(hits.argmax())
        start += len(a)
    raise DamagedError("the file was written to while it was read")


def _meanings(arrays: NumpyArrays, dtype: DType) -> Array:
    """Return the values of the 256 codes of a type, in float64."""
    return arrays.convert(arrays.view(CODE, dtype), "float64", 1).copy()
