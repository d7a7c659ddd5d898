"""Explanations of a tensor by tensors of another checkpoint: a copy, a part, a join, a stack."""

from __future__ import annotations

from dataclasses import dataclass, field

from ckptool.comparison.tilings import Named, Tiling
from ckptool.records import NamedTuple


class Same(NamedTuple):
    """A whole tensor of the source."""

    source: Named
    is_turned: bool = False


class Cut(NamedTuple):
    """A part of a tensor of the source, or of one index of it, along a dimension."""

    source: Named
    number: int | None  # index of the first dimension, which is removed; None: the tensor itself
    tiling: Tiling | None  # None: the index itself
    place: int  # of the piece in the tiling
    is_turned: bool


class Joined(NamedTuple):
    """Tensors of the source one after the other."""

    tiling: Tiling


class Stacked(NamedTuple):
    """Tensors of the source, or joins of them, along a new first dimension."""

    entries: tuple[Same | Joined, ...]


Found = Same | Cut | Joined | Stacked


@dataclass(slots=True)
class Explanations:
    """The tensors of the result with their explanations, and what is left."""

    found: dict[str, Found] = field(default_factory=dict)
    doubled: dict[str, Same] = field(default_factory=dict)  # of a tensor that is used already
    unexplained: dict[str, str] = field(default_factory=dict)  # name -> what is known of it
    unused: list[str] = field(default_factory=list)  # names of the source


def sources_of(found: Found) -> tuple[str, ...]:
    """Return the names of the tensors that an explanation is of."""
    if isinstance(found, (Same, Cut)):
        return (found.source.name,)
    if isinstance(found, Joined):
        return tuple(piece.tensor.name for piece in found.tiling.pieces)
    return tuple(name for entry in found.entries for name in sources_of(entry))
