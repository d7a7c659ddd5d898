"""The last look at averaged weights before somebody builds on them: whole, finite, as believed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from ckptool.candidates import Candidate, EmaLocation
from ckptool.casting import Losses
from ckptool.ema_findings import stale_findings
from ckptool.errors import DamagedError, EmaAmbiguousError, EmaRefusedError
from ckptool.formats.base import Checkpoint
from ckptool.numerics import equal_after_cast, find_nonfinite, no_progress, same_values
from ckptool.reports import Finding
from ckptool.rules import BYTES, VALUES, finding
from ckptool.scan import BrokenRecord, Scan, scan
from ckptool.tree import Address, ByteSpan, TensorRef
from ckptool.trust_findings import trust_findings

Result = TypeVar("Result")
READS = frozenset({BYTES, VALUES})


def look(
    checkpoint: Checkpoint,
    sources: Mapping[str, TensorRef],
    passed: Collection[ByteSpan] = (),
) -> Scan:
    """Every byte that is built on, read once, but for those that are ``passed`` on the way.

    Args:
        checkpoint: the file, whose checksums are asked where it has some.
        sources: what will be written, under names for messages.
        passed: runs that whoever writes sees: see :func:`~ckptool.scan.completed`.
    """
    tensors: dict[Address, TensorRef] = {(name,): ref for name, ref in sources.items()}
    return scan(checkpoint.reader, tensors, READS, no_progress, elsewhere=False, passed=passed)


def refuse_unsound(
    checkpoint: Checkpoint, seen: Scan, averaged: Collection[str], *, force: bool
) -> tuple[Finding, ...]:
    """What is built on must be as it was written, and the averages finite.

    Args:
        checkpoint: the file.
        seen: what reading it has shown.
        averaged: the names of the tensors whose values must be finite.
        force: take them all the same.

    Returns:
        With ``force``, a finding for each that would be refused.

    Raises:
        DamagedError: bytes do not fit their checksum: a disk or a copy has changed them.
        EmaRefusedError: averages hold NaN or infinities; whoever loads them gets noise.
    """
    suspects = [(str(name), ref) for (name,), ref in seen.suspects if name in averaged]
    bad = find_nonfinite(checkpoint.reader, suspects)
    return (
        *_refuse_broken(checkpoint, seen.broken, force=force),
        *_refuse_nonfinite(checkpoint, bad, force=force),
    )


def _refuse_broken(
    checkpoint: Checkpoint, broken: tuple[BrokenRecord, ...], *, force: bool
) -> Iterator[Finding]:
    if broken and not force:
        first, *more = broken
        others = f", and {len(more)} other records" if more else ""
        raise DamagedError(
            _message(first) + others,
            path=checkpoint.path,
            address=_hit(first) or None,
            hint="get the file again or take an earlier one; --force writes the values as they are",
        )
    for record in broken:
        yield finding("CK103", _hit(record), _message(record))._replace(severity="warning")


def _hit(record: BrokenRecord) -> str:
    """The first tensor in a record."""
    return record.tensors[0] if record.tensors else ""


def _message(record: BrokenRecord) -> str:
    return f"the bytes of the record {record.name} do not fit its checksum: they were changed"


def _refuse_nonfinite(
    checkpoint: Checkpoint, bad: Mapping[str, int], *, force: bool
) -> tuple[Finding, ...]:
    """Averages that are not finite are refused: names, and how many of their values.

    Returns:
        With ``force``, a finding for each instead.

    Raises:
        EmaRefusedError: there are some, without ``force``.
    """
    if bad and not force:
        first, count = next(iter(bad.items()))
        tensors = f"{len(bad)} tensors" if len(bad) > 1 else "1 tensor"
        raise EmaRefusedError(
            f"the weights are not finite: {tensors}, {_values(count)} of {first} among them",
            path=checkpoint.path,
            hint="an earlier checkpoint may be sound; --force writes these all the same",
        )
    said = (finding("CK301", name, f"not finite: {_values(count)}") for name, count in bad.items())
    return tuple(told._replace(severity="warning") for told in said)


def warnings(checkpoint: Checkpoint, location: EmaLocation) -> Iterator[Finding]:
    """What whoever takes the weights should know; they are data, and taken all the same."""
    for told in (*trust_findings(checkpoint), *stale_findings(checkpoint, location)):
        yield told._replace(severity="warning")


def refuse_lossy(
    checkpoint: Checkpoint,
    casts: Mapping[str, Losses],
    *,
    force: bool,
    hint: str = "ckptool extract-ema keeps the type of the averages; --force casts all the same",
) -> tuple[Finding, ...]:
    """Casts to types that cannot hold the values are refused; lost small ones are told.

    Returns:
        A finding for each tensor that loses values.

    Raises:
        EmaRefusedError: some overflow, without ``force``.
    """
    lossy = {name: losses for name, losses in casts.items() if any(losses)}
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


def prove_equalities(checkpoint: Checkpoint, candidate: Candidate | None) -> None:
    """Compare in full what the search compared in a sample, before anything rests on it.

    Raises:
        EmaAmbiguousError: two tables that looked equal differ.
    """
    for belief in candidate.believed if candidate else ():
        are_equal = equal_after_cast if belief.cast else same_values
        for one, other in belief.pairs:
            if not are_equal(checkpoint.reader, one, other):
                raise EmaAmbiguousError(
                    f"agrees with {belief.what} in a sample of the values, but not in all",
                    path=checkpoint.path,
                    address=candidate.address if candidate else None,
                    hint="name the one that is meant: --ema ADDRESS",
                )


@contextmanager
def meanwhile(task: Callable[[], Result]) -> Iterator[Callable[[], Result]]:
    """Run a task beside the block; what is yielded waits for its result, or raises its error."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - it brings logging along

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(task).result
