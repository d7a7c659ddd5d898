"""The averaged weights as a state dict of their own: safetensors, or a torch file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckptool.candidates import CHOSEN, EmaLocation, table_address
from ckptool.ema import locate_ema
from ckptool.errors import DamagedError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.inventory import take_inventory
from ckptool.layouts import Layouts
from ckptool.numerics import Progress, no_progress
from ckptool.origin import origin
from ckptool.plans import Extraction, plan_extraction
from ckptool.provenance import KEY, as_text
from ckptool.refusals import require_ema
from ckptool.renaming import only_matching, strip_prefix
from ckptool.reports import ExtractReport, Finding
from ckptool.soundness import meanwhile, prove_equalities, refuse_nonfinite
from ckptool.writers import safetensors_file, torch_zip
from ckptool.writers.base import PartialFile, check_output, whole_file
from ckptool.writers.destination import format_of, output_path


def extract_ema(
    path: Path,
    output: str | Path | None = None,
    *,
    ema: str | None = None,
    model: str | None = None,
    names: str = "model",
    strip: str | None = None,
    match: Sequence[str] = (),
    wrap: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
    layouts: Layouts = (),
    made_at: float | None = None,
) -> ExtractReport:
    """Write the averaged weights of ``path`` to ``output``.

    Args:
        path: the checkpoint.
        output: its suffix chooses the format; a folder takes the default name; by default
            ``path`` with ``.ema.safetensors``, for a folder beside it.
        ema: address of the averaged weights, instead of searching; any other table is taken as it
            stands, ``@model`` the model's own.
        model: address of the weights that they average, instead of searching.
        names: ``model``: exactly the names of the model's slot; ``bare``: those without wrappers;
            ``ema``: the names as stored.
        strip: a prefix to take off these names.
        match: patterns of which one must fit the name that results; by default all are written.
        wrap: put the state dict under this key (torch files only).
        force: replace an existing file; write values that are not finite.
        dry_run: only say what would be written.
        progress: called with the bytes read and written.
        layouts: rows of a house style, tried before the known ones.
        made_at: seconds since 1970 that the record of provenance tells; by default now.

    Raises:
        EmaNotFoundError, EmaAmbiguousError, EmaRefusedError: see ``refusals.require_ema``.
        OutputError: the output exists or cannot be written.
    """
    output = output_path(path, output)
    kind = _format_of(output, wrap)
    with open_checkpoint(path) as checkpoint:
        location = locate_ema(checkpoint, ema=ema, model=model, layouts=layouts)
        plan = _plan(checkpoint, location, names, strip, match)
        prove_equalities(checkpoint, location.selected)
        inputs = [path, *(file.path for file in checkpoint.reader.opened)]
        target = check_output(output, inputs, force=force)
        averages = [(n, ref) for n, ref in plan.tensors.items() if n in plan.averaged]
        with meanwhile(lambda: refuse_nonfinite(checkpoint, averages, force=force)) as findings:
            if not dry_run:
                note = as_text(origin("extract-ema", path, location, location.selected, made_at))
                with whole_file(target, force=force) as file:
                    _write(checkpoint, plan, file, kind, wrap, note, progress)
                    findings()  # a refusal discards the file
                    checkpoint.reader.refuse_changed()
            found = findings()
        return _report(path, output, kind, location, plan, names, found, written=not dry_run)


def _format_of(output: Path, wrap: str | None) -> str:
    kind = format_of(output)
    if wrap is not None and kind == "safetensors":
        raise UsageError(
            "safetensors holds tensors by name and nothing around them, so nothing to --wrap",
            path=output,
            hint="write a torch file instead: -o NAME.pt",
        )
    return kind


def _plan(
    checkpoint: Checkpoint,
    location: EmaLocation,
    names: str,
    strip: str | None,
    match: Sequence[str],
) -> Extraction:
    averaged = location.main_slot == "averaged"
    candidate = None if averaged else require_ema(location, checkpoint)
    plan = plan_extraction(location, candidate, names)
    plan = plan if strip is None else strip_prefix(plan, strip)
    return only_matching(plan, match) if match else plan


def _write(
    checkpoint: Checkpoint,
    plan: Extraction,
    output: PartialFile,
    kind: str,
    wrap: str | None,
    note: str,
    progress: Progress,
) -> None:
    if kind == "safetensors":
        # transformers refuses files without a format.
        metadata = {"format": "pt", KEY: note}
        safetensors_file.write(output, plan.tensors, checkpoint.reader, metadata, progress=progress)
        safetensors_file.check_written(output.path, plan.tensors)
    else:
        torch_zip.write(output, plan.tensors, checkpoint.reader, wrap, progress=progress, note=note)
        _check_torch(output.path, plan)


def _check_torch(path: Path, plan: Extraction) -> None:
    """Reopen with our own reader: names, types and shapes must be those of the plan."""
    with open_checkpoint(path) as written:
        found = {
            name: (ref.dtype, ref.shape)
            for table in take_inventory(written.tree).tables
            for name, ref in table.tensors.items()
        }
    wanted = {name: (ref.dtype, ref.shape) for name, ref in plan.tensors.items()}
    if found != wanted:
        raise DamagedError("what was written does not read back as planned", path=path)


def _report(
    path: Path,
    output: Path,
    kind: str,
    location: EmaLocation,
    plan: Extraction,
    names: str,
    findings: tuple[Finding, ...],
    *,
    written: bool,
) -> ExtractReport:
    chosen, model = location.selected, location.model
    from_slot = location.main_slot == "averaged" and model is not None
    source = table_address(model) if from_slot and model else chosen.address if chosen else ""
    return ExtractReport(
        path=str(path),
        output=str(output),
        format=kind,
        written=written,
        ema=source,
        model=table_address(model) if model else None,
        names=names,
        main_slot=location.main_slot,
        tensors=len(plan.tensors),
        bytes=sum(ref.nbytes for ref in plan.tensors.values()),
        averaged=len(plan.averaged),
        from_model=plan.from_model,
        tied=plan.tied,
        dropped=plan.dropped,
        findings=findings,
        file=str(chosen.file) if chosen and chosen.file else None,
        kind=_kind(location),
    )


def _kind(location: EmaLocation) -> str:
    """What is taken: a kind of average, or a table of which nobody says that it is one."""
    chosen = location.selected
    if chosen is not None and chosen.kind == CHOSEN and chosen.alignment is None:
        return "table"
    return chosen.kind if chosen is not None else "ema"
