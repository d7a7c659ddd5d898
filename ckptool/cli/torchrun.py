"""What ``torchrun`` tells each process: which one it is, and where the others are.

Every process does its part and ends with the same exit code; the first one speaks for all.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from ckptool.ranks import Ranks


class Place(NamedTuple):
    """This process among those of torchrun."""

    rank: int = 0
    world: int = 1  # how many there are
    local: int = 0  # rank on this machine

    @property
    def speaks(self) -> bool:
        """Whether this process prints and writes the answer."""
        return self.rank == 0


def own_place() -> Place:
    """As the environment has it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # others set the rest, and nobody waits for us
        return Place()
    rank, world, local = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Place(rank, world, local)


def joined(place: Place) -> AbstractContextManager[Ranks]:
    """This process and the others, if there are any."""
    if place.world == 1:
        return nullcontext(Ranks())
    from ckptool.ranks import joined_ranks

    return joined_ranks(place.rank, place.world)
