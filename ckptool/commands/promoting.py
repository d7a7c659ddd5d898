"""The end of a promotion: the copy of a checkpoint with other weights in the model's state dict."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from shlex import quote

from ckptool.contents.inventory import Table
from ckptool.errors import DamagedError, UsageError
from ckptool.formats import fits
from ckptool.formats.base import Checkpoint
from ckptool.plans.promotion import Promotion, check_slot
from ckptool.plans.validation import validation
from ckptool.process.progress import Progress
from ckptool.reports.base import Finding
from ckptool.writers import patched_copy
from ckptool.writers.containers import container_of
from ckptool.writers.files.destination import check_in_place, check_output
from ckptool.writers.files.whole_file import PartialFile, whole_file
from ckptool.writers.values import Account


def check_place(
    checkpoint: Checkpoint,
    target: Path,
    backup: Path | None = None,
    *,
    in_place: bool = False,
    force: bool,
) -> Path:
    """Return the path behind links; check that it may be written in the format of the input.

    Raises:
        UsageError: its suffix is of another format.
        OutputError: it may not be written.
    """
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


def carry_out(
    checkpoint: Checkpoint,
    model: Table | None,
    plan: Promotion,
    place: Path,
    note: str,
    progress: Progress,
    *,
    force: bool,
    dry_run: bool,
    in_place: bool = False,
    backup: Path | None = None,
) -> tuple[Finding, ...]:
    """Write the promotion to ``place``, or only validate it in a dry run; return the findings.

    Raises:
        CkptError: see ``promote_ema``.
    """
    account = Account()
    weights = {patch.name: patch.source for patch in plan.patches}
    with validation(checkpoint, weights, weights.keys(), account.losses, force=force) as judge:
        if dry_run:
            patched_copy.count_losses(plan.patches, checkpoint.reader, account)
            return judge()
        unchanged = partial(_refuse_changes, checkpoint, place, in_place=in_place)
        with whole_file(place, force=force or in_place, backup=backup, last_look=unchanged) as file:
            _write(checkpoint, model, plan, file, account, note, progress)
            return judge()  # a refusal discards the file


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
    later, moves = patched_copy.overwritten(patches), patched_copy.moves(patches, reader)
    shift = container.copy(output, file, later, moves, note, progress)
    patched_copy.put(output, patches, reader, account, shift, progress)
    container.finish(output, file, patches, account.made, note)
    patched_copy.check(output, patches, reader, account, shift)
    check_slot(output.path, model, shift)


def _refuse_changes(checkpoint: Checkpoint, place: Path, *, in_place: bool) -> None:
    """Make sure that the input has not changed and, if ``in_place``, has not been replaced."""
    checkpoint.reader.refuse_changed()
    if in_place and not checkpoint.source.is_at(place):
        raise DamagedError(
            "another file was put in its place while it was read; that one is kept",
            path=place,
            hint="wait until the job that writes it has finished",
        )
