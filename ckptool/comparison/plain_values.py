"""Comparison of plain values, and the rows for those that differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckptool.comparison.leaves import (
    ABSENT,
    BytesLeaf,
    Leaf,
    Leaves,
    ListLeaf,
    ObjectLeaf,
    form_of,
    is_number,
    is_tensor,
)
from ckptool.comparison.pairing import Pair
from ckptool.comparison.spelling import text_digest
from ckptool.comparison.tolerances import Tolerance, Tolerances
from ckptool.reports.diff import ValueDifference

CONTAINER = "<dict or list>"
SHOWN = 1000  # characters of a text that a report shows


def compare_values(
    a: Leaves,
    b: Leaves,
    pairs: Sequence[Pair],
    tolerances: Tolerances,
    roles: Mapping[str, str],
    *,
    any_dtype: bool = False,
) -> list[ValueDifference]:
    """Return the plain values that differ, and those where one side has a tensor instead."""
    rows = []
    for pair, one, other in _sides(a, b, pairs):
        kind, note = _value_kind(one, other, tolerances.at(pair.address), any_dtype=any_dtype)
        if kind is not None:
            section = section_of(pair.address, roles, of_tensor=False)
            rows.append(
                ValueDifference(pair.address, kind, section, _shown(one), _shown(other), note)
            )
    return rows


def _sides(a: Leaves, b: Leaves, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Leaf, Leaf]]:
    """Yield each pair with its leaves; an object may have a dict or list in its place.

    A container without an object has no leaf of its own, only those of its parts.
    """
    alone = [pair.address for pair in pairs if pair.a is None or pair.b is None]
    has_objects = any(_is_object(side.get(name)) for side in (a, b) for name in alone)
    inner = [_containers(side) if has_objects else set() for side in (a, b)]
    for pair in pairs:
        one = ABSENT if pair.a is None else a[pair.a]
        other = ABSENT if pair.b is None else b[pair.b]
        if one is ABSENT and _is_object(other) and pair.address in inner[0]:
            one = CONTAINER
        if other is ABSENT and _is_object(one) and pair.address in inner[1]:
            other = CONTAINER
        yield pair, one, other


def _is_object(leaf: Leaf) -> bool:
    """Return whether a leaf is an object by its class, and not a remark on a container."""
    return isinstance(leaf, ObjectLeaf) and not leaf.text.startswith("<")


def _containers(side: Leaves) -> set[str]:
    """Return the key paths that have parts and no leaf."""
    found: set[str] = set()
    for name in side:
        above = name.rpartition("/")[0] if name else ""
        while above and above not in found:
            found.add(above)
            above = above.rpartition("/")[0]
    return (found | ({""} if any(side) else set())) - side.keys()


def _value_kind(
    one: Leaf, other: Leaf, rule: Tolerance, *, any_dtype: bool
) -> tuple[str | None, str]:
    if one is ABSENT or other is ABSENT:
        return ("added" if one is ABSENT else "removed"), ""
    retyped = type(one) is not type(other)
    if retyped and not (any_dtype and is_number(one) and is_number(other)):
        return "type", ""
    if isinstance(one, ListLeaf):
        return _series_kind(one, other, rule, any_dtype=any_dtype)
    inexact = isinstance(one, (float, complex)) or retyped
    if _same_number(one, other) if inexact else one == other:
        return None, ""
    return ("within" if _are_close(one, other, rule) else "value"), ""


def _are_close(one: Leaf, other: Leaf, rule: Tolerance) -> bool:
    """Return whether a tolerance covers two values that differ, one of them a float or complex."""
    return any(isinstance(leaf, (float, complex)) for leaf in (one, other)) and rule.allows(
        one, other
    )


def _same_number(one: complex, other: complex) -> bool:
    """Return whether two numbers are equal; NaN equals NaN in the same place."""
    parts = ((one.real, other.real), (one.imag, other.imag))
    return all(x == y or (_is_nan(x) and _is_nan(y)) for x, y in parts)


def _is_nan(part: float) -> bool:
    return isinstance(part, float) and math.isnan(part)


def _series_kind(
    one: ListLeaf, other: ListLeaf, rule: Tolerance, *, any_dtype: bool
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
    """Return the leaf as JSON can hold it; cut long texts."""
    if leaf is ABSENT:
        return None
    if is_tensor(leaf):
        dtype, shape = form_of(leaf)
        return f"<tensor {dtype} {list(shape)}>"
    if isinstance(leaf, (ObjectLeaf, BytesLeaf, ListLeaf)):
        return str(leaf)[:SHOWN]
    if isinstance(leaf, str) and len(leaf) > SHOWN:
        return f"{leaf[:SHOWN]}… ({len(leaf)} characters, sha256 {text_digest(leaf)[:12]})"
    return leaf


def section_of(address: str, roles: Mapping[str, str], *, of_tensor: bool) -> str:
    """Return the top-level key that a key path belongs to; '' for weights at the top.

    ``roles`` are those of the top-level keys of a whole checkpoint, and empty for a part of one.
    """
    head, mark, _ = address.partition("/")
    stands_alone = head in roles if of_tensor else bool(roles)
    return head if mark or stands_alone else ""
