"""The part of ZeRO's flat buffers that each rank says it has.

In stages 1 and 2 the optimizer's file of a rank states where the parameters begin in its part of a
group's buffer::

    param_slice_mappings    for each group {name: fragment_address(numel, start)}

So a file shows of which rank it is, except inside a parameter that fills the parts of several
ranks. Rule: a file that has the part of another rank is refused, since the parts would be joined in
the wrong order. A statement that fits no rank says nothing: other versions may count otherwise.

Source: DeepSpeed 0.19.8 ``utils/tensor_fragment.py``, ``runtime/zero/stage_1_and_2.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckptool.errors import DamagedError
from ckptool.records import NamedTuple
from ckptool.tree.nodes import fields_of

MAPPINGS = "param_slice_mappings"


class Group(NamedTuple):
    """A group of parameters in one flat buffer, which the ranks share in equal parts."""

    places: Mapping[Any, tuple[int, int]]  # by name: (first element in the buffer, elements)
    part: int  # elements of a rank's part


Fragment = tuple[int, Any, int, int]  # group, name, first element in the rank's part, elements


def refuse_exchanged(
    files: Sequence[tuple[str, Mapping[Any, Any]]], groups: Sequence[Group]
) -> None:
    """Refuse a file that has the part of another rank than its name says.

    Args:
        files: the name and the fields of the optimizer's file of each rank, in their order.
        groups: of all parameters that are trained.

    Raises:
        DamagedError: there is one; the message names it.
    """
    wanted = _fragments(groups, len(files))
    ranks = {frozenset(fragments): rank for rank, fragments in enumerate(wanted)}
    for rank, (name, fields) in enumerate(files):
        told = frozenset(_stated(fields.get(MAPPINGS)))
        if told and told in ranks and told != wanted[rank]:
            raise DamagedError(
                f"{name} has the part of rank {ranks[told]}: files of several ranks are exchanged",
                hint="fetch the file of each rank from where the others came from",
            )


def _fragments(groups: Sequence[Group], world: int) -> list[set[Fragment]]:
    """Return the fragments in each rank's parts."""
    found: list[set[Fragment]] = [set() for _ in range(world)]
    for number, (places, part) in enumerate(groups):
        if sum(count for _, count in places.values()) > part * world:
            continue  # they do not fit, which is refused where they are joined
        for name, (start, count) in places.items():
            end = start + count
            for rank in range(max(start // part, 0), min(-(-end // part), world)) if count else ():
                first, last = max(start, rank * part), min(end, (rank + 1) * part)
                found[rank].add((number, name, first - rank * part, last - first))
    return found


def _stated(mappings: Any) -> Iterator[Fragment]:
    """Yield the fragments that a file states."""
    for number, mapping in enumerate(mappings if isinstance(mappings, list) else ()):
        for name, address in fields_of(mapping).items():
            start, count = (fields_of(address).get(key) for key in ("start", "numel"))
            if type(start) is int and type(count) is int and count:
                yield number, name, start, count
