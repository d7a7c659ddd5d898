"""Promotion: the EMA weights copied into the model's state dict, all else unchanged.

Code that knows nothing of EMA then loads the EMA weights. The optimizer's state still belongs to
the replaced weights: resume training from the original file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shlex import quote

from ckptool.commands.origin import origin
from ckptool.commands.promoting import carry_out, check_place
from ckptool.ema.candidates import Candidate, EmaLocation, table_address
from ckptool.ema.layouts import Layouts
from ckptool.errors import UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.formats.pickles.trace import tracing
from ckptool.formats.provenance import as_text
from ckptool.plans.promotion import Promotion, optimizers, plan_promotion, refuse_unpatchable
from ckptool.plans.validation import warnings
from ckptool.plans.weights import take_weights
from ckptool.process.progress import Progress, no_progress
from ckptool.reports.write import PromoteReport
from ckptool.writers.files.destination import in_folder

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
        place = check_place(checkpoint, target, kept, in_place=in_place, force=force)
        done = changes and not dry_run
        note = as_text(origin("promote-ema", path, location, candidate, made_at))
        found = carry_out(
            checkpoint, location.model, plan, place, note, progress,
            force=force, dry_run=not done, in_place=in_place, backup=kept,
        )  # fmt: skip
        report = _report(path, target, checkpoint, location, candidate, plan)
        return replace(
            report,
            written=done,
            findings=(*found, *warnings(checkpoint, location)),
            in_place=in_place,
            backup=str(kept) if kept else None,
        )


def _target(path: Path, output: str | Path | None, *, in_place: bool, backup: bool) -> Path:
    """Return the path of the copy."""
    if in_place and output is not None:
        raise UsageError(
            "--in-place and -o exclude each other", path=Path(output), hint="leave out one of them"
        )
    if backup and not in_place:
        raise UsageError("--backup keeps what --in-place replaces; -o leaves the input as it is")
    if in_place:
        return path
    if output is None:
        with open_checkpoint(path) as checkpoint:
            refuse_unpatchable(checkpoint)  # no place to write would help
        error = UsageError(
            "no output: use -o FILE or --in-place", path=path, hint="--in-place --backup, or a copy"
        )
        error.adding = ("-o", path.stem + ".promoted" + path.suffix)
        raise error
    return in_folder(output, path.name)


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
