"""What ``diff`` and ``textconv`` answer; see ``reports.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Distance(NamedTuple):
    """How far two tensors are apart; sums run over the elements that are finite on both sides.

    Everything is symmetric: what is relative is so to the larger of the two sides.
    """

    elements: int
    differing: int
    beyond: int  # differing, and not within the tolerance
    nonfinite: int  # differing, and NaN or infinite on a side
    max_abs: float  # an integer for integers
    max_rel: float  # largest |a - b| / max(|a|, |b|)
    mean_abs: float
    rms: float
    relative_l2: float | None  # norm of the difference to the larger norm; None: beyond float64
    cosine: float | None  # None: a side is zero, or beyond float64
    worst_at: tuple[int, ...]  # index of the first that is not finite, else of the largest


class TensorDifference(NamedTuple):
    """Two tensors that are not the same, or one without a partner."""

    address: str
    kind: str  # removed, added, shape, dtype, value, renamed, layout; within: close enough
    section: str
    dtype: tuple[str | None, str | None]
    shape: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    other: str | None = None  # the second side's name, where it was renamed
    distance: Distance | None = None  # None: there are no numbers, and `note` says why
    atol: float = 0.0
    rtol: float = 0.0
    note: str = ""


class ValueDifference(NamedTuple):
    """Two plain values that are not the same, or one without a partner."""

    address: str
    kind: str  # removed, added, type, value; within: close enough
    section: str
    a: Any
    b: Any
    note: str = ""


class Divergence(NamedTuple):
    """The first place, in the order of the tree, that differs."""

    section: str
    role: str
    address: str
    kind: str


class GroupDistance(NamedTuple):
    """The tensors and values of one section or layer together."""

    address: str
    role: str
    tensors: int
    differing: int  # tensors that count as different
    values_differing: int
    elements: int
    max_abs: float  # of its floating-point tensors; where only others differ, of those
    relative_l2: float | None  # of its floating-point tensors that differ, as one vector
    nonfinite: int = 0  # elements that differ, and are NaN or infinite on a side


class DiffSummary(NamedTuple):
    """The answer in numbers."""

    first: Divergence | None
    tensors: Mapping[str, int]  # compared, equal, within, and how many of each kind of difference
    values: Mapping[str, int]
    elements: int
    differing: int  # elements
    bytes: int  # of the first side's tensors that were compared
    max_abs: float  # of the floating-point tensors; where only others differ, of those
    relative_l2: float | None  # of the floating-point tensors that differ, as one vector
    nonfinite: int  # elements that differ, and are NaN or infinite on a side
    not_compared: tuple[str, ...]  # what could not be, in words


class DiffReport(NamedTuple):
    """What ``ckptool diff`` says of two operands."""

    equal: bool
    summary: DiffSummary
    tensors: tuple[TensorDifference, ...]
    values: tuple[ValueDifference, ...]
    a: str
    b: str
    formats: tuple[str, str]
    sections: tuple[GroupDistance, ...]
    layers: tuple[GroupDistance, ...]
    tolerances: tuple[Mapping[str, Any], ...]
    strict: bool = False
    hint: str | None = None  # what to compare instead


class TextLine(NamedTuple):
    """One tensor or value of ``ckptool textconv``."""

    address: str
    value: str  # dtype, shape and digest; or the value


class TextReport(NamedTuple):
    """A checkpoint as lines of text, for ``git diff``."""

    lines: tuple[TextLine, ...]
