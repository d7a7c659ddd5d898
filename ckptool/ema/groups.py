"""Parts of a state dict by the prefixes of their names: EMA weights are often one of them.

``{"model.w": …, "model_ema.w": …}`` is one container with two state dicts in it: the names under a
prefix with a keyword, and the rest. Groups with numbers for names (``shadow_params.0``) are lists.

Some writers keep a small dict for each parameter instead, with the tensors of one EMA or of several
(tracks): ``ema/state/<name>/ema_params/<track>``. Transposed, these are a state dict for each of
the paths inside. A container has this form if its keys are names of tensors. A distributed
checkpoint has the same in flat names, ``state.<name>.ema_params.<track>``, which differ in their
endings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ckptool.contents.inventory import Leaf, Table
from ckptool.names import Marker, is_raw, marker_in, may_mark
from ckptool.records import NamedTuple, replace
from ckptool.regex import regex
from ckptool.tree.addresses import node_at
from ckptool.tree.nodes import Address, Tree

NUMBERED = regex(r"^(?P<stem>.*?)(?P<number>\d+)$")
MIN_NUMBERED = 3


class Group(NamedTuple):
    """The entries of a state dict under a prefix with a keyword."""

    table: Table
    marker: Marker


def split_groups(table: Table) -> tuple[Table, tuple[Group, ...]]:
    """Return the state dict without its groups, and the groups."""
    if table.is_list or not may_mark("\n".join(table.entries)):
        return table, ()
    marked: dict[str, Marker] = {}
    members: dict[str, dict[str, Leaf]] = {}
    rest: dict[str, Leaf] = {}
    for name, ref in table.entries.items():
        prefix = _marked_prefix(name, marked) if may_mark(name) else None
        if prefix is None:
            rest[name] = ref
        else:
            members.setdefault(prefix, {})[name[len(prefix) :]] = ref
    groups = tuple(
        Group(replace(table, entries=entries, prefix=table.prefix + prefix), marked[prefix])
        for prefix, entries in members.items()
    )
    return (replace(table, entries=rest), groups) if groups else (table, ())


def _marked_prefix(name: str, marked: dict[str, Marker]) -> str | None:
    """Return the name up to its first keyword: ``model_ema.``, or ``ema_`` if it has no dots."""
    *parts, last = name.split(".")
    separator = "."
    if not parts:
        head, separator, tail = last.partition("_")
        parts = [head] if tail else []
    if separator == "." and any(map(is_raw, parts)):
        return None
    prefix = ""
    for part in parts:
        prefix += part + separator
        found = marked.get(prefix) or marker_in([part])
        if found is not None:
            marked[prefix] = found
            return prefix
    return None


def ordered(table: Table) -> list[tuple[str, Leaf]] | None:
    """Return the entries in the order of their numbers; None if the names are not numbered."""
    if table.is_list:
        return list(table.entries.items())
    numbered = _numbered(table.entries)
    if numbered is None:
        return None
    return [(name, table.entries[name]) for _, name in sorted(numbered)]


def _numbered(entries: Mapping[str, Leaf]) -> list[tuple[int, str]] | None:
    """Return (number, name) of ``w_0, w_1, …``; None if a stem differs or a number is missing."""
    if not all(name.rstrip()[-1:].isdecimal() for name in entries):  # as of most
        return None
    matches = [NUMBERED.match(name) for name in entries]
    found = [match for match in matches if match]
    if len(found) != len(entries) or len(found) < MIN_NUMBERED:
        return None
    if len({match["stem"] for match in found}) != 1:
        return None
    numbers = {int(match["number"]) for match in found}
    if numbers != set(range(len(found))):
        return None
    return [(int(match["number"]), match.string) for match in found]


# ------------------------------------------------------------------------------------------- tracks


MAX_TRACKS = 8  # tensors that belong to one parameter
MAX_DEPTH = 12  # of a key path
MAX_ENDING = 3  # components behind a parameter's name
MIN_NAMES = 3


def last_components(tables: Iterable[Table]) -> frozenset[str]:
    """Return the last components of all names: ``weight``, ``bias``."""
    return frozenset(_last(name) for table in tables for name in table.entries)


def turned_round(
    tables: Sequence[Table], tree: Tree, endings: frozenset[str]
) -> tuple[list[Table], set[int]]:
    """Return a state dict for each path inside, and the indexes of the ``tables`` it uses."""
    made: dict[tuple[Address, Address], dict[str, Leaf]] = {}
    used: dict[tuple[Address, Address], set[int]] = {}
    for place, table in enumerate(tables):
        is_small = len(table.entries) <= MAX_TRACKS and len(table.address) <= MAX_DEPTH
        if table.is_list or table.prefix or not is_small:
            continue
        for depth in range(1, len(table.address)):
            key = str(table.address[depth])
            if _last(key) in endings:
                for name, leaf in table.entries.items():
                    around = table.address[:depth], (*table.address[depth + 1 :], name)
                    made.setdefault(around, {})[key] = leaf
                    used.setdefault(around, set()).add(place)
    kept = {around: entries for around, entries in made.items() if len(entries) >= MIN_NAMES}
    found = [
        Table(address, entries, node_at(tree, address), inside=inside)
        for (address, inside), entries in kept.items()
    ]
    return found, {place for around in kept for place in used[around]}


def by_ending(table: Table, endings: frozenset[str]) -> list[Table]:
    """Return the tracks in a state dict of flat names; [] if its names end as a model's do."""
    if not endings or table.is_list or any(_last(name) in endings for name in table.entries):
        return []
    for length in range(1, MAX_ENDING + 1):
        tracks: dict[str, dict[str, Leaf]] = {}
        for name, leaf in table.entries.items():
            parts = name.rsplit(".", length)
            if len(parts) == length + 1 and _last(parts[0]) in endings:
                tracks.setdefault(name[len(parts[0]) :], {})[parts[0]] = leaf
        tracks = {
            ending: entries for ending, entries in tracks.items() if len(entries) >= MIN_NAMES
        }
        if 0 < len(tracks) <= MAX_TRACKS:
            return [
                replace(table, entries=entries, suffix=ending) for ending, entries in tracks.items()
            ]
    return []


def _last(name: str) -> str:
    return name.rpartition(".")[2]
