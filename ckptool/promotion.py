"""What promotion will change, computed before anything is written: which bytes take which values.

The slot's bytes may be more than the slot: tied weights share them, views overlap, a snapshot
elsewhere looks at them too. What must agree is compared, and what would change behind somebody's
back is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ckptool.candidates import Candidate, EmaLocation, table_address
from ckptool.errors import EmaRefusedError, UnsupportedError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.inventory import Inventory, Leaf, Table, take_inventory
from ckptool.plans import shared_with_others
from ckptool.selection import select_table
from ckptool.tree import Address, TensorRef, Tree, format_address, walk
from ckptool.writers.base import expect
from ckptool.writers.containers import CONTAINERS
from ckptool.writers.contradictions import contradiction
from ckptool.writers.patched_copy import OTHERWISE, Patch, check_patch


class Promotion(NamedTuple):
    """The plan: what ``--dry-run`` shows and the writers carry out."""

    patches: tuple[Patch, ...] = ()  # one for each run of bytes in the slot
    kept: tuple[str, ...] = ()  # the model's tensors without an average
    dropped: tuple[str, ...] = ()  # names in the average that the model does not have
    tensors: int = 0  # names in the slot that get an average
    shared: tuple[str, ...] = ()  # addresses elsewhere that view bytes that change
    casts: Mapping[str, int] = {}  # ``float32 to bfloat16`` -> how many names in the slot

    @property
    def nbytes(self) -> int:
        """Bytes that are overwritten."""
        return sum(patch.target.nbytes for patch in self.patches)


def plan_promotion(
    checkpoint: Checkpoint, location: EmaLocation, candidate: Candidate, *, allow_shared: bool
) -> Promotion:
    """The averages of ``candidate`` into the slot that they average.

    Raises:
        UnsupportedError: a container or tensor that cannot be patched, or, unless
            ``allow_shared``, bytes that something else views.
        EmaRefusedError: no slot that they fit, or weights that share memory, not averages.
    """
    if checkpoint.format_name not in CONTAINERS:
        raise UnsupportedError(
            f"a {checkpoint.format_name} checkpoint cannot be patched: it is several files",
            path=checkpoint.path,
            hint=OTHERWISE,
        )
    model, alignment = location.model, candidate.alignment
    if model is None or alignment is None or not alignment.pairs:
        raise EmaRefusedError(
            "the file has no model slot that these weights fit",
            path=checkpoint.path,
            address=candidate.address,
            hint="name the slot: --model ADDRESS; or ckptool extract-ema",
        )
    patches = [
        Patch(name, _dense(model, name), _dense(candidate.table, other))
        for name, other in alignment.pairs.items()
    ]
    # An average that is the very slot, as a buffer often is, changes nothing.
    patches = [p for p in patches if p.target.numel and p.source.chunks != p.target.chunks]
    for patch in patches:
        check_patch(patch, checkpoint.path)
    shared = _viewed_elsewhere(checkpoint, model, patches)
    if shared and not allow_shared:
        raise _shared_error(checkpoint, shared)
    return Promotion(
        _distinct(checkpoint, patches),
        kept=alignment.missing_keys,
        dropped=alignment.unexpected_keys,
        tensors=len(alignment.pairs),
        shared=shared,
        casts=_casts(patches),
    )


def check_slot(path: Path, model: Table, shift: int) -> None:
    """Open what was written: the slot must be where it was, ``shift`` bytes further.

    Raises:
        CkptError: it cannot be opened, or a tensor lies elsewhere.
    """
    with open_checkpoint(path) as written:
        slot = select_table(take_inventory(written.tree), table_address(model))
    for name, ref in model.entries.items():
        found = slot.entries.get(name)
        expect(found is not None and _places(found) == _places(ref, shift), name, path)


def _places(leaf: Leaf, shift: int = 0) -> object:
    """What a tensor is and where, whatever the file is called."""
    if not isinstance(leaf, TensorRef):
        return leaf.layout, leaf.shape
    chunks = [(chunk.span.offset + shift, *chunk[1:]) for chunk in leaf.chunks]
    return leaf.dtype, leaf.shape, chunks


def _casts(patches: Iterable[Patch]) -> Mapping[str, int]:
    kinds = [(p.source.dtype, p.target.dtype) for p in patches]
    return Counter(f"{given} to {wanted}" for given, wanted in kinds if given is not wanted)


def optimizers(inventory: Inventory) -> tuple[str, ...]:
    """Addresses of the optimizers, whose state belongs to the weights that are replaced."""
    return tuple(format_address(address) for address in inventory.optimizers)


def _dense(table: Table, name: str) -> TensorRef:
    ref = table.entries[name]
    if not isinstance(ref, TensorRef):
        raise UnsupportedError(
            f"a {ref.layout} tensor cannot be patched", address=name, hint=OTHERWISE
        )
    return ref


# ------------------------------------------------------------------------------------ shared memory


def _viewed_elsewhere(
    checkpoint: Checkpoint, model: Table, patches: list[Patch]
) -> tuple[str, ...]:
    targets = {patch.name: patch.target for patch in patches}
    own = {model.prefix + name for name in targets}
    return shared_with_others(targets, _outside(checkpoint.tree, model, own))


def _shared_error(checkpoint: Checkpoint, shared: tuple[str, ...]) -> UnsupportedError:
    some = ", ".join(shared[:3])
    who = (
        "1 tensor elsewhere views" if len(shared) == 1 else f"{len(shared)} tensors elsewhere view"
    )
    return UnsupportedError(
        f"{who} the bytes that would change: {some}",
        path=checkpoint.path,
        hint=f"--allow-shared changes them too; or {OTHERWISE}",
    )


def _outside(tree: Tree, table: Table, own: Collection[str]) -> Iterator[tuple[Address, TensorRef]]:
    """Every tensor but those in the table that are called so; it may have several addresses."""
    for visit in walk(tree):
        for key, child in visit.children if visit.alias_of is None else ():
            is_own = visit.node is table.node and str(key) in own
            if isinstance(child, TensorRef) and not is_own:
                yield (*visit.address, key), child


def _distinct(checkpoint: Checkpoint, patches: list[Patch]) -> tuple[Patch, ...]:
    """One patch for each target; the averages must agree on bytes that several targets share."""
    moves = {(p.target.chunks, p.target.dtype, p.source): p for p in reversed(patches)}
    for group in _overlapping(moves.values()):
        found = contradiction(group, checkpoint.reader)
        if found is not None:
            raise _differ(checkpoint, *found)
    targets = {(p.target.chunks, p.target.dtype): p for p in reversed(patches)}
    return tuple(reversed(targets.values()))


def _overlapping(patches: Iterable[Patch]) -> Iterator[list[Patch]]:
    """Groups of patches whose targets reach into each other."""
    group: list[Patch] = []
    end = 0
    for patch in sorted(patches, key=lambda p: p.target.chunks[0].span.offset):
        span = patch.target.chunks[0].span
        if span.offset >= end:
            if len(group) > 1:
                yield group
            group = []
        group.append(patch)
        end = max(end, span.offset + span.nbytes)
    if len(group) > 1:
        yield group


def _differ(checkpoint: Checkpoint, one: Patch, other: Patch) -> EmaRefusedError:
    is_tied = one.target.chunks == other.target.chunks
    return EmaRefusedError(
        f"{'tied to' if is_tied else 'overlaps'} {one.name} in the model, "
        "but their averages differ",
        path=checkpoint.path,
        address=other.name,
        hint="ckptool extract-ema keeps both",
    )
