"""Merging of candidates that are the same, or parts of one EMA.

The same container under several key paths, the same bytes or equal values become one candidate with
aliases. EMAs of different parts of the model in one container become one candidate too.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import isnan

from ckptool.contents.alignment import paired_tensors
from ckptool.contents.inventory import Leaf, Table, join_tables
from ckptool.ema.candidates import AssumedEqual, Candidate
from ckptool.ema.evidence import CAREFUL, compare_sample
from ckptool.ema.examine import Examiner
from ckptool.formats.base import TensorReader
from ckptool.records import replace
from ckptool.tensors.sample import beginning, is_readable, spread
from ckptool.tree.addresses import node_at
from ckptool.tree.nodes import Address, TensorRef

FINGERPRINT = 8  # tensors whose first numbers distinguish most candidates
MAX_ALIKE = 64  # candidates with one fingerprint that are compared with each other


def merged(candidates: list[Candidate], reader: TensorReader) -> list[Candidate]:
    """Merge candidates with the same bytes or equal values; the shortest key path names them."""
    found: list[Candidate] = []
    alike: dict[Hashable, list[int]] = {}  # fingerprint -> indexes in found
    for candidate in sorted(candidates, key=lambda c: len(c.table.address)):
        fingerprint = _fingerprint(candidate, reader) if len(candidates) > MAX_ALIKE else None
        rivals = alike.setdefault(fingerprint, [])
        twin = next((i for i in rivals if _is_same(found[i], candidate, reader)), None)
        if twin is None:
            if len(rivals) < MAX_ALIKE:
                rivals.append(len(found))
            found.append(candidate)
            continue
        first = found[twin]
        # Metadata beside one of the two takes precedence over the settings of the run.
        afar = {key for key in first.meta_at if key not in {*candidate.meta_at}}
        near = {key: candidate.meta[key] for key in afar if key in candidate.meta}
        found[twin] = replace(
            first,
            aliases=(*first.aliases, candidate.table.address, *candidate.aliases),
            meta={**candidate.meta, **first.meta, **near},
            meta_at={key: at for key, at in first.meta_at.items() if key not in near},
            assumed_equal=(*first.assumed_equal, *_assumed_equal(first, candidate)),
        )
    return found


def joined(examiner: Examiner, model: Table | None, candidates: list[Candidate]) -> list[Candidate]:
    """Join EMAs of different parts of the model that are in one container."""
    beside: dict[tuple[Address, str], list[Candidate]] = {}
    for candidate in candidates:
        beside.setdefault((candidate.table.address[:-1], candidate.kind), []).append(candidate)
    ones = {place: _as_one(examiner, model, place[0], parts) for place, parts in beside.items()}
    whole: list[Candidate] = []
    for candidate in candidates:
        one = ones[candidate.table.address[:-1], candidate.kind]
        if one is None:
            whole.append(candidate)
        elif not any(c.table.address == one.table.address for c in whole):
            whole.append(one)
    return whole


def _as_one(
    examiner: Examiner, model: Table | None, parent: Address, parts: list[Candidate]
) -> Candidate | None:
    """Join the parts of one container as one candidate; None if they are several EMAs."""
    if len(parts) < 2:
        return None
    node = node_at(examiner.inventory.tree, parent)
    table = join_tables(parent, node, [c.table for c in parts])
    if table is None:
        return None
    one = examiner.examine(table, parts[0].kind, parts[0].why.partition(";")[0], model)
    if not _covers_all(one, parts):
        return None
    layout = next((c.layout for c in parts if c.layout), one.layout)
    assumed = tuple(each for c in parts for each in c.assumed_equal)
    return replace(one, layout=layout, assumed_equal=assumed)


def _fingerprint(candidate: Candidate, reader: TensorReader) -> Hashable:
    """Return a fingerprint that is equal for equal candidates; cheap to compute."""
    entries, pairs = candidate.table.entries, candidate.alignment and candidate.alignment.pairs
    if pairs is None:
        return candidate.kind, candidate.is_raw, len(entries), min(entries, default="")
    refs = [entries[pairs[name]] for name in spread(sorted(pairs), FINGERPRINT)]
    return candidate.kind, candidate.is_raw, len(pairs), _first_numbers(refs, reader)


def _first_numbers(refs: list[Leaf], reader: TensorReader) -> tuple[float | None, ...]:
    """Return the first number of each tensor, whatever its dtype."""
    firsts = (
        next(iter(beginning(reader, ref, ref.dtype.itemsize)), None)
        if isinstance(ref, TensorRef) and is_readable(ref)
        else None
        for ref in refs
    )
    return tuple(None if first is None or isnan(first) else first for first in firsts)


def _is_same(one: Candidate, other: Candidate, reader: TensorReader) -> bool:
    if one.kind != other.kind or one.is_raw != other.is_raw:
        return False
    if one.alignment is None or other.alignment is None:
        return one.table.entries == other.table.entries
    if len(one.alignment.pairs) != len(other.alignment.pairs):
        return False
    pairs = _twins(one, other)
    if len(pairs) != len(one.alignment.pairs):
        return False
    return not _unequal_places(pairs) or compare_sample(reader, pairs, CAREFUL).identical


def _twins(one: Candidate, other: Candidate) -> tuple[tuple[TensorRef, TensorRef], ...]:
    """Return the pairs of tensors that belong to the same tensor of the model."""
    ours = one.alignment.pairs if one.alignment else {}
    theirs = other.alignment.pairs if other.alignment else {}
    pairs = {mine: theirs[name] for name, mine in ours.items() if name in theirs}
    found = paired_tensors(one.table.entries, other.table.entries, pairs)
    return tuple((a, b) for _, a, b in found)


def _unequal_places(
    pairs: tuple[tuple[TensorRef, TensorRef], ...],
) -> tuple[tuple[TensorRef, TensorRef], ...]:
    """Return the pairs that are not the same bytes of the file."""
    return tuple((a, b) for a, b in pairs if a != b)


def _assumed_equal(first: Candidate, twin: Candidate) -> tuple[AssumedEqual, ...]:
    """Return the assumption of a merge: the candidates are equal beyond the sample too."""
    pairs = _unequal_places(_twins(first, twin))
    return (AssumedEqual(twin.address or "(root)", pairs),) if pairs else ()


def _covers_all(joined: Candidate, parts: list[Candidate]) -> bool:
    """Return whether the joined candidate pairs with as many tensors as its parts together."""
    one_by_one = sum(len(part.alignment.pairs) for part in parts if part.alignment)
    return joined.alignment is not None and len(joined.alignment.pairs) == one_by_one
