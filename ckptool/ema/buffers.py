"""Buffers of EMA weights that were never updated and still hold their initial values.

Many loops average ``parameters()`` and forget the rest. The EMA's BatchNorm then has
``running_mean`` 0, ``running_var`` 1 and ``num_batches_tracked`` 0, while the model's were trained.
In evaluation such a net computes something else.

The rule knows no layer. A tensor of at most one dimension was never updated if it is 0 or 1
throughout in the EMA and something else in the model. A counter or a flag was never updated if it
is 0 in the EMA and not in the model. A counter of batches alone proves nothing: a loop that
averages only floating-point values leaves it at 0, and loses nothing by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ckptool.contents.alignment import paired_tensors
from ckptool.contents.inventory import Leaf, Table
from ckptool.ema.candidates import RAW_KIND, Candidate, EmaLocation
from ckptool.ema.evidence import is_constant, is_everywhere
from ckptool.errors import UsageError
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.names import STATISTICS
from ckptool.records import NamedTuple, replace
from ckptool.reports.base import MainSlot
from ckptool.tensors.sample import beginning, is_readable, scalar_value
from ckptool.tree.describing import named
from ckptool.tree.nodes import TensorRef

MAX_LOOKED = 4_096  # pairs whose values are read
DIFFERENT = 1e-4  # root mean square distance from the initial value; smaller ones do no harm
BATCHES = "num_batches_tracked"
WORDS = ("running", "moving", "num_batches", "initialized", "initialised", "initted", "inited")


class Initial(NamedTuple):
    """A tensor, by the model's name, that has its initial value in the EMA weights."""

    name: str
    average: float  # the value of all its elements in the EMA weights
    model: float | None  # the model's value, where it is a single number


def initial_buffers(
    candidate: Candidate, model: Table | None, reader: TensorReader
) -> tuple[Initial, ...]:
    """Return the tensors that were never updated in the EMA weights; reads a few values."""
    if model is None or candidate.alignment is None or not candidate.is_average:
        return ()
    if candidate.is_unstarted:
        return ()  # all its values are initial
    if candidate.table.node is model.node and candidate.table.prefix == model.prefix:
        return ()  # the model's own state dict
    every = paired_tensors(model.entries, candidate.table.entries, candidate.alignment.pairs)
    pairs = [pair for pair in every if len(pair[1].shape) < 2]
    # Names of statistics come first: a model can have more than MAX_LOOKED biases.
    pairs.sort(key=lambda pair: not any(word in pair[0] for word in WORDS))
    found = [
        initial
        for name, ours, theirs in pairs[:MAX_LOOKED]
        if (initial := _initial(name, ours, theirs, reader)) is not None
    ]
    return tuple(_without_lone_counters(found, candidate.alignment.pairs))


def _initial(name: str, ours: TensorRef, theirs: TensorRef, reader: TensorReader) -> Initial | None:
    if not theirs.dtype.is_floating:
        return _counter(name, ours, theirs, reader)
    if not (is_readable(ours) and is_readable(theirs)):
        return None
    average = beginning(reader, theirs)
    if not is_constant(average):
        return None
    mine = beginning(reader, ours)
    if is_everywhere(average[0], mine):
        return None
    off = [number - average[0] for number in mine]
    if not off or not math.sqrt(sum(n * n for n in off) / len(off)) > DIFFERENT:
        return None
    return Initial(name, average[0], mine[0] if len(mine) == 1 else None)


def _counter(name: str, ours: TensorRef, theirs: TensorRef, reader: TensorReader) -> Initial | None:
    if ours.numel != 1 or theirs.numel != 1:
        return None
    mine, average = scalar_value(reader, ours), scalar_value(reader, theirs)
    if not isinstance(mine, (int, float)) or not isinstance(average, (int, float)):
        return None
    return Initial(name, 0.0, float(mine)) if average == 0 != mine else None


def _without_lone_counters(found: Sequence[Initial], pairs: Mapping[str, str]) -> Iterator[Initial]:
    """Yield all but counters of batches in layers whose statistics were updated."""
    layers = {_layer(each.name) for each in found if not each.name.endswith(BATCHES)}
    order = {name: place for place, name in enumerate(pairs)}
    for each in sorted(found, key=lambda each: order[each.name]):
        if not each.name.endswith(BATCHES) or _layer(each.name) in layers:
            yield each


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def initial_message(found: Sequence[Initial]) -> str:
    """Return the message of the finding, with the values of one tensor as an example."""
    told = next((each for each in found if each.model is not None), None)
    names = named([each.name for each in found], 3)
    example = (
        f" ({told.name} is {told.average:.6g} here, {told.model:.6g} in the model)" if told else ""
    )
    holds = (
        "1 tensor holds its initial value"
        if len(found) == 1
        else (f"{len(found)} tensors hold their initial values")
    )
    return f"{holds} although the model's were trained{example}: {names}"


def with_models_buffers(location: EmaLocation, checkpoint: Checkpoint) -> EmaLocation:
    """Return the location with EMA weights that have no buffers: the model's are used instead.

    Buffers are integers, flags, batch statistics, and the tensors that :func:`initial_buffers`
    finds.

    Raises:
        UsageError: the EMA weights are not beside the model.
    """
    chosen = location.selected
    if chosen is None:
        return location  # ``refusals.py`` states why there is none
    is_beside = location.model is not None and location.main_slot is not MainSlot.AVERAGED
    if not is_beside or chosen.alignment is None or chosen.kind == RAW_KIND:
        raise UsageError(
            "--buffers model takes buffers of the model beside the EMA weights, and there is none",
            path=checkpoint.path,
            hint="leave it out: --buffers ema",
        )
    assert location.model is not None, "the averages are beside it"
    return replace(location, selected=without_buffers(chosen, location.model, checkpoint.reader))


def without_buffers(candidate: Candidate, model: Table, reader: TensorReader) -> Candidate:
    """Return the candidate without its buffers, which become missing keys."""
    alignment = candidate.alignment
    assert alignment is not None, "asked only of averages that pair with the model"
    initial = {each.name for each in initial_buffers(candidate, model, reader)}
    dropped = {
        name: other
        for name, other in alignment.pairs.items()
        if name in initial or _is_buffer(name, model.entries[name])
    }
    others = set(dropped.values())
    entries = {n: ref for n, ref in candidate.table.entries.items() if n not in others}
    pairs = {name: other for name, other in alignment.pairs.items() if name not in dropped}
    missing = tuple(n for n in model.entries if n in dropped or n in alignment.missing_keys)
    return replace(
        candidate,
        table=replace(candidate.table, entries=entries),
        alignment=alignment._replace(pairs=pairs, missing_keys=missing),
    )


def _is_buffer(name: str, ref: Leaf) -> bool:
    return not ref.dtype.is_floating or name.endswith(STATISTICS)
