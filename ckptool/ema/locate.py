"""Location of the EMA weights in a checkpoint: :func:`locate_ema`, with its rules."""

from __future__ import annotations

from ckptool.contents.alignment import align_names
from ckptool.contents.completeness import unlisted
from ckptool.contents.inventory import Table
from ckptool.contents.selection import EMA_ROLE, MODEL_ROLE, select_table
from ckptool.contents.unplain import refuse_incomplete
from ckptool.ema.candidates import CHOSEN, Candidate, EmaLocation, table_address
from ckptool.ema.decide import decide
from ckptool.ema.examine import Examiner, TooManyError
from ckptool.ema.layouts import Layouts
from ckptool.ema.model import choose_model, marker_of
from ckptool.ema.search import find_candidates, model_beside, unexamined
from ckptool.errors import AddressError, EmaNotFoundError, about
from ckptool.formats.base import Checkpoint
from ckptool.formats.provenance import read_provenance
from ckptool.records import replace
from ckptool.reports.base import EmaStatus, MainSlot


def locate_ema(
    checkpoint: Checkpoint,
    *,
    ema: str | None = None,
    model: str | None = None,
    layouts: Layouts = (),
) -> EmaLocation:
    """Find the EMA weights (or SWA weights), with the reason why they are taken for such.

    The rules apply in this order. Names of frameworks appear only in ``layouts.py``.

    1. State dicts (``contents/inventory.py``) outside optimizers are weights, and so are the parts
       of a state dict under a prefix with a keyword (``groups.py``). The **model** is the state
       dict that a naive loader would read, without a keyword (``model.py``).
    2. A **keyword** (``names.py``) is a whole word in a key path or a prefix: ``ema``, ``shadow``,
       ``swa``. ``teacher``, ``momentum`` and ``target`` are keywords of other kinds, which are
       reported, and taken only if they are named.
    3. A keyword counts only if the names and shapes pair with the model's
       (``contents/alignment.py``, ``examine.py``); lists pair by order (``ordering.py``).
    4. The same container under several key paths, the same bytes or equal values are one candidate
       with aliases (``merging.py``).
    5. A sample of the values is compared (``evidence.py``). EMA weights identical to the model were
       never updated, or were already copied into the model's own state dict. Weights that are
       unrelated to the model are no EMA of it.
    6. Some writers keep the EMA weights in the model's own state dict, and the raw weights under a
       key called ema. ``layouts.py`` knows these writers by other keys that they write. The raw
       weights are never taken.
    7. One candidate of an averaging kind (ema, swa) is *found*. Several that differ, or names that
       cannot be told apart, are *ambiguous* (``decide.py``).

    Args:
        checkpoint: the file, open.
        ema: key path of the EMA weights, instead of searching. The weights at it are always taken:
            as an EMA of the model if their names pair with the model's, as they are if none pairs
            or if they are the model's own state dict. ``@model`` stands for the raw weights.
        model: key path of the model, instead of searching.
        layouts: custom layouts of the configuration, tried before ``LAYOUTS``.

    Raises:
        AddressError: one of the key paths names nothing, or no weights, or a part of the model.
        EmaNotFoundError: ``@model`` is asked for, and the file has no model.
        EmaAmbiguousError: ``@model`` is asked for, and there are too many candidates.
    """
    examiner = Examiner(checkpoint, layouts)
    inventory = examiner.inventory
    with about(checkpoint.path):
        asked = select_table(inventory, model) if model is not None else None
        if ema is not None and ema not in {EMA_ROLE, MODEL_ROLE}:
            return _named(examiner, select_table(inventory, ema), asked)
    try:
        main, candidates = find_candidates(examiner, asked)
    except TooManyError:
        if ema == MODEL_ROLE:  # the search would have shown which state dict is the model
            raise
        first = tuple(unexamined(inventory))
        status, slot = EmaStatus.AMBIGUOUS, MainSlot.UNKNOWN
        return EmaLocation(status, slot, None, first, None, inventory, given_up=True)
    location = decide(examiner, main, candidates)
    if location.status is EmaStatus.NONE:
        from ckptool.ema.sidecars import among_sidecars  # noqa: PLC0415 - for few files

        location = _as_noted(checkpoint, among_sidecars(examiner, location))
    return _raw_weights(checkpoint, location) if ema == MODEL_ROLE else location


def _named(examiner: Examiner, table: Table, asked: Table | None) -> EmaLocation:
    """Locate the state dict that the user names, as an EMA of the model or as it is."""
    inventory = examiner.inventory
    model = asked or choose_model([t for t in inventory.weights if not marker_of(t)])
    if model is not None and _is_same(model, table):
        return _as_it_stands(table, EmaLocation.nothing(inventory))
    if asked is None:
        model = model_beside(examiner, table, model)
    if model is not None and _is_part_of(model, table):
        raise AddressError(
            "a part of the model, not an average of it", address=table_address(table)
        )
    chosen = examiner.examine(table, CHOSEN, "named on the command line", model)
    if asked is None and _pairs_nowhere(chosen):
        return _as_it_stands(table, EmaLocation.nothing(inventory))
    return decide(examiner, model, (chosen,))


def _is_same(one: Table, other: Table) -> bool:
    same = one.prefix == other.prefix and one.suffix == other.suffix and one.inside == other.inside
    return one.node is other.node and same


def _is_part_of(model: Table, table: Table) -> bool:
    """Return whether a state dict shares entries of its container with the model."""
    if model.node is not table.node:
        return False
    named = {model.key_of(name) for name in model.entries}
    return any(table.key_of(name) in named for name in table.entries)


def _pairs_nowhere(chosen: Candidate) -> bool:
    """Return whether none of its names pairs with the model's; False for lists without names."""
    alignment = chosen.alignment
    if alignment is None or alignment.naming == "positional" or chosen.table.is_list:
        return False
    return not alignment.pairs and not alignment.colliding


def _as_it_stands(table: Table, location: EmaLocation) -> EmaLocation:
    """Locate a state dict that is taken whole, under its own names, without a model."""
    taken = Candidate(table, CHOSEN, "named on the command line", None, None, {}, None)
    return replace(
        location,
        status=EmaStatus.FOUND,
        main_slot=MainSlot.UNKNOWN,
        model=None,
        candidates=(taken,),
        selected=taken,
        beside=location.candidates,
    )


def _raw_weights(checkpoint: Checkpoint, location: EmaLocation) -> EmaLocation:
    """Locate the raw weights, under the names of the model.

    They are the model's own state dict as it is, unless its writer keeps the EMA weights there.
    """
    model, raw = _required(location.model, checkpoint), location.raw
    if raw is None or raw.is_same_as_model:
        gone = location.main_slot is MainSlot.AVERAGED  # promoted, or extracted
        return replace(_as_it_stands(model, location), without_raw=gone)
    return replace(
        location,
        status=EmaStatus.FOUND,
        main_slot=MainSlot.UNKNOWN,
        candidates=(raw,),
        selected=raw,
        beside=location.candidates,
    )


def _required(model: Table | None, checkpoint: Checkpoint) -> Table:
    if model is None:
        near = unlisted(checkpoint.tree)
        refuse_incomplete(near, len(near), checkpoint.path)
        from ckptool.ema.refusals import typed_place  # noqa: PLC0415 - for a refusal alone

        raise EmaNotFoundError(
            "no weights were found at the places where models are kept",
            path=checkpoint.path,
            hint=f"name them: {typed_place('ADDRESS', checkpoint.path, None)}; "
            "ckptool inspect --tensors lists the addresses",
        )
    return model


def _as_noted(checkpoint: Checkpoint, location: EmaLocation) -> EmaLocation:
    """Locate the EMA weights that ckptool's note in the file states, if no candidate was found.

    An extracted file holds nothing to compare it with. The note is assumed to be true, and reported
    as a note. ``verify --against SOURCE`` compares, and a source beside the file can contradict it.
    """
    note, main = read_provenance(checkpoint.metadata), location.model
    if location.candidates or main is None or note is None or not note.is_of_averages:
        return location
    own = align_names(main.entries, main.entries)
    noted = Candidate(main, note.kind_of_average, note.told, own, None, {}, None, is_noted=True)
    status, slot = EmaStatus.FOUND, MainSlot.AVERAGED
    found = EmaLocation(status, slot, main, (noted,), noted, location.inventory)
    return replace(found, unread=location.unread)
