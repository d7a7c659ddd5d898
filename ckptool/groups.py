"""Parts of a table by the prefixes of their names: averages often live inside a state dict.

``{"model.w": …, "model_ema.w": …}`` is one container with two tables in it: the names under a
marked component, and the rest. Groups with numbers for names (``shadow_params.0``) are lists in
disguise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from ckptool.inventory import Leaf, Table
from ckptool.markers import Marker, is_raw, marker_in, may_mark

NUMBERED = re.compile(r"^(?P<stem>.*?)(?P<number>\d+)$")
MIN_NUMBERED = 3


class Group(NamedTuple):
    """The entries of a table under a marked prefix."""

    table: Table
    marker: Marker


def split_groups(table: Table) -> tuple[Table, tuple[Group, ...]]:
    """The table without its marked groups, and the groups."""
    if table.is_list:
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
    """The name up to its first marked component: ``model_ema.``; ``ema_`` without dots."""
    parts = name.split(".")
    if len(parts) == 1:
        head, _, tail = name.partition("_")
        found = marker_in([head]) if tail else None
        return _remember(f"{head}_", found, marked)
    if any(map(is_raw, parts[:-1])):
        return None
    at = 0
    for part in parts[:-1]:
        at += len(part) + 1
        prefix = name[:at]
        if prefix in marked or (found := _component_marker(part)) is None:
            if prefix in marked:
                return prefix
            continue
        return _remember(prefix, found, marked)
    return None


def _component_marker(part: str) -> Marker | None:
    return marker_in([part]) if part else None


def _remember(prefix: str, found: Marker | None, marked: dict[str, Marker]) -> str | None:
    if found is None:
        return None
    marked.setdefault(prefix, found)
    return prefix


def ordered(table: Table) -> list[tuple[str, Leaf]] | None:
    """The entries in the order of their numbers, when that is all their names are; else None."""
    if table.is_list:
        return list(table.entries.items())
    numbered = _numbered(table.entries)
    if numbered is None:
        return None
    return [(name, table.entries[name]) for _, name in sorted(numbered)]


def _numbered(entries: Mapping[str, Leaf]) -> list[tuple[int, str]] | None:
    """(number, name) of ``w_0, w_1, …``; None when a stem differs or a number is missing."""
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
