"""Full comparison of state dicts that the search assumed to be equal after a sample."""

from __future__ import annotations

from ckptool.ema.candidates import Candidate
from ckptool.errors import EmaAmbiguousError
from ckptool.formats.base import Checkpoint
from ckptool.tensors.blocks import equal_after_cast, same_values
from ckptool.tensors.volume import refuse_repetition


def compare_in_full(checkpoint: Checkpoint, candidate: Candidate | None) -> None:
    """Compare every value that the search compared in a sample, before a command relies on it.

    Raises:
        EmaAmbiguousError: two state dicts that looked equal differ.
    """
    for assumed in candidate.assumed_equal if candidate else ():
        are_equal = equal_after_cast if assumed.cast else same_values
        refuse_repetition(ref for pair in assumed.pairs for ref in pair)
        checkpoint.reader.expect_values(ref for pair in assumed.pairs for ref in pair)
        for one, other in assumed.pairs:
            if not are_equal(checkpoint.reader, one, other):
                raise EmaAmbiguousError(
                    f"agrees with {assumed.what} in a sample of the values, but not in all",
                    path=checkpoint.path,
                    address=candidate.address if candidate else None,
                    hint="name the one that is meant: --ema ADDRESS",
                )
