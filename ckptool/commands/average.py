"""The mean of the same weights in several checkpoints: plain, weighted, or as an EMA would be."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ckptool.commands.members import (
    STEP,
    Members,
    Opened,
    open_members,
    refuse_disorder,
    refuse_strays,
)
from ckptool.commands.origin import averaged_from
from ckptool.commands.state_dicts import ROLE_NAMES
from ckptool.commands.writing import (
    WriteOptions,
    choose_form,
    report_casts,
    report_shards,
    ties_in,
    write_output,
)
from ckptool.contents.selection import Operand
from ckptool.contents.training import steps_in_running_mean
from ckptool.ema.layouts import Layouts
from ckptool.errors import UsageError
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.formats.provenance import as_text
from ckptool.plans.averaging import Member, combine
from ckptool.plans.casts import plan_casting
from ckptool.plans.extraction import Extraction
from ckptool.plans.validation import refuse_unsound
from ckptool.plans.weighing import (
    ema_weights,
    equal_weights,
    given_weights,
    schedule_weights,
    weights_between,
)
from ckptool.process.progress import Progress, no_progress
from ckptool.reports.rules import BYTES
from ckptool.reports.write import AverageReport, AverageSource
from ckptool.tensors.scan import scan
from ckptool.tree.nodes import Address, TensorRef


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageOptions(WriteOptions):
    """Options of ``average``: what is averaged, with which weights, and how it is written."""

    role: str | None = None  # ``model`` or ``ema``, where an operand names no key path
    weights: str | None = None  # ``1,1,2``: one for each checkpoint, in the order of the operands
    schedule: str | None = None  # a name in ``weighing.SCHEDULES``
    ema_decay: float | None = None  # of one step: the EMA of the checkpoints in order of their step
    between: bool = False  # the mean of the steps between two running means of the whole run
    last: int | None = None  # only the newest so many
    every: int | None = None  # of each so many, the newest
    buffers: str = "average"  # ``newest``: take batch statistics from the newest checkpoint


def average(
    operands: Sequence[Operand],
    output: str | Path,
    options: AverageOptions = AverageOptions(),
    *,
    progress: Progress = no_progress,
    layouts: Layouts = (),
    made_at: float | None = None,
) -> AverageReport:
    """Write the mean of the same weights in several checkpoints.

    Values are added in float64 and rounded once. Tensors that are not floating (counters, masks)
    are those of the newest checkpoint: the last by step, or by the operands where nothing states an
    order.

    Args:
        operands: checkpoints, and directories of checkpoints, which stand for all in them.
        output: its suffix chooses the format.
        options: what is averaged, and how it is written.
        progress: called with the bytes written.
        layouts: custom layouts of the configuration, tried before the known ones.
        made_at: seconds since 1970 for the record of provenance; by default now.

    Raises:
        AddressError: a checkpoint holds several state dicts, and none is named.
        UsageError: options exclude each other, the checkpoints hold different weights, or there
            are less than two.
        UnsupportedError: a part of what is taken is no plain tensor.
        DamagedError: bytes of a source do not fit their checksum.
        EmaRefusedError: values are non-finite.
        OutputError: the output exists or cannot be written.
    """
    _refuse_contradictions(options)
    form = choose_form(operands[0].path, output, options, "average.safetensors")
    with ExitStack() as stack:
        members, weights = _weighed(open_members(stack, operands, _role(options), layouts), options)
        opened = members.opened
        newest = opened[-1]
        casting = plan_casting(newest.tensors, options.dtype)
        combined = combine(
            [Member(str(each.path), each.checkpoint.reader, each.tensors) for each in opened],
            weights,
            casting,
            buffers=options.buffers,
        )
        for each in opened:
            _refuse_damage(each, progress=no_progress, force=options.force)
        paths = [each.path for each in opened]
        note = as_text(averaged_from(paths, _kind(weights, options), made_at))
        plan = Extraction(combined.tensors, frozenset(combined.averaged), (), ())
        outcome = write_output(
            _together(opened), plan, form, options, note, progress, finite=combined.averaged
        )
        report = AverageReport(
            sources=tuple(
                AverageSource(
                    str(each.path), each.taken.address, weight,
                    each.facts.get("global_step"), each.facts.get("epoch"),
                )
                for each, weight in zip(opened, weights, strict=True)
            ),
            output=outcome.named,
            format=form.kind,
            written=not options.dry_run,
            tensors=outcome.tensors,
            bytes=outcome.state_dict.nbytes,
            averaged=len(combined.averaged),
            newest=combined.newest,
            statistics=combined.statistics,
            tied=plan.tied,
            ties=ties_in(form.kind, options.ties),
            casts=report_casts(outcome),
            shards=report_shards(outcome),
            removed=outcome.removed,
            findings=outcome.findings,
        )  # fmt: skip
        return replace(
            report,
            left_out=newest.taken.plan.left_out,
            order=members.order,
            copies=members.copies,
        )


# Options that give the weights, and options that choose checkpoints.
WEIGHING = ("weights", "schedule", "ema_decay", "between")
CHOOSING = ("last", "every")


def _refuse_contradictions(options: AverageOptions) -> None:
    """Refuse options that exclude each other.

    Raises:
        UsageError: two of them do.
    """
    given = [name for name in (*WEIGHING, *CHOOSING) if getattr(options, name) not in {None, False}]
    ways = [name for name in given if name in WEIGHING]
    chosen = [name for name in given if name in CHOOSING]
    if len(ways) > 1:
        one, other = ways[:2]
    elif chosen and ways and ways[0] in {"weights", "between"}:
        one, other = ways[0], chosen[0]
    else:
        return
    raise UsageError(
        f"--{one.replace('_', '-')} and --{other.replace('_', '-')} exclude each other",
        hint="name the checkpoints in the order of their weights"
        if one == "weights"
        else "leave out one of them",
    )


def _role(options: AverageOptions) -> str | None:
    """Return the role to take: a running mean of the whole run is found as its EMA."""
    role = options.role or ("ema" if options.between else None)
    return ROLE_NAMES[role] if role is not None else None


def _weighed(members: Members, options: AverageOptions) -> tuple[Members, tuple[float, ...]]:
    """Return the checkpoints that count, and their weights.

    Raises:
        UsageError: they do not fit the options.
    """
    if options.weights is not None:
        typed = given_weights(options.weights, len(members.opened))
        return _enough(members), tuple(typed[at] for at in members.places)
    refuse_strays(members)
    is_ordered = (options.schedule, options.ema_decay, options.last, options.every)
    if any(each is not None for each in is_ordered):
        refuse_disorder(members, by_step=options.ema_decay is not None)
    places = range(len(members.opened))[:: -(options.every or 1)][: options.last or None]
    members = _enough(members.only(places[::-1]))
    return members, _weights(members, options)


def _enough(members: Members) -> Members:
    if len(members.opened) < 2:
        raise UsageError("an average takes at least two checkpoints")
    return members


def _weights(members: Members, options: AverageOptions) -> tuple[float, ...]:
    count = len(members.opened)
    if options.ema_decay is not None:
        steps = [float(each.facts[STEP]) for each in members.opened]
        return ema_weights(steps, options.ema_decay)
    if options.between:
        if count != 2:
            raise UsageError(f"--between takes two checkpoints, and there are {count}")
        return weights_between(*map(_steps_in_mean, members.opened))
    if options.schedule is not None:
        return schedule_weights(options.schedule, count)
    return equal_weights(count)


def _steps_in_mean(each: Opened) -> int:
    checkpoint = each.checkpoint
    steps = steps_in_running_mean(checkpoint.tree, checkpoint.reader)
    if steps is None:
        raise UsageError(
            "it states no batch_idx_train and average_period: --between takes running means of all "
            "steps, as icefall saves them in model_avg",
            path=each.path,
        )
    return steps


def _kind(weights: Sequence[float], options: AverageOptions) -> str:
    """Return the kind of the result for its note; weights such as 1,0 or 2,-1 give no average."""
    if options.ema_decay is not None:
        return "ema"
    is_average = options.between or (min(weights) >= 0 and max(weights) < 1)
    return "swa" if is_average else "table"


def _refuse_damage(each: Opened, progress: Progress, *, force: bool) -> None:
    """Compare the records that hold the weights with their checksums.

    Raises:
        DamagedError: one does not fit, without ``force``.
    """
    tensors: dict[Address, TensorRef] = {(name,): ref for name, ref in each.tensors.items()}
    reader = each.checkpoint.reader
    found = scan(reader, tensors, frozenset({BYTES}), progress, elsewhere=False)
    refuse_unsound(each.checkpoint, found, (), force=force)


def _together(opened: Sequence[Opened]) -> Checkpoint:
    """Return the newest checkpoint with the sources and files of all: none may be written over."""
    sources = [source for each in opened for source in each.checkpoint.reader.opened]
    files = tuple(path for each in opened for path in each.checkpoint.files)
    return replace(opened[-1].checkpoint, reader=TensorReader(*sources), parts=files)
