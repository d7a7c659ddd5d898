"""A hint at which of two copies of the weights is the average: the direction of the last step.

The raw weights have just moved along the optimizer's last update; their average trails behind. So
the difference (model - other) points along the update when the model's slot is raw, and against it
when the slot holds the average. With Adam the update's direction is ``-exp_avg /
sqrt(exp_avg_sq)``, with momentum it is ``-momentum_buffer``.

The cosine between them is evidence for a warning and never for an action: late in training, with a
slow average, it is a few hundredths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ckptool.candidates import Candidate
from ckptool.evidence import beginning, is_readable
from ckptool.formats.base import TensorReader
from ckptool.inventory import Inventory, Leaf, Table
from ckptool.ordering import order_by_shape
from ckptool.tree import Opaque, TensorRef, Tree

SILENT_BELOW = 0.03  # cosines this small say nothing
MAX_TENSORS = 16
PER_TENSOR = 1 << 10  # bytes

Update = tuple[TensorRef, TensorRef | None]  # (first moment, second moment)


def direction_cosine(
    inventory: Inventory, model: Table, candidate: Candidate, reader: TensorReader
) -> float | None:
    """Cosine of (model - candidate) with the last update; None when the file does not tell.

    Above 0 the model's slot looks raw, below 0 it looks averaged.
    """
    if candidate.alignment is None:
        return None
    for node in inventory.optimizers.values():
        updates = _updates(node)
        names = _named(model.entries, updates)
        found = _cosine(model, candidate, names, reader)
        if found is not None:
            return found if abs(found) >= SILENT_BELOW else None
    return None


def _updates(optimizer: Tree) -> list[Update]:
    fields = optimizer.attributes if isinstance(optimizer, Opaque) else optimizer
    state = fields.get("state") if isinstance(fields, dict) else None
    updates: list[Update] = []
    for moments in state.values() if isinstance(state, dict) else ():
        if not isinstance(moments, dict):
            continue
        first = moments.get("exp_avg", moments.get("momentum_buffer"))
        second = moments.get("exp_avg_sq")
        if isinstance(first, TensorRef):
            updates.append((first, second if isinstance(second, TensorRef) else None))
    return updates


def _named(model: Mapping[str, Leaf], updates: Sequence[Update]) -> dict[str, Update]:
    """The updates by the model's names: the state has the order of the parameters."""
    sequence = [(str(i), first) for i, (first, _) in enumerate(updates)]
    found = order_by_shape(model, sequence) if sequence else {}
    return {name: updates[int(position)] for name, position in found.items()}


def _cosine(
    model: Table, candidate: Candidate, updates: Mapping[str, Update], reader: TensorReader
) -> float | None:
    pairs = candidate.alignment.pairs if candidate.alignment else {}
    dot = difference = step = 0.0
    for name in _spread([name for name in updates if name in pairs]):
        ours, theirs = model.entries[name], candidate.table.entries[pairs[name]]
        first, second = updates[name]
        if not all(isinstance(r, TensorRef) and is_readable(r) for r in (ours, theirs, first)):
            continue
        moves = _move(reader, first, second)
        gaps = [a - b for a, b in zip(_read(reader, ours), _read(reader, theirs), strict=False)]
        for gap, move in zip(gaps, moves, strict=False):
            dot, difference, step = dot + gap * move, difference + gap * gap, step + move * move
    if not (difference > 0 and step > 0 and math.isfinite(dot)):
        return None
    return dot / math.sqrt(difference * step)


def _spread(names: list[str]) -> list[str]:
    return names[:: max(1, -(-len(names) // MAX_TENSORS))]


def _move(reader: TensorReader, first: TensorRef, second: TensorRef | None) -> list[float]:
    moments = beginning(reader, first, PER_TENSOR)
    if second is None or not is_readable(second):
        return [-m for m in moments]
    squares = beginning(reader, second, PER_TENSOR)
    return [-m / (math.sqrt(max(s, 0.0)) + 1e-8) for m, s in zip(moments, squares, strict=False)]


def _read(reader: TensorReader, ref: Leaf) -> Sequence[float]:
    return beginning(reader, ref, PER_TENSOR) if isinstance(ref, TensorRef) else ()
