"""The last look at averaged weights before somebody builds on them: finite, equal as believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ckptool.candidates import Candidate
from ckptool.errors import EmaAmbiguousError, EmaRefusedError
from ckptool.formats.base import Checkpoint
from ckptool.numerics import find_nonfinite, same_values
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
        finding("CK301", name, f"{count} values are not finite")._replace(severity="warning")
        for name, count in bad.items()
    )


def prove_equalities(checkpoint: Checkpoint, candidate: Candidate | None) -> None:
    """Compare in full what the search compared in a sample, before anything rests on it.

    Raises:
        EmaAmbiguousError: two tables that looked equal differ.
    """
    for belief in candidate.believed if candidate else ():
        for one, other in belief.pairs:
            if not same_values(checkpoint.reader, one, other):
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
