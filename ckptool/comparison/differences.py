"""From paired addresses to rows of differences; the pure middle of ``ckptool diff``.

A pair of tensors is judged in this order: one is missing; the shapes differ; the types differ; the
values differ beyond the tolerance; the name differs; with ``--strict``, how they are stored
differs. What differs within the tolerance is reported too, and counts as equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from ckptool.comparison.arrays import CODES
from ckptool.comparison.digests import digests_of
from ckptool.comparison.engine import Outcome
from ckptool.comparison.kernels import Partial, Sums
from ckptool.comparison.leaves import (
    Digest,
    Held,
    Leaf,
    Leaves,
    Named,
    Raw,
    Series,
    is_number,
    is_tensor,
)
from ckptool.comparison.pairing import Pair
from ckptool.comparison.runs import Job
from ckptool.comparison.tolerances import Tolerance, Tolerances
from ckptool.comparison.values import Values, values_of
from ckptool.diff_reports import Distance, TensorDifference, ValueDifference
from ckptool.dtypes import BY_NAME
from ckptool.tree import TensorRef

ABSENT = object()
SHOWN = 1000  # characters of a text that a report repeats

Compare = Callable[[Sequence[Job]], list[Outcome]]


class Judged(NamedTuple):
    """One pair of tensors, with everything that is known of it."""

    pair: Pair
    row: TensorDifference | None  # None: nothing to report
    partial: Partial | None  # the numbers, if bytes differ
    elements: int
    nbytes: int
    is_floating: bool

    @property
    def counts(self) -> bool:
        """Whether it makes the checkpoints different."""
        return self.row is not None and self.row.kind != "within"

    @property
    def has_distance(self) -> bool:
        """Whether its numbers mean something: codes have none."""
        return self.row is not None and self.row.distance is not None


# ------------------------------------------------------------------------------------------ tensors


class TensorJudge:
    """Judges pairs of tensors; the values of all of them are compared in one go."""

    def __init__(
        self,
        a: Leaves,
        b: Leaves,
        tolerances: Tolerances,
        roles: Mapping[str, str],
        *,
        strict: bool,
        any_dtype: bool = False,
    ) -> None:
        self._a, self._b, self._tolerances, self._roles = a, b, tolerances, roles
        self._any_dtype = any_dtype
        self._partners = (_partners(a), _partners(b)) if strict else None
        self._digests: dict[int, str] = {}
        self.unread: list[str] = []  # tensors without stored values on both sides

    def judge(self, pairs: Sequence[Pair], compare: Compare) -> list[Judged]:
        """A verdict a pair, in order."""
        jobs: dict[object, Job] = {}
        keys = [self._job(pair, jobs) for pair in pairs]
        outcomes = dict(zip(jobs, compare(list(jobs.values())), strict=True))
        self._digest(pairs)
        return [
            self._verdict(pair, outcomes.get(key)) for pair, key in zip(pairs, keys, strict=True)
        ]

    def _job(self, pair: Pair, jobs: dict[object, Job]) -> object:
        """Register what has to be compared, once for tensors that are tied on both sides."""
        one, other = self._leaf(self._a, pair.a), self._leaf(self._b, pair.b)
        if not (isinstance(one, Held) and isinstance(other, Held)) or not _comparable(one, other):
            return None
        a, b = values_of(one), values_of(other)
        if a is None or b is None:
            if a is b:
                self.unread.append(pair.address)
            return None
        rule = self._tolerances.at(pair.address)
        if _same_place(a, b):
            return SAME
        key = (a.places or pair, b.places or pair, a.dtype, b.dtype, rule)
        jobs.setdefault(key, Job(a, b, rule))
        return key

    def _digest(self, pairs: Sequence[Pair]) -> None:
        """Compute what has to be held against a digest, all at once."""
        both = [(self._leaf(self._a, pair.a), self._leaf(self._b, pair.b)) for pair in pairs]
        read = [
            leaf
            for leaves in both
            for leaf in leaves
            if isinstance(leaf, Held) and any(isinstance(other, Digest) for other in leaves)
        ]
        self._digests = dict(zip(map(id, read), digests_of(read), strict=True))

    def _sha256(self, leaf: Leaf) -> str:
        return leaf.sha256 if isinstance(leaf, Digest) else self._digests[id(leaf)]

    @staticmethod
    def _leaf(side: Leaves, name: str | None) -> Leaf:
        return ABSENT if name is None else side[name]

    def _verdict(self, pair: Pair, outcome: Outcome | None) -> Judged:
        one, other = self._leaf(self._a, pair.a), self._leaf(self._b, pair.b)
        shown = other if one is ABSENT else one
        partial = outcome.partial if outcome else None
        kind, note = self._kind(pair, one, other, partial)
        row = self._row(pair, kind, note, partial) if kind else None
        dtype, shape = _form(shown)
        elements = math.prod(shape)
        nbytes = shown.ref.nbytes if isinstance(shown, Held) else shown.nbytes
        known = None if dtype in CODES else BY_NAME.get(dtype or "")
        is_floating = known is not None and known.is_floating
        return Judged(pair, row, partial, elements, nbytes, is_floating)

    def _kind(
        self, pair: Pair, one: Leaf, other: Leaf, partial: Partial | None
    ) -> tuple[str | None, str]:
        """The first kind of difference that there is, and a remark."""
        if one is ABSENT or other is ABSENT:
            return ("added" if one is ABSENT else "removed"), ""
        (dtype, shape), (other_dtype, other_shape) = _form(one), _form(other)
        retyped = dtype != other_dtype
        tolerated = self._any_dtype and (partial is not None or not math.prod(shape))
        value_note = self._value_note(one, other, partial)
        layout_note = self._layout(pair.address, one, other)
        kinds = (
            ("shape", shape != other_shape, ""),
            ("dtype", retyped and not tolerated, ""),
            ("value", value_note is not None, value_note or ""),
            ("renamed", pair.a != pair.b, ""),
            ("layout", bool(layout_note), layout_note),
            ("within", partial is not None and partial.differing > 0, ""),
        )
        return next(((kind, note) for kind, is_so, note in kinds if is_so), (None, ""))

    def _value_note(self, one: Leaf, other: Leaf, partial: Partial | None) -> str | None:
        """What there is to say of values that count as different; None: they do not."""
        if isinstance(one, Digest) or isinstance(other, Digest):
            is_same = self._sha256(one) == self._sha256(other)
            return None if is_same else "known by its digest only"
        if bool(one.ref.chunks) != bool(other.ref.chunks):
            return "its values are stored on one side only"
        return "" if partial is not None and partial.beyond else None

    def _layout(self, address: str, one: Leaf, other: Leaf) -> str:
        """What only ``--strict`` asks: how the tensors are stored."""
        if self._partners is None or not (isinstance(one, Held) and isinstance(other, Held)):
            return ""
        ours, theirs = (partners.get(address) for partners in self._partners)
        asked = (
            ("strides", _strides(one.ref), _strides(other.ref)),
            ("requires_grad", one.ref.requires_grad, other.ref.requires_grad),
            ("device", one.ref.device, other.ref.device),
            ("subclass", one.ref.subclass, other.ref.subclass),
            ("shares its storage with", ours, theirs),
        )
        return "; ".join(f"{what} {x} and {y}" for what, x, y in asked if x != y)

    def _row(self, pair: Pair, kind: str, note: str, partial: Partial | None) -> TensorDifference:
        forms = [
            (None, None) if name is None else _form(side[name])
            for side, name in ((self._a, pair.a), (self._b, pair.b))
        ]
        rule = self._tolerances.at(pair.address)
        shape = forms[0][1] or forms[1][1] or ()
        dtype = str(forms[0][0])
        if partial is not None and dtype in CODES:
            note = note or f"there is no arithmetic for {dtype}: {partial.differing} codes differ"
        is_measured = partial is not None and dtype not in CODES
        return TensorDifference(
            address=pair.address,
            kind=kind,
            section=section_of(pair.address, self._roles, of_tensor=True),
            dtype=(forms[0][0], forms[1][0]),
            shape=(forms[0][1], forms[1][1]),
            other=pair.b if pair.a is not None and pair.a != pair.b else None,
            distance=distance_of(partial, shape) if partial and is_measured else None,
            atol=rule.atol,
            rtol=rule.rtol,
            note=note,
        )


SAME = object()  # the key of pairs that are the same bytes of the same file


def _form(leaf: Leaf) -> tuple[str | None, tuple[int, ...]]:
    if isinstance(leaf, Digest):
        return leaf.dtype, leaf.shape
    return leaf.ref.dtype.name, leaf.ref.shape


def _comparable(one: Held, other: Held) -> bool:
    if one.ref.shape != other.ref.shape:
        return False
    packed = {one.ref.dtype.name, other.ref.dtype.name} & CODES.keys()
    return one.ref.dtype is other.ref.dtype or not packed


def _same_place(a: Values, b: Values) -> bool:
    return a.places is not None and a.places == b.places and a.dtype is b.dtype


def _strides(ref: TensorRef) -> tuple[int, ...]:
    """Those that mean something: not of dimensions of one element."""
    strides = ref.chunks[0].strides if len(ref.chunks) == 1 else ()
    sized = zip(ref.shape, strides, strict=False)
    return tuple(stride for size, stride in sized if size > 1)


def _partners(side: Leaves) -> dict[str, str]:
    """For each tensor the first address whose tensor begins at the same byte of the same file."""
    first: dict[object, str] = {}
    partners = {}
    for address, leaf in side.items():
        if isinstance(leaf, Held) and leaf.ref.chunks and leaf.ref.numel:
            span = leaf.ref.chunks[0].span
            partners[address] = first.setdefault((span.source, span.offset), address)
    return partners


def distance_of(partial: Partial, shape: tuple[int, ...]) -> Distance:
    """The numbers of a tensor from its sums."""
    sums, count = partial.sums, max(partial.sums.finite, 1)
    return Distance(
        elements=partial.elements,
        differing=partial.differing,
        beyond=partial.beyond,
        nonfinite=partial.nonfinite,
        max_abs=partial.max_abs,
        max_rel=partial.max_rel,
        mean_abs=sums.distance / count,
        rms=math.sqrt(sums.distance_sq / count),
        relative_l2=relative_l2(sums.distance_sq, sums.a_sq, sums.b_sq),
        cosine=_cosine(sums),
        worst_at=_index(partial.at, shape),
    )


def relative_l2(distance_sq: float, a_sq: float, b_sq: float) -> float | None:
    """The norm of the difference to the larger norm; None where squares left float64."""
    larger = max(a_sq, b_sq)
    if not math.isfinite(larger) or not math.isfinite(distance_sq):
        return None
    return math.sqrt(distance_sq) / math.sqrt(larger) if larger else 0.0


def _cosine(sums: Sums) -> float | None:
    norms = math.sqrt(sums.a_sq) * math.sqrt(sums.b_sq)
    if not norms or not math.isfinite(norms) or not math.isfinite(sums.dot):
        return None
    return max(-1.0, min(1.0, sums.dot / norms))


def _index(at: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index of an element by its position in C order."""
    index: list[int] = []
    for size in reversed(shape if at >= 0 else ()):
        at, rest = divmod(at, size)
        index.append(rest)
    return tuple(reversed(index))


# ------------------------------------------------------------------------------------------- values


def compare_values(
    a: Leaves,
    b: Leaves,
    pairs: Sequence[Pair],
    tolerances: Tolerances,
    roles: Mapping[str, str],
    *,
    any_dtype: bool = False,
) -> list[ValueDifference]:
    """The plain values that differ, and those where one side has a tensor instead."""
    rows = []
    for pair in pairs:
        one = ABSENT if pair.a is None else a[pair.a]
        other = ABSENT if pair.b is None else b[pair.b]
        kind, note = _value_kind(one, other, tolerances.at(pair.address), any_dtype=any_dtype)
        if kind is not None:
            section = section_of(pair.address, roles, of_tensor=False)
            rows.append(
                ValueDifference(pair.address, kind, section, _shown(one), _shown(other), note)
            )
    return rows


def _value_kind(
    one: Leaf, other: Leaf, rule: Tolerance, *, any_dtype: bool
) -> tuple[str | None, str]:
    if one is ABSENT or other is ABSENT:
        return ("added" if one is ABSENT else "removed"), ""
    retyped = type(one) is not type(other)
    if retyped and not (any_dtype and is_number(one) and is_number(other)):
        return "type", ""
    if isinstance(one, Series):
        return _series_kind(one, other, rule, any_dtype=any_dtype)
    inexact = isinstance(one, (float, complex)) or retyped
    if _same_number(one, other) if inexact else one == other:
        return None, ""
    return ("within" if _are_close(one, other, rule) else "value"), ""


def _are_close(one: Leaf, other: Leaf, rule: Tolerance) -> bool:
    """Whether a tolerance covers two that differ: it takes a number that is no integer."""
    return any(isinstance(leaf, (float, complex)) for leaf in (one, other)) and rule.allows(
        one, other
    )


def _same_number(one: complex, other: complex) -> bool:
    """Equal, NaN being equal to NaN in the same place."""
    parts = ((one.real, other.real), (one.imag, other.imag))
    return all(x == y or (_is_nan(x) and _is_nan(y)) for x, y in parts)


def _is_nan(part: float) -> bool:
    return isinstance(part, float) and math.isnan(part)


def _series_kind(
    one: Series, other: Series, rule: Tolerance, *, any_dtype: bool
) -> tuple[str | None, str]:
    if one.kind != other.kind:
        return "type", ""
    if len(one.items) != len(other.items):
        return "value", f"{len(one.items)} items and {len(other.items)}"
    pairs = zip(one.items, other.items, strict=True)
    kinds = [_value_kind(x, y, rule, any_dtype=any_dtype)[0] for x, y in pairs]
    differing = sum(kind is not None for kind in kinds)
    if not differing:
        return None, ""
    close = all(kind in {None, "within"} for kind in kinds)
    return ("within" if close else "value"), f"{differing} of {len(kinds)} items differ"


def _shown(leaf: Leaf) -> Any:
    """As JSON can hold it; long texts are cut."""
    if leaf is ABSENT:
        return None
    if is_tensor(leaf):
        dtype, shape = _form(leaf)
        return f"<tensor {dtype} {list(shape)}>"
    if isinstance(leaf, (Named, Raw, Series)):
        return str(leaf)[:SHOWN]
    return _cut(leaf) if isinstance(leaf, str) and len(leaf) > SHOWN else leaf


def _cut(text: str) -> str:
    digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text[:SHOWN]}… ({len(text)} characters, sha256 {digest[:12]})"


def section_of(address: str, roles: Mapping[str, str], *, of_tensor: bool) -> str:
    """The part of the checkpoint that an address belongs to; '' for weights at the top.

    ``roles`` are those of the sections of a whole checkpoint, and empty for a part of one.
    """
    head, mark, _ = address.partition("/")
    stands_alone = head in roles if of_tensor else bool(roles)
    return head if mark or stands_alone else ""


def is_tensor_pair(a: Leaves, b: Leaves, pair: Pair) -> bool:
    """Whether there are tensors on all sides that there are."""
    there = [side[name] for side, name in ((a, pair.a), (b, pair.b)) if name is not None]
    return all(map(is_tensor, there))


def count_kinds(rows: Sequence[TensorDifference] | Sequence[ValueDifference]) -> Mapping[str, int]:
    """How many rows of each kind, those that do not count among them."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.kind] = counts.get(row.kind, 0) + 1
    return counts
