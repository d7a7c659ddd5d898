"""The mean of the same weights in several checkpoints: plain, weighted, or as an EMA would be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ckptool.commands.broken_members import blaming, refuse_nonfinite
from ckptool.commands.into import Slot, open_slot, whole, write_into
from ckptool.commands.members import BROKEN, EPOCH, SKIP, STEP, WIDTH, Opened, are_equal
from ckptool.commands.mixture import AverageOptions, Mixture, choose, refuse_contradictions
from ckptool.commands.sources import note_of
from ckptool.commands.writing import choose_form, write_output
from ckptool.contents.selection import Operand
from ckptool.ema.layouts import Layouts
from ckptool.errors import EmaRefusedError
from ckptool.plans.averaging import Combined, combine
from ckptool.plans.belonging import distances, strangers
from ckptool.plans.casts import plan_casting
from ckptool.plans.extraction import Extraction
from ckptool.plans.validation import refuse_unsound
from ckptool.process.progress import Progress, no_progress
from ckptool.reports.base import Finding
from ckptool.reports.rules import BYTES, finding
from ckptool.reports.write import AverageReport, AverageSource
from ckptool.sources.urls import RemotePath
from ckptool.tensors.casting import Casting
from ckptool.tensors.scan import scan
from ckptool.tree.nodes import Address, TensorRef


def average(
    operands: Sequence[Operand],
    output: str | Path,
    options: AverageOptions = AverageOptions(),  # noqa: B008 - frozen
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
    refuse_contradictions(options)
    if options.into is None:
        choose_form(operands[0].path, output, options, NAME)  # before anything is read
    broken: dict[str, str] = {}
    while True:
        try:
            return _average(operands, output, options, progress, layouts, made_at, broken)
        except (*BROKEN, EmaRefusedError) as error:  # of values, which are read while writing
            if options.skip_broken and error.path in {operand.path for operand in operands}:
                error.hint = "; ".join(filter(None, (NAMED, error.hint)))
            if not options.skip_broken or error.adding != SKIP:
                raise
            broken[str(error.path)] = error.message


def _average(
    operands: Sequence[Operand],
    output: str | Path,
    options: AverageOptions,
    progress: Progress,
    layouts: Layouts,
    made_at: float | None,
    broken: Mapping[str, str],
) -> AverageReport:
    """Write the mean of all checkpoints that are not broken."""
    with ExitStack() as stack:
        mixture = choose(stack, operands, options, layouts, broken)
        tensors = mixture.members.opened[-1].tensors
        slot = open_slot(stack, whole(options.into), tensors, layouts) if options.into else None
        casting = slot.casting(tensors) if slot else plan_casting(tensors, options.dtype)
        combined = _combined(mixture, casting, options)
        apart, found = _look(mixture)
        note = note_of(mixture, combined, options.buffers, made_at)
        may_skip = mixture.posthoc is None  # a snapshot less would be the EMA of another width
        stack.enter_context(blaming(mixture.members, combined.averaged, may_skip=may_skip))
        if options.skip_broken and options.force:  # which would accept their values
            listed = [each for each in mixture.members.opened if each.is_listed]
            for each in listed:
                _refuse_damage(each, force=False)
            refuse_nonfinite(listed, combined.averaged)
        if slot is None:
            made = _in_a_file(operands[0].path, output, mixture, combined, options, note, progress)
        else:
            made = _in_a_copy(slot, output, mixture, combined, options, note, progress)
    return replace(
        made,
        sources=tuple(_sources(mixture, apart)),
        findings=(*found, *_among_its_sources(mixture, Path(made.output)), *made.findings),
        written=not options.dry_run,
        posthoc=mixture.posthoc,
        order=mixture.members.order,
        intervals=mixture.intervals,
        copies=mixture.members.copies,
        derived=mixture.members.derived,
        skipped=mixture.members.broken,
    )


NAMED = "--skip-broken leaves out files of a directory; leave out this one, which was named"
NAME = "average.safetensors"  # of the output, if it is a directory


def _combined(mixture: Mixture, casting: Casting, options: AverageOptions) -> Combined:
    """Return the mean.

    Raises:
        UsageError: the checkpoints hold different weights.
    """
    return combine(mixture.state_dicts, mixture.shares, casting, buffers=options.buffers)


def _in_a_file(
    path: Path,
    output: str | Path,
    mixture: Mixture,
    combined: Combined,
    options: AverageOptions,
    note: str,
    progress: Progress,
) -> AverageReport:
    """Write the mean as a file, or as shards."""
    form = choose_form(path, output, options, NAME)
    *others, newest = mixture.members.opened
    left_out = newest.taken.plan.left_out
    plan = Extraction(combined.tensors, frozenset(combined.averaged), (), (), left_out=left_out)
    together = newest.checkpoint.with_files_of(each.checkpoint for each in others)
    made = write_output(
        together, plan, form, options, note, progress,
        finite=combined.averaged,
        inputs=[(each.checkpoint.reader, each.tensors) for each in mixture.members.opened],
    )  # fmt: skip
    return AverageReport(
        averaged=len(combined.averaged),
        newest=combined.newest,
        statistics=combined.statistics,
        **vars(made),
    )


def _in_a_copy(
    slot: Slot,
    output: str | Path,
    mixture: Mixture,
    combined: Combined,
    options: AverageOptions,
    note: str,
    progress: Progress,
) -> AverageReport:
    """Write the mean into a copy of a checkpoint."""
    for each in mixture.members.opened:
        _refuse_damage(each, force=options.force)
    sources = [each.checkpoint for each in mixture.members.opened]
    target, into, findings = write_into(
        slot, combined, sources, Path(output), note, progress,
        force=options.force, dry_run=options.dry_run,
    )  # fmt: skip
    return AverageReport(
        output=str(target),
        format=slot.checkpoint.format_name,
        tensors=into.replaced,
        bytes=into.bytes,
        averaged=len(combined.averaged),
        newest=combined.newest,
        statistics=combined.statistics,
        findings=findings,
        into=into,
    )


def _look(mixture: Mixture) -> tuple[list[float | None], list[Finding]]:
    """Return how far the checkpoints are apart, and warnings about those that do not belong.

    Snapshots of EMAs are combined from the beginning of a run to its end: they are not looked at.
    """
    members = mixture.state_dicts
    if mixture.posthoc is not None:
        return [None] * len(members), []
    apart = distances(members)
    twice = [at for at, distance in enumerate(apart) if distance == 0]
    return apart, [*strangers(members, apart), *_counted_twice(mixture, twice)]


def _among_its_sources(mixture: Mixture, output: Path) -> Iterator[Finding]:
    """Yield a warning if the next average of the same directory would meet this one."""
    runs = {each.path.parent for each in mixture.members.opened if each.is_listed}
    for run in runs:
        if not isinstance(run, RemotePath) and run.resolve() == output.parent.resolve():
            yield finding("CK804", "", f"{output} lies among the checkpoints of {run}")


def _counted_twice(mixture: Mixture, places: Sequence[int]) -> Iterator[Finding]:
    """Yield a warning for each checkpoint at these places that repeats an earlier one."""
    opened = [mixture.members.opened[at] for at in places]
    for nth, each in enumerate(opened):
        first = next((other for other in opened[:nth] if are_equal(each, other)), None)
        if first is not None:
            yield finding("CK803", "", _told_twice(each, first))


def _told_twice(each: Opened, first: Opened) -> str:
    if each.path != first.path:
        return f"{each.path} holds the weights of {first.path}, and both count"
    if each.taken.address == first.taken.address:
        return f"{each.path} is named twice, and counts twice"
    places = " and ".join(repr(one.taken.address or "(root)") for one in (first, each))
    return f"{each.path} holds the same weights under {places}, and both count"


def _sources(mixture: Mixture, apart: Sequence[float | None]) -> Iterator[AverageSource]:
    rows = zip(mixture.members.opened, mixture.shares.weights, apart, strict=True)
    for each, weight, distance in rows:
        yield AverageSource(
            str(each.path), each.taken.address, weight,
            each.facts.get(STEP), each.facts.get(EPOCH), each.facts.get(WIDTH), distance,
        )  # fmt: skip


def _refuse_damage(each: Opened, *, force: bool) -> None:
    """Compare the records that hold the weights with their checksums.

    Raises:
        DamagedError: one does not fit, without ``force``.
    """
    tensors: dict[Address, TensorRef] = {(name,): ref for name, ref in each.tensors.items()}
    reader = each.checkpoint.reader
    found = scan(reader, tensors, frozenset({BYTES}), no_progress, elsewhere=False)
    refuse_unsound(each.checkpoint, found, (), force=force)
