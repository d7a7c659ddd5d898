"""Promotion: the EMA weights copied into the model's state dict, all else unchanged.

Code that knows nothing of EMA then loads the EMA weights. The optimizer's state still belongs to
the replaced weights: resume training from the original file.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote

from ckptool.commands.origin import origin
from ckptool.contents.inventory import Table
from ckptool.ema.candidates import Candidate, EmaLocation, table_address
from ckptool.ema.layouts import Layouts
from ckptool.errors import DamagedError, UsageError
from ckptool.formats import fits, open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.formats.pickles.trace import tracing
from ckptool.formats.provenance import as_text
from ckptool.plans.promotion import (
    Promotion,
    check_slot,
    optimizers,
    plan_promotion,
    refuse_unpatchable,
)
from ckptool.plans.validation import validation, warnings
from ckptool.plans.weights import take_weights
from ckptool.process.progress import Progress, no_progress
from ckptool.reports.write import PromoteReport
from ckptool.writers import patched_copy
from ckptool.writers.containers import container_of
from ckptool.writers.files.destination import check_in_place, check_output, in_folder
from ckptool.writers.files.whole_file import PartialFile, whole_file
from ckptool.writers.values import Account

BACKUP = ".bak"


def promote_ema(
    path: Path,
    output: str | Path | None = None,
    *,
    in_place: bool = False,
    backup: bool = False,
    ema: str | None = None,
    model: str | None = None,
    allow_shared: bool = False,
    buffers: str = "ema",
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
    layouts: Layouts = (),
    made_at: float | None = None,
) -> PromoteReport:
    """Write a copy of ``path`` with the EMA weights in the model's state dict.

    Args:
        path: the checkpoint, one file.
        output: the file to write, in the same format; a directory takes the name of ``path``.
        in_place: replace the checkpoint itself, by a rename of the finished copy.
        backup: keep the replaced file as ``path`` with ``.bak``.
        ema: key path of the EMA weights, instead of searching.
        model: key path of the state dict to fill, instead of searching.
        buffers: ``ema``: take them from the EMA; ``model``: leave integers, flags, batch
            statistics, and everything that the EMA still holds at its initial value, unchanged.
        allow_shared: write also where tensors elsewhere view the bytes that change.
        force: replace an existing file; promote values that are non-finite or overflow.
        dry_run: only report what would be written.
        progress: called with the bytes written.
        layouts: custom layouts, tried before the known ones.
        made_at: seconds since 1970 for the record of provenance; by default now.

    Raises:
        EmaNotFoundError, EmaAmbiguousError, EmaRefusedError: see ``refusals.require_ema``.
        UnsupportedError: the container or a tensor cannot be patched.
        OutputError: the output exists or cannot be written.
        UsageError: neither or both of ``output`` and ``in_place``.
    """
    target = _target(path, output, in_place=in_place, backup=backup)
    command = f"ckptool promote-ema {'--in-place' if in_place else f'-o {quote(str(target))}'}"
    with tracing() as trace:
        opened = open_checkpoint(path)
    with opened as checkpoint:
        location, average = take_weights(
            checkpoint, ema=ema, model=model, buffers=buffers, layouts=layouts, command=command
        )
        candidate, plan = location.selected, Promotion()
        if average is not None:
            plan = plan_promotion(checkpoint, trace, location, average, allow_shared=allow_shared)
        changes = bool(plan.patches) or not in_place
        kept = path.with_name(path.name + BACKUP) if backup and changes else None
        place = _check_place(checkpoint, target, kept, in_place=in_place, force=force)
        done = changes and not dry_run
        account = Account()
        averages = {patch.name: patch.source for patch in plan.patches}
        with validation(
            checkpoint, averages, averages.keys(), account.losses, force=force
        ) as judge:
            if done:
                note = as_text(origin("promote-ema", path, location, candidate, made_at))
                unchanged = partial(_refuse_changes, checkpoint, place, in_place=in_place)
                with whole_file(
                    place, force=force or in_place, backup=kept, last_look=unchanged
                ) as file:
                    _write(checkpoint, location.model, plan, file, account, note, progress)
                    judge()  # a refusal discards the file
            else:
                patched_copy.count_losses(plan.patches, checkpoint.reader, account)
            found = (*judge(), *warnings(checkpoint, location))
        report = _report(path, target, checkpoint, location, candidate, plan)
        return replace(
            report,
            written=done,
            findings=found,
            in_place=in_place,
            backup=str(kept) if kept else None,
        )


def _target(path: Path, output: str | Path | None, *, in_place: bool, backup: bool) -> Path:
    """Return the path of the copy.

    Raises:
        UsageError: no option gives it, two options do, or ``backup`` lacks ``in_place``.
    """
    if in_place and output is not None:
        raise UsageError("--in-place and -o exclude each other", path=Path(output))
    if backup and not in_place:
        raise UsageError("--backup keeps what --in-place replaces; -o leaves the input as it is")
    if in_place:
        return path
    if output is None:
        with open_checkpoint(path) as checkpoint:
            refuse_unpatchable(checkpoint)  # no place to write would help
        raise UsageError(
            "no output: use -o FILE or --in-place",
            path=path,
            hint=f"-o {quote(path.stem + '.promoted' + path.suffix)}, or --in-place --backup",
        )
    return in_folder(output, path.name)


def _check_place(
    checkpoint: Checkpoint, target: Path, backup: Path | None, *, in_place: bool, force: bool
) -> Path:
    """Return the path behind links; check that it may be written in the format of the input."""
    if in_place:
        return check_in_place(target, backup, force=force)
    if not fits(checkpoint.format, target.suffix):
        own = checkpoint.path.suffix
        suffix = own if fits(checkpoint.format, own) else (*checkpoint.format.suffixes, ".pt")[0]
        raise UsageError(
            f"promotion writes the format that it read, {checkpoint.format_name}",
            path=target,
            hint=f"-o {quote(target.with_suffix(suffix).name)}; or ckptool extract-ema",
        )
    return check_output(target, checkpoint.files, force=force)


def _write(
    checkpoint: Checkpoint,
    model: Table | None,
    plan: Promotion,
    output: PartialFile,
    account: Account,
    note: str,
    progress: Progress,
) -> None:
    reader, patches = checkpoint.reader, plan.patches
    file = checkpoint.source
    if model is None or not patches:
        output.copy_file(file, progress)
        return
    container = container_of(checkpoint)
    shift = container.copy(output, file, patched_copy.overwritten(patches), note, progress)
    patched_copy.put(output, patches, reader, account, shift, progress)
    container.finish(output, file, patches, account.made, note)
    patched_copy.check(output, patches, reader, account, shift)
    check_slot(output.path, model, shift)


def _refuse_changes(checkpoint: Checkpoint, place: Path, *, in_place: bool) -> None:
    """Make sure that the input has not changed and, if ``in_place``, has not been replaced.

    Raises:
        DamagedError: a job wrote to it, or put another file in its place.
    """
    checkpoint.reader.refuse_changed()
    if in_place and not checkpoint.source.is_at(place):
        raise DamagedError(
            "another file was put in its place while it was read; that one is kept",
            path=place,
            hint="wait until the job that writes it has finished",
        )


def _report(
    path: Path,
    output: Path,
    checkpoint: Checkpoint,
    location: EmaLocation,
    candidate: Candidate | None,
    plan: Promotion,
) -> PromoteReport:
    return PromoteReport(
        path=str(path),
        output=str(output),
        format=checkpoint.format_name,
        written=False,
        ema=candidate.address if candidate else "",
        model=table_address(location.model) if location.model else "",
        main_slot=location.told_slot,
        tensors=plan.tensors,
        bytes=plan.nbytes,
        kept=plan.kept,
        dropped=plan.dropped,
        file=str(candidate.file) if candidate and candidate.file else None,
        casts=plan.casts,
        shared=plan.shared,
        optimizers=optimizers(location.inventory) if plan.patches else (),
    )
