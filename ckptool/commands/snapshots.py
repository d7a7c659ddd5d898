"""Snapshots of power-function EMAs of a run, and the weights that make another width of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from math import isclose
from pathlib import Path

from ckptool.commands.members import STEP, WIDTH, Members, Opened, single
from ckptool.commands.state_dicts import take_state_dict
from ckptool.contents.selection import Operand
from ckptool.contents.snapshots import snapshots_in
from ckptool.ema.layouts import Layouts
from ckptool.errors import EmaRefusedError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.plans.extraction import complete
from ckptool.plans.posthoc import MAX_SNAPSHOTS, TOLERANCE, Series
from ckptool.plans.weighing import Shares
from ckptool.records import NamedTuple
from ckptool.reports.base import PosthocReport, SnapshotReport
from ckptool.tensors.blocks import equal_after_cast


class _Member(NamedTuple):
    snapshot: SnapshotReport
    width: float
    opened: Opened


def parse_widths(text: str | None) -> tuple[float, ...]:
    """Return the relative widths that were typed, ``0.05,0.28``.

    Raises:
        UsageError: they are no numbers.
    """
    try:
        return tuple(float(each) for each in text.split(",")) if text is not None else ()
    except ValueError as error:
        raise UsageError(f"--widths {text!r} are no numbers", hint="like 0.05,0.28") from error


def open_snapshots(
    stack: ExitStack,
    operands: Sequence[Operand],
    width: float,
    widths: Sequence[float],
    layouts: Layouts,
    *,
    force: bool,
) -> tuple[Members, Shares, str, PosthocReport]:
    """Open the snapshots; return them, the shares for the EMA of ``width``, its kind, and how.

    Args:
        stack: closes the files.
        operands: files with snapshots, and directories; other files of a directory do not count.
        width: the wanted relative width, ``sigma_rel``.
        widths: those of the tracks, by their numbers, where the files do not state them.
        layouts: custom layouts of the configuration, tried before the known ones.
        force: also make an EMA that is out of reach.

    Raises:
        UsageError: there are no snapshots, their widths are not known, or two of one time and
            width are no copies.
        EmaRefusedError: the snapshots cannot make this width, without ``force``.
    """
    found, copies = _members(stack, operands, widths, layouts)
    if len(found) < 2:
        raise UsageError(
            f"a post-hoc EMA takes at least two snapshots, and there are {len(found)}",
            hint="EDM2 and ema-pytorch's PostHocEMA write them; ckptool inspect shows them",
        )
    if len(found) > MAX_SNAPSHOTS:
        raise UsageError(f"{len(found)} snapshots, and at most {MAX_SNAPSHOTS} are combined")
    series = Series([each.snapshot.time for each in found], [each.width for each in found])
    made, reach = series.synthesis(width), series.within_reach()
    report = PosthocReport(width, made.residual, made.noise, reach, TOLERANCE)
    if not made.residual <= TOLERANCE and not force:  # nor NaN
        possible = f"from {reach[0]:.3g} to {reach[1]:.3g}" if reach else "of no width"
        raise EmaRefusedError(
            f"these {len(found)} snapshots cannot make sigma_rel {width:g}: its profile would be "
            f"{100 * made.residual:.3g} % off",
            path=operands[0].path,
            hint=f"up to {100 * TOLERANCE:g} % off they make EMAs {possible}; --force writes it "
            "all the same",
        )
    members = tuple(each.opened for each in found)
    places = tuple(range(len(members)))
    return Members(members, STEP, places, copies), Shares(made.weights), "ema", report


def _members(
    stack: ExitStack, operands: Sequence[Operand], widths: Sequence[float], layouts: Layouts
) -> tuple[list[_Member], Mapping[str, str]]:
    """Return the snapshots from the oldest to the newest, each once, and copies of them."""
    known: dict[tuple[float, float], _Member] = {}
    copies: dict[str, str] = {}
    for operand, is_listed in single(operands):
        checkpoint = stack.enter_context(open_checkpoint(operand.path))
        snapshots = snapshots_in(operand.path.name, checkpoint.tree, checkpoint.reader)
        if not snapshots and not is_listed:
            raise UsageError(
                "it holds no snapshot of a power-function EMA",
                path=operand.path,
                hint="EDM2 and ema-pytorch's PostHocEMA write them",
            )
        for each in snapshots:
            width = _width(each, widths, operand.path)
            facts = {STEP: each.time, WIDTH: width}
            taken = take_state_dict(checkpoint, each.address, layouts)
            opened = Opened(
                checkpoint, taken, each.address, complete(taken.plan, checkpoint.path).tensors,
                facts, is_listed=is_listed,
            )  # fmt: skip
            key, member = (each.time, width), _Member(each, width, opened)
            same = known.get(key, member)
            known[key], other = sorted((member, same), key=_precision, reverse=True)
            if same is not member:
                _refuse_difference(known[key], other)
                copies[str(other.opened.path)] = str(known[key].opened.path)
    return [known[key] for key in sorted(known)], copies


def _refuse_difference(one: _Member, other: _Member) -> None:
    """Refuse two snapshots of one time and width that are no copies, as those of two runs.

    Raises:
        UsageError: the values differ by more than the rounding to the dtypes of the coarser one.
    """
    ours, theirs = one.opened.tensors, other.opened.tensors
    reader = other.opened.checkpoint.reader
    if ours.keys() != theirs.keys() or not all(
        equal_after_cast(reader, ref, ours[name]) for name, ref in theirs.items()
    ):
        snapshot, width = one.snapshot, one.width
        raise UsageError(
            f"{one.opened.path} and {other.opened.path} hold different snapshots of one time, "
            f"{snapshot.time:.15g}, and one sigma_rel, {width:g}",
            hint="name the files of one run",
        )


def _precision(member: _Member) -> int:
    """Return the bytes of a snapshot: EDM2's networks are of float16, its states of float32."""
    return sum(ref.nbytes for ref in member.opened.tensors.values())


def _width(snapshot: SnapshotReport, widths: Sequence[float], path: Path) -> float:
    stated = snapshot.sigma_rel
    if stated is not None:
        if widths and not any(isclose(stated, each) for each in widths):
            raise UsageError(
                f"the file states the sigma_rel {stated:g}, which --widths does not name",
                path=path,
                hint="leave out --widths: the files state theirs",
            )
        return stated
    if snapshot.track < len(widths):
        return widths[snapshot.track]
    raise UsageError(
        f"the file does not state its sigma_rel, and --widths gives none for track "
        f"{snapshot.track}",
        path=path,
        hint="give the sigma_rels of PostHocEMA in their order: --widths 0.05,0.28",
    )
