"""The weights that a command takes: found, accepted and compared in full, but not yet planned.

All code that takes the EMA weights or the raw weights of a checkpoint begins here, so that all
commands agree about which weights those are.
"""

from __future__ import annotations

from typing import Literal

from ckptool.contents.given import refuse_given
from ckptool.contents.selection import MODEL_ROLE, ROLES, select_node
from ckptool.ema.buffers import with_models_buffers
from ckptool.ema.candidates import Candidate, EmaLocation
from ckptool.ema.layouts import Layouts
from ckptool.ema.locate import locate_ema
from ckptool.ema.refusals import EXTRACT, require_ema, typed_place
from ckptool.errors import EmaAmbiguousError
from ckptool.formats.base import Checkpoint
from ckptool.plans.extraction import complete, plan_extraction
from ckptool.records import NamedTuple
from ckptool.reports.base import EmaStatus, MainSlot
from ckptool.tensors.blocks import equal_after_cast, same_values
from ckptool.tensors.volume import refuse_repetition
from ckptool.tree.addresses import refuse_ambiguous
from ckptool.tree.nodes import TensorRef, Tree

Which = Literal["ema", "model", "auto"]


class Weights(NamedTuple):
    """The weights that a command takes, and their location."""

    location: EmaLocation
    candidate: Candidate | None  # None: the model's own state dict is taken as it stands


def take_weights(
    checkpoint: Checkpoint,
    which: Which = "ema",
    *,
    ema: str | None = None,
    model: str | None = None,
    buffers: str = "ema",
    layouts: Layouts = (),
    command: str | None = EXTRACT,
    compared_in_full: bool = True,
) -> Weights:
    """Find the weights that are asked for; refuse if it is not clear which those are.

    Args:
        checkpoint: the file, open.
        which: ``ema``: the EMA weights; ``model``: the raw weights, wherever the file keeps
            them; ``auto``: the EMA weights if the file has any, else the raw ones.
        ema: key path of the weights, instead of searching; or a role, ``@ema`` or ``@model``.
        model: key path of the model's state dict, instead of searching; with ``which="model"`` it
            is taken as it stands.
        buffers: ``model``: take from the model integers, flags, batch statistics and all values
            that still have their initial value in the EMA weights.
        layouts: rows of the configuration, tried before the known ones.
        command: the beginning of a refusal's hint; see :func:`require_ema`.
        compared_in_full: compare every value of state dicts that the search assumed to be equal
            after a sample. Only a caller that compares the values itself can leave it out.

    Raises:
        AddressError: one of the key paths names nothing, or no weights, or is ambiguous.
        EmaNotFoundError, EmaAmbiguousError, EmaRefusedError: see :func:`require_ema`.
        UsageError: the model's buffers are asked for, and there is no model beside the EMA weights.
    """
    as_it_stands = which == "model" and model is not None
    wanted = MODEL_ROLE if which == "model" and model is None else ema
    location = locate_ema(checkpoint, ema=wanted, model=model, layouts=layouts)
    if which == "auto" and location.status is EmaStatus.NONE:
        return take_weights(
            checkpoint,
            "model",
            model=model,
            layouts=layouts,
            command=command,
            compared_in_full=compared_in_full,
        )
    _refuse_ambiguous(location)
    _refuse_given(checkpoint, location)
    if as_it_stands:
        return Weights(location, None)
    if buffers == "model" and which != "model":
        location = with_models_buffers(location, checkpoint)
    in_slot = location.main_slot is MainSlot.AVERAGED
    candidate = None if in_slot else require_ema(location, checkpoint, command)
    selected = location.selected.table if location.selected else None
    for table in (location.model, selected):
        refuse_repetition(table.tensors.values() if table else ())
    if compared_in_full:
        _compare_in_full(checkpoint, location.selected, command)
    return Weights(location, candidate)


def _refuse_ambiguous(location: EmaLocation) -> None:
    """Refuse weights whose key path is written like another one, as 1 and ``"1"`` are."""
    tree, chosen = location.inventory.tree, location.selected
    tables = (location.model, chosen.table if chosen and chosen.file is None else None)
    for table in filter(None, tables):
        refuse_ambiguous(tree, table.address)


def _refuse_given(checkpoint: Checkpoint, location: EmaLocation) -> None:
    """Refuse weights that a loader would give to calls that may change them."""
    chosen = location.selected
    own = chosen.table if chosen is not None and chosen.file is None else None
    refuse_given(checkpoint, (location.model, own))


def _compare_in_full(
    checkpoint: Checkpoint, candidate: Candidate | None, command: str | None
) -> None:
    """Compare every value that the search compared in a sample, before a command relies on it."""
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
                    hint="name the one that is meant: "
                    + typed_place("ADDRESS", checkpoint.path, command),
                )


def select_part(checkpoint: Checkpoint, address: str, layouts: Layouts) -> Tree:
    """Return the part of a checkpoint at a written key path, or the weights that a role means.

    Raises:
        CkptError: there is nothing, or no such weights.
    """
    if address in ROLES:
        return select_role(checkpoint, address, layouts)
    return select_node(checkpoint.tree, address)


def select_role(checkpoint: Checkpoint, role: str, layouts: Layouts) -> dict[str, TensorRef]:
    """Return the weights that a role means: the state dict that ``extract-ema --ema ROLE`` writes.

    Raises:
        EmaNotFoundError, EmaAmbiguousError, EmaRefusedError: see :func:`require_ema`.
        UnsupportedError: a part of the weights is no plain tensor.
    """
    weights = take_weights(checkpoint, ema=role, layouts=layouts, command=None)
    return dict(complete(plan_extraction(*weights, "model"), checkpoint.path).tensors)
