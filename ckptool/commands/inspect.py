"""What a checkpoint holds: sections, the EMA, training state, the names its pickles mention.

Reads headers and pickles, and a few values to compare the average with the model; ``--stats``
reads all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

from ckptool.candidates import Candidate, EmaLocation, table_address
from ckptool.ema import locate_ema
from ckptool.ema_findings import ema_findings
from ckptool.errors import CkptError, UnreadableError
from ckptool.formats import folder_format, open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.layouts import Layouts
from ckptool.numerics import Progress, no_progress, tensor_stats
from ckptool.provenance import KEY, read_provenance
from ckptool.reports import (
    CandidateReport,
    EmaReport,
    Finding,
    GlobalReport,
    InspectReport,
    RunEntry,
    RunReport,
    TensorEntry,
)
from ckptool.rules import finding
from ckptool.sections import sections, totals
from ckptool.training import TrainingState, better_direction, read_training_state
from ckptool.tree import format_address, tensors
from ckptool.trust import trust_of
from ckptool.trust_findings import trust_findings


def inspect_file(
    path: Path,
    *,
    list_tensors: bool = False,
    match: str | None = None,
    stats: bool = False,
    digests: bool = False,
    progress: Progress = no_progress,
    layouts: Layouts = (),
) -> InspectReport:
    """Everything about one file.

    Args:
        path: the checkpoint.
        list_tensors: list every tensor in ``entries``.
        match: only list tensors whose address fits this glob.
        stats: read the values of the listed tensors.
        digests: read all values of the listed tensors, and give the digest of each.
        progress: called with the bytes read.
        layouts: rows of a house style, tried before the known ones.

    Raises:
        CkptError: the file cannot be read.
    """
    with open_checkpoint(path) as checkpoint:
        location = locate_ema(checkpoint, layouts=layouts)
        training = read_training_state(checkpoint.tree, checkpoint.reader)
        origin = read_provenance(checkpoint.metadata)
        wanted = list_tensors or stats or digests or match is not None
        entries: Iterable[TensorEntry] = _entries(checkpoint, match or "*", stats, progress)
        if digests:
            entries = _digested(checkpoint, list(entries))
        return InspectReport(
            path=str(path),
            format=checkpoint.format_name,
            size_bytes=checkpoint.size_bytes,
            tensors=totals(location.inventory),
            sections=sections(checkpoint.tree, location),
            ema=describe_ema(location),
            training=_training(training),
            pickle={"globals": _globals(checkpoint)},
            metadata={k: v for k, v in checkpoint.metadata.items() if k != KEY},
            provenance=origin._asdict() if origin else None,
            findings=tuple(_findings(checkpoint, location)),
            entries=tuple(entries) if wanted else None,
        )


def _entries(
    checkpoint: Checkpoint,
    match: str,
    stats: bool,  # noqa: FBT001
    progress: Progress,
) -> Iterator[TensorEntry]:
    for address, ref in tensors(checkpoint.tree):
        text = format_address(address)
        if fnmatchcase(text, match):
            numbers = tensor_stats(checkpoint.reader, ref) if stats else None
            progress(ref.nbytes)
            yield TensorEntry(text, str(ref.dtype), ref.shape, ref.nbytes, ref.device, numbers)


def _digested(checkpoint: Checkpoint, entries: list[TensorEntry]) -> Iterator[TensorEntry]:
    from ckptool.comparison.digests import tensor_digests  # noqa: PLC0415 - hashlib, 6 ms

    refs = {format_address(address): ref for address, ref in tensors(checkpoint.tree)}
    found = tensor_digests(checkpoint.reader, [refs[entry.address] for entry in entries])
    for entry, digest in zip(entries, found, strict=True):
        yield entry._replace(sha256=digest)


def describe_ema(location: EmaLocation) -> EmaReport:
    """The location as a report."""
    return EmaReport(
        status=location.status,
        main_slot=location.main_slot,
        selected=location.selected.address if location.selected else None,
        candidates=tuple(_candidate(c, location) for c in location.candidates),
    )


def _candidate(candidate: Candidate, location: EmaLocation) -> CandidateReport:
    alignment, layout = candidate.alignment, candidate.layout
    refs = candidate.table.tensors.values()
    return CandidateReport(
        address=candidate.address,
        file=str(candidate.file) if candidate.file else None,
        kind=candidate.kind,
        layout=layout.name if layout else None,
        library=layout.library if layout else None,
        why=candidate.why,
        tensors=len(candidate.table.entries),
        bytes=sum(ref.nbytes for ref in refs),
        aliases=tuple(map(format_address, candidate.aliases)),
        model=table_address(location.model) if location.model else None,
        naming=alignment.naming if alignment else None,
        matched=len(alignment.pairs) if alignment else 0,
        missing=alignment.missing_keys if alignment else (),
        unexpected=alignment.unexpected_keys if alignment else (),
        meta=candidate.meta,
        distance=candidate.agreement.distance if candidate.agreement else None,
    )


def _training(state: TrainingState) -> dict[str, Any]:
    parts: dict[str, Mapping[str, Any]] = {
        "best": state.best,
        "early_stopping": state.early_stopping,
        "metrics": state.metrics,
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


def _findings(checkpoint: Checkpoint, location: EmaLocation) -> Iterator[Finding]:
    yield from (finding(note.rule, note.address, note.message) for note in checkpoint.notes)
    yield from trust_findings(checkpoint)
    yield from ema_findings(checkpoint, location)


# ------------------------------------------------------------------------------------- directories

CHECKPOINT_SUFFIXES = frozenset(
    {".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pkl", ".tar", ".pyt", ".model", ".th", ".t7"}
)


MAX_LOOKED = 1_000  # files below a folder, for a hint


def is_run(path: Path) -> bool:
    """Whether the path is a folder of checkpoints, and not one checkpoint itself."""
    return os.path.isdir(path) and folder_format(path) is None  # noqa: PTH112 - never raises


def inspect_directory(path: Path, *, layouts: Layouts = ()) -> RunReport:
    """A table of the checkpoints directly in a directory, in the order of their steps.

    Raises:
        UnreadableError: it cannot be listed, or there are none.
    """
    entries = sorted((_run_entry(p, layouts) for p in checkpoint_files(path)), key=_progress_of)
    return RunReport(str(path), tuple(entries), best_by_metric(entries))


def checkpoint_files(path: Path) -> list[Path]:
    """The checkpoints directly in a directory, by name.

    Raises:
        UnreadableError: it cannot be listed, or there are none.
    """
    try:
        files = sorted(p for p in path.iterdir() if p.suffix in CHECKPOINT_SUFFIXES and p.is_file())
    except OSError as error:
        raise UnreadableError((error.strerror or str(error)).lower(), path=path) from error
    if not files:
        raise UnreadableError(
            "a directory without checkpoint files",
            path=path,
            hint=_place_within(path) or "name a file: it is read whatever its suffix",
        )
    return files


def _place_within(path: Path) -> str | None:
    """Trainers put checkpoints a folder or two below the run's."""
    for pattern in ("*/*", "*/*/*"):
        looked = islice(path.glob(pattern), MAX_LOOKED)
        found = next((p for p in looked if p.suffix in CHECKPOINT_SUFFIXES), None)
        if found is not None:
            return f"there are some in {found.parent}"
    return None


def _progress_of(entry: RunEntry) -> tuple[float, float, str]:
    return (entry.global_step or 0, entry.epoch or 0, entry.path)


def _run_entry(path: Path, layouts: Layouts) -> RunEntry:
    try:
        report = inspect_file(path, layouts=layouts)
    except CkptError as error:
        size = path.stat().st_size if path.exists() else 0
        return RunEntry(str(path), size, None, None, None, {}, None, error=error.message)
    training = report.training
    metrics = {**training.get("metrics", {}), **training.get("best", {})}
    return RunEntry(
        path=str(path),
        size_bytes=report.size_bytes,
        format=report.format,
        epoch=training.get("epoch"),
        global_step=training.get("global_step"),
        metrics=metrics,
        ema=report.ema.selected if report.ema.selected is not None else report.ema.status,
    )


def best_by_metric(entries: list[RunEntry]) -> dict[str, str]:
    """For each metric that more than one checkpoint has: the checkpoint that is best by it.

    Running bests (``best_val_loss``) are left out, being equal in every later checkpoint, and so
    are the numbers of the training set.
    """
    names = dict.fromkeys(name for entry in entries for name in entry.metrics)
    best = {}
    for name in names:
        direction = better_direction(name)
        rated = [
            (entry.metrics[name], entry.path)
            for entry in entries
            if isinstance(entry.metrics.get(name), (int, float))
            and entry.metrics[name] == entry.metrics[name]
        ]
        is_judged = not re.match(r"train|.*best", name, re.IGNORECASE)
        if direction and len(rated) > 1 and is_judged:
            best[name] = (min if direction < 0 else max)(rated, key=lambda pair: pair[0])[1]
    return best
