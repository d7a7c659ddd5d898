"""The mean of the same weights in several checkpoints: plain, weighted, or as an EMA would be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ckptool.commands.operands import checkpoint_files, is_run
from ckptool.commands.origin import averaged_from
from ckptool.commands.state_dicts import ROLE_NAMES, Taken, only_state_dict, take_state_dict
from ckptool.commands.writing import (
    WriteOptions,
    choose_form,
    report_casts,
    report_shards,
    ties_in,
    write_output,
)
from ckptool.contents.selection import Operand
from ckptool.contents.training import read_training_state
from ckptool.ema.layouts import Layouts
from ckptool.ema.locate import locate_ema
from ckptool.errors import CkptError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.formats.provenance import as_text
from ckptool.plans.averaging import Member, combine, ema_weights, given_weights
from ckptool.plans.casts import plan_casting
from ckptool.plans.extraction import Extraction, complete
from ckptool.plans.validation import refuse_unsound
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
    ema_decay: float | None = None  # of one step: the EMA of the checkpoints in order of their step
    last: int | None = None  # only the newest so many
    buffers: str = "average"  # ``newest``: take batch statistics from the newest checkpoint


class _Opened(NamedTuple):
    """A checkpoint, and the state dict that is taken from it."""

    checkpoint: Checkpoint
    taken: Taken
    tensors: Mapping[str, TensorRef]
    facts: Mapping[str, Any]  # global_step, epoch


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
    are those of the newest checkpoint: the last by step, or by the operands where a file states no
    step.

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
        opened = [_open(stack, operand, options, layouts) for operand in _single(operands)]
        counter = _counter(opened)
        if options.weights is None and any(is_run(each.path) for each in operands):
            _refuse_strays(opened)
        typed = given_weights(options.weights, len(opened)) if options.weights is not None else ()
        order = _order(opened, counter, options)
        opened = [opened[at] for at in order]
        if len(opened) < 2:
            raise UsageError("an average takes at least two checkpoints")
        weights = tuple(typed[at] for at in order) if typed else _weights(opened, options)
        newest = opened[-1]
        casting = plan_casting(newest.tensors, options.dtype)
        members = [
            Member(str(each.checkpoint.path), each.checkpoint.reader, each.tensors)
            for each in opened
        ]
        combined = combine(members, weights, casting, buffers=options.buffers)
        for each in opened:
            _refuse_damage(each, progress=no_progress, force=options.force)
        paths = [each.checkpoint.path for each in opened]
        note = as_text(averaged_from(paths, _kind(weights, options), made_at))
        plan = Extraction(combined.tensors, frozenset(combined.averaged), (), ())
        outcome = write_output(
            _together(opened), plan, form, options, note, progress, finite=combined.averaged
        )
        report = AverageReport(
            sources=tuple(
                AverageSource(
                    str(each.checkpoint.path),
                    each.taken.address,
                    weight,
                    each.facts.get("global_step"),
                    each.facts.get("epoch"),
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
        )
        return replace(report, left_out=newest.taken.plan.left_out)


def _refuse_contradictions(options: AverageOptions) -> None:
    """Refuse options that exclude each other.

    Raises:
        UsageError: two of them do.
    """
    given = {"--ema-decay": options.ema_decay, "--last": options.last}
    other = next((name for name, value in given.items() if value is not None), None)
    if options.weights is not None and other is not None:
        raise UsageError(
            f"--weights and {other} exclude each other",
            hint="name the checkpoints in the order of their weights",
        )


def _single(operands: Sequence[Operand]) -> list[Operand]:
    """Return the operands, with the checkpoints of directories instead of these."""
    return [
        Operand(path, operand.address)
        for operand in operands
        for path in (checkpoint_files(operand.path) if is_run(operand.path) else [operand.path])
    ]


COUNTERS = ("global_step", "epoch")
MAX_COUNT = 1 << 53  # no run counts further, and floats are exact up to it


def _is_count(value: object) -> bool:
    return isinstance(value, (int, float)) and -MAX_COUNT < value < MAX_COUNT  # NaN is not


def _open(stack: ExitStack, operand: Operand, options: AverageOptions, layouts: Layouts) -> _Opened:
    checkpoint = stack.enter_context(open_checkpoint(operand.path))
    try:
        location = locate_ema(checkpoint, layouts=layouts)
        address = operand.address
        if address is None and options.role is not None:
            address = ROLE_NAMES[options.role]
        if address is None:
            address = only_state_dict(checkpoint, location, beside_optimizer=True)
        taken = take_state_dict(checkpoint, location, address, layouts)
        tensors = complete(taken.plan, operand.path).tensors
    except CkptError as error:
        raise error.at(operand.path) from error.__cause__
    stated = read_training_state(checkpoint.tree, checkpoint.reader).facts
    facts = {name: stated[name] for name in COUNTERS if _is_count(stated.get(name))}
    return _Opened(checkpoint, taken, tensors, facts)


def _counter(opened: Sequence[_Opened]) -> str | None:
    """Return a counter that all checkpoints have and that tells them apart; None: there is none."""
    for name in COUNTERS:
        counts = [each.facts.get(name) for each in opened]
        if None not in counts and len(set(counts)) == len(counts):
            return name
    return None


def _refuse_strays(opened: Sequence[_Opened]) -> None:
    """Refuse a directory in which weights without a step lie beside checkpoints of a run.

    They are often the EMA or a mean that was written there, and no checkpoint of the run.

    Raises:
        UsageError: some checkpoints state a step or an epoch, and others do not.
    """
    without = [each for each in opened if not any(name in each.facts for name in COUNTERS)]
    if 0 < len(without) < len(opened):
        path = without[0].checkpoint.path
        more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
        raise UsageError(
            f"{path} states no step{more}, other checkpoints here do: does it belong to the run?",
            hint="name the checkpoints that count, instead of their directory",
        )


def _order(
    opened: Sequence[_Opened], counter: str | None, options: AverageOptions
) -> Sequence[int]:
    """Return the numbers of the checkpoints, the newest last; only the last so many.

    Raises:
        UsageError: the order is needed and not known.
    """
    is_unknown = options.last is not None and counter is None
    if is_unknown or (options.ema_decay is not None and counter != COUNTERS[0]):
        raise UsageError(
            f"the order is not known: {_disorder(opened)}",
            hint="name the checkpoints that count, without --last; --weights has their weights",
        )
    order = range(len(opened))
    if counter is None:
        return order
    return sorted(order, key=lambda at: opened[at].facts[counter])[-(options.last or 0) :]


def _disorder(opened: Sequence[_Opened]) -> str:
    """Return the reason why steps do not order the checkpoints."""
    first: dict[object, _Opened] = {}
    for each in opened:
        step = next((each.facts[name] for name in COUNTERS if name in each.facts), None)
        if step is None:
            return f"{each.checkpoint.path} states no step"
        other = first.setdefault(step, each)
        if other is not each:
            return f"{other.checkpoint.path} and {each.checkpoint.path} state the same step, {step}"
    return "not every checkpoint states a step of its own"


def _weights(opened: Sequence[_Opened], options: AverageOptions) -> tuple[float, ...]:
    if options.ema_decay is not None:
        steps = [float(each.facts[COUNTERS[0]]) for each in opened]
        return ema_weights(steps, options.ema_decay)
    return (1 / len(opened),) * len(opened)


def _kind(weights: Sequence[float], options: AverageOptions) -> str:
    """Return the kind of the result for its note; weights such as 1,0 or 2,-1 give no average."""
    if options.ema_decay is not None:
        return "ema"
    is_average = min(weights) >= 0 and max(weights) < 1
    return "swa" if is_average else "table"


def _refuse_damage(each: _Opened, progress: Progress, *, force: bool) -> None:
    """Compare the records that hold the weights with their checksums.

    Raises:
        DamagedError: one does not fit, without ``force``.
    """
    tensors: dict[Address, TensorRef] = {(name,): ref for name, ref in each.tensors.items()}
    reader = each.checkpoint.reader
    found = scan(reader, tensors, frozenset({BYTES}), progress, elsewhere=False)
    refuse_unsound(each.checkpoint, found, (), force=force)


def _together(opened: Sequence[_Opened]) -> Checkpoint:
    """Return the newest checkpoint with the sources and files of all: none may be written over."""
    sources = [source for each in opened for source in each.checkpoint.reader.opened]
    files = tuple(path for each in opened for path in each.checkpoint.files)
    return replace(opened[-1].checkpoint, reader=TensorReader(*sources), parts=files)
