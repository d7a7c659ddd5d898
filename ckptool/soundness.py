"""The last look at averaged weights before somebody builds on them: finite, equal as believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from ckptool.candidates import Candidate
from ckptool.casting import Losses
from ckptool.errors import EmaAmbiguousError, EmaRefusedError
from ckptool.formats.base import Checkpoint
from ckptool.numerics import equal_after_cast, find_nonfinite, same_values
from ckptool.reports import Finding
from ckptool.rules import finding
from ckptool.tree import TensorRef

Result = TypeVar("Result")


def refuse_nonfinite(
    checkpoint: Checkpoint, averages: Iterable[tuple[str, TensorRef]], *, force: bool
) -> tuple[Finding, ...]:
    """Averages with NaN or infinities are refused: whoever loads them gets noise.

    Returns:
        With ``force``, a finding for each such tensor instead.

    Raises:
        EmaRefusedError: there are some, without ``force``.
    """
    return refuse_bad(checkpoint, find_nonfinite(checkpoint.reader, averages), force=force)


def refuse_bad(
    checkpoint: Checkpoint, bad: Mapping[str, int], *, force: bool
) -> tuple[Finding, ...]:
    """The same for values that were counted elsewhere: names, and how many are not finite."""
    if bad and not force:
        first, count = next(iter(bad.items()))
        tensors = f"{len(bad)} tensors" if len(bad) > 1 else "1 tensor"
        raise EmaRefusedError(
            f"the averaged weights are not finite: {tensors}, {count} values of {first} among them",
            path=checkpoint.path,
            hint="an earlier checkpoint may be sound; --force writes these all the same",
        )
    return tuple(
        finding("CK301", name, f"{count} values are not finite")._replace(severity="warning")
        for name, count in bad.items()
    )


def refuse_lossy(
    checkpoint: Checkpoint,
    casts: Iterable[tuple[str, Losses]],
    *,
    force: bool,
    hint: str = "ckptool extract-ema keeps the type of the averages; --force casts all the same",
) -> tuple[Finding, ...]:
    """Casts that take values beyond the range of the type are refused; lost small ones are told.

    Returns:
        A finding for each tensor that loses values.

    Raises:
        EmaRefusedError: some overflow, without ``force``.
    """
    lossy = {name: losses for name, losses in casts if any(losses)}
    overflowed = {name: lost.overflowed for name, lost in lossy.items() if lost.overflowed}
    if overflowed and not force:
        first, count = next(iter(overflowed.items()))
        raise EmaRefusedError(
            f"{sum(overflowed.values())} values do not fit the type that they are cast to, "
            f"{count} values of {first} among them",
            path=checkpoint.path,
            hint=hint,
        )
    return tuple(finding("CK801", name, ", ".join(_losses(lost))) for name, lost in lossy.items())


def _losses(lost: Losses) -> Iterator[str]:
    if lost.overflowed:
        yield f"{lost.overflowed} values overflow in the cast"
    if lost.vanished:
        yield f"{lost.vanished} values become 0 in the cast"


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
