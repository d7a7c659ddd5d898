"""The mean of the same weights in several checkpoints: plain, weighted, or as an EMA would be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ckptool.commands.members import EPOCH, STEP, WIDTH, Opened
from ckptool.commands.mixture import AverageOptions, Mixture, choose, refuse_contradictions
from ckptool.commands.origin import averaged_from
from ckptool.commands.writing import (
    choose_form,
    report_casts,
    report_shards,
    ties_in,
    write_output,
)
from ckptool.contents.selection import Operand
from ckptool.ema.layouts import Layouts
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.formats.provenance import as_text
from ckptool.plans.averaging import Member, combine
from ckptool.plans.casts import plan_casting
from ckptool.plans.extraction import Extraction
from ckptool.plans.validation import refuse_unsound
from ckptool.process.progress import Progress, no_progress
from ckptool.reports.rules import BYTES
from ckptool.reports.write import AverageReport, AverageSource
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
    form = choose_form(operands[0].path, output, options, "average.safetensors")
    with ExitStack() as stack:
        mixture = choose(stack, operands, options, layouts)
        opened = mixture.members.opened
        newest = opened[-1]
        casting = plan_casting(newest.tensors, options.dtype)
        combined = combine(
            [Member(str(each.path), each.checkpoint.reader, each.tensors) for each in opened],
            mixture.weights,
            casting,
            buffers=options.buffers,
        )
        for each in opened:
            _refuse_damage(each, progress=no_progress, force=options.force)
        note = as_text(averaged_from([each.path for each in opened], mixture.kind, made_at))
        plan = Extraction(combined.tensors, frozenset(combined.averaged), (), ())
        outcome = write_output(
            _together(opened), plan, form, options, note, progress, finite=combined.averaged
        )
        return AverageReport(
            sources=tuple(_sources(mixture)),
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
            left_out=newest.taken.plan.left_out,
            casts=report_casts(outcome),
            shards=report_shards(outcome),
            removed=outcome.removed,
            findings=outcome.findings,
            posthoc=mixture.posthoc,
            order=mixture.members.order,
            copies=mixture.members.copies,
        )


def _sources(mixture: Mixture) -> Iterator[AverageSource]:
    for each, weight in zip(mixture.members.opened, mixture.weights, strict=True):
        counts = (each.facts.get(name) for name in (STEP, EPOCH, WIDTH))
        yield AverageSource(str(each.path), each.taken.address, weight, *counts)


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
