"""The averaged weights as a state dict of their own: safetensors, or a torch file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ckptool.candidates import EmaLocation, table_address
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
from ckptool.reports import ExtractReport, Finding
from ckptool.soundness import meanwhile, prove_equalities, refuse_unsound
from ckptool.writers import safetensors_file, torch_zip
from ckptool.writers.base import PartialFile, check_output, whole_file

NAMES = ("model", "bare", "ema")
DEFAULT_SUFFIX = ".ema.safetensors"

# What the output's suffix chooses.
FORMAT_OF_SUFFIX: Mapping[str, str] = {
    ".safetensors": "safetensors",
    ".pt": "torch-zip",
    ".pth": "torch-zip",
    ".ckpt": "torch-zip",
    ".bin": "torch-zip",
}


def extract_ema(
    path: Path,
    output: Path | None = None,
    *,
    ema: str | None = None,
    model: str | None = None,
    names: str = "model",
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
        output: its suffix chooses the format; by default ``path`` with ``.ema.safetensors``,
            for a folder beside it.
        ema: address of the averaged weights, instead of searching.
        model: address of the weights that they average, instead of searching.
        names: ``model``: exactly the names of the model's slot; ``bare``: those without wrappers;
            ``ema``: the names as stored.
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
    output = output or _default_output(path)
    kind = _format_of(output, wrap)
    with open_checkpoint(path) as checkpoint:
        location = locate_ema(checkpoint, ema=ema, model=model, layouts=layouts)
        plan = _plan(checkpoint, location, names)
        prove_equalities(checkpoint, location.selected)
        inputs = [path, *(file.path for file in checkpoint.reader.opened)]
        target = check_output(output, inputs, force=force)
        with meanwhile(
            lambda: refuse_unsound(checkpoint, plan.tensors, plan.averaged, force=force)
        ) as findings:
            if not dry_run:
                note = as_text(origin("extract-ema", path, location, location.selected, made_at))
                with whole_file(target, force=force) as file:
                    _write(checkpoint, plan, file, kind, wrap, note, progress)
                    findings()  # a refusal discards the file
                    checkpoint.reader.refuse_changed()
            found = findings()
        return _report(path, output, kind, location, plan, names, found, written=not dry_run)


def _default_output(path: Path) -> Path:
    """Beside the checkpoint; a folder's name is kept whole, and found for ``.`` and ``..``."""
    with suppress(OSError):  # opening it says what is wrong
        if path.is_dir():
            folder = path.resolve()
            return folder.parent / (folder.name + DEFAULT_SUFFIX)
    return path.parent / (path.stem + DEFAULT_SUFFIX)


def _format_of(output: Path, wrap: str | None) -> str:
    kind = FORMAT_OF_SUFFIX.get(output.suffix.lower())
    if kind is None:
        known = " ".join(FORMAT_OF_SUFFIX)
        raise UsageError(
            f"the suffix {output.suffix!r} chooses no format", path=output, hint=f"one of: {known}"
        )
    if wrap is not None and kind == "safetensors":
        raise UsageError(
            "safetensors holds tensors by name and nothing around them, so nothing to --wrap",
            path=output,
            hint="write a torch file instead: -o NAME.pt",
        )
    return kind


def _plan(checkpoint: Checkpoint, location: EmaLocation, names: str) -> Extraction:
    candidate = None
    if location.main_slot != "averaged":
        candidate = require_ema(location, checkpoint)
    return plan_extraction(location, candidate, names)


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
        safetensors_file.write(output, plan.tensors, checkpoint.reader, metadata, progress)
        safetensors_file.check(output.path, plan.tensors)
    else:
        torch_zip.write(output, plan.tensors, checkpoint.reader, wrap, progress, note)
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
    )
