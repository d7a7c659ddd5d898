"""Decision on the candidate that is the EMA, and on what the model's own state dict holds."""

from __future__ import annotations

from collections.abc import Iterator

from ckptool.contents.alignment import align_names
from ckptool.contents.inventory import Inventory, Table, scalars_in
from ckptool.ema.buffers import without_buffers
from ckptool.ema.candidates import CHOSEN, POSTHOC, RAW_KIND, AssumedEqual, Candidate, EmaLocation
from ckptool.ema.evidence import Evidence
from ckptool.ema.examine import Examiner, evidence_of
from ckptool.ema.layouts import main_slot_layout, spelled
from ckptool.ema.metadata import layout_metadata
from ckptool.ema.optimizers import train_mode
from ckptool.formats.base import Checkpoint
from ckptool.formats.provenance import read_provenance
from ckptool.names import is_raw, marker_in
from ckptool.records import replace
from ckptool.reports.base import EmaStatus, MainSlot

PUT_ASIDE = "the raw weights, put aside while the model's state dict holds the EMA weights"


def decide(
    examiner: Examiner, main: Table | None, candidates: tuple[Candidate, ...]
) -> EmaLocation:
    """Decide which of the candidates is the EMA of ``main``, and what ``main`` holds."""
    inventory = examiner.inventory
    if main is not None and not any(c.kind == CHOSEN for c in candidates):
        in_slot = _in_main_slot(examiner, main, candidates)
        if in_slot is not None:
            others = any(c.is_average and not c.is_raw for c in candidates)
            if others and in_slot.layout in examiner.layouts:
                both = (in_slot, *candidates)  # a configuration and the file contradict each other
                return EmaLocation(
                    EmaStatus.AMBIGUOUS, MainSlot.UNKNOWN, main, both, None, inventory
                )
            found = (in_slot, *_raw_aside(examiner, main, in_slot, candidates))
            if in_slot.is_unstarted:
                return EmaLocation(EmaStatus.NONE, MainSlot.UNKNOWN, main, found, None, inventory)
            return EmaLocation(EmaStatus.FOUND, MainSlot.AVERAGED, main, found, in_slot, inventory)
    averages = [c for c in candidates if c.is_average]
    selected = averages[0] if len(averages) == 1 and not averages[0].doubt else None
    status, slot = _status(candidates, selected), MainSlot.UNKNOWN
    location = EmaLocation(status, slot, main, candidates, selected, inventory)
    slot, same = _main_slot(examiner.checkpoint, location)
    if same is not None and selected is not None:
        assumed = AssumedEqual("the model's state dict", tuple(same.pairs), cast=True)
        selected = replace(selected, assumed_equal=(*selected.assumed_equal, assumed))
        location = replace(location, selected=selected)
    if slot is MainSlot.AVERAGED and main is not None:
        aside = (examiner.examine(t, RAW_KIND, PUT_ASIDE, main) for t in _put_aside(inventory))
        paired = (c for c in aside if c.alignment and c.alignment.pairs and not c.doubt)
        location = replace(location, candidates=(*location.candidates, *paired))
    return replace(location, main_slot=slot)


def _in_main_slot(
    examiner: Examiner, main: Table, candidates: tuple[Candidate, ...]
) -> Candidate | None:
    """Return the model's own state dict, where its writer is known to keep the EMA there."""
    tree = examiner.inventory.tree
    row = main_slot_layout(tree, spelled(main.address), examiner.layouts)
    swapped = next((c for c in candidates if c.is_raw and c.layout), None)
    free = next((c for c in candidates if train_mode(c.table.node) is False), None)
    if row is None and not (swapped and swapped.layout) and free is None:
        return None  # as mostly; to pair 100,000 names takes 0.07 s
    own = align_names(main.entries, main.entries)
    if row is not None:
        meta, meta_at = examiner.with_settings("ema", layout_metadata(examiner.checkpoint, row))
        why = f"{row.library} saves the EMA weights as the model: {', '.join(row.beside)} say so"
        return Candidate(main, "ema", why, own, row, meta, None, meta_at=meta_at)
    if swapped is not None and swapped.layout:
        why = (
            f"{swapped.layout.library} swaps on saving: the model's state dict holds the EMA "
            f"weights, {swapped.address} the raw weights"
        )
        meta, meta_at = examiner.with_settings("ema", swapped.meta)
        return Candidate(main, "ema", why, own, swapped.layout, meta, None, meta_at=meta_at)
    if free is not None:
        why = "saved after optimizer.eval(): the model's state dict holds the averaged point"
        return Candidate(main, free.kind, why, own, None, free.meta, None)
    return None


def _raw_aside(
    examiner: Examiner, main: Table, in_slot: Candidate, candidates: tuple[Candidate, ...]
) -> Iterator[Candidate]:
    """Yield the raw weights, where the model's own state dict holds the EMA weights."""
    yield from (replace(c, kind=RAW_KIND) for c in candidates if c.is_raw)
    place = in_slot.layout.raw_at if in_slot.layout else None
    for table in examiner.inventory.weights if place else ():
        if spelled(table.address) == place:
            why = "the raw weights, which the writer puts here"
            yield examiner.examine(table, RAW_KIND, why, main)


def _status(candidates: tuple[Candidate, ...], selected: Candidate | None) -> EmaStatus:
    if selected is not None:
        return EmaStatus.FOUND
    if all(c.kind == "schedule-free" or c.is_unstarted for c in candidates):
        return EmaStatus.NONE
    unrelated = any(c.is_unrelated for c in candidates if not c.is_average)
    tracks = len([c for c in candidates if c.kind == POSTHOC]) > 1
    undecided = unrelated or tracks or any(c.is_average for c in candidates)
    return EmaStatus.AMBIGUOUS if undecided else EmaStatus.FOUND


def _main_slot(checkpoint: Checkpoint, location: EmaLocation) -> tuple[MainSlot, Evidence | None]:
    """Return what the model's own state dict holds, and the evidence if it is EMA weights."""
    if location.model is None or not location.candidates:
        return MainSlot.UNKNOWN, None
    if any(c.layout is not None and c.layout.doubt for c in location.candidates):
        return MainSlot.UNKNOWN, None  # the file does not state which of the two is the EMA
    chosen = location.selected
    if chosen is None or not _says_averaged(checkpoint, location.inventory, chosen):
        return MainSlot.RAW, None
    if chosen.kind == CHOSEN:
        return MainSlot.UNKNOWN, None  # it is taken, whatever the model's own state dict holds
    same = _equal_values(checkpoint, location.model, chosen)  # values are read only now
    return (MainSlot.RAW, None) if same is None else (MainSlot.AVERAGED, same)


def _says_averaged(checkpoint: Checkpoint, inventory: Inventory, chosen: Candidate) -> bool:
    """Return whether a flag, a file name or a note says that the model holds EMA weights."""
    flag = chosen.layout.promoted_flag if chosen.layout else None
    return (
        bool(flag and scalars_in(checkpoint.tree).get(flag))
        or marker_in([checkpoint.path.stem]) is not None
        or bool(_put_aside(inventory))
        or _was_promoted(checkpoint)
    )


def _equal_values(checkpoint: Checkpoint, model: Table, chosen: Candidate) -> Evidence | None:
    """Return the evidence if a sample of the EMA weights equals the model's; else None.

    Buffers may differ, since ``promote-ema --buffers model`` leaves the model its own.
    """
    if chosen.is_same_as_model:
        return chosen.evidence
    if not _was_promoted(checkpoint) or chosen.alignment is None:
        return None
    plain = without_buffers(chosen, model, checkpoint.reader)
    assert plain.alignment is not None, "an alignment stays one without some of its pairs"
    same = evidence_of(checkpoint.reader, model, plain.table, plain.alignment)
    return same if same.agreement.identical else None


def _was_promoted(checkpoint: Checkpoint) -> bool:
    """Return whether ckptool's note says that the EMA weights were copied into the model's."""
    note = read_provenance(checkpoint.metadata)
    return note is not None and note.command == "promote-ema"


def _put_aside(inventory: Inventory) -> list[Table]:
    """Return raw weights that were put aside, as in a file saved during an evaluation."""
    return [t for t in inventory.weights if any(is_raw(str(key)) for key in t.address)]
