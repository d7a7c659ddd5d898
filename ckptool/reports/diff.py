"""Reports of ``ckptool diff`` and ``textconv``; see ``base.py``."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from ckptool.records import field, record
from ckptool.reports.base import MAY_BE_ABSENT, ConfiguredReport, GroupDistance


@record
class Distance:
    """The distance of two tensors; sums run over the elements that are finite on both sides.

    Everything is symmetric: relative numbers are relative to the larger of the two sides.
    """

    elements: int
    differing: int
    beyond: int  # elements that differ by more than the tolerance
    nonfinite: int  # elements that differ, and are NaN or infinite on a side
    max_abs: float  # an integer for integer tensors
    max_rel: float  # largest |a - b| / max(|a|, |b|)
    mean_abs: float
    rms: float
    relative_l2: float | None  # norm of the difference / larger norm; None: beyond float64
    cosine: float | None  # None: a side is zero, or beyond float64
    worst_at: tuple[int, ...]  # index of the first in nonfinite, else of the largest difference


@record
class TensorDifference:
    """Two tensors that differ, or one without a partner."""

    address: str
    kind: str  # removed, added, shape, dtype, value, renamed, layout, within (the tolerance)
    section: str
    dtype: tuple[str | None, str | None]
    shape: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    other: str | None = None  # the second side's name, where it was renamed
    distance: Distance | None = None  # None: there are no numbers, and `note` gives the reason
    atol: float = 0.0
    rtol: float = 0.0
    note: str = ""
    is_counter: bool = False  # one element, a counter: it is in `counters`, and in no norm
    # The model's parameter to which a tensor in the state of an optimizer belongs.
    parameter: str | None = field(default=None, metadata=MAY_BE_ABSENT)


@record
class CounterDifference:
    """Counters, tensors of one element, that all have the same two different values."""

    address: str  # with stars, where there are several: optimizer/state/*/step
    kind: str  # value, within (the tolerance)
    section: str
    a: float | None  # None: not read
    b: float | None
    tensors: int


@record
class ValueDifference:
    """Two plain values that differ, or one without a partner."""

    address: str
    kind: str  # removed, added, type, value, within (the tolerance)
    section: str
    a: Any
    b: Any
    note: str = ""


@record
class Divergence:
    """The first difference, in the order of the tree."""

    section: str
    role: str
    address: str
    kind: str


@record
class RoleDistance:
    """The tensors of one role together: weights, EMA weights and moments differ in scale."""

    role: str  # as in the sections; empty for weights that were compared alone
    differing: int  # tensors that count as different
    max_abs: float
    # Of the floating-point tensors that differ, as one vector: of `measured` out of `floating`.
    relative_l2: float | None
    nonfinite: int = 0
    measured: int = 0  # floating-point tensors that differ, and are no counters
    floating: int = 0  # floating-point tensors whose values were compared, without counters


@record
class DiffSummary:
    """The answer in numbers."""

    first: Divergence | None
    tensors: Mapping[str, int]  # counts: compared, equal, within, and each kind of difference
    values: Mapping[str, int]
    elements: int
    differing: int  # elements
    bytes: int  # of the first side's tensors that were compared
    max_abs: float  # of the floating-point tensors, or of the others if only those differ
    # Of the floating-point tensors that differ, as one vector: of `measured` out of `floating`.
    relative_l2: float | None
    nonfinite: int  # elements that differ, and are NaN or infinite on a side
    not_compared: tuple[str, ...]  # the parts that could not be compared, in words
    roles: tuple[RoleDistance, ...] = ()  # in the order of the tree
    first_state: Divergence | None = None  # the first difference outside the settings
    settings: tuple[str, ...] = ()  # key paths of the settings that differ
    measured: int = 0  # floating-point tensors that differ, and are no counters
    floating: int = 0  # floating-point tensors whose values were compared, without counters


@record(kw_only=True)
class DiffReport(ConfiguredReport):
    """The answer of ``ckptool diff`` for two operands."""

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
    hint: str | None = None  # the parts to compare instead
    counters: tuple[CounterDifference, ...] = ()
    unused: tuple[str, ...] = ()  # options of the command line that match nothing: --ignore 'x*'
    # The order in which a list of tensors shows them: change, name or size.
    order: str | None = field(default=None, metadata=MAY_BE_ABSENT)


class PairState(StrEnum):
    """The answer for two checkpoints of two runs, or for one that only one of them has."""

    EQUAL = "equal"
    DIFFERENT = "different"
    REMOVED = "removed"  # only in the first run
    ADDED = "added"  # only in the second
    UNREAD = "unread"  # one of them cannot be read, or they cannot be compared


@record
class PairReport:
    """Two checkpoints of two runs that belong together, or one without a partner."""

    state: PairState
    step: float | None  # the global step that they state
    epoch: float | None
    a: str | None  # path in the first run
    b: str | None
    first: Divergence | None = None  # the first difference in the order of the tree
    first_state: Divergence | None = None  # the first difference outside the settings
    first_tensor: str | None = None  # key path of the first tensor that differs
    tensors: int = 0  # those that count as different
    values: int = 0
    max_abs: float = 0.0
    # Of the floating-point tensors that differ, as one vector: of `measured` out of `floating`.
    relative_l2: float | None = None
    nonfinite: int = 0  # elements that differ, and are NaN or infinite on a side
    not_compared: tuple[str, ...] = ()  # the parts that could not be compared, in words
    error: str | None = field(default=None, metadata=MAY_BE_ABSENT)  # of one that is unread
    measured: int = 0  # floating-point tensors that differ, and are no counters
    floating: int = 0  # floating-point tensors whose values were compared, without counters


@record
class RunDiffReport(ConfiguredReport):
    """The answer of ``ckptool diff`` for the directories of two runs."""

    equal: bool  # every checkpoint has a partner, and is equal to it
    a: str
    b: str
    checkpoints: tuple[PairReport, ...]  # in the order of the run
    same_until: PairReport | None  # the last that is equal before the first that differs
    first: PairReport | None  # the first that differs
    # The last before the first whose training state differs: all but the settings.
    state_same_until: PairReport | None
    first_state: PairReport | None  # the first whose training state differs
    first_tensor: PairReport | None  # the first in which a tensor differs
    # Path of a file that ckptool made of others -> how; it is no checkpoint of the run.
    left_out: Mapping[str, str]
    unread: int  # checkpoints that could not be compared
    tolerances: tuple[Mapping[str, Any], ...]
    strict: bool = False
    unused: tuple[str, ...] = ()  # options of the command line that match nothing in any pair
    settings: tuple[str, ...] = ()  # key paths of the settings that differ in some pair


@record
class TextLine:
    """One tensor or value of ``ckptool textconv``."""

    address: str
    value: str  # dtype, shape and digest; or the value


@record
class TextReport:
    """A checkpoint as lines of text, for ``git diff``."""

    lines: tuple[TextLine, ...]
