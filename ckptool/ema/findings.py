"""Findings about EMA weights that were located, one row for each rule.

Each row asks one question about a candidate and answers with a message or None. The questions read
a sample of the values, so only commands that report findings ask them.

ckptool's note in an extracted file is assumed to be true, since such a file holds nothing to
compare it with. Where the source is beside it, weights that equal its *raw* weights, or are
unrelated to them, are not its EMA weights (``_contradiction``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ckptool.contents.alignment import align_names, paired_tensors
from ckptool.contents.completeness import find_remainder, identities
from ckptool.contents.finder import Finder
from ckptool.contents.inventory import Leaf, Table, scalars_in, take_inventory
from ckptool.contents.selection import select_table
from ckptool.contents.unplain import Kind, Unplain, describe_kind, grouped, unplain_entries
from ckptool.ema.buffers import initial_buffers, initial_message
from ckptool.ema.candidates import RAW_KIND, Candidate, EmaLocation, table_address
from ckptool.ema.direction import direction_cosine
from ckptool.ema.evidence import Agreement, compare_sample
from ckptool.ema.metadata import FLAGS, first_of, varies_decay
from ckptool.errors import CkptError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.formats.provenance import read_provenance
from ckptool.reports.base import DECAYS, UPDATES, Finding, MainSlot
from ckptool.reports.rules import finding
from ckptool.sources.places import is_file
from ckptool.tree.describing import named
from ckptool.tree.nodes import CompositeTensor

IMMATURE_ABOVE = 0.05  # share of the initial weights that is still in the EMA

UNSTARTED = (
    "n_averaged is 0: the averaging has not begun, and this state dict is the copy of the model "
    "that it will begin from"
)

Ask = Callable[[Checkpoint, EmaLocation, Candidate], "str | None"]


def _identical(_checkpoint: Checkpoint, location: EmaLocation, candidate: Candidate) -> str | None:
    seen = candidate.agreement
    is_expected = location.main_slot is MainSlot.AVERAGED or candidate.kind == RAW_KIND
    if is_expected or seen is None or not seen.identical:
        return None
    return (
        f"identical to the model's in all {seen.compared} tensors compared: never updated, or "
        "already copied into the model"
    )


def _unrelated(_checkpoint: Checkpoint, _location: EmaLocation, candidate: Candidate) -> str | None:
    if not candidate.is_unrelated or not candidate.agreement:
        return None
    return (
        f"its values are unrelated to the model's (relative distance "
        f"{candidate.agreement.distance:.2f}): no average of these weights, or of very early ones"
    )


def _not_finite(
    _checkpoint: Checkpoint, _location: EmaLocation, candidate: Candidate
) -> str | None:
    seen = candidate.agreement
    return "a sample of its values holds NaN or infinities" if seen and not seen.finite else None


def _swapped(_checkpoint: Checkpoint, _location: EmaLocation, candidate: Candidate) -> str | None:
    if candidate.kind != RAW_KIND or candidate.layout is None or candidate.is_same_as_model:
        return None
    return (
        f"{candidate.layout.library} swaps on saving: this state dict holds the raw weights, the "
        "model's own the EMA weights"
    )


def _immature(_checkpoint: Checkpoint, _location: EmaLocation, candidate: Candidate) -> str | None:
    share = remaining_share(candidate)
    if share is None or share <= IMMATURE_ABOVE:
        return None
    decay, updates = (first_of(names, candidate.meta) for names in (DECAYS, UPDATES))
    settings = f"decay {decay:g}, {updates} updates"
    return f"{100 * share:.0f} % of the EMA is still the initial weights ({settings})"


def remaining_share(candidate: Candidate) -> float | None:
    """Return the share of the initial weights in the EMA; None if the file does not state it.

    The share is also unknown where the decay is smaller in the beginning, as in most warm-ups: then
    little of the initial weights is left after a dozen updates.
    """
    decay, updates = (first_of(names, candidate.meta) for names in (DECAYS, UPDATES))
    varies = candidate.layout is not None and candidate.layout.decay_varies
    if candidate.kind == RAW_KIND:
        return None
    if varies or any(value for key, value in candidate.meta.items() if varies_decay(key)):
        return None
    if not isinstance(decay, float) or not isinstance(updates, int) or not 0 < decay < 1:
        return None
    return float(decay**updates) if 0 < updates < 10**12 else 0.0


def _against(checkpoint: Checkpoint, location: EmaLocation, candidate: Candidate) -> str | None:
    if location.main_slot is not MainSlot.RAW or location.model is None or not candidate.is_average:
        return None
    cosine = direction_cosine(location.inventory, location.model, candidate, checkpoint.reader)
    if cosine is None or cosine > 0:
        return None
    return (
        f"the optimizer's last step leads from the model's state dict to this one (cosine "
        f"{cosine:.2f}): the model's may hold the EMA weights, and this one the raw weights"
    )


def _buffers(checkpoint: Checkpoint, location: EmaLocation, candidate: Candidate) -> str | None:
    found = initial_buffers(candidate, location.model, checkpoint.reader)
    return initial_message(found) if found else None


def _waiting(_checkpoint: Checkpoint, location: EmaLocation, candidate: Candidate) -> str | None:
    model = location.model
    if not candidate.is_unstarted or model is None:
        return None
    if candidate.table.node is not model.node:
        return UNSTARTED
    aside = f"; the raw weights are at {location.raw.address}" if location.raw else ""
    return (
        "n_averaged is 0: the averaging has not begun, and this state dict holds the weights that "
        f"it will begin from, not trained ones{aside}"
    )


def _contradicted(
    checkpoint: Checkpoint, location: EmaLocation, candidate: Candidate
) -> str | None:
    return _contradiction(checkpoint, location) if candidate is location.selected else None


# Rule -> the function that checks a candidate for it.
QUESTIONS: Mapping[str, Ask] = {
    "CK303": _not_finite,
    "CK404": _identical,
    "CK405": _unrelated,
    "CK406": _swapped,
    "CK407": _immature,
    "CK408": _against,
    "CK416": _buffers,
    "CK417": _waiting,
    "CK418": _contradicted,
}


def ema_findings(checkpoint: Checkpoint, location: EmaLocation) -> Iterator[Finding]:
    """Yield the findings of all rows, and of flags that contradict the file."""
    for candidate in location.candidates:
        for rule, ask in QUESTIONS.items():
            message = ask(checkpoint, location, candidate)
            if message:
                yield finding(rule, candidate.address, message)
    yield from flag_findings(checkpoint, location)
    yield from unread_findings(location)


NEVER_UPDATED = "it has never been updated: its count of updates is 0"
TAKEN = ("CK404", "CK416", "CK418")  # rules for commands that take the EMA weights
OFFERS = {"CK416": "; --buffers model takes the model's"}  # for commands that have the option


def stale_findings(checkpoint: Checkpoint, location: EmaLocation) -> Iterator[Finding]:
    """Yield the problems of the EMA weights that a command takes."""
    chosen = location.selected
    if chosen is not None:
        from ckptool.ema import ties  # noqa: PLC0415 - for weights that are taken

        from_slot = location.main_slot is MainSlot.AVERAGED
        for rule, ask in QUESTIONS.items():
            is_asked = rule in TAKEN and not (from_slot and rule == "CK416")
            message = ask(checkpoint, location, chosen) if is_asked else None
            if message:
                more = OFFERS.get(rule, "")
                yield finding(rule, chosen.address, message + more)
        if not from_slot and first_of(UPDATES, chosen.meta) == 0:
            yield finding("CK411", chosen.address, NEVER_UPDATED)
        if half := ties.half_averaged(chosen, location.model, checkpoint.reader):
            yield finding("CK409", chosen.address, ties.half_averaged_message(half))
    if location.without_raw and chosen is not None:
        message = "these are the EMA weights: the raw ones are not in this file"
        yield finding("CK414", chosen.address, message)


def flag_findings(checkpoint: Checkpoint, location: EmaLocation) -> Iterator[Finding]:
    """Yield findings about flags that the EMA weights of the file, or their absence, contradict."""
    said = scalars_in(checkpoint.tree)
    averages = [candidate for candidate in location.candidates if candidate.is_average]
    for flag in FLAGS:
        if said.get(flag) is True and not location.candidates:
            yield finding("CK403", flag, f"{flag} is True, but no EMA was found")
    if said.get("has_ema") is False and averages:
        where = averages[0].address
        yield finding("CK403", "has_ema", f"has_ema is False, but there is an EMA at {where}")


def unread_findings(location: EmaLocation) -> Iterator[Finding]:
    """Yield a finding on the sidecar files that by their names may hold EMA weights, unread."""
    if location.unread:
        message = f"not read: {named(location.unread)}"
        yield finding("CK420", "", message)


# ------------------------------------------------------------------------------------------- claims


def _contradiction(checkpoint: Checkpoint, location: EmaLocation) -> str | None:
    """Return how the source contradicts the note of an extracted file; None if it does not.

    Only weights that are called EMA weights because of their note are checked.
    """
    note, chosen = read_provenance(checkpoint.metadata), location.selected
    if note is None or chosen is None or not chosen.is_noted or location.model is None:
        return None
    source = _beside(checkpoint.path, note.source) if checkpoint.is_local else None
    if source is None or note.model is None:
        return None
    try:
        with open_checkpoint(source) as opened:
            raw = select_table(take_inventory(opened.tree), note.model).entries
            seen = _compared(opened.reader, location.model.entries, raw)
    except CkptError:
        return None
    if seen.identical:
        return f"these are the raw weights of {note.source}, at {note.model or '(root)'}"
    return f"unrelated to the weights of {note.source}" if seen.unrelated else None


def _beside(path: Path, name: str) -> Path | None:
    """Return the file of that name in the same directory; the name is not trusted."""
    if not name or Path(name).name != name or name == path.name:
        return None
    source = path.with_name(name)
    return source if is_file(source) else None


def _compared(reader: TensorReader, ours: Mapping[str, Leaf], raw: Mapping[str, Leaf]) -> Agreement:
    """Compare a sample of the weights with the raw weights of their source."""
    pairs = paired_tensors(raw, ours, align_names(raw, ours).pairs)
    return compare_sample(reader, [(one, other) for _, one, other in pairs], cast=True)


# ----------------------------------------------------------------------- tensors that are not plain


# Kinds of which a loader gets nothing, or only a part; all others load as they are.
RULE_OF: Mapping[str, str] = {"no-values": "CK606", "shard": "CK114", "flattened": "CK114"}
OTHERWISE = "CK115"
# Kinds that every loader of torch accepts; they matter only to programs that need plain tensors.
UNREMARKABLE = frozenset({"sparse", "nested-tensor", "nested"})


def unplain_findings(location: EmaLocation) -> Iterator[Finding]:
    """Yield a finding for each kind of tensors in a state dict that are not plain."""
    for table, refused in unplain_state_dicts(location):
        for kind, members in grouped(refused).items():
            if kind.id not in UNREMARKABLE:
                yield _finding(table, kind, members)


def unplain_state_dicts(location: EmaLocation) -> Iterator[tuple[Table, Mapping[str, Unplain]]]:
    """Yield the state dicts with tensors that are not plain, and these tensors."""
    located = [c.table for c in location.candidates if not c.is_implied and c.file is None]
    model = [location.model] if location.model is not None else []
    nodes = {id(table.node) for table in (*model, *located)}
    listed = [t for t in location.inventory.weights if id(t.node) not in nodes and not t.is_list]
    finder, known = Finder(), identities((*model, *located))
    for table in (*model, *located, *listed):
        around: Mapping[str, Unplain] = {}
        if id(table.node) in nodes:
            around = find_remainder((table,), known, finder).refused
        refused = {**unplain_entries(table.entries), **around}
        if refused:
            yield table, refused


def kind_of(leaf: Leaf, why: Unplain) -> str:
    """Describe a tensor that is not plain in a few words."""
    if why.kind.id == "no-values":
        return "no values"
    name = leaf.layout if isinstance(leaf, CompositeTensor) else why.kind.id
    detail = why.detail.partition(": ")[2] or why.detail
    return f"{name}: {detail}" if detail else name


def _finding(table: Table, kind: Kind, members: Mapping[str, Unplain]) -> Finding:
    total = len(table.entries) + sum(name not in table.entries for name in members)
    message = f"{len(members)} of {total} weights are {describe_kind(kind, members)}"
    return finding(RULE_OF.get(kind.id, OTHERWISE), table_address(table), message, kind.advice)
