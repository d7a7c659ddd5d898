"""Tilings: a tensor as the tensors that it is cut into, or joined of, found by digests of rows.

A tensor is tiled along a dimension by smaller ones if their rows, one after the other, are its own.
A matrix may be tiled by transposes too: its columns are then their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator
from itertools import takewhile

from ckptool.comparison.rows import Row, Rows, can_become
from ckptool.dtypes import DType
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.tree.nodes import TensorRef

_WORDS = regex(r"[._/]")
_DIGITS = regex(r"\d+")


class Named(NamedTuple):
    """A tensor of one of the checkpoints."""

    name: str
    ref: TensorRef


class Pool:
    """Tensors by name and by shape, in their order; models have few shapes."""

    def __init__(self, tensors: Iterable[Named]) -> None:
        self._by_name: dict[str, Named] = {}
        self.by_shape: dict[tuple[int, ...], dict[str, Named]] = {}
        for tensor in tensors:
            self._by_name[tensor.name] = tensor
            self.by_shape.setdefault(tensor.ref.shape, {})[tensor.name] = tensor

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[Named]:
        return iter(list(self._by_name.values()))

    def get(self, name: str) -> Named | None:
        """Return the tensor of a name, if it is there."""
        return self._by_name.get(name)

    def of_shape(self, shape: tuple[int, ...]) -> Collection[Named]:
        """Return the tensors of a shape."""
        return self.by_shape.get(shape, {}).values()

    def remove(self, name: str) -> None:
        """Remove the tensor of a name, if it is there."""
        tensor = self._by_name.pop(name, None)
        if tensor is not None:
            of_shape = self.by_shape[tensor.ref.shape]
            del of_shape[name]
            if not of_shape:
                del self.by_shape[tensor.ref.shape]


class Piece(NamedTuple):
    """A tensor at its place in a larger one."""

    tensor: Named
    begin: int
    end: int
    is_turned: bool  # its transpose is there


class Tiling(NamedTuple):
    """A larger tensor and the pieces of it, in their order along a dimension."""

    axis: int
    pieces: tuple[Piece, ...]

    def gaps(self, size: int) -> list[tuple[int, int]]:
        """Return the parts of the dimension that are no piece's."""
        ends = [0, *(piece.end for piece in self.pieces)]
        begins = [*(piece.begin for piece in self.pieces), size]
        return [(a, b) for a, b in zip(ends, begins, strict=True) if a < b]


class Large(NamedTuple):
    """A tensor that may have pieces; ``of_small`` gives the dtype in which rows are compared."""

    tensor: Named
    rows: Rows
    dtype_with: Callable[[TensorRef], DType]


def likeness(one: str, other: str) -> tuple[int, int]:
    """Return how alike two names are: by their first numbers, and then by their words."""
    pairs = zip(_DIGITS.findall(one), _DIGITS.findall(other), strict=False)
    numbers = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    words = set(_WORDS.split(one)) & set(_WORDS.split(other))
    return numbers, len(words)


def tiled(
    large: Large,
    smalls: Pool,
    rows: Rows,
    look_at: Callable[[int], None],
    *,
    taken: Container[str] = (),
    has_gaps: bool = False,
) -> Tiling | None:
    """Return the tiling of a tensor by others, each used once; None if there is none.

    Args:
        large: the tensor.
        smalls: tensors that may be pieces, all or some of them.
        rows: the digests of these.
        look_at: called with numbers of tensors, or of their shapes, before they are looked at.
        taken: names of tensors that are no pieces.
        has_gaps: rows of the tensor may belong to no piece.
    """
    ref = large.tensor.ref
    if not ref.numel:
        return None
    for axis in range(len(ref.shape)):
        look_at(len(smalls.by_shape))
        for dtype, fitting in _by_dtype(large, smalls, axis, look_at, taken):
            size = sum(small.ref.shape[along] for small, along in fitting)
            if not fitting or (size < ref.shape[axis] and not has_gaps):
                continue
            pieces = _walk(large, axis, dtype, fitting, rows, has_gaps=has_gaps)
            if pieces:
                return Tiling(axis, tuple(pieces))
    return None


Fitting = list[tuple[Named, int]]  # a small tensor, and the dimension of its rows


def _by_dtype(
    large: Large, smalls: Pool, axis: int, look_at: Callable[[int], None], taken: Container[str]
) -> Iterator[tuple[DType, Fitting]]:
    """Yield the tensors whose rows can be rows of the large one, by the dtype of comparison."""
    found: dict[DType, Fitting] = {}
    for shape, tensors in smalls.by_shape.items():
        for along in _axes(large.tensor.ref.shape, axis, shape):
            look_at(len(tensors))
            for small in tensors.values():
                dtype = large.dtype_with(small.ref)
                can_be = can_become(large.tensor.ref, dtype) and can_become(small.ref, dtype)
                if can_be and small.name not in taken:
                    found.setdefault(dtype, []).append((small, along))
    yield from found.items()


def _axes(large: tuple[int, ...], axis: int, small: tuple[int, ...]) -> Iterator[int]:
    """Yield the dimensions of a tensor whose rows are as those of a larger one along ``axis``."""
    if len(large) != len(small) or 0 in small:
        return
    rest = (*large[:axis], *large[axis + 1 :])
    if (*small[:axis], *small[axis + 1 :]) == rest and small[axis] < large[axis]:
        yield axis
    other = 1 - axis
    if len(large) == 2 and small[axis] == rest[0] and small[other] < large[axis]:
        yield other


def _walk(
    large: Large, axis: int, dtype: DType, fitting: Fitting, rows: Rows, *, has_gaps: bool
) -> list[Piece]:
    """Return the pieces from the first row to the last; nothing if a row is in no piece."""
    wanted = large.rows.along(large.tensor.ref, axis, dtype)
    first: dict[Row, Fitting] = {}
    for small, along in fitting:
        begin = rows.along(small.ref, along, dtype)[:1]
        if begin:
            first.setdefault(begin[0], []).append((small, along))
    pieces: list[Piece] = []
    used: set[str] = set()
    at = 0
    while at < len(wanted):
        options = [
            (small, along)
            for small, along in first.get(wanted[at], ())
            if small.name not in used and _is_at(rows.along(small.ref, along, dtype), wanted, at)
        ]
        if options:
            small, along = max(options, key=lambda o: likeness(o[0].name, large.tensor.name))
            end = at + small.ref.shape[along]
            pieces.append(Piece(small, at, end, along != axis))
            used.add(small.name)
            at = end
        elif has_gaps:
            at += 1
        else:
            return []
    return pieces


def _is_at(rows: tuple[Row, ...], wanted: tuple[Row, ...], at: int) -> bool:
    return wanted[at : at + len(rows)] == rows
