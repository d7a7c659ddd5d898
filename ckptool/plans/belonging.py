"""A look at checkpoints before they are averaged: how far they are apart, and which do not belong.

The mean of weights of two runs is of no use, and nothing in the files says that they are of two.
The values do: the checkpoints of a run are near each other, and weights that began elsewhere are at
right angles to them. Of a few matrices the first values are compared. The distance of two samples
is 0 where they are equal, 1 where they have nothing to do with each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import fsum, isfinite, sqrt
from statistics import median

from ckptool.plans.averaging import Member
from ckptool.reports.base import Finding
from ckptool.reports.rules import finding
from ckptool.tensors.casting import CASTABLE
from ckptool.tensors.sample import beginning, is_readable, spread
from ckptool.tree.nodes import TensorRef

TENSORS = 32  # of which a sample is taken
VALUES = 64  # of each
ALL_PAIRS = 24  # checkpoints of which each is compared with each; of more, with those beside it

UNRELATED = 0.8  # distance from which weights have little to do with each other
NEAR = 0.02  # distance up to which no checkpoint is far
FAR = 6.0  # times the usual distance

Sample = Sequence[Sequence[float]]  # of each tensor


def distances(members: Sequence[Member]) -> list[float | None]:
    """Return the distance of each state dict from the nearest other; None where none is known.

    The state dicts have the same names and shapes.
    """
    names = _names(members[0])
    samples = [[_first(m, m.tensors[name]) for name in names] for m in members]
    count = len(members)
    nearest: list[float | None] = [None] * count
    for at in range(count):
        others = range(at + 1, count if count <= ALL_PAIRS else min(at + 2, count))
        for other in others:
            apart = _distance(samples[at], samples[other])
            for each in (at, other):
                known = nearest[each]
                if apart is not None and (known is None or apart < known):
                    nearest[each] = apart
    return nearest


def strangers(members: Sequence[Member], apart: Sequence[float | None]) -> Iterator[Finding]:
    """Yield a warning for each state dict that is far from all others."""
    for nth, (member, distance) in enumerate(zip(members, apart, strict=True)):
        if distance is None:
            continue
        others = [each for at, each in enumerate(apart) if at != nth and each]  # copies are at 0
        usual = median(others) if len(others) > 1 else distance
        if distance >= UNRELATED:
            why = "its weights have little to do with those of any other"
        elif distance > max(NEAR, FAR * usual):
            why = f"the others are {usual:.2g} apart"
        else:
            continue
        told = f"{member.name} is {distance:.2g} from the nearest other checkpoint: {why}"
        yield finding("CK802", "", told)


def _names(member: Member) -> list[str]:
    """Return the names of matrices, or of vectors where there are none, that can be sampled."""
    readable = {
        name: ref
        for name, ref in member.tensors.items()
        if ref.dtype.name in CASTABLE and ref.numel > 1 and is_readable(ref)
    }
    matrices = [name for name, ref in readable.items() if len(ref.shape) > 1]
    return list(spread(matrices or list(readable), TENSORS))


def _first(member: Member, ref: TensorRef) -> Sequence[float]:
    limit = VALUES * ref.dtype.itemsize
    return beginning(member.reader, ref, limit) if is_readable(ref) else ()


def _distance(one: Sample, other: Sample) -> float | None:
    """Return the median over the tensors, so that weights that never change do not decide."""
    found = [
        _apart(mine[:count], yours[:count])
        for mine, yours in zip(one, other, strict=True)
        if (count := min(len(mine), len(yours))) > 1
    ]
    sound = [each for each in found if each is not None]
    return median(sound) if sound else None


def _apart(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the norm of the difference, in those of both; None where there is nothing in them."""
    size = fsum(a * a for a in (*one, *other))
    gap = fsum((a - b) ** 2 for a, b in zip(one, other, strict=True))
    return sqrt(gap / size) if size > 0 and isfinite(size) else None
