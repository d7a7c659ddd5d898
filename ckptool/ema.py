"""Finds the averaged weights in a checkpoint, and says why it thinks so.

The rules, in order; frameworks' names appear only in ``layouts.py``:

1. Tables (``inventory.py``) outside optimizers are weights, and so are the parts of a table under
   a marked prefix (``groups.py``). The **model** is the table that a naive loader would read,
   without a marker.
2. A **marker** (``markers.py``) is a whole word in an address or a prefix: ``ema``, ``shadow``,
   ``swa``. ``teacher``, ``momentum`` and ``target`` mark other kinds, which are reported and never
   taken unasked.
3. A marker counts only with **alignment**: names and shapes must pair with the model's
   (``alignment.py``); lists pair by order (``ordering.py``).
4. The same container under several addresses, the same bytes or equal values are one candidate
   with aliases.
5. A few values are compared (``evidence.py``): an average identical to the model was never
   updated, or the model's slot holds it already; one that is unrelated to the model is no average
   of it.
6. Some writers keep the averages in the model's slot and the raw weights in the one called ema.
   ``layouts.py`` tells them by what else they write; the raw ones are never taken.
7. One candidate of an averaging kind is *found*; several that differ, or names that cannot be told
   apart, are *ambiguous*.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from math import isnan
from pathlib import Path
from typing import Any

from ckptool.alignment import Alignment, align_names, align_positions, paired_prefixes
from ckptool.candidates import (
    AVERAGED_MODEL,
    CHOSEN,
    RAW_KIND,
    Candidate,
    EmaLocation,
    Equality,
    table_address,
)
from ckptool.errors import AddressError, CkptError, EmaAmbiguousError, EmaNotFoundError
from ckptool.evidence import CAREFUL, Evidence, beginning, compare_sample, is_readable, spread
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.groups import Group, ordered, split_groups
from ckptool.inventory import Leaf, Table, join_tables, scalars_in, take_inventory
from ckptool.layouts import Layouts, fits, main_slot_layout, match_layout, spelled
from ckptool.markers import AVERAGES, Marker, is_raw, marker_in, unmarked
from ckptool.metadata import META_KEYS, Scalars, layout_metadata, read_metadata, split_counters
from ckptool.optimizers import OPTIMIZERS, group_sizes, train_mode
from ckptool.ordering import order_names
from ckptool.provenance import Provenance, read_provenance
from ckptool.selection import EMA_ROLE, MODEL_ROLE, select_table
from ckptool.siblings import POSTHOC, averaged_neighbours, config_beside, raw_neighbours
from ckptool.tree import Address, TensorRef, children, node_at

# Keys under which loaders look for the model, the usual ones first.
MODEL_KEYS = (
    "state_dict", "model_state_dict", "model", "net", "module", "params", "student", "encoder",
    "generator", "G", "g", "unet", "network_weights", "network", "weights",
)  # fmt: skip

MIN_SHARE = 0.3  # of a candidate's tensors that must pair with the model's
MIN_PART = 0.15  # of a marked table that a marked part must hold to stand for it
MIN_GROUP = 3  # tensors of a group under a prefix
MAX_EFFORT = 1 << 23  # names that a search looks at; of 100,000 tensors it does so twenty times
MAX_UNEXAMINED = 10  # places that are told where there are too many to look at
STEP = 4  # names that a step down an address costs as much as
PAIR = 4  # and pairing a name of the model's
LIKENESS = 8  # tensors whose first numbers tell most candidates apart
MAX_TWINS = 64  # candidates of one likeness that are compared with each other


# ----------------------------------------------------------------------------------------- locating


def locate_ema(
    checkpoint: Checkpoint,
    *,
    ema: str | None = None,
    model: str | None = None,
    layouts: Layouts = (),
) -> EmaLocation:
    """Where the averaged weights are; ``ema`` and ``model`` are addresses that override the search.

    Whatever table is named is taken: as an average of the model where its names pair with the
    model's, as it stands where none does, or where it is the model's own slot.
    ``layouts`` are rows of a house style, tried before ``LAYOUTS``.

    Raises:
        AddressError: one of the addresses names nothing, or no weights.
        EmaAmbiguousError: the model's role is asked for, and there are too many candidates.
    """
    search = _Search(checkpoint, layouts)
    if model is not None:
        search.model = select_table(search.inventory, model)
    if ema not in {None, EMA_ROLE, MODEL_ROLE}:
        assert ema is not None
        return _named(search, select_table(search.inventory, ema))
    try:
        candidates = search.candidates(fixed_model=model is not None)  # settles the model too
    except _TooManyError:
        if ema == MODEL_ROLE:  # the model is known by what is no average of it
            raise
        unexamined = tuple(search.unexamined())
        return EmaLocation(
            "ambiguous", "unknown", None, unexamined, None, search.inventory, given_up=True
        )
    if ema == MODEL_ROLE:
        return _as_it_stands(search, _required(search.model, checkpoint))
    location = _decide(search, candidates)
    return search.among_neighbours(location) if location.status == "none" else location


def _named(search: _Search, table: Table) -> EmaLocation:
    """The table that the user names."""
    asked = search.model
    if asked is None:
        search.model = choose_model([t for t in search.inventory.weights if not _marker_of(t)])
    if search.model is not None and _is_same_table(search.model, table):
        return _as_it_stands(search, table)
    if asked is None:
        search.find_model(leaving_out=table)
    if search.model is not None and _is_part_of(search.model, table):
        raise AddressError(
            "a part of the model, not an average of it", address=table_address(table)
        )
    chosen = search.examine(table, CHOSEN, "named on the command line")
    if asked is None and _pairs_nowhere(chosen):
        return _as_it_stands(search, table)
    return _decide(search, (chosen,))


def _pairs_nowhere(chosen: Candidate) -> bool:
    """Whether its names have nothing to do with the model's; lists have none to tell by."""
    alignment = chosen.alignment
    if alignment is None or alignment.naming == "positional" or chosen.table.is_list:
        return False
    return not alignment.pairs and not alignment.colliding


def _as_it_stands(search: _Search, table: Table) -> EmaLocation:
    """A table that is taken whole, under its own names: nobody says that it is an average."""
    taken = Candidate(table, CHOSEN, "named on the command line", None, None, {}, None)
    return EmaLocation("found", "unknown", None, (taken,), taken, search.inventory)


def _is_same_table(one: Table, other: Table) -> bool:
    return one.node is other.node and one.prefix == other.prefix


def _required(model: Table | None, checkpoint: Checkpoint) -> Table:
    if model is None:
        raise EmaNotFoundError(
            "no weights were found at the places where models are kept",
            path=checkpoint.path,
            hint="name them: --ema ADDRESS; ckptool inspect --tensors lists the addresses",
        )
    return model


class _TooManyError(EmaAmbiguousError):
    """A search was given up, since it would not have ended soon."""


class _Search:
    """The state of one search: the inventory, and the model once it is known."""

    def __init__(self, checkpoint: Checkpoint, layouts: Layouts) -> None:
        self.checkpoint, self.layouts = checkpoint, layouts
        self.inventory = take_inventory(checkpoint.tree)
        self.model: Table | None = None
        self._aligned: dict[tuple[str, Address], list[tuple[Table, Table, Alignment]]] = {}
        self._scalars = Scalars()
        self._effort = 0

    def candidates(self, *, fixed_model: bool) -> tuple[Candidate, ...]:
        """Everything marked that pairs with the model, merged where it is the same."""
        plain, proposals = self._proposals()
        if not fixed_model:
            self.model = _averaged_model(plain, proposals)
        groups = [group for table in plain for group in self._groups_of(table)]
        if groups and self.model is not None and not fixed_model:
            self.model = _weights(_without(self.model, groups))
        examined = [
            self.examine(group.table, group.marker.kind, f"the address says {group.marker.word!r}")
            for group in [*proposals, *groups]
            if group.table.node is not (self.model.node if self.model else None)
            or group.table.prefix
        ]
        found = self._joined([c for c in self._merged(examined) if _is_credible(c)])
        return (*found, *self._in_optimizers())

    def unexamined(self) -> Iterator[Candidate]:
        """The first places that are marked, as they are."""
        why = "one of too many marked places to compare them all"
        tables = ((t, _marker_of(t)) for t in self.inventory.weights)
        whole = (Group(table, marker) for table, marker in tables if marker)
        parts = (g for t in self.inventory.weights for g in split_groups(t)[1])
        for table, marker in islice(chain(whole, parts), MAX_UNEXAMINED):
            yield Candidate(table, marker.kind, why, None, None, {}, None)

    def _in_optimizers(self) -> Iterator[Candidate]:
        """Averages that an optimizer keeps, or from whose state they follow; only reported."""
        for address, node in self.inventory.optimizers.items():
            for row in OPTIMIZERS:
                if any(True for _ in row.parts(node)):
                    table = Table((*address, "state"), {}, node)
                    meta = row.settings(node)
                    yield Candidate(table, row.kind, row.why, None, None, meta, None)

    def among_neighbours(self, location: EmaLocation) -> EmaLocation:
        """Look beside the file when there is nothing in it."""
        path = self.checkpoint.path
        found = tuple(
            c for kind, other in averaged_neighbours(path) for c in self._in_neighbour(other, kind)
        )
        if found:
            return _decide(self, found)
        if any(True for other in raw_neighbours(path) for _ in self._in_neighbour(other, "raw")):
            return replace(location, main_slot="averaged")
        return location

    def _in_neighbour(self, path: Path, kind: str) -> Iterator[Candidate]:
        """The weights of another file, if they have the names and shapes of ours."""
        if self.model is None:
            return
        try:
            with open_checkpoint(path) as other:
                tables = take_inventory(other.tree).weights
                if kind == "ema" and _keeps_both(other, self.layouts):
                    return  # a checkpoint of its own, and its main slot is raw
                if read_provenance(other.metadata) is not None:
                    return  # what ckptool itself left, of whatever was there then
        except CkptError:
            return
        table = choose_model([t for t in tables if not t.is_list])
        if table is None:
            return
        entries, _ = split_counters(table, self.model)
        # Addresses are the neighbour's own; its bytes come through our reader, which stays open.
        there = _Search(replace(other, reader=self.checkpoint.reader), self.layouts)
        why = f"the file beside it is called {path.name}"
        found = there.examine(replace(table, entries=entries), kind, why, self.model)
        alignment = found.alignment
        if alignment is None or alignment.missing_keys or alignment.unexpected_keys:
            return
        meta = {"file name": path.stem} if re.search(r"\d", path.stem) else {}
        meta |= {key: value for key, value in config_beside(path).items() if key in META_KEYS}
        yield replace(found, file=path, aliases=(), layout=None, meta=meta)

    def find_model(self, leaving_out: Table) -> None:
        """The model, when the average is known: never the average itself."""
        plain = [
            t for t in self.inventory.weights if not _marker_of(t) or t.node is leaving_out.node
        ]
        rest = [
            _without(t, [Group(leaving_out, Marker("", ""))]) if t.node is leaving_out.node else t
            for t in plain
        ]
        self.model = choose_model([t for t in rest if t.entries])

    def has_raw_weights_aside(self) -> bool:
        """Whether raw weights are put aside: the file was saved in an evaluation."""
        return any(is_raw(str(key)) for table in self.inventory.weights for key in table.address)

    def _proposals(self) -> tuple[list[Table], list[Group]]:
        """(tables without a marker in their address, marked tables or their marked parts)."""
        plain: list[Table] = []
        proposals: list[Group] = []
        marked: list[Group] = []
        for table in self.inventory.weights:
            if marker := _marker_of(table) or self._declared(table):
                marked.append(Group(table, marker))
            elif AVERAGED_MODEL in table.entries and len(table.entries) > MIN_GROUP:
                proposals.append(Group(table, Marker(AVERAGED_MODEL, "swa")))
            elif not table.is_list and not any(is_raw(str(key)) for key in table.address):
                plain.append(table)
        for group in marked:
            self._spend(len(plain))
            parts = [
                g for g in split_groups(group.table)[1]
                if g.marker.kind in AVERAGES
                and len(g.table.entries) >= MIN_PART * len(group.table.entries)
                and not any(_has_names_of(t, g.table) for t in plain)
            ]  # fmt: skip
            proposals += parts or [group]
        return plain, proposals

    def _declared(self, table: Table) -> Marker | None:
        """What a row of a house style says of a table whose address bears no marker."""
        for row in self.layouts:
            if fits(row.ema_at, spelled(table.address)) and not row.in_main_slot:
                return Marker(row.name, row.kind or "ema")
        return None

    def _groups_of(self, table: Table) -> list[Group]:
        """The marked parts of an unmarked table that are averages of the rest of it."""
        rest, groups = split_groups(table)
        rest = _weights(rest) or replace(rest, entries={})
        main = self.model if self.model is not None and self.model.node is not table.node else rest
        return [g for g in groups if self._pairs_with(main, g)]

    def _pairs_with(self, main: Table, group: Group) -> bool:
        if len(group.table.entries) < MIN_GROUP:
            return False
        if not main.entries:
            return group.marker.kind in AVERAGES
        candidate = self.examine(group.table, group.marker.kind, "", main)
        alignment = candidate.alignment
        if alignment is None or alignment.colliding:
            return alignment is not None
        ours, _ = paired_prefixes(alignment)
        part = [name for name in main.entries if name.startswith(ours)]
        matched = len(alignment.pairs)
        if matched < max(MIN_GROUP, MIN_SHARE * max(len(part), len(group.table.entries))):
            return False
        is_known = candidate.is_average and candidate.layout is not None
        is_plain = is_known and 2 * matched >= len(main.entries)  # values need not be read
        return is_plain or candidate.kind == "teacher" or not candidate.is_unrelated

    def examine(self, table: Table, kind: str, why: str, main: Table | None = None) -> Candidate:
        """A table as a candidate: aligned, compared, with what the file says of it.

        Raises:
            _TooManyError: so many have been examined that the search would not end soon.
        """
        main = main or self.model
        self._spend(len(table.entries) + PAIR * len(main.entries if main else ()))
        self._spend(self._around(table))
        addresses = sorted((table.address, *table.aliases), key=len)
        primary = replace(table, address=addresses[0])
        entries, own = split_counters(primary, main)
        primary = replace(primary, entries=entries)
        alignment = self._align(main, primary) if main and main.entries else None
        written = [spelled(a) + (f"/{table.prefix}*" if table.prefix else "") for a in addresses]
        written = [w.removeprefix("/") for w in written]
        naming = alignment.naming if alignment else None
        layout = match_layout(self.checkpoint.tree, written, naming, self.layouts)
        kind = layout.kind if layout and layout.kind and kind != CHOSEN else kind
        return Candidate(
            table=primary,
            kind=kind,
            why=f"{why}; {_coverage_text(alignment, primary)}",
            alignment=alignment,
            layout=layout,
            meta=read_metadata(self.checkpoint, primary, addresses, layout, own, self._scalars),
            evidence=self._evidence(main, primary, alignment) if main and alignment else None,
            aliases=tuple(addresses[1:]),
        )

    def _around(self, table: Table) -> int:
        """How many keys stand where metadata and layouts are looked for, and on the way there."""
        tree = self.checkpoint.tree
        parent = node_at(tree, table.address[:-1])
        deep = sum(map(len, (table.address, *table.aliases)))
        wide = len(children(tree)) + (len(children(parent)) if parent is not tree else 0)
        return wide + STEP * deep

    def _spend(self, names: int) -> None:
        self._effort += names
        if self._effort > MAX_EFFORT:
            raise _TooManyError(
                "too many places are marked as averages to compare them all",
                path=self.checkpoint.path,
                hint="name the place that is meant by its address; inspect --tensors lists them",
            )

    def _align(self, main: Table, table: Table) -> Alignment:
        """How the names pair; a part that was tried before is not aligned again."""
        tried = self._aligned.setdefault((table.prefix, table.address), [])
        for ours, theirs, known in tried:
            if (ours.entries, theirs.entries) == (main.entries, table.entries):
                return known
        alignment = self._align_anew(main, table)
        tried.append((main, table, alignment))
        return alignment

    def _align_anew(self, main: Table, table: Table) -> Alignment:
        """By order for lists and numbered names, else by name."""
        sequence = ordered(table)
        if sequence is not None and not _shares_names(main, table.entries):
            around = node_at(self.checkpoint.tree, table.address[:-1])
            groups = group_sizes(around) if table.address else ()
            found = order_names(main.entries, sequence, self.checkpoint.reader, groups)
            if found is not None:
                return align_positions(main.entries, table.entries, found.pairs)
        hint = f"{unmarked(table.prefix.rstrip('.'))}." if table.prefix.endswith(".") else None
        return align_names(main.entries, table.entries, hint)

    def _evidence(self, main: Table, table: Table, alignment: Alignment) -> Evidence:
        pairs = [
            (ours, theirs)
            for name, other in alignment.pairs.items()
            if isinstance(ours := main.entries[name], TensorRef)
            and isinstance(theirs := table.entries[other], TensorRef)
        ]
        return Evidence(self.checkpoint.reader, tuple(pairs))

    def _merged(self, candidates: list[Candidate]) -> list[Candidate]:
        """Rule 4: the same bytes or equal values; the shortest address stands for all."""
        merged: list[Candidate] = []
        alike: dict[Hashable, list[int]] = {}  # places in merged
        for candidate in sorted(candidates, key=lambda c: len(c.table.address)):
            likeness = self._likeness(candidate) if len(candidates) > MAX_TWINS else None
            rivals = alike.setdefault(likeness, [])
            twin = next((i for i in rivals if self._is_same(merged[i], candidate)), None)
            if twin is None:
                if len(rivals) < MAX_TWINS:
                    rivals.append(len(merged))
                merged.append(candidate)
                continue
            first = merged[twin]
            merged[twin] = replace(
                first,
                aliases=(*first.aliases, candidate.table.address, *candidate.aliases),
                meta={**candidate.meta, **first.meta},
                believed=(*first.believed, *_belief(first, candidate)),
            )
        return merged

    def _joined(self, candidates: list[Candidate]) -> list[Candidate]:
        """Averages of different parts of the model in one container are one candidate."""
        beside: dict[tuple[Address, str], list[Candidate]] = {}
        for candidate in candidates:
            beside.setdefault((candidate.table.address[:-1], candidate.kind), []).append(candidate)
        joined = {place: self._as_one(place[0], parts) for place, parts in beside.items()}
        whole: list[Candidate] = []
        for candidate in candidates:
            one = joined[candidate.table.address[:-1], candidate.kind]
            if one is None:
                whole.append(candidate)
            elif not any(c.table.address == one.table.address for c in whole):
                whole.append(one)
        return whole

    def _as_one(self, parent: Address, parts: list[Candidate]) -> Candidate | None:
        """The parts of one container as one candidate; None when they are several."""
        if len(parts) < 2:
            return None
        node = node_at(self.checkpoint.tree, parent)
        table = join_tables(parent, node, [c.table for c in parts])
        if table is None:
            return None
        joined = self.examine(table, parts[0].kind, parts[0].why.partition(";")[0])
        if not _covers_all(joined, parts):
            return None
        layout = next((c.layout for c in parts if c.layout), joined.layout)
        believed = tuple(belief for c in parts for belief in c.believed)
        return replace(joined, layout=layout, believed=believed)

    def _likeness(self, candidate: Candidate) -> Hashable:
        """What two candidates have in common if they are the same; cheap to compute."""
        entries, pairs = candidate.table.entries, candidate.alignment and candidate.alignment.pairs
        if pairs is None:
            return candidate.kind, candidate.is_raw, len(entries), min(entries, default="")
        refs = [entries[pairs[name]] for name in spread(sorted(pairs), LIKENESS)]
        return candidate.kind, candidate.is_raw, len(pairs), self._glimpse(refs)

    def _glimpse(self, refs: list[Leaf]) -> tuple[float | None, ...]:
        """The first number of each tensor, whatever its type."""
        reader = self.checkpoint.reader
        firsts = (
            next(iter(beginning(reader, ref, ref.dtype.itemsize)), None)
            if isinstance(ref, TensorRef) and is_readable(ref)
            else None
            for ref in refs
        )
        return tuple(None if first is None or isnan(first) else first for first in firsts)

    def _is_same(self, one: Candidate, other: Candidate) -> bool:
        if one.kind != other.kind or one.is_raw != other.is_raw:
            return False
        if one.alignment is None or other.alignment is None:
            return one.table.entries == other.table.entries
        if len(one.alignment.pairs) != len(other.alignment.pairs):
            return False
        pairs = _twins(one, other)
        if len(pairs) != len(one.alignment.pairs):
            return False
        return (
            not _unequal_places(pairs)
            or compare_sample(self.checkpoint.reader, pairs, CAREFUL).identical
        )


def _twins(one: Candidate, other: Candidate) -> tuple[tuple[TensorRef, TensorRef], ...]:
    """The tensors of two candidates that belong to the same tensor of the model."""
    ours = one.alignment.pairs if one.alignment else {}
    theirs = other.alignment.pairs if other.alignment else {}
    return tuple(
        (a, b)
        for name in ours
        if name in theirs
        and isinstance(a := one.table.entries[ours[name]], TensorRef)
        and isinstance(b := other.table.entries[theirs[name]], TensorRef)
    )


def _unequal_places(
    pairs: tuple[tuple[TensorRef, TensorRef], ...],
) -> tuple[tuple[TensorRef, TensorRef], ...]:
    """The pairs that are not the same bytes of the file."""
    return tuple((a, b) for a, b in pairs if a != b)


def _belief(first: Candidate, twin: Candidate) -> tuple[Equality, ...]:
    """What merging two candidates takes for granted: that they agree beyond the sample too."""
    pairs = _unequal_places(_twins(first, twin))
    return (Equality(twin.address or "(the top)", pairs),) if pairs else ()


def _covers_all(joined: Candidate, parts: list[Candidate]) -> bool:
    """Whether the parts were of different tensors: together they pair with as many."""
    one_by_one = sum(len(part.alignment.pairs) for part in parts if part.alignment)
    return joined.alignment is not None and len(joined.alignment.pairs) == one_by_one


def _is_part_of(model: Table, table: Table) -> bool:
    """Whether a table has names of the model's own slot in it."""
    if model.node is not table.node:
        return False
    named = {model.prefix + name for name in model.entries}
    return any(table.prefix + name in named for name in table.entries)


def _keeps_both(checkpoint: Checkpoint, layouts: Layouts) -> bool:
    """Whether a file has raw weights and an average of its own."""
    search = _Search(checkpoint, layouts)
    location = _decide(search, search.candidates(fixed_model=False))
    return any(c.is_average for c in location.candidates) and location.main_slot == "raw"


def _marker_of(table: Table) -> Marker | None:
    return marker_in(str(key) for key in table.address)


def choose_model(tables: list[Table]) -> Table | None:
    """The table that a naive loader would take for the model's weights, or None."""
    named = [t for t in tables if t.entries and any(not name.isdigit() for name in t.entries)]
    for key in MODEL_KEYS:
        for table in named:
            if table.address == (key,):
                return table
    usual = [t for t in named if t.address and str(t.address[-1]) in MODEL_KEYS]
    return max(usual or [t for t in named if len(t.address) <= 1], key=_size, default=None)


def _averaged_model(plain: list[Table], proposals: list[Group]) -> Table | None:
    """The model; when only another table has an average called after it, that one.

    Of ``{"encoder": …, "decoder": …, "decoder_ema": …}`` it is the decoder.
    """
    usual = choose_model(plain)
    names = _names_before_marking(proposals)
    twins = [t for t in plain if _has_average_called_after(t, names)]
    if usual in twins or not twins:
        return usual
    return choose_model(twins) or max(twins, key=_size)


def _names_before_marking(groups: list[Group]) -> dict[str, Any]:
    """The addresses of averages without their markers, as a tree of keys, the last key first.

    At ``""``, which is no key's text, stands how many tensors the smallest average of a name has.
    A tree, since a hostile file can have thousands of averages at thousands of levels.
    """
    names: dict[str, Any] = {}
    for group in groups:
        bare = [unmarked(k) if marker_in([k]) else k for k in map(str, group.table.address)]
        name = [key for key in bare if key]
        if group.marker.kind in AVERAGES and name:
            at = names
            for key in reversed(name):
                at = at.setdefault(key, {})
            at[""] = min(at.get("", sys.maxsize), len(group.table.entries))
    return names


def _has_average_called_after(table: Table, names: dict[str, Any]) -> bool:
    """Whether an average has the table's name and a marker, and no more tensors than it."""
    at = names
    for key in map(str, reversed(table.address)):
        at = at.get(key, {}) if key else {}
        if len(table.entries) + 1 >= at.get("", sys.maxsize):  # it may count its updates
            return True
    return False


def _size(table: Table) -> int:
    return sum(ref.nbytes for ref in table.tensors.values())


def _without(table: Table, groups: list[Group]) -> Table:
    """The table without the names of the groups that are parts of it."""
    left_out = {
        group.table.prefix + name
        for group in groups
        if group.table.node is table.node
        for name in group.table.entries
    }
    rest = {name: ref for name, ref in table.entries.items() if name not in left_out}
    return replace(table, entries=rest)


def _has_names_of(table: Table, part: Table) -> bool:
    """Whether the names of a marked part are names of the model: a layer is called so."""
    return all(part.prefix + name in table.entries for name in part.entries)


def _weights(table: Table) -> Table | None:
    """The table without counters of its own; None when nothing else is left.

    Those under a prefix are buffers of the model.
    """
    _, counting = split_counters(table, None)
    own = {name for name in counting if "." not in name}
    entries = {name: ref for name, ref in table.entries.items() if name not in own}
    return replace(table, entries=entries) if entries else None


def _shares_names(main: Table, entries: Mapping[str, Leaf]) -> bool:
    return any(name in main.entries for name in entries)


def _coverage_text(alignment: Alignment | None, table: Table) -> str:
    if alignment is None:
        return "the file holds no model to compare it with"
    total = len(alignment.pairs) + len(alignment.missing_keys)
    if not alignment.pairs:
        return f"none of its {len(table.entries)} names pairs with the model's"
    how = "order and shapes pair" if alignment.naming == "positional" else "names and shapes pair"
    return f"{how} with {len(alignment.pairs)} of the model's {total} tensors"


def _is_credible(candidate: Candidate) -> bool:
    """Rule 3: a marker counts only with alignment, if there is a model to align with."""
    alignment = candidate.alignment
    if alignment is None:
        return len(candidate.table.entries) >= MIN_GROUP and not candidate.table.is_list
    if candidate.doubt and not (alignment.mismatched or alignment.unplaced):
        return candidate.is_average
    other = 2 * len(alignment.mismatched) >= len(candidate.table.entries) > 0
    if candidate.is_average and other:  # of another model: better said than left out
        return True
    matched = len(alignment.pairs) - len(alignment.tied)
    return matched > 0 and matched >= MIN_SHARE * len(candidate.table.entries)


# ----------------------------------------------------------------------------------------- deciding


def _decide(search: _Search, candidates: tuple[Candidate, ...]) -> EmaLocation:
    main = search.model
    if main is not None and not any(c.kind == CHOSEN for c in candidates):
        in_slot = _in_main_slot(search, main, candidates)
        if in_slot is not None:
            others = tuple(replace(c, kind=RAW_KIND) for c in candidates if c.is_raw)
            return EmaLocation(
                "found", "averaged", main, (in_slot, *others), in_slot, search.inventory
            )
    averages = [c for c in candidates if c.is_average]
    selected = averages[0] if len(averages) == 1 and not averages[0].doubt else None
    location = EmaLocation(
        _status(candidates, selected), "unknown", main, candidates, selected, search.inventory
    )
    slot = _main_slot(search, location)
    if slot == "averaged" and selected is not None and selected.evidence is not None:
        belief = Equality("the model's own slot", tuple(selected.evidence.pairs), cast=True)
        selected = replace(selected, believed=(*selected.believed, belief))
        location = replace(location, selected=selected)
    return replace(location, main_slot=slot)


def _in_main_slot(
    search: _Search, main: Table, candidates: tuple[Candidate, ...]
) -> Candidate | None:
    """The model's own slot, where its writer is known to keep the averages there."""
    tree = search.checkpoint.tree
    row = main_slot_layout(tree, spelled(main.address), search.layouts)
    swapped = next((c for c in candidates if c.is_raw and c.layout), None)
    free = next((c for c in candidates if train_mode(c.table.node) is False), None)
    own = align_names(main.entries, main.entries)
    if row is not None:
        meta = layout_metadata(search.checkpoint, row)
        why = f"{row.library} saves the averages as the model: {', '.join(row.beside)} say so"
        return Candidate(main, "ema", why, own, row, meta, None)
    if swapped is not None and swapped.layout:
        why = (
            f"{swapped.layout.library} swaps on saving: the averages are in the model's slot, "
            f"the raw weights at {swapped.address}"
        )
        return Candidate(main, "ema", why, own, swapped.layout, swapped.meta, None)
    if free is not None:
        why = "saved after optimizer.eval(): the model's slot holds the averaged point"
        return Candidate(main, free.kind, why, own, None, free.meta, None)
    return None


def _status(candidates: tuple[Candidate, ...], selected: Candidate | None) -> str:
    if selected is not None:
        return "found"
    if all(c.kind == "schedule-free" or c.is_unstarted for c in candidates):
        return "none"
    unrelated = any(c.is_unrelated for c in candidates if not c.is_average)
    tracks = len([c for c in candidates if c.kind == POSTHOC]) > 1
    undecided = unrelated or tracks or any(c.is_average for c in candidates)
    return "ambiguous" if undecided else "found"


def _main_slot(search: _Search, location: EmaLocation) -> str:
    """What the model's own slot holds, as far as the file tells."""
    chosen = location.selected
    if location.model is None or not location.candidates:
        return "unknown"
    if any(c.layout is not None and c.layout.doubt for c in location.candidates):
        return "unknown"  # the file does not tell which slot is averaged
    flag = chosen.layout.promoted_flag if chosen and chosen.layout else None
    says_so = (
        bool(flag and scalars_in(search.checkpoint.tree).get(flag))
        or marker_in([search.checkpoint.path.stem]) is not None
        or search.has_raw_weights_aside()
        or _was_promoted(read_provenance(search.checkpoint.metadata))
    )
    if says_so and chosen is not None and chosen.kind == CHOSEN:
        return "unknown"  # whoever names a table gets it, whatever the slot holds
    if says_so and location.identical:  # values are read only then
        return "averaged"
    return "raw"


def _was_promoted(provenance: Provenance | None) -> bool:
    return provenance is not None and provenance.command == "promote-ema"
