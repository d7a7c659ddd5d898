"""The claimed source of weights: a checkpoint and the weights that ``extract-ema`` takes.

An operand names the file alone, or with ``#@ema``, for its EMA weights. With ``#@model`` or
``#ADDRESS`` it names the weights that ``--ema`` would take from that place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from ckptool.contents.selection import MODEL_ROLE
from ckptool.ema.buffers import with_models_buffers
from ckptool.ema.candidates import CHOSEN, RAW_KIND, EmaLocation, table_address
from ckptool.ema.layouts import Layouts
from ckptool.errors import CkptError
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.plans.extraction import complete, plan_extraction, plan_model
from ckptool.plans.weights import Weights, take_weights
from ckptool.records import NamedTuple
from ckptool.reports.base import MainSlot
from ckptool.tree.nodes import TensorRef

NAMES = ("model", "bare", "ema")  # the kinds of names of extract-ema
Tensors = Mapping[str, TensorRef]


class Original(NamedTuple):
    """The weights that a release is made from."""

    reader: TensorReader
    plans: tuple[Tensors, ...]  # the tensors, under each kind of names that they can have
    raw: Tensors  # the raw weights, where the plans are EMA weights beside them
    buffered: tuple[Tensors, ...] = ()  # the plans with the model's buffers
    # Names of files that are not those which a mean was made from; () where none was.
    changed: Callable[[], Iterable[str]] = tuple
    kind: str = "weights"  # ema, swa, …; raw; weights: those that an address names
    address: str = ""  # their key path


def read_original(checkpoint: Checkpoint, address: str | None, layouts: Layouts = ()) -> Original:
    """Return the weights at a place in an open checkpoint.

    Raises:
        AddressError: the place does not exist.
        EmaNotFoundError, EmaAmbiguousError, EmaRefusedError: see ``refusals.require_ema``.
        UnsupportedError: a part of the weights is no plain tensor.
    """
    # Each value of a release is compared with its source's, so a full comparison here adds nothing.
    weights = take_weights(
        checkpoint, ema=address, layouts=layouts, command=None, compared_in_full=False
    )
    return Original(
        checkpoint.reader,
        plans=tuple(_plans(weights, checkpoint)),
        raw=_raw(weights.location),
        buffered=_buffered(weights, checkpoint),
        kind=_kind(weights.location, address),
        address=_address(weights.location),
    )


def _kind(location: EmaLocation, asked: str | None) -> str:
    chosen = location.selected
    if asked == MODEL_ROLE or (chosen is not None and chosen.kind == RAW_KIND):
        return RAW_KIND
    return "weights" if chosen is None or chosen.kind == CHOSEN else chosen.kind


def _address(location: EmaLocation) -> str:
    if location.selected is not None:
        return location.selected.address
    return "" if location.model is None else table_address(location.model)


def _buffered(weights: Weights, checkpoint: Checkpoint) -> tuple[Tensors, ...]:
    """Return the tensors that ``extract-ema --buffers model`` writes; () where it would refuse."""
    try:
        location = with_models_buffers(weights.location, checkpoint)
        return tuple(_plans(Weights(location, location.selected), checkpoint))
    except CkptError:
        return ()


def _raw(location: EmaLocation) -> Tensors:
    """Return the raw weights beside the EMA weights, under the model's names."""
    if location.main_slot is MainSlot.RAW and location.model is not None:
        return plan_model(location.model, "model").tensors
    if location.main_slot is MainSlot.AVERAGED and location.raw is not None:
        return plan_extraction(location, location.raw, "model").tensors
    return {}


def _plans(weights: Weights, checkpoint: Checkpoint) -> Iterator[Tensors]:
    """Yield the plan under each kind of names; only the first must succeed."""
    for names in NAMES:
        try:
            yield complete(plan_extraction(*weights, names), checkpoint.path).tensors
        except CkptError:
            if names == NAMES[0]:
                raise
