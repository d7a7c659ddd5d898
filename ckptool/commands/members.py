"""The checkpoints that ``average`` combines: opened, without copies, in order, and chosen from.

The order is that of the steps that the files state, else of their epochs, else of the numbers in
their names, as wenet and espnet write them (``epoch_3.pt``, ``12epoch.pth``), else of the operands.
Names order only what steps and epochs leave open, and none that contradict them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from ckptool.commands.derivatives import Origin, derivatives, origin_of
from ckptool.commands.operands import checkpoint_files, is_run
from ckptool.commands.state_dicts import Taken, take_state_dict
from ckptool.contents.selection import Operand
from ckptool.contents.training import read_training_state
from ckptool.ema.layouts import Layouts
from ckptool.errors import CkptError, DamagedError, UnknownFormatError, UsageError, about
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.plans.extraction import complete
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.tensors.blocks import same_values
from ckptool.tree.nodes import TensorRef

STEP, EPOCH = COUNTERS = ("global_step", "epoch")
WIDTH = "sigma_rel"  # of snapshots of an EMA
NAME, OPERANDS = "name", "operands"  # orders that no counter in the files gives
MAX_COUNT = 1 << 53  # no run counts further, and floats are exact up to it


class Opened(NamedTuple):
    """A checkpoint, and the state dict that is taken from it."""

    checkpoint: Checkpoint
    taken: Taken
    asked: str  # its key path, or the role by which it was found
    tensors: Mapping[str, TensorRef]
    facts: Mapping[str, Any]  # global_step, epoch, sigma_rel
    is_listed: bool  # found in a directory, not named itself

    @property
    def path(self) -> Path:
        """The path of the checkpoint."""
        return self.checkpoint.path


class Members(NamedTuple):
    """The checkpoints, the newest last where the order is known."""

    opened: tuple[Opened, ...]
    order: str  # global_step | epoch | name | operands
    places: tuple[int, ...]  # of each among the operands without the copies
    copies: Mapping[str, str]  # path of a copy in a directory -> path of its original
    derived: Mapping[str, str] = {}  # path of a file that ckptool made of others -> how it was made
    broken: Mapping[str, str] = {}  # path of a file that was skipped -> why it cannot be read

    def only(self, places: Sequence[int]) -> Members:
        """Return these members alone, in the order of their places."""
        return self._replace(
            opened=tuple(self.opened[at] for at in places),
            places=tuple(self.places[at] for at in places),
        )


def open_members(
    stack: ExitStack,
    operands: Sequence[Operand],
    role: str | None,
    layouts: Layouts,
    *,
    skips: bool = False,
    broken: Mapping[str, str] = {},
) -> Members:
    """Open the checkpoints and those in directories; ``stack`` closes them.

    Args:
        stack: closes the files.
        operands: checkpoints, and directories of checkpoints.
        role: the state dict to take where an operand has no address: ``@model`` or ``@ema``.
        layouts: custom layouts of the configuration, tried before the known ones.
        skips: whether to leave out files in directories that cannot be read.
        broken: path of a file that is left out, too -> why.

    Raises:
        CkptError: a checkpoint cannot be read, or it is not clear what to take from it.
        UsageError: a directory holds weights that may not belong to its run.
    """
    found: list[_Found] = []
    broken = {**broken}
    for each, is_listed in single(operands):
        if str(each.path) in broken:
            continue
        try:
            checkpoint = stack.enter_context(_opened(each.path, is_listed=is_listed))
        except BROKEN as error:
            if not (skips and is_listed):
                raise
            broken[str(each.path)] = error.message
        else:
            found.append(_Found(each, is_listed, checkpoint))
    derived = _derived(found)
    opened = [_open(each, role, layouts) for each in found if str(each.operand.path) not in derived]
    copies: dict[str, str] = {}
    kept: list[Opened] = []
    for one in opened:
        original = next((other for other in kept if _is_copy(one, other)), None)
        if original is None:
            kept.append(one)
        else:
            copies[str(one.path)] = str(original.path)
    order, places = _order(kept)
    members = Members(tuple(kept), order, tuple(range(len(kept))), copies, derived, broken)
    return members.only(places)


BROKEN = (DamagedError, UnknownFormatError)


def _opened(path: Path, *, is_listed: bool) -> Checkpoint:
    """Open a checkpoint.

    Raises:
        CkptError: it cannot be read. One in a directory might be of any step, so that none is left
            out in silence.
    """
    try:
        return open_checkpoint(path)
    except BROKEN as error:
        if is_listed:
            may_be_skipped(error)
        raise


SKIP = ("--skip-broken",)


def may_be_skipped(error: CkptError) -> None:
    """Add the words with which the other checkpoints are averaged."""
    error.hint, error.adding = f"to average the other checkpoints, add {SKIP[0]}", SKIP


def single(operands: Sequence[Operand]) -> list[tuple[Operand, bool]]:
    """Return the operands; directories stand for their checkpoints, which are marked."""
    return [
        (Operand(path, operand.address), is_listed)
        for operand in operands
        for is_listed in (is_run(operand.path),)
        for path in (checkpoint_files(operand.path) if is_listed else [operand.path])
    ]


class _Found(NamedTuple):
    """An open checkpoint, of which nothing has been taken."""

    operand: Operand
    is_listed: bool
    checkpoint: Checkpoint


def _derived(found: Sequence[_Found]) -> dict[str, str]:
    """Return the files in directories that ckptool made of others, and how."""
    runs: dict[Path, list[tuple[str, Origin | None]]] = {}
    for (path, _), is_listed, checkpoint in found:
        if is_listed:
            runs.setdefault(path.parent, []).append((str(path), origin_of(checkpoint)))
    return {path: why for files in runs.values() for path, why in derivatives(files).items()}


def _is_count(value: object) -> bool:
    return isinstance(value, (int, float)) and -MAX_COUNT < value < MAX_COUNT  # NaN is not


def _open(found: _Found, role: str | None, layouts: Layouts) -> Opened:
    operand, is_listed, checkpoint = found
    with about(operand.path):
        address = operand.address if operand.address is not None else role
        taken = take_state_dict(checkpoint, address, layouts, beside_optimizer=True)
        tensors = complete(taken.plan, operand.path).tensors
    stated = read_training_state(checkpoint.tree, checkpoint.reader).facts
    facts = {name: stated[name] for name in COUNTERS if _is_count(stated.get(name))}
    asked = taken.address if address is None else address
    return Opened(checkpoint, taken, asked, tensors, facts, is_listed)


def _is_copy(each: Opened, other: Opened) -> bool:
    """Return whether a file in a directory repeats another: ``last.ckpt`` beside the same step.

    Raises:
        UsageError: the two state one step, and hold different weights.
    """
    are_of_one_run = each.is_listed and other.is_listed and each.path.parent == other.path.parent
    if not are_of_one_run or each.facts != other.facts:
        return False
    if are_equal(each, other):
        return True
    if STEP in each.facts:
        raise UsageError(
            f"{other.path} and {each.path} state the same step, {each.facts[STEP]}, and hold "
            "different weights",
            hint="name the checkpoints that count, instead of their directory",
        )
    return False


def are_equal(one: Opened, other: Opened) -> bool:
    """Return whether two checkpoints hold the same weights, to the last bit."""
    return one.tensors.keys() == other.tensors.keys() and all(
        same_values(one.checkpoint.reader, ref, other.tensors[name])
        for name, ref in one.tensors.items()
    )


# -------------------------------------------------------------------------------------------- order


def refuse_strays(members: Members) -> None:
    """Refuse a directory in which weights without a step lie beside checkpoints of a run.

    They are often the EMA or a mean that was written there, and no checkpoint of the run.

    Raises:
        UsageError: some checkpoints state a step or an epoch, and others do not.
    """
    without = [each for each in members.opened if not each.facts]
    if any(each.is_listed for each in members.opened) and 0 < len(without) < len(members.opened):
        more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
        raise UsageError(
            f"{without[0].path} states no step{more}, other checkpoints here do: does it belong to "
            "the run?",
            hint="name the checkpoints that count, instead of their directory",
        )


def refuse_disorder(members: Members, *, by_step: bool) -> None:
    """Refuse checkpoints whose order is not known, or, if ``by_step``, not by steps.

    Raises:
        UsageError: the order is needed and not known.
    """
    if members.order == OPERANDS or (by_step and members.order != STEP):
        raise UsageError(
            f"the order is not known: {_disorder(members.opened, by_step=by_step)}",
            hint="leave out --last and name the checkpoints that count; --weights weighs them",
        )


def _disorder(opened: Sequence[Opened], *, by_step: bool) -> str:
    """Return the reason why the files do not order the checkpoints."""
    wanted = (STEP,) if by_step else COUNTERS
    for each in opened:
        if not any(name in each.facts for name in wanted):
            also = f", only the epoch {each.facts[EPOCH]}" if EPOCH in each.facts else ""
            return f"{each.path} states no step{also}"
    shared = [name for name in wanted if all(name in each.facts for each in opened)]
    first: dict[object, Opened] = {}
    for each in opened if shared else ():
        other = first.setdefault(_counts(each, shared), each)
        if other is not each:
            told = " and ".join(f"{TOLD[name]}, {each.facts[name]}" for name in shared)
            return f"{other.path} and {each.path} state the same {told}"
    return "some checkpoints state a step, and others only an epoch"


TOLD = {STEP: "step", EPOCH: "epoch"}


def _counts(each: Opened, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(each.facts[name] for name in names)


def _order(opened: Sequence[Opened]) -> tuple[str, list[int]]:
    """Return what orders the checkpoints, and their places from the oldest to the newest."""
    places = range(len(opened))
    shared = [name for name in COUNTERS if all(name in each.facts for each in opened)]
    for end, name in enumerate(shared, 1):
        counts = [_counts(each, shared[:end]) for each in opened]
        if len(set(counts)) == len(opened):
            return name, sorted(places, key=counts.__getitem__)
    by_name = ordered_by_name([each.path.name for each in opened])
    if by_name is None:
        by_name = _ordered_in_ties([_counts(each, shared) for each in opened], opened)
    is_known = by_name is not None and not _is_contradicted([opened[at] for at in by_name], shared)
    return (NAME, by_name) if by_name and is_known else (OPERANDS, [*places])


def _ordered_in_ties(
    counts: Sequence[tuple[Any, ...]], opened: Sequence[Opened]
) -> list[int] | None:
    """Return the places in the order of the counts, and of the names where these are equal.

    None if the names of equal ones give no order.
    """
    ordered: list[int] = []
    for count in sorted(set(counts)):
        tied = [at for at, each in enumerate(counts) if each == count]
        found = ordered_by_name([opened[at].path.name for at in tied]) if tied[1:] else [0]
        if found is None:
            return None
        ordered += [tied[at] for at in found]
    return ordered


def _is_contradicted(ordered: Sequence[Opened], shared: Sequence[str]) -> bool:
    """Return whether the counters of checkpoints fall in this order, wherever they are stated."""
    stated = [[_counts(each, shared) for each in ordered]] + [
        [each.facts[name] for each in ordered if name in each.facts]
        for name in COUNTERS
        if name not in shared
    ]
    return any(later < earlier for counts in stated for earlier, later in pairwise(counts))


NUMBER = regex(r"(\d+)")


def ordered_by_name(names: Sequence[str]) -> list[int] | None:
    """Return the places of names that differ in numbers alone, in the order of these numbers.

    None if they differ otherwise, are equal, or if one number orders them unlike another.
    """
    parts = [NUMBER.split(name) for name in names]
    if len({tuple(each[::2]) for each in parts}) != 1 or len(names) < 2:
        return None
    columns = [tuple(map(int, column)) for column in zip(*(p[1::2] for p in parts), strict=True)]
    telling = [column for column in columns if len(set(column)) > 1]
    orders = [sorted(range(len(names)), key=column.__getitem__) for column in telling]
    rising = all(
        column[before] < column[after]
        for column, order in zip(telling, orders, strict=True)
        for before, after in pairwise(order)
    )
    is_one = rising and len({tuple(order) for order in orders}) == 1
    return orders[0] if is_one else None
