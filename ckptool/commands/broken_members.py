"""Broken checkpoints among those that ``average`` combines: which one it is, and what to type.

One of a hundred may be half copied, changed on its disk, or diverged. It is never left out in
silence: ``--skip-broken`` leaves it out, and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ckptool.commands.members import SKIP, Members, Opened, may_be_skipped
from ckptool.errors import DamagedError, EmaRefusedError
from ckptool.tensors.statistics import nonfinite_values


@contextmanager
def blaming(members: Members, averaged: Iterable[str], *, may_skip: bool) -> Iterator[None]:
    """Name the checkpoint for which a mean is refused in the block.

    Args:
        members: the checkpoints.
        averaged: the names of the tensors that are means.
        may_skip: whether the command goes on without one.

    Raises:
        DamagedError, EmaRefusedError: what the block raises, with the way out.
    """
    try:
        yield
    except DamagedError as error:
        listed = [each.path for each in members.opened if each.is_listed]
        if may_skip and error.path in listed:
            may_be_skipped(error)
        raise
    except EmaRefusedError as error:
        if error.adding != SKIP:
            refuse_nonfinite(members.opened, averaged, error.hint, may_skip=may_skip)
        raise


def refuse_nonfinite(
    members: Iterable[Opened],
    averaged: Iterable[str],
    hint: str | None = None,
    *,
    may_skip: bool = True,
) -> None:
    """Refuse the first checkpoint with NaN or infinities.

    Raises:
        EmaRefusedError: there is one.
    """
    names = list(averaged)
    for each in members:
        for name in names:
            if count := nonfinite_values(each.checkpoint.reader, each.tensors[name]).total:
                values = "1 value" if count == 1 else f"{count:,} values"
                told = f"the weights are non-finite: {values} of {name}"
                error = EmaRefusedError(told, path=each.path, hint=hint)
                if may_skip and each.is_listed:
                    may_be_skipped(error)
                raise error
