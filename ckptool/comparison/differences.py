"""Rows of differences, made from pairs of key paths: the pure core of ``ckptool diff``.

A pair of tensors is judged in this order: one is missing; the shapes differ; the dtypes differ; the
values differ beyond the tolerance; the names differ; with ``--strict``, the storage differs. A
difference within the tolerance is reported too, and counts as equal.

Tensors of one element that count (Adam's ``step``, BatchNorm's ``num_batches_tracked``) are
settings that happen to be stored as tensors. A step that went from 100 to 120 is no distance of 20
between weights. So counters stay out of every norm, and are reported apart, with the value on each
side and the number of tensors that changed so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckptool.comparison.arrays import CODES
from ckptool.comparison.digests import digests_of
from ckptool.comparison.engine import Outcome
from ckptool.comparison.kernels import Partial, Sums
from ckptool.comparison.leaves import ABSENT, Digest, Leaf, Leaves, TensorLeaf, form_of, is_tensor
from ckptool.comparison.pairing import Pair
from ckptool.comparison.plain_values import section_of
from ckptool.comparison.tolerances import Tolerances
from ckptool.comparison.values import Job, values_of
from ckptool.dtypes import BY_NAME
from ckptool.names import says, whole
from ckptool.records import NamedTuple
from ckptool.reports.diff import CounterDifference, Distance, TensorDifference, ValueDifference
from ckptool.tensors.sample import scalar_value
from ckptool.tree.nodes import TensorRef

NAMES = whole(
    "step$", "step_count$", "count$", "counter$", "num_batches_tracked$", "n_averaged$", "update$",
    "iter$", "iteration$", "epoch$",
)  # fmt: skip
MAX_READ = 10_000  # counters whose values are read


def is_counter(address: str, leaf: Leaf) -> bool:
    """Return whether a leaf is a number that counts, by its size and the last part of its name."""
    if not isinstance(leaf, TensorLeaf) or leaf.ref.numel != 1 or len(leaf.ref.chunks) != 1:
        return False
    return says(re.split(r"[/.]", address)[-1], NAMES)


def counter_changes(
    rows: Iterable[tuple[Pair, TensorDifference]], a: Mapping[str, Leaf], b: Mapping[str, Leaf]
) -> Iterator[CounterDifference]:
    """Yield the changes of counters, one for all that share their name and both values."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for read, (pair, row) in enumerate(rows):
        values: tuple[Any, Any] = (None, None)
        if read < MAX_READ:
            values = (_value(a, pair.a), _value(b, pair.b))
        name = re.split(r"[/.]", row.address)[-1]
        found.setdefault((row.section, name, row.kind, *values), []).append(row.address)
    for (section, _, kind, one, other), addresses in found.items():
        yield CounterDifference(_pattern(addresses), kind, section, one, other, len(addresses))


def _value(side: Mapping[str, Leaf], name: str | None) -> int | float | None:
    leaf = side.get(name) if name is not None else None
    value = scalar_value(leaf.reader, leaf.ref) if isinstance(leaf, TensorLeaf) else None
    if not isinstance(value, (int, float)):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _pattern(addresses: list[str]) -> str:
    """Return one key path for several, with stars where they differ: ``optimizer/state/*/step``."""
    if len(addresses) == 1:
        return addresses[0]
    parts = [re.split(r"([/.])", address) for address in addresses[:MAX_READ]]
    if len({len(part) for part in parts}) == 1:
        return "".join(p[0] if len(set(p)) == 1 else "*" for p in zip(*parts, strict=True))
    first = parts[0]
    depth = next(i for i, words in enumerate(zip(*parts, strict=False)) if len(set(words)) > 1)
    return "".join([*first[:depth], "*", *first[-2:]])


# --------------------------------------------------------------------------------------------- rows


Compare = Callable[[Sequence[Job]], list[Outcome]]


class Judged(NamedTuple):
    """A pair of tensors, with everything that is known of it."""

    pair: Pair
    row: TensorDifference | None  # None: nothing to report
    partial: Partial | None  # the numbers, if bytes differ
    elements: int
    nbytes: int
    is_floating: bool
    may_have_distance: bool  # if its values differ: floating point, compared, and no counter

    @property
    def counts(self) -> bool:
        """True if the pair makes the checkpoints different."""
        return self.row is not None and self.row.kind != "within"

    @property
    def has_distance(self) -> bool:
        """True if the numbers mean something: codes have none, and counters are no distances."""
        return self.row is not None and self.row.distance is not None and not self.row.is_counter


# ------------------------------------------------------------------------------------------ tensors


class TensorJudge:
    """Judge of pairs of tensors, which compares the values of all of them in one call."""

    def __init__(
        self,
        a: Leaves,
        b: Leaves,
        tolerances: Tolerances,
        roles: Mapping[str, str],
        parameters: Mapping[str, str],
        *,
        strict: bool,
        any_dtype: bool = False,
    ) -> None:
        """Take the two sides; ``parameters`` are the model's, by the key path of their state."""
        self._a, self._b, self._tolerances, self._roles = a, b, tolerances, roles
        self._any_dtype, self._parameters = any_dtype, parameters
        self._partners = (_partners(a), _partners(b)) if strict else None
        self._digests: dict[int, str] = {}
        self.unread: list[str] = []  # tensors without stored values on both sides

    def judge(self, pairs: Sequence[Pair], compare: Compare) -> list[Judged]:
        """Return a verdict for each pair, in order."""
        jobs: dict[object, Job] = {}
        keys = [self._job(pair, jobs) for pair in pairs]
        outcomes = dict(zip(jobs, compare(list(jobs.values())), strict=True))
        self._digest(pairs)
        return [
            self._verdict(pair, key, outcomes.get(key))
            for pair, key in zip(pairs, keys, strict=True)
        ]

    def _job(self, pair: Pair, jobs: dict[object, Job]) -> object:
        """Register the comparison of a pair, once if shared on both sides, and return its key."""
        one, other = self._leaf(self._a, pair.a), self._leaf(self._b, pair.b)
        if not (isinstance(one, TensorLeaf) and isinstance(other, TensorLeaf)) or not _comparable(
            one, other
        ):
            return None
        a, b = values_of(one), values_of(other)
        if a is None or b is None:
            if a is b:
                self.unread.append(pair.address)
            return None
        rule = self._tolerances.at(pair.address)
        at, other_at = a.places, b.places
        if at is not None and at == other_at and a.dtype is b.dtype:
            return SAME
        key = (at or pair, other_at or pair, a.dtype.name, b.dtype.name, rule)
        jobs.setdefault(key, Job(a, b, rule))
        return key

    def _digest(self, pairs: Sequence[Pair]) -> None:
        """Compute the digests of all tensors that the other side has as digests, in one call."""
        both = [(self._leaf(self._a, pair.a), self._leaf(self._b, pair.b)) for pair in pairs]
        read = [
            leaf
            for leaves in both
            for leaf in leaves
            if isinstance(leaf, TensorLeaf) and any(isinstance(other, Digest) for other in leaves)
        ]
        self._digests = dict(zip(map(id, read), digests_of(read), strict=True))

    def _sha256(self, leaf: Leaf) -> str:
        return leaf.sha256 if isinstance(leaf, Digest) else self._digests[id(leaf)]

    @staticmethod
    def _leaf(side: Leaves, name: str | None) -> Leaf:
        return ABSENT if name is None else side[name]

    def _verdict(self, pair: Pair, key: object, outcome: Outcome | None) -> Judged:
        one, other = self._leaf(self._a, pair.a), self._leaf(self._b, pair.b)
        shown = other if one is ABSENT else one
        partial = outcome.partial if outcome else None
        kind, note = self._kind(pair, one, other, partial)
        row = self._row(pair, kind, note, partial) if kind else None
        dtype, shape = form_of(shown)
        elements = math.prod(shape)
        nbytes = shown.ref.nbytes if isinstance(shown, TensorLeaf) else shown.nbytes
        known = None if dtype in CODES else BY_NAME.get(dtype or "")
        is_floating = known is not None and known.is_floating
        may_differ = is_floating and key is not None and not is_counter(pair.address, shown)
        return Judged(pair, row, partial, elements, nbytes, is_floating, may_differ)

    def _kind(
        self, pair: Pair, one: Leaf, other: Leaf, partial: Partial | None
    ) -> tuple[str | None, str]:
        """Return the first kind of difference that applies, and a remark."""
        if one is ABSENT or other is ABSENT:
            return ("added" if one is ABSENT else "removed"), ""
        (dtype, shape), (other_dtype, other_shape) = form_of(one), form_of(other)
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
        """Return a remark on values that count as different, or ''; None if they do not."""
        if isinstance(one, Digest) or isinstance(other, Digest):
            is_same = self._sha256(one) == self._sha256(other)
            return None if is_same else "known by its digest only"
        if bool(one.ref.chunks) != bool(other.ref.chunks):
            return "its values are stored on one side only"
        return "" if partial is not None and partial.beyond else None

    def _layout(self, address: str, one: Leaf, other: Leaf) -> str:
        """Describe how the tensors are stored differently; only ``--strict`` asks for it."""
        if self._partners is None or not (
            isinstance(one, TensorLeaf) and isinstance(other, TensorLeaf)
        ):
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
            (None, None) if name is None else form_of(side[name])
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
            is_counter=kind in {"value", "within"}
            and is_counter(pair.address, self._a[pair.a or ""]),
            parameter=self._parameters.get(pair.address.rpartition("/")[0]) or None,
        )


SAME = object()  # the key of pairs that are the same bytes of the same file


def _comparable(one: TensorLeaf, other: TensorLeaf) -> bool:
    if one.ref.shape != other.ref.shape:
        return False
    packed = {one.ref.dtype.name, other.ref.dtype.name} & CODES.keys()
    return one.ref.dtype is other.ref.dtype or not packed


def _strides(ref: TensorRef) -> tuple[int, ...]:
    """Return the strides that mean something: not those of dimensions of one element."""
    strides = ref.chunks[0].strides if len(ref.chunks) == 1 else ()
    sized = zip(ref.shape, strides, strict=False)
    return tuple(stride for size, stride in sized if size > 1)


def _partners(side: Leaves) -> dict[str, str]:
    """Map each tensor to the key path of the first that begins at the same byte of its file."""
    first: dict[object, str] = {}
    partners = {}
    for address, leaf in side.items():
        if isinstance(leaf, TensorLeaf) and leaf.ref.chunks and leaf.ref.numel:
            span = leaf.ref.chunks[0].span
            partners[address] = first.setdefault((span.source, span.offset), address)
    return partners


def distance_of(partial: Partial, shape: tuple[int, ...]) -> Distance:
    """Compute the reported numbers of a tensor from its sums."""
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
    """Return the norm of the difference over the larger norm; None if squares exceed float64."""
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
    """Return the index of an element from its position in C order."""
    index: list[int] = []
    for size in reversed(shape if at >= 0 else ()):
        at, rest = divmod(at, size)
        index.append(rest)
    return tuple(reversed(index))


def is_tensor_pair(a: Leaves, b: Leaves, pair: Pair) -> bool:
    """Return whether every side that the pair has is a tensor."""
    there = [side[name] for side, name in ((a, pair.a), (b, pair.b)) if name is not None]
    return all(map(is_tensor, there))


def count_kinds(rows: Sequence[TensorDifference] | Sequence[ValueDifference]) -> Mapping[str, int]:
    """Count the rows of each kind, including those that count as equal."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.kind] = counts.get(row.kind, 0) + 1
    return counts
