"""Search for candidates: state dicts with a keyword whose names pair with the model's."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

from ckptool.contents.alignment import paired_prefixes
from ckptool.contents.inventory import Inventory, Table
from ckptool.ema.candidates import AVERAGED_MODEL, Candidate
from ckptool.ema.examine import Examiner, TooManyError
from ckptool.ema.groups import Group, by_ending, last_components, split_groups, turned_round
from ckptool.ema.layouts import Layouts, spelled
from ckptool.ema.merging import joined, merged
from ckptool.ema.model import averaged_model, choose_model, marker_of, without, without_counters
from ckptool.ema.optimizers import OPTIMIZERS
from ckptool.names import AVERAGES, Marker, is_raw
from ckptool.records import replace
from ckptool.tree.patterns import fits

MIN_SHARE = 0.3  # share of a candidate's tensors that must pair with the model's
MIN_PART = 0.15  # share of a state dict with a keyword that a part must have to replace it
MIN_GROUP = 3  # tensors of a group under a prefix
MAX_UNEXAMINED = 10  # candidates that are listed where there are too many to examine


def find_candidates(
    examiner: Examiner, asked: Table | None
) -> tuple[Table | None, tuple[Candidate, ...]]:
    """Find the model, unless it is ``asked`` for, and all candidates for an EMA of it.

    Raises:
        TooManyError: so many state dicts have a keyword that the search would not end soon.
    """
    plain, proposals = _proposals(examiner)
    model = averaged_model(plain, proposals) if asked is None else asked
    groups = [group for table in plain for group in _groups_of(examiner, model, table)]
    if groups and model is not None and asked is None:
        model = without_counters(without(model, groups))
    examined = [
        examiner.examine(
            group.table, group.marker.kind, f"the word {group.marker.word!r} in its key", model
        )
        for group in [*proposals, *groups]
        if group.table.node is not (model.node if model else None) or group.table.prefix
    ]
    distinct = merged(examined, examiner.checkpoint.reader)
    found = joined(examiner, model, [c for c in distinct if _is_credible(c)])
    return model, (*found, *_in_optimizers(examiner.inventory))


def unexamined(inventory: Inventory) -> Iterator[Candidate]:
    """Yield the first state dicts with a keyword as candidates, without examining them."""
    why = "one of too many marked places to compare them all"
    tables = ((t, marker_of(t)) for t in inventory.weights)
    whole = (Group(table, marker) for table, marker in tables if marker)
    parts = (g for t in inventory.weights for g in split_groups(t)[1])
    for table, marker in islice(chain(whole, parts), MAX_UNEXAMINED):
        yield Candidate(table, marker.kind, why, None, None, {}, None)


def _in_optimizers(inventory: Inventory) -> Iterator[Candidate]:
    """Yield averages that an optimizer's state holds or implies; they are only reported."""
    for address, node in inventory.optimizers.items():
        for row in OPTIMIZERS:
            if any(True for _ in row.parts(node)):
                table = Table((*address, "state"), {}, node)
                meta = row.settings(node)
                yield Candidate(table, row.kind, row.why, None, None, meta, None)


def model_beside(examiner: Examiner, average: Table, usual: Table | None) -> Table | None:
    """Return the model of an EMA that is known; it is never the EMA itself."""
    plain = [t for t in examiner.inventory.weights if not marker_of(t) or t.node is average.node]
    named = Group(average, Marker("", ""))
    rest = [
        without(t, [named, *_other_groups(examiner, usual, t)]) if t.node is average.node else t
        for t in plain
    ]
    return choose_model([t for t in rest if t.entries])


def _other_groups(examiner: Examiner, model: Table | None, table: Table) -> list[Group]:
    """Return the other EMAs in the same container; none if there are too many."""
    try:
        return _groups_of(examiner, model, table)
    except TooManyError:
        return []


def _proposals(examiner: Examiner) -> tuple[list[Table], list[Group]]:
    """Return state dicts without a keyword, and those with one, or their parts with one."""
    plain: list[Table] = []
    proposals: list[Group] = []
    marked: list[Group] = []
    for table in examiner.inventory.weights:
        if marker := marker_of(table) or _declared(examiner.layouts, table):
            marked.append(Group(table, marker))
        elif AVERAGED_MODEL in table.entries and len(table.entries) > MIN_GROUP:
            proposals.append(Group(table, Marker(AVERAGED_MODEL, "swa")))
        elif not table.is_list and not any(is_raw(str(key)) for key in table.address):
            plain.append(table)
    for group in _with_tracks(examiner.inventory, marked, plain):
        examiner.spend(len(plain))
        parts = [
            g for g in split_groups(group.table)[1]
            if g.marker.kind in AVERAGES
            and len(g.table.entries) >= MIN_PART * len(group.table.entries)
            and not any(_has_names_of(t, g.table) for t in plain)
        ]  # fmt: skip
        proposals += parts or [group]
    return plain, proposals


def _with_tracks(inventory: Inventory, marked: list[Group], plain: list[Table]) -> list[Group]:
    """Return the groups, and a group for each track of those that are stored by parameter."""
    endings = last_components(plain)
    tables = [group.table for group in marked]
    turned, used = turned_round(tables, inventory.tree, endings)
    rest = [group for place, group in enumerate(marked) if place not in used]
    found = [Group(t, marker) for t in turned if (marker := marker_of(t))]
    return [*found, *(part for group in rest for part in _tracks(group, endings))]


def _declared(layouts: Layouts, table: Table) -> Marker | None:
    """Return the keyword that a custom layout gives to a state dict by its key path; or None."""
    for row in layouts:
        if fits(row.ema_at, spelled(table.address)) and not row.in_main_slot:
            return Marker(row.name, row.kind or "ema")
    return None


def _groups_of(examiner: Examiner, model: Table | None, table: Table) -> list[Group]:
    """Return the parts of a state dict with a keyword that pair with the model or its rest."""
    rest, groups = split_groups(table)
    rest = without_counters(rest) or replace(rest, entries={})
    main = model if model is not None and model.node is not table.node else rest
    endings = last_components([main]) if groups else frozenset()
    parts = [part for group in groups for part in _tracks(group, endings)]
    return [g for g in parts if _pairs_with(examiner, main, g)]


def _pairs_with(examiner: Examiner, main: Table, group: Group) -> bool:
    if len(group.table.entries) < MIN_GROUP:
        return False
    if not main.entries:
        return group.marker.kind in AVERAGES
    candidate = examiner.examine(group.table, group.marker.kind, "", main)
    alignment = candidate.alignment
    if alignment is None or alignment.colliding:
        return alignment is not None
    ours, _ = paired_prefixes(alignment)
    part = [name for name in main.entries if name.startswith(ours)]
    matched = len(alignment.pairs)
    if matched < max(MIN_GROUP, MIN_SHARE * max(len(part), len(group.table.entries))):
        return False
    is_known = candidate.is_average and candidate.layout is not None
    is_plain = is_known and 2 * matched >= len(main.entries)  # no values are read then
    return is_plain or candidate.kind == "teacher" or not candidate.is_unrelated


def _tracks(group: Group, endings: frozenset[str]) -> list[Group]:
    """Return the group, or the tracks in it whose names differ in their endings."""
    return [Group(t, group.marker) for t in by_ending(group.table, endings)] or [group]


def _has_names_of(table: Table, part: Table) -> bool:
    """Return whether all names of a part are the model's: a layer's name can be a keyword."""
    return all(part.key_of(name) in table.entries for name in part.entries)


def _is_credible(candidate: Candidate) -> bool:
    """Return whether the keyword counts: if there is a model, only with names that pair."""
    alignment = candidate.alignment
    if alignment is None:
        return len(candidate.table.entries) >= MIN_GROUP and not candidate.table.is_list
    if candidate.doubt and not (alignment.mismatched or alignment.unplaced):
        return candidate.is_average
    other = 2 * len(alignment.mismatched) >= len(candidate.table.entries) > 0
    if candidate.is_average and other:  # of another model, which is better reported
        return True
    matched = len(alignment.pairs) - len(alignment.tied)
    return matched > 0 and matched >= MIN_SHARE * len(candidate.table.entries)
