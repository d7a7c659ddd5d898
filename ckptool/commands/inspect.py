"""Inspection of a checkpoint: sections, EMA weights, training state, names in its pickles.

It reads headers and pickles, and a few values to compare the EMA weights with the model's.
``--stats`` reads all values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptool.commands.listing import Listing, fits, list_tensors
from ckptool.commands.operands import as_operand, open_part
from ckptool.contents.alignment import Alignment
from ckptool.contents.dangers import trust_findings
from ckptool.contents.optimizers import is_stateless, model_parameters, read_optimizers
from ckptool.contents.optimizers import kind_of as kind_of_optimizer
from ckptool.contents.safe_loading import safe_load
from ckptool.contents.sections import sections, totals
from ckptool.contents.selection import Operand
from ckptool.contents.snapshots import snapshots_in
from ckptool.contents.training import TrainingState, read_training_state
from ckptool.ema.candidates import RAW_KIND, Candidate, EmaLocation, table_address
from ckptool.ema.findings import ema_findings, unplain_findings
from ckptool.ema.layouts import Layouts
from ckptool.ema.locate import locate_ema
from ckptool.ema.sameness import Sameness, sameness
from ckptool.errors import UsageError
from ckptool.formats.base import Checkpoint
from ckptool.formats.pickles.plain_names import trust_of
from ckptool.formats.provenance import KEY, as_fields, read_provenance
from ckptool.process.progress import Progress, no_progress
from ckptool.records import replace
from ckptool.reports.base import Finding, GroupDistance, MainSlot, SameReport
from ckptool.reports.inspect import (
    CandidateReport,
    EmaReport,
    FilesReport,
    GlobalReport,
    InspectReport,
    ModelReport,
    OptimizerReport,
    SafeLoadReport,
    SharingReport,
)
from ckptool.reports.rules import finding
from ckptool.tensors.sample import beginning, is_readable, scalar_value
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import Address, Forms, TensorRef, is_plain, is_real

MAX_GROUPS = 1_000  # of an optimizer, whose learning rates are read
MAX_PICKLE = 1 << 20  # bytes of a pickle that is followed a second time, for the safe loader


def inspect_file(
    operand: Path | Operand,
    listing: Listing = Listing(),  # noqa: B008 - a tuple
    *,
    progress: Progress = no_progress,
    layouts: Layouts = (),
) -> InspectReport:
    """Return everything about one file, or about the part of it that an operand names.

    Args:
        operand: the checkpoint, or a part of it.
        listing: the tensors to list in ``entries``.
        progress: called with the bytes read.
        layouts: custom layouts, tried before the known ones.

    Raises:
        CkptError: the file cannot be read.
    """
    operand = as_operand(operand)
    with open_part(operand, layouts) as checkpoint:
        if operand.address is None and not (listing.stats or listing.digests):
            for source in checkpoint.reader.opened:
                source.be_frugal()
        report = inspect_checkpoint(checkpoint, listing, progress=progress, layouts=layouts)
        values = None if operand.address is None else _values(checkpoint)
    report = replace(report, path=str(operand.path), address=operand.address, values=values)
    if not (listing.stats and operand.address is None and report.ema.selected is not None):
        return report
    from ckptool.commands.ema_layers import ema_layers  # noqa: PLC0415 - it brings numpy

    measured = ema_layers(operand.path, layouts, progress)
    return _with_distance(report, *measured) if measured else report


def _with_distance(
    report: InspectReport, layers: tuple[GroupDistance, ...], same: SameReport | None
) -> InspectReport:
    """Return the report with the distance of the EMA weights, of which all values were read."""
    ema, is_raw = report.ema, report.ema.main_slot is MainSlot.RAW
    candidates = tuple(
        replace(each, same=same)
        if is_raw and each.address == ema.selected and each.same is None
        else each
        for each in ema.candidates
    )
    return replace(report, ema_layers=layers, ema=replace(ema, candidates=candidates))


def inspect_checkpoint(
    checkpoint: Checkpoint,
    listing: Listing = Listing(),  # noqa: B008 - a tuple
    *,
    progress: Progress = no_progress,
    layouts: Layouts = (),
) -> InspectReport:
    """Return everything about an open checkpoint."""
    location = locate_ema(checkpoint, layouts=layouts)
    training = read_training_state(checkpoint.tree, checkpoint.reader)
    origin = read_provenance(checkpoint.metadata)
    parts = sections(checkpoint.tree, location.roles, training.rng)
    entries = None
    if listing.is_wanted:
        entries = list_tensors(checkpoint, location, parts, listing, progress)
    return InspectReport(
        path=str(checkpoint.path),
        format=checkpoint.format_name,
        size_bytes=checkpoint.size_bytes,
        tensors=replace(totals(location.inventory), storage_bytes=checkpoint.storage_bytes),
        sections=parts,
        ema=describe_ema(location, checkpoint),
        training=training_facts(training),
        pickle={"globals": _globals(checkpoint)},
        weights_only=_safe_load(checkpoint),
        metadata={k: v for k, v in checkpoint.metadata.items() if k != KEY},
        snapshots=snapshots_in(checkpoint.path.name, checkpoint.tree, checkpoint.reader) or None,
        provenance=as_fields(origin) if origin else None,
        findings=tuple(_findings(checkpoint, location)),
        model=_model(location),
        optimizers=tuple(_optimizers(checkpoint, location)),
        sharing=_sharing(checkpoint),
        entries=entries,
    )


def _sharing(checkpoint: Checkpoint) -> SharingReport | None:
    """Return the files of a checkpoint of several; None for a file, and for a part."""
    if checkpoint.is_part or not checkpoint.path.is_dir():
        return None
    from ckptool.formats.file_kinds import file_kinds  # noqa: PLC0415 - for directories only

    files = (FilesReport(*kind) for kind in file_kinds(checkpoint))
    return SharingReport(checkpoint.world, checkpoint.strategy, tuple(files))


SHOWN_OF_A_TENSOR = 64  # values


def _values(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the plain values of a tree by key path; for a single tensor, its first values."""
    from ckptool.commands.textconv import value_text  # noqa: PLC0415 - hashlib, for a part only
    from ckptool.comparison.leaves import TensorLeaf, flatten  # noqa: PLC0415

    tree = checkpoint.tree
    if isinstance(tree, TensorRef):
        first = beginning(checkpoint.reader, tree) if is_readable(tree) else ()
        numbers = ", ".join(f"{number:.6g}" for number in first[:SHOWN_OF_A_TENSOR])
        rest = ", …" if tree.numel > SHOWN_OF_A_TENSOR else ""
        number = scalar_value(checkpoint.reader, tree)
        unread = f"{tree.dtype} {list(tree.shape)}, which --stats reads"
        is_one = not isinstance(number, TensorRef)
        return {"": number if is_one else f"[{numbers}{rest}]" if first else unread}
    leaves = flatten(tree, checkpoint.reader)
    plain = {at: leaf for at, leaf in leaves.items() if not isinstance(leaf, TensorLeaf)}
    return {at: leaf if is_plain(leaf) else value_text(leaf) for at, leaf in plain.items()}


def refuse_unused(
    listing: Listing,
    reports: Sequence[InspectReport],
    first: Operand | None,
    layouts: Layouts = (),
) -> None:
    """Refuse globs and roles that fit no tensor of any of the files: they are typing errors.

    ``first`` is the operand of the first report.

    Raises:
        UsageError: there is one.
    """
    roles = list(dict.fromkeys(part.role for report in reports for part in report.sections))
    for role in listing.only if reports else ():
        if role not in roles:
            known = ", ".join(roles) or "none"
            raise UsageError(f"--only {role!r} is the role of no section", hint=f"roles: {known}")
    if not listing.match or first is None:
        return
    of_tensors = {part.role for report in reports for part in report.sections if part.tensors}
    listed = [entry.address for report in reports for entry in report.entries or ()]
    for glob in listing.match:
        if glob not in of_tensors and not any(fits(glob, address) for address in listed):
            whole = inspect_file(first, Listing(every=True), layouts=layouts)
            names = [entry.address for entry in whole.entries or ()]
            if not any(fits(glob, name) for name in names):
                from ckptool.contents.globs import meant  # noqa: PLC0415 - for a refusal alone

                raise UsageError(f"--match {glob!r} fits no tensor", hint=meant(glob, names))


def describe_ema(location: EmaLocation, checkpoint: Checkpoint) -> EmaReport:
    """Return the location as a report."""
    return EmaReport(
        status=location.status,
        main_slot=location.told_slot,
        selected=location.selected.address if location.selected else None,
        candidates=tuple(
            _candidate(c, location, checkpoint) for c in location.candidates if not _is_copy(c)
        ),
    )


def _is_copy(candidate: Candidate) -> bool:
    """Return whether a place for non-EMA weights holds the EMA weights: training has ended."""
    return candidate.kind == RAW_KIND and candidate.is_same_as_model


def _candidate(
    candidate: Candidate, location: EmaLocation, checkpoint: Checkpoint
) -> CandidateReport:
    alignment, layout = candidate.alignment, candidate.layout
    return CandidateReport(
        address=candidate.address,
        file=str(candidate.file) if candidate.file else None,
        kind=candidate.kind,
        layout=layout.name if layout else None,
        library=layout.library if layout else None,
        why=candidate.why,
        tensors=len(candidate.table.entries),
        bytes=Forms.of(candidate.table.tensors.values()).nbytes,
        aliases=tuple(map(format_address, _aliases(candidate, location))),
        model=table_address(location.model) if location.model else None,
        naming=alignment.naming if alignment else None,
        matched=len(alignment.pairs) if alignment else 0,
        missing=alignment.missing_keys if alignment else (),
        unexpected=alignment.unexpected_keys if alignment else (),
        meta=candidate.meta,
        distance=candidate.agreement.distance if candidate.agreement else None,
        meta_at=candidate.meta_at,
        no_distance=candidate.agreement.why or None if candidate.agreement else None,
        prefix=_prefix(alignment) if alignment else None,
        same=_same(sameness(checkpoint, location, candidate)),
    )


def _same(seen: Sameness | None) -> SameReport | None:
    return seen and SameReport(seen.compared, len(seen.same), tuple(seen.same))


def _prefix(alignment: Alignment) -> str | None:
    """Return the beginning that all names have and the model's lack; None without one."""
    if alignment.naming not in {"prefixed", "wrapped"}:
        return None
    ours, theirs = next(iter(alignment.pairs.items()), ("", ""))
    prefix = theirs.removesuffix(ours)
    is_it = all(other == prefix + name for name, other in alignment.pairs.items())
    return prefix if prefix and is_it else None


def _aliases(candidate: Candidate, location: EmaLocation) -> tuple[Address, ...]:
    copies = [c.table.address for c in location.candidates if _is_copy(c)]
    return (*candidate.aliases, *(copies if candidate is location.selected else ()))


def _model(location: EmaLocation) -> ModelReport | None:
    """Return the counts of the model's parameters; None where there are no weights."""
    table = location.weights
    if table is None:
        return None
    forms = Forms.of(model_parameters(table).values())
    dtypes = Counter({dtype.name: part.elements for dtype, part in forms.by_dtype().items()})
    named = tuple(name for name, _ in dtypes.most_common())
    return ModelReport(table_address(table), forms.elements, named)


def _optimizers(checkpoint: Checkpoint, location: EmaLocation) -> Iterator[OptimizerReport]:
    for optimizer in read_optimizers(location.inventory):
        rates = [
            scalar_value(checkpoint.reader, group.get("lr"))
            for group in optimizer.groups[:MAX_GROUPS]
        ]
        kind = kind_of_optimizer(optimizer, location.inventory.optimizers[optimizer.address])
        yield OptimizerReport(
            format_address(optimizer.address),
            kind,
            parameters=len(optimizer.parameters),
            states=len(optimizer.states),
            groups=len(optimizer.groups),
            lr=tuple(dict.fromkeys(rate for rate in rates if is_real(rate))),
            stateless=is_stateless(optimizer, kind),
        )


def training_facts(state: TrainingState) -> dict[str, Any]:
    """Return the state of a training run as reports have it, without what is empty."""
    parts: dict[str, Mapping[str, Any]] = {
        "best": state.best,
        "early_stopping": state.early_stopping,
        "metrics": state.metrics,
        "better": {
            at: {"is": told.word, "because": told.because} for at, told in state.better.items()
        },
        "rng": state.rng,
    }
    return {**state.facts, **{name: part for name, part in parts.items() if part}}


def _globals(checkpoint: Checkpoint) -> tuple[GlobalReport, ...]:
    merged: dict[str, GlobalReport] = {}
    for named in checkpoint.globals_named:
        name = named.ref.qualname
        known = merged.get(name)
        if known is not None and known.called:
            continue  # nothing is worse than being called
        merged[name] = GlobalReport(name, trust_of(named), named.called, named.pickle)
    return tuple(merged.values())


def _safe_load(checkpoint: Checkpoint) -> SafeLoadReport | None:
    """Return whether torch's safe loader takes a file; None for a part, and where it has no say."""
    if checkpoint.is_part or not (checkpoint.format.is_weights_only or checkpoint.format.loaded_by):
        return None
    return safe_load(checkpoint, MAX_PICKLE)


def _findings(checkpoint: Checkpoint, location: EmaLocation) -> Iterator[Finding]:
    yield from (finding(note.rule, note.address, note.message) for note in checkpoint.notes)
    yield from trust_findings(checkpoint)
    yield from ema_findings(checkpoint, location)
    yield from unplain_findings(location)
