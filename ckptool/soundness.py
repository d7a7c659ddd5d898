"""The last look at averaged weights before somebody builds on them: finite, equal as believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ckptool.candidates import Candidate
from ckptool.errors import EmaAmbiguousError, EmaRefusedError
from ckptool.formats.base import Checkpoint
from ckptool.numerics import Losses, find_nonfinite, same_values
from ckptool.reports import Finding
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
    bad = find_nonfinite(checkpoint.reader, averages)
    if bad and not force:
        first, count = next(iter(bad.items()))
        tensors = f"{len(bad)} tensors" if len(bad) > 1 else "1 tensor"
        raise EmaRefusedError(
            f"the averaged weights are not finite: {tensors}, {count} values of {first} among them",
            path=checkpoint.path,
            hint="an earlier checkpoint may be sound; --force writes these all the same",
        )
    return tuple(
        Finding("CK301", "warning", name, f"{count} values are not finite")
        for name, count in bad.items()
    )


def refuse_lossy(
    checkpoint: Checkpoint, casts: Iterable[tuple[str, Losses]], *, force: bool
) -> tuple[Finding, ...]:
    """Casts to types that cannot hold the values are refused; lost small ones are told.

    Returns:
        A finding for each tensor that loses values.

    Raises:
        EmaRefusedError: some overflow, without ``force``.
    """
    lossy = {name: losses for name, losses in casts if any(losses)}
    unfit = {name: lost.overflowed + lost.cut for name, lost in lossy.items()}
    unfit = {name: count for name, count in unfit.items() if count}
    if unfit and not force:
        first, count = next(iter(unfit.items()))
        raise EmaRefusedError(
            f"{sum(unfit.values())} values do not fit the type that they are cast to, "
            f"{count} values of {first} among them",
            path=checkpoint.path,
            hint="ckptool extract-ema keeps the type of the averages; --force casts all the same",
        )
    return tuple(
        Finding("CK302", "warning", name, ", ".join(_losses(lost))) for name, lost in lossy.items()
    )


def _losses(lost: Losses) -> Iterator[str]:
    if lost.overflowed:
        yield f"{lost.overflowed} values overflow in the cast"
    if lost.vanished:
        yield f"{lost.vanished} values become 0 in the cast"
    if lost.cut:
        yield f"{lost.cut} values lose their fraction in the cast"


def prove_equalities(checkpoint: Checkpoint, candidate: Candidate | None) -> None:
    """Compare in full what the search compared in a sample, before anything rests on it.

    Raises:
        EmaAmbiguousError: two tables that looked equal differ.
    """
    for belief in candidate.believed if candidate else ():
        for one, other in belief.pairs:
            if not same_values(checkpoint.reader, one, other, cast_other=belief.cast):
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
