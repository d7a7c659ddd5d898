"""The averaged weights put into the model's own slot, all else untouched.

Code that knows nothing of EMA then loads the good weights. The optimizer's state still belongs to
the raw weights: resume training from the original file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from ckptool.candidates import Candidate, EmaLocation, table_address
from ckptool.ema import locate_ema
from ckptool.errors import EmaRefusedError, UnsupportedError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.inventory import Table
from ckptool.layouts import Layouts
from ckptool.numerics import Progress, no_progress, same_values
from ckptool.plans import shared_with_others
from ckptool.refusals import require_ema
from ckptool.reports import Finding, PromoteReport
from ckptool.soundness import meanwhile, prove_equalities, refuse_nonfinite
from ckptool.tree import Address, TensorRef, Tree, walk
from ckptool.writers import patched_copy
from ckptool.writers.base import PartialFile, check_output, whole_file
from ckptool.writers.patched_copy import Patch

PATCHABLE = frozenset({"torch-zip"})
NOTHING: tuple[Patch, ...] = ()


def promote_ema(
    path: Path,
    output: Path,
    *,
    ema: str | None = None,
    model: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
    layouts: Layouts = (),
) -> PromoteReport:
    """Write a copy of ``path`` whose model slot holds the averaged weights.

    Args:
        path: the checkpoint, a torch zip.
        output: the file to write.
        ema: address of the averaged weights, instead of searching.
        model: address of the slot to fill, instead of searching.
        force: replace an existing file; promote values that are not finite.
        dry_run: only say what would be written.
        progress: called with the bytes written.
        layouts: rows of a house style, tried before the known ones.

    Raises:
        EmaNotFoundError, EmaAmbiguousError, EmaRefusedError: see ``refusals.require_ema``.
        UnsupportedError: the container or a tensor cannot be patched.
        OutputError: the output exists or cannot be written.
    """
    if output.suffix == ".safetensors":
        raise UsageError(
            "promotion writes the format that it read, a torch file",
            path=output,
            hint=f"-o {output.with_suffix('.pt').name}; or ckptool extract-ema for safetensors",
        )
    with open_checkpoint(path) as checkpoint:
        location = locate_ema(checkpoint, ema=ema, model=model, layouts=layouts)
        if location.main_slot == "averaged":
            candidate, patches = location.selected, NOTHING
        else:
            command = f"ckptool promote-ema -o {quote(str(output))}"
            candidate = require_ema(location, checkpoint, command)
            patches = _plan(checkpoint, location, candidate)
        prove_equalities(checkpoint, location.selected)
        inputs = [path, *(file.path for file in checkpoint.reader.opened)]
        target = check_output(output, inputs, force=force)
        averages = [(patch.name, patch.source) for patch in patches]
        with meanwhile(lambda: refuse_nonfinite(checkpoint, averages, force=force)) as findings:
            if not dry_run:
                with whole_file(target, force=force) as file:
                    _write(checkpoint, patches, file, progress)
                    findings()  # a refusal discards the file
                    checkpoint.reader.refuse_changed()
            found = findings()
        return _report(path, output, checkpoint, location, candidate, patches, found, not dry_run)


def _plan(checkpoint: Checkpoint, location: EmaLocation, candidate: Candidate) -> tuple[Patch, ...]:
    """One patch for each run of bytes in the model's slot.

    Raises:
        UnsupportedError: not a torch zip, no model to fill, or bytes that something else views.
        EmaRefusedError: tied tensors whose averages differ.
    """
    if checkpoint.format_name not in PATCHABLE:
        raise UnsupportedError(
            f"promotion into a {checkpoint.format_name} file is not possible yet",
            path=checkpoint.path,
            hint="ckptool extract-ema writes the averaged weights as a file of their own",
        )
    model = location.model
    if model is None or candidate.alignment is None or not candidate.alignment.pairs:
        raise EmaRefusedError(
            "the file has no model slot that these weights fit",
            path=checkpoint.path,
            address=candidate.address,
            hint="name the slot: --model ADDRESS; or ckptool extract-ema",
        )
    patches = [
        Patch(name, _dense(model, name), _dense(candidate.table, other))
        for name, other in candidate.alignment.pairs.items()
    ]
    patches = [p for p in patches if p.target.numel]
    for patch in patches:
        patched_copy.check_patch(patch, checkpoint.path)
    _refuse_shared(checkpoint, model, patches)
    distinct = _without_ties(checkpoint, patches)
    _refuse_overlaps(checkpoint, distinct)
    return distinct


def _dense(table: Table, name: str) -> TensorRef:
    ref = table.entries[name]
    if not isinstance(ref, TensorRef):
        raise UnsupportedError(f"a {ref.layout} tensor cannot be patched", address=name)
    return ref


def _refuse_shared(checkpoint: Checkpoint, model: Table, patches: list[Patch]) -> None:
    targets = {patch.name: patch.target for patch in patches}
    shared = shared_with_others(targets, _outside(checkpoint.tree, model))
    if shared:
        some = ", ".join(shared[:3])
        raise UnsupportedError(
            f"{len(shared)} tensors elsewhere view the bytes that would change: {some}",
            path=checkpoint.path,
            hint="ckptool extract-ema writes the averaged weights as a file of their own",
        )


def _outside(tree: Tree, table: Table) -> Iterator[tuple[Address, TensorRef]]:
    """Every tensor that is no entry of the table, which may have several addresses."""
    own = {table.prefix + name for name in table.entries}
    for visit in walk(tree):
        for key, child in visit.children if visit.alias_of is None else ():
            is_own = visit.node is table.node and str(key) in own
            if isinstance(child, TensorRef) and not is_own:
                yield (*visit.address, key), child


def _without_ties(checkpoint: Checkpoint, patches: list[Patch]) -> tuple[Patch, ...]:
    """Tied tensors are one target; their averages must agree, byte for byte."""
    first: dict[object, Patch] = {}
    for patch in patches:
        key = patch.target.chunks
        known = first.setdefault(key, patch)
        if known is not patch and not same_values(checkpoint.reader, known.source, patch.source):
            raise EmaRefusedError(
                f"tied to {known.name} in the model, but their averages differ",
                path=checkpoint.path,
                address=patch.name,
                hint="ckptool extract-ema keeps both",
            )
    return tuple(first.values())


def _refuse_overlaps(checkpoint: Checkpoint, patches: tuple[Patch, ...]) -> None:
    """Targets that overlap in part must get the same bytes where they do."""
    ordered = sorted((p for p in patches if p.is_plain), key=_start)
    reach: Patch | None = None  # the one so far that ends last
    for patch in ordered:
        if reach is not None and not _agree(checkpoint, reach, patch):
            raise EmaRefusedError(
                f"overlaps {reach.name} in the model, but their averages differ",
                path=checkpoint.path,
                address=patch.name,
                hint="ckptool extract-ema keeps both",
            )
        if reach is None or _end(patch) > _end(reach):
            reach = patch


def _start(patch: Patch) -> int:
    return patch.target.chunks[0].span.offset


def _end(patch: Patch) -> int:
    return _start(patch) + patch.target.chunks[0].span.nbytes


def _agree(checkpoint: Checkpoint, one: Patch, other: Patch) -> bool:
    """Whether two patches, the second beginning later, put equal bytes where both reach."""
    shared = min(_end(one), _end(other)) - _start(other)
    if shared <= 0:
        return True
    ours, theirs = one.source.chunks[0].span, other.source.chunks[0].span
    read = checkpoint.reader.read
    return read(ours, _start(other) - _start(one), shared) == read(theirs, 0, shared)


def _write(
    checkpoint: Checkpoint,
    patches: tuple[Patch, ...],
    output: PartialFile,
    progress: Progress,
) -> None:
    reader = checkpoint.reader
    file = reader.file(checkpoint.path)
    if patches:
        patched_copy.write(output, file, patches, reader, progress)
        patched_copy.check(output, patches, reader)
    else:
        output.copy_file(file, progress)


def _report(
    path: Path,
    output: Path,
    checkpoint: Checkpoint,
    location: EmaLocation,
    candidate: Candidate | None,
    patches: tuple[Patch, ...],
    findings: tuple[Finding, ...],
    written: bool,  # noqa: FBT001
) -> PromoteReport:
    alignment = candidate.alignment if candidate and patches else None
    return PromoteReport(
        path=str(path),
        output=str(output),
        format=checkpoint.format_name,
        written=written,
        ema=candidate.address if candidate else "",
        model=table_address(location.model) if location.model else "",
        main_slot=location.main_slot,
        tensors=len(alignment.pairs) if alignment else 0,
        bytes=sum(patch.target.nbytes for patch in patches),
        kept=alignment.missing_keys if alignment else (),
        dropped=alignment.unexpected_keys if alignment else (),
        findings=findings,
        file=str(candidate.file) if candidate and candidate.file else None,
    )
