"""The validation of weights before they are written: damage, non-finite values, lossy casts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ckptool.contents.dangers import trust_findings
from ckptool.ema.candidates import EmaLocation
from ckptool.ema.findings import stale_findings
from ckptool.errors import DamagedError, EmaRefusedError
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.process.progress import no_progress
from ckptool.reports.base import Finding, Severity
from ckptool.reports.rules import BYTES, VALUES, finding
from ckptool.sources.base import ByteSpan
from ckptool.tensors.casting import Losses
from ckptool.tensors.crc import Seen
from ckptool.tensors.scan import BrokenRecord, Scan, completed, scan
from ckptool.tensors.statistics import nonfinite_values
from ckptool.tree.nodes import Address, TensorRef

READS = frozenset({BYTES, VALUES})

# Readers of checkpoints, each with tensors by name.
Inputs = Sequence[tuple[TensorReader, Mapping[str, TensorRef]]]


ONE_OF_RANKS = "CK126"  # a note of the format, by the name of the file
CAST_HINT = "ckptool extract-ema keeps the type of the averages; --force casts all the same"


@contextmanager
def validation(
    checkpoint: Checkpoint,
    sources: Mapping[str, TensorRef],
    averaged: Collection[str],
    losses: Mapping[str, Losses],
    *,
    read_by_block: Collection[ByteSpan] = (),
    seen: Mapping[ByteSpan, Seen] | None = None,
    inputs: Inputs = (),
    force: bool,
    hint: str = CAST_HINT,
) -> Iterator[Callable[[], tuple[Finding, ...]]]:
    """Validate weights while the block writes them: each byte is read once, by it or by a thread.

    Args:
        checkpoint: the file, whose checksums are compared where it has any.
        sources: the tensors that are written, under names for messages.
        averaged: the names of those whose values must be finite.
        losses: the losses of the block's casts, by name; the block fills it.
        read_by_block: runs of bytes that the block reads.
        seen: the checksums and tests of these runs; the block fills it.
        inputs: other tensors, of which what is written is made: their records are compared, too.
        force: report findings instead of refusing.
        hint: advice about casts that overflow.

    Yields:
        A function to call when the block has read everything. It returns the findings, or raises
        what :func:`refuse_unsound` and :func:`refuse_lossy` raise.
    """
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - it brings logging along

    def read(reader: TensorReader, wanted: Mapping[str, TensorRef], reads: frozenset[str]) -> Scan:
        tensors: dict[Address, TensorRef] = {(name,): ref for name, ref in wanted.items()}
        return scan(reader, tensors, reads, no_progress, elsewhere=False, passed=read_by_block)

    with ThreadPoolExecutor(1) as pool:
        reading = [pool.submit(read, checkpoint.reader, sources, READS)]
        reading += [pool.submit(read, *each, frozenset({BYTES})) for each in inputs]

        def judge() -> tuple[Finding, ...]:
            first, *others = (completed(each.result(), seen or {}) for each in reading)
            everything = sum(others, first)
            return (
                *refuse_unsound(checkpoint, everything, averaged, force=force),
                *refuse_lossy(checkpoint, losses, force=force, hint=hint),
            )

        yield judge


def refuse_unsound(
    checkpoint: Checkpoint, seen: Scan, averaged: Collection[str], *, force: bool
) -> tuple[Finding, ...]:
    """Refuse bytes that were changed since they were written, and non-finite EMA weights.

    Other tensors are written as they are, and non-finite values in them are reported.

    Args:
        checkpoint: the file.
        seen: the scan of the file.
        averaged: the names of the tensors whose values must be finite.
        force: take them all the same.

    Returns:
        A finding for each other tensor with non-finite values; with ``force``, also for each
        tensor or record that would be refused.

    Raises:
        DamagedError: bytes do not fit their checksum: a disk or a copy has changed them.
        EmaRefusedError: EMA weights hold NaN or infinities; a model that loads them gives noise.
    """
    counts = {str(name): nonfinite_values(checkpoint.reader, ref) for (name,), ref in seen.suspects}
    bad = {name: each.total for name, each in counts.items() if each.total and name in averaged}
    others = {
        name: each.total
        for name, each in counts.items()
        if each.total and name not in averaged and not (each.is_mask or each.is_unset)
    }
    return (
        *_refuse_broken(checkpoint, seen.broken, force=force),
        *_refuse_nonfinite(checkpoint, bad, force=force),
        *_nonfinite(others),
    )


def _refuse_broken(
    checkpoint: Checkpoint, broken: tuple[BrokenRecord, ...], *, force: bool
) -> Iterator[Finding]:
    if broken and not force:
        first, *more = broken
        others = f", and {len(more)} other records" if more else ""
        raise DamagedError(
            _message(first) + others,
            path=first.path or checkpoint.path,
            address=_hit(first) or None,
            hint="get the file again or take an earlier one; --force writes the values as they are",
        )
    for record in broken:
        yield replace(finding("CK103", _hit(record), _message(record)), severity=Severity.WARNING)


def _hit(record: BrokenRecord) -> str:
    """Return the first tensor in a record."""
    return record.tensors[0] if record.tensors else ""


def _message(record: BrokenRecord) -> str:
    return f"the bytes of the record {record.name} do not fit its checksum: they were changed"


def _refuse_nonfinite(
    checkpoint: Checkpoint, bad: Mapping[str, int], *, force: bool
) -> tuple[Finding, ...]:
    """Refuse non-finite EMA weights, with their names and the number of such values.

    Returns:
        With ``force``, a finding for each tensor instead.
    """
    if bad and not force:
        first, count = next(iter(bad.items()))
        tensors = f"{len(bad)} tensors" if len(bad) > 1 else "1 tensor"
        raise EmaRefusedError(
            f"the weights are non-finite: {tensors}, {_values(count)} of {first} among them",
            path=checkpoint.path,
            hint="an earlier checkpoint may be sound; --force writes these all the same",
        )
    return tuple(_nonfinite(bad))


def _nonfinite(bad: Mapping[str, int]) -> Iterator[Finding]:
    for name, count in bad.items():
        told = finding("CK301", name, f"non-finite: {_values(count)}")
        yield replace(told, severity=Severity.WARNING)


def warnings(checkpoint: Checkpoint, location: EmaLocation) -> Iterator[Finding]:
    """Yield findings for users of the weights, which are only data and taken all the same."""
    yield from names_to_note(checkpoint)
    for told in stale_findings(checkpoint, location):
        yield replace(told, severity=Severity.WARNING)


def names_to_note(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield findings about names in the pickle, which are only data for ckptool, as warnings.

    The name of the file counts too, where it says that the weights may be parts.
    """
    for note in checkpoint.notes:
        if note.rule == ONE_OF_RANKS:
            yield finding(*note)
    for told in trust_findings(checkpoint):
        yield replace(told, severity=Severity.WARNING)


def refuse_lossy(
    checkpoint: Checkpoint, casts: Mapping[str, Losses], *, force: bool, hint: str = CAST_HINT
) -> tuple[Finding, ...]:
    """Refuse casts to dtypes that cannot hold the values; report all other losses.

    Returns:
        A finding for each tensor that loses values.

    Raises:
        EmaRefusedError: values overflow or lose a fraction, without ``force``.
    """
    lossy = {name: losses for name, losses in casts.items() if losses}
    unfit = {name: lost.overflowed + lost.cut for name, lost in lossy.items()}
    unfit = {name: count for name, count in unfit.items() if count}
    if unfit and not force:
        first, count = next(iter(unfit.items()))
        raise EmaRefusedError(
            f"{_values(sum(unfit.values()))} that the type of the cast cannot hold, "
            f"{_values(count)} of {first} among them",
            path=checkpoint.path,
            hint=hint,
        )
    return tuple(finding("CK801", name, ", ".join(_losses(lost))) for name, lost in lossy.items())


def _values(count: int) -> str:
    return f"{count} values" if count != 1 else "1 value"


def _losses(lost: Losses) -> Iterator[str]:
    if lost.overflowed:
        yield f"overflow in the cast: {_values(lost.overflowed)}"
    if lost.vanished:
        yield f"0 after the cast: {_values(lost.vanished)}"
    if lost.cut:
        yield f"fraction lost in the cast: {_values(lost.cut)}"
