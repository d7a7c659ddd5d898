"""The mean of several state dicts: how each tensor is combined, with the weights of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ckptool.contents.globs import nearby
from ckptool.dtypes import BY_NAME
from ckptool.errors import UsageError
from ckptool.formats.base import TensorReader
from ckptool.names import STATISTICS
from ckptool.plans.weighing import Shares
from ckptool.records import NamedTuple
from ckptool.tensors.blocks import same_values
from ckptool.tensors.casting import CASTABLE, Casting
from ckptool.tensors.mean import Mean, Weighted
from ckptool.tree.nodes import TensorRef

# Last parts of the names of counters. PostHocEMA of ema-pytorch stores them in float16, too.
COUNTERS = frozenset({"num_batches_tracked"})


class Member(NamedTuple):
    """A state dict that goes into the mean."""

    name: str  # for messages
    reader: TensorReader
    tensors: Mapping[str, TensorRef]


class Combined(NamedTuple):
    """The state dict that is written."""

    tensors: Mapping[str, TensorRef]
    averaged: tuple[str, ...]
    newest: tuple[str, ...]  # taken from the last member: integers, flags, and the like
    statistics: tuple[str, ...]  # batch statistics among the averaged


def combine(
    members: Sequence[Member], shares: Shares, casting: Casting, *, buffers: str
) -> Combined:
    """Return the mean of state dicts with the same names and shapes, the newest last.

    Floating tensors are averaged. All others are those of the newest; with ``buffers="newest"``
    batch statistics are, too. Tensors that are one in all state dicts stay one.

    Raises:
        UsageError: a tensor is missing in one of them, or has another shape; the newest holds it in
            a narrower dtype, and none is asked for; or complex values differ.
    """
    newest = members[-1]
    for member in members:
        _refuse_other(member, newest)
    tensors: dict[str, TensorRef] = {}
    averaged: list[str] = []
    means: dict[tuple[object, ...], TensorRef] = {}
    for name, ref in newest.tensors.items():
        is_kept = _is_called(name, COUNTERS) or (buffers == "newest" and _is_statistic(name))
        if ref.dtype.name not in CASTABLE or is_kept or not ref.numel:
            tensors[name] = ref
            if not is_kept:
                _refuse_other_complex(name, members)
            continue
        if not casting.is_asked(ref):
            _refuse_narrowing(name, members)
        averaged.append(name)
        refs = [member.tensors[name] for member in members]
        place = tuple((each.chunks, each.dtype.name, each.lazy) for each in refs)
        if place not in means:
            series = [
                Weighted(member.reader, each, part)
                for member, each, part in zip(members, refs, shares.parts, strict=True)
            ]
            is_cast = casting.is_cast(ref)  # by those who write: they count what is lost
            dtype = BY_NAME["float64"] if is_cast else ref.dtype
            means[place] = Mean(name, series, shares.whole, dtype).as_tensor(ref.shape)
        tensors[name] = means[place]
    return Combined(
        tensors,
        tuple(averaged),
        tuple(name for name, ref in tensors.items() if ref is newest.tensors[name]),
        tuple(filter(_is_statistic, averaged)),
    )


def _is_statistic(name: str) -> bool:
    return _is_called(name, STATISTICS)


def _is_called(name: str, names: Collection[str]) -> bool:
    return name.rpartition(".")[2] in names


def _refuse_other(member: Member, newest: Member) -> None:
    """Refuse a state dict with other names or shapes than the newest."""
    for one, other in ((newest, member), (member, newest)):
        missing = next((name for name in one.tensors if name not in other.tensors), None)
        if missing is not None:
            raise UsageError(
                f"the checkpoints hold different weights: {other.name} has no {missing}, which "
                f"{one.name} has",
                hint=nearby(missing, other.tensors, "names"),
            )
    for name, ref in newest.tensors.items():
        found = member.tensors[name]
        if (found.shape, _kind(found)) != (ref.shape, _kind(ref)):
            raise UsageError(
                f"the checkpoints hold different weights: {name} is {_told(found)} in "
                f"{member.name} and {_told(ref)} in {newest.name}"
            )


def _refuse_narrowing(name: str, members: Sequence[Member]) -> None:
    """Refuse to round a mean to the newest's dtype where another state dict holds more digits."""
    newest = members[-1]
    dtype = newest.tensors[name].dtype
    for member in members:
        other = member.tensors[name].dtype
        if other is not dtype and other.itemsize >= dtype.itemsize:
            raise UsageError(
                f"{name} is {other.name} in {member.name} and {dtype.name} in {newest.name}: in "
                "which dtype is the mean to be written?",
                hint=f"say it: --dtype {other.name} or --dtype {dtype.name}",
            )


def _refuse_other_complex(name: str, members: Sequence[Member]) -> None:
    """Refuse complex values that differ, since complex weights are not averaged."""
    *others, newest = members
    ref = newest.tensors[name]
    for member in others if ref.dtype.kind == "complex" else ():
        if not same_values(newest.reader, ref, member.tensors[name]):
            raise UsageError(
                f"{name} is complex, and differs in {member.name} and {newest.name}: complex "
                "weights are not averaged"
            )


def _kind(ref: TensorRef) -> object:
    """Return what must be equal: floating dtypes may differ, others are taken as they are."""
    return "floating" if ref.dtype.name in CASTABLE else ref.dtype.name


def _told(ref: TensorRef) -> str:
    return f"{ref.dtype.name} {list(ref.shape)}"
