"""The averaged weights put into the model's own slot, all else untouched.

Code that knows nothing of EMA then loads the good weights. The optimizer's state still belongs to
the raw weights: resume training from the original file.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from shlex import quote

from ckptool.candidates import Candidate, EmaLocation, table_address
from ckptool.ema import locate_ema
from ckptool.errors import DamagedError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint, SourceFile
from ckptool.inventory import Table
from ckptool.layouts import Layouts
from ckptool.numerics import Progress, no_progress
from ckptool.origin import origin
from ckptool.promotion import Promotion, check_slot, optimizers, plan_promotion
from ckptool.provenance import as_text
from ckptool.refusals import require_ema
from ckptool.reports import Finding, PromoteReport
from ckptool.soundness import (
    look,
    meanwhile,
    prove_equalities,
    refuse_lossy,
    refuse_unsound,
    warnings,
)
from ckptool.writers import patched_copy
from ckptool.writers.base import PartialFile, check_in_place, check_output, whole_file
from ckptool.writers.containers import CONTAINERS
from ckptool.writers.destination import in_folder

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
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
    layouts: Layouts = (),
    made_at: float | None = None,
) -> PromoteReport:
    """Write a copy of ``path`` whose model slot holds the averaged weights.

    Args:
        path: the checkpoint, one file.
        output: the file to write, in the same format; a folder takes the name of ``path``.
        in_place: replace the checkpoint itself, by a rename of the finished copy.
        backup: keep the replaced file as ``path`` with ``.bak``.
        ema: address of the averaged weights, instead of searching.
        model: address of the slot to fill, instead of searching.
        allow_shared: also where tensors elsewhere view the bytes that change.
        force: replace an existing file; promote values that are not finite or overflow.
        dry_run: only say what would be written.
        progress: called with the bytes written.
        layouts: rows of a house style, tried before the known ones.
        made_at: seconds since 1970 that the record of provenance tells; by default now.

    Raises:
        EmaNotFoundError, EmaAmbiguousError, EmaRefusedError: see ``refusals.require_ema``.
        UnsupportedError: the container or a tensor cannot be patched.
        OutputError: the output exists or cannot be written.
        UsageError: neither or both of ``output`` and ``in_place``.
    """
    target = _target(path, output, in_place=in_place, backup=backup)
    command = f"ckptool promote-ema {'--in-place' if in_place else f'-o {quote(str(target))}'}"
    with open_checkpoint(path) as checkpoint:
        location = locate_ema(checkpoint, ema=ema, model=model, layouts=layouts)
        candidate, plan = location.selected, Promotion()
        if location.main_slot != "averaged":
            candidate = require_ema(location, checkpoint, command)
            plan = plan_promotion(checkpoint, location, candidate, allow_shared=allow_shared)
        prove_equalities(checkpoint, location.selected)
        changes = bool(plan.patches) or not in_place
        kept = path.with_name(path.name + BACKUP) if backup and changes else None
        place = _check_place(checkpoint, target, kept, in_place=in_place, force=force)
        done = changes and not dry_run
        last_look = partial(_last_look, checkpoint, plan, force=force)
        account = patched_copy.Account()
        judge = partial(refuse_lossy, checkpoint, account.losses, force=force)
        with meanwhile(last_look) as findings:
            if done:
                note = as_text(origin("promote-ema", path, location, candidate, made_at))
                unchanged = partial(_refuse_changes, checkpoint, place, in_place=in_place)
                with whole_file(
                    place, force=force or in_place, backup=kept, last_look=unchanged
                ) as file:
                    _write(checkpoint, location.model, plan, file, account, note, progress)
                    findings()  # a refusal discards the file
                    judge()
            else:
                patched_copy.survey(plan.patches, checkpoint.reader, account)
            found = (*findings(), *judge(), *warnings(checkpoint, location))
        report = _report(path, target, checkpoint, location, candidate, plan)
        return report._replace(
            written=done,
            findings=found,
            in_place=in_place,
            backup=str(kept) if kept else None,
        )


def _target(path: Path, output: str | Path | None, *, in_place: bool, backup: bool) -> Path:
    """Where the copy goes.

    Raises:
        UsageError: that is not said, or said twice.
    """
    if in_place and output is not None:
        raise UsageError("--in-place and -o exclude each other", path=Path(output))
    if backup and not in_place:
        raise UsageError("--backup keeps what --in-place replaces; -o leaves the input as it is")
    if in_place:
        return path
    if output is None:
        raise UsageError(
            "nothing says where to write",
            path=path,
            hint=f"-o {quote(path.stem + '.promoted' + path.suffix)}, or --in-place --backup",
        )
    return in_folder(output, path.name)


def _check_place(
    checkpoint: Checkpoint, target: Path, backup: Path | None, *, in_place: bool, force: bool
) -> Path:
    """The path behind links, if it may be written in the format of the input."""
    if in_place:
        return check_in_place(target, backup, force=force)
    is_safetensors = checkpoint.format_name == "safetensors"
    if (target.suffix == ".safetensors") != is_safetensors:
        own = checkpoint.path.suffix
        suffix = ".safetensors" if is_safetensors else ".pt" if own == ".safetensors" else own
        raise UsageError(
            f"promotion writes the format that it read, {checkpoint.format_name}",
            path=target,
            hint=f"-o {quote(target.with_suffix(suffix).name)}; or ckptool extract-ema",
        )
    inputs = [checkpoint.path, *(file.path for file in checkpoint.reader.opened)]
    return check_output(target, inputs, force=force)


def _last_look(checkpoint: Checkpoint, plan: Promotion, *, force: bool) -> tuple[Finding, ...]:
    """What the values say; read beside the copy."""
    averages = {patch.name: patch.source for patch in plan.patches}
    seen = look(checkpoint, averages)
    return refuse_unsound(checkpoint, seen, averages.keys(), force=force)


def _write(
    checkpoint: Checkpoint,
    model: Table | None,
    plan: Promotion,
    output: PartialFile,
    account: patched_copy.Account,
    note: str,
    progress: Progress,
) -> None:
    reader, patches = checkpoint.reader, plan.patches
    file = reader.file(checkpoint.path)
    if model is None or not patches:
        output.copy_file(file, progress)
        return
    container = CONTAINERS[checkpoint.format_name]
    shift = container.copy(output, file, patched_copy.overwritten(patches), note, progress)
    patched_copy.put(output, patches, reader, account, shift, progress)
    container.finish(output, file, patches, account.checksums, note)
    patched_copy.check(output, patches, reader, account, shift)
    check_slot(output.path, model, shift)


def _refuse_changes(checkpoint: Checkpoint, place: Path, *, in_place: bool) -> None:
    """Make sure that the input is still what was read, and, in place, still stands there.

    Raises:
        DamagedError: a job wrote to it, or put another file in its place.
    """
    checkpoint.reader.refuse_changed()
    if in_place and not _is_still(checkpoint.reader.file(checkpoint.path), place):
        raise DamagedError(
            "another file was put in its place while it was read; that one is kept",
            path=place,
            hint="wait until the job that writes it has finished",
        )


def _is_still(file: SourceFile, place: Path) -> bool:
    try:
        return os.path.samestat(file.status, place.stat())
    except OSError:
        return False


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
        main_slot=location.main_slot,
        tensors=plan.tensors,
        bytes=plan.nbytes,
        kept=plan.kept,
        dropped=plan.dropped,
        file=str(candidate.file) if candidate and candidate.file else None,
        casts=plan.casts,
        shared=plan.shared,
        optimizers=optimizers(location.inventory) if plan.patches else (),
    )
