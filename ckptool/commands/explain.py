"""Explanation of a conversion: of which tensors of another checkpoint each tensor is made."""

from __future__ import annotations

from ckptool.commands.state_dicts import take_state_dict
from ckptool.comparison.explained_rules import is_writable, rules_for
from ckptool.comparison.explaining import Side, explain
from ckptool.comparison.explanations import (
    Cut,
    Explanations,
    Found,
    Joined,
    Same,
    Stacked,
    sources_of,
)
from ckptool.contents.selection import Operand
from ckptool.ema.layouts import Layouts
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.process.progress import Progress, no_progress
from ckptool.reports.write import ExplainedTensor, ExplainReport
from ckptool.tensors.volume import refuse_repetition


def explain_conversion(
    source: Operand,
    result: Operand,
    *,
    progress: Progress = no_progress,
    layouts: Layouts = (),
    made_at: float | None = None,
) -> ExplainReport:
    """Return the explanation of each tensor of ``result`` by tensors of ``source``.

    Each operand is a state dict, as ``convert`` takes it. Only contents count. A tensor that
    differs in one bit from all that the source has is not explained.

    Raises:
        AddressError: there is no state dict at a key path; or several, and no key path.
        DamagedError: a file ends too soon.
    """
    del progress, made_at  # for all that ckptool writes; here nothing is
    with open_checkpoint(source.path) as old, open_checkpoint(result.path) as new:
        sides = [_side(each, at, layouts) for each, at in ((old, source), (new, result))]
        found = explain(*sides)
        rules, made = rules_for(found, sides[0].tensors, sides[1].tensors)
        for each in (old, new):
            each.reader.refuse_changed()
    rows = tuple(_row(name, found, sides, made) for name in sides[1].tensors)
    return ExplainReport(
        source=str(source.path),
        path=str(result.path),
        tensors=rows,
        explained=sum(row.kind != UNEXPLAINED for row in rows),
        unused=tuple(found.unused),
        rules=rules,
    )


UNEXPLAINED = "unexplained"
KINDS: dict[type, str] = {Same: "copy", Cut: "slice", Joined: "join", Stacked: "stack"}


def _side(checkpoint: Checkpoint, operand: Operand, layouts: Layouts) -> Side:
    tensors = take_state_dict(checkpoint, operand.address, layouts).plan.tensors
    refuse_repetition(tensors.values())
    return Side(tensors, checkpoint.reader)


def _row(name: str, found: Explanations, sides: list[Side], made: set[str]) -> ExplainedTensor:
    each = found.found.get(name) or found.doubled.get(name)
    if each is None:
        note = found.unexplained[name]
        return ExplainedTensor(name, UNEXPLAINED, (), False, None, False, note)
    names = sources_of(each)
    old, new = sides[0].tensors[names[0]].dtype, sides[1].tensors[name].dtype
    note = ""
    if name in found.doubled:
        note = f"another copy of {names[0]}, which rules use once"
    elif name not in made and is_writable(name, each):
        note = "no rules make it, or they would be too many to write"
    elif name not in made:
        note = "its names cannot be written in a rule; --rules leaves the old ones"
    return ExplainedTensor(
        name=name,
        kind=KINDS[type(each)],
        sources=names,
        transposed=_is_turned(each),
        cast=None if old is new else old.name,
        by_rules=name in made,
        note=note,
    )


def _is_turned(found: Found) -> bool:
    if isinstance(found, (Same, Cut)):
        return found.is_turned
    if isinstance(found, Joined):
        return any(piece.is_turned for piece in found.tiling.pieces)
    return any(map(_is_turned, found.entries))
