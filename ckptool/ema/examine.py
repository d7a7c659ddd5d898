"""Examination of a state dict as a candidate: its names are paired, values and metadata read.

Names are paired by order, by a dict of names in the file, or by name (:class:`Aligner`).
The work is counted: a hostile file can have thousands of state dicts that look like EMAs of each
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from ckptool.contents.alignment import (
    Alignment,
    align_by_table,
    align_names,
    align_positions,
    paired_tensors,
)
from ckptool.contents.inventory import Table, take_inventory
from ckptool.ema.candidates import CHOSEN, Candidate
from ckptool.ema.evidence import Evidence
from ckptool.ema.groups import ordered
from ckptool.ema.layouts import Layouts, match_layout, spelled
from ckptool.ema.metadata import Scalars, ema_settings, first_of, read_metadata, split_counters
from ckptool.ema.optimizers import group_sizes
from ckptool.ema.ordering import order_names
from ckptool.errors import EmaAmbiguousError
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.names import unmarked
from ckptool.records import replace
from ckptool.reports.base import DECAYS
from ckptool.tree.addresses import node_at
from ckptool.tree.nodes import Address
from ckptool.tree.walking import children

MAX_PARTS = 64  # parts beside or in a state dict that are tried as a dict of names


class Aligner:
    """The pairing of names within one file, with a cache of the pairings made so far."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tree, self._reader = checkpoint.tree, checkpoint.reader
        self._aligned: dict[tuple[str, Address], list[tuple[Table, Table, Alignment]]] = {}
        self._originals = _NameDicts()

    def align(self, main: Table, table: Table) -> Alignment:
        """Pair the names; return the cached pairing of two state dicts that were paired before."""
        tried = self._aligned.setdefault((table.prefix, table.address), [])
        for ours, theirs, known in tried:
            if (ours.entries, theirs.entries) == (main.entries, table.entries):
                return known
        alignment = self._align_anew(main, table)
        tried.append((main, table, alignment))
        return alignment

    def _align_anew(self, main: Table, table: Table) -> Alignment:
        """Pair lists and numbered names by order, others by a dict of names or by name."""
        sequence = ordered(table)
        if sequence is not None and not any(name in main.entries for name in table.entries):
            around = node_at(self._tree, table.address[:-1])
            groups = group_sizes(around) if table.address else ()
            found = order_names(main.entries, sequence, self._reader, groups)
            if found is not None:
                return align_positions(main.entries, table.entries, found.pairs)
        names = self._name_dict(table)
        if names is not None:
            return align_by_table(main.entries, table.entries, names)
        hint = f"{unmarked(table.prefix.rstrip('.'))}." if table.prefix.endswith(".") else None
        return align_names(main.entries, table.entries, hint)

    def _name_dict(self, table: Table) -> Mapping[str, str] | None:
        """Return the original of each name, from a dict beside or in the state dict; or None."""
        names = {table.prefix + name for name in table.entries}
        around = node_at(self._tree, table.address[:-1]) if table.address else None
        for node in (around, table.node):
            for key, part in children(node)[:MAX_PARTS] if node is not None else ():
                if (
                    isinstance(part, dict)
                    and len(part) >= len(names)
                    and (key,) != table.address[-1:]
                ):
                    found = self._originals.of(part, names)
                    if found is not None:
                        return {n.removeprefix(table.prefix): name for n, name in found.items()}
        return None


class _NameDicts:
    """Dicts that map names to the names that they were made from; each is read once."""

    def __init__(self) -> None:
        self._ways: dict[int, tuple[dict[str, str], ...]] = {}  # by the dict's identity

    def of(self, part: Mapping[Any, Any], names: set[str]) -> dict[str, str] | None:
        """Return the original of each name if the dict has them all, in either direction."""
        ways = self._ways.get(id(part))
        if ways is None:
            ways = self._ways[id(part)] = self._read(part)
        for way in ways:
            if names <= way.keys():
                return {name: way[name] for name in names}
        return None

    @staticmethod
    def _read(part: Mapping[Any, Any]) -> tuple[dict[str, str], ...]:
        first = next(iter(part.items()), None)
        if first is None or not all(isinstance(text, str) for text in first):
            return ()
        texts = {k: v for k, v in part.items() if isinstance(k, str) and isinstance(v, str)}
        made = {v: k for k, v in texts.items()}
        return (texts, made) if len(made) == len(texts) else (texts,)


# -------------------------------------------------------------------------------------- examination


MAX_EFFORT = 1 << 23  # names that a search may read: 16 candidates of 100,000 tensors
STEP = 4  # cost of a step down a key path, in names
PAIR = 4  # cost of pairing a name of the model, in names


class TooManyError(EmaAmbiguousError):
    """A search that was given up, since it would not have ended soon."""


class Examiner:
    """The examination of one file's state dicts, with its caches and the count of its work."""

    def __init__(self, checkpoint: Checkpoint, layouts: Layouts) -> None:
        self.checkpoint, self.layouts = checkpoint, layouts
        self.inventory = take_inventory(checkpoint.tree)
        self._aligner, self._scalars = Aligner(checkpoint), Scalars()
        self._effort = 0

    def examine(self, table: Table, kind: str, why: str, main: Table | None) -> Candidate:
        """Return a state dict as a candidate: paired with ``main``, with its metadata.

        Raises:
            TooManyError: so many have been examined that the search would not end soon.
        """
        self.spend(len(table.entries) + PAIR * len(main.entries if main else ()))
        self.spend(self._around(table))
        addresses = sorted((table.address, *table.aliases), key=len)
        primary = replace(table, address=addresses[0])
        entries, own = split_counters(primary, main)
        primary = replace(primary, entries=entries)
        alignment = self._aligner.align(main, primary) if main and main.entries else None
        written = [spelled(a) + (f"/{table.prefix}*" if table.prefix else "") for a in addresses]
        written = [w.removeprefix("/") for w in written]
        naming = alignment.naming if alignment else None
        layout = match_layout(self.checkpoint.tree, written, naming, self.layouts)
        kind = layout.kind if layout and layout.kind and kind != CHOSEN else kind
        said = read_metadata(self.checkpoint, primary, addresses, layout, own, self._scalars)
        meta, meta_at = self.with_settings(kind, said)
        reader = self.checkpoint.reader
        evidence = evidence_of(reader, main, primary, alignment) if main and alignment else None
        return Candidate(
            table=primary,
            kind=kind,
            why=f"{why}; {_coverage_text(alignment, primary)}",
            alignment=alignment,
            layout=layout,
            meta=meta,
            meta_at=meta_at,
            evidence=evidence,
            aliases=tuple(addresses[1:]),
        )

    def with_settings(
        self, kind: str, meta: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Add the decay from the run's settings to the metadata of an EMA that lacks one.

        Return the metadata, and the key paths of the values that were added.
        """
        if kind not in {"ema", CHOSEN} or first_of(DECAYS, meta) is not None:
            return meta, {}
        found = {key: each for key, each in self._settings.items() if key not in meta}
        values = {key: value for key, (_, value) in found.items()}
        return {**meta, **values}, {key: place for key, (place, _) in found.items()}

    @cached_property
    def _settings(self) -> dict[str, tuple[str, Any]]:
        return ema_settings(self.checkpoint.tree)

    def _around(self, table: Table) -> int:
        """Return the cost of searching the keys around a state dict for metadata and layouts."""
        tree = self.checkpoint.tree
        parent = node_at(tree, table.address[:-1])
        deep = sum(map(len, (table.address, *table.aliases)))
        wide = len(children(tree)) + (len(children(parent)) if parent is not tree else 0)
        return wide + STEP * deep

    def spend(self, names: int) -> None:
        """Count names that are read.

        Raises:
            TooManyError: there have been too many.
        """
        self._effort += names
        if self._effort > MAX_EFFORT:
            raise TooManyError(
                "too many key paths are called EMA weights to compare them all",
                path=self.checkpoint.path,
                hint="name the place that is meant by its address; inspect --tensors lists them",
            )


def evidence_of(reader: TensorReader, main: Table, table: Table, alignment: Alignment) -> Evidence:
    """Return the pairs of tensors whose values can be compared; nothing is read yet."""
    pairs = paired_tensors(main.entries, table.entries, alignment.pairs)
    return Evidence(reader, tuple((ours, theirs) for _, ours, theirs in pairs))


def _coverage_text(alignment: Alignment | None, table: Table) -> str:
    if alignment is None:
        return "the file holds no model to compare it with"
    total = len(alignment.pairs) + len(alignment.missing_keys)
    if not alignment.pairs:
        return f"none of its {len(table.entries)} names pairs with the model's"
    how = "order and shapes pair" if alignment.naming == "positional" else "names and shapes pair"
    return f"{how} with {len(alignment.pairs)} of the model's {total} tensors"
