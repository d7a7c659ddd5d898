"""Where weights are said to come from: an open checkpoint, and what ``extract-ema`` takes from it.

An operand names the file alone, or with ``#@ema``, for its averages; with ``#@model`` or
``#ADDRESS`` for what ``--ema`` would take from that place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ckptool.candidates import EmaLocation
from ckptool.ema import locate_ema
from ckptool.errors import CkptError
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.layouts import Layouts
from ckptool.plans import plan_extraction, plan_model
from ckptool.refusals import require_ema
from ckptool.tree import TensorRef

NAMES = ("model", "bare", "ema")  # of extract-ema
Tensors = Mapping[str, TensorRef]


class Source(NamedTuple):
    """What a release is made from."""

    reader: TensorReader
    plans: tuple[Tensors, ...]  # the tensors, under each kind of names that they can have
    raw: Tensors  # the model's own, where the plans are averages beside it


def read_source(checkpoint: Checkpoint, address: str | None, layouts: Layouts = ()) -> Source:
    """What the place in an open checkpoint holds.

    Raises:
        AddressError: there is nothing.
        EmaNotFoundError, EmaAmbiguousError, EmaRefusedError: see ``refusals.require_ema``.
    """
    location = locate_ema(checkpoint, ema=address, layouts=layouts)
    plans = tuple(_plans(location, checkpoint))
    is_beside = location.main_slot == "raw" and location.model is not None
    raw = plan_model(location.model, "model").tensors if is_beside and location.model else {}
    return Source(checkpoint.reader, plans, raw)


def _plans(location: EmaLocation, checkpoint: Checkpoint) -> Iterator[Tensors]:
    """The first kind of names must go; of the others, one that does not is left out."""
    chosen = None if location.main_slot == "averaged" else require_ema(location, checkpoint)
    for names in NAMES:
        try:
            yield plan_extraction(location, chosen, names).tensors
        except CkptError:
            if names == NAMES[0]:
                raise
