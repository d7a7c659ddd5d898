"""What promotion will change, computed before anything is written: which bytes take which values.

The slot's bytes may be more than the slot: tied weights share them, views overlap, a snapshot
elsewhere looks at them too. What must agree is compared, and what would change behind somebody's
back is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ckptool.candidates import Candidate, EmaLocation, table_address
from ckptool.errors import EmaRefusedError, UnsupportedError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.inventory import Inventory, Leaf, Table, take_inventory
from ckptool.numerics import same_values
from ckptool.plans import shared_with_others
from ckptool.selection import select_table
from ckptool.tree import Address, TensorRef, Tree, format_address, walk
from ckptool.writers.base import expect
from ckptool.writers.containers import CONTAINERS
from ckptool.writers.patched_copy import Patch, check_patch

OTHERWISE = "ckptool extract-ema writes the averaged weights as a file of their own"


class Promotion(NamedTuple):
    """The plan: what ``--dry-run`` shows and the writers carry out."""

    patches: tuple[Patch, ...] = ()  # one for each run of bytes in the slot
    kept: tuple[str, ...] = ()  # the model's tensors without an average
    dropped: tuple[str, ...] = ()  # names in the average that the model does not have
    tensors: int = 0  # names in the slot that get an average
    shared: tuple[str, ...] = ()  # addresses elsewhere that view bytes that change

    @property
    def nbytes(self) -> int:
        """Bytes that are overwritten."""
        return sum(patch.target.nbytes for patch in self.patches)

    @property
    def casts(self) -> Mapping[str, int]:
        """``float32 to bfloat16`` -> how many tensors."""
        kinds = [(p.source.dtype, p.target.dtype) for p in self.patches]
        return Counter(f"{given} to {wanted}" for given, wanted in kinds if given is not wanted)


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
    patches = [patch for patch in patches if patch.target.numel]
    for patch in patches:
        check_patch(patch, checkpoint.path)
    shared = _viewed_elsewhere(checkpoint, model, patches)
    if shared and not allow_shared:
        raise _shared_error(checkpoint, shared)
    distinct = _without_ties(checkpoint, patches)
    _refuse_overlaps(checkpoint, distinct)
    return Promotion(
        distinct,
        kept=alignment.missing_keys,
        dropped=alignment.unexpected_keys,
        tensors=len(alignment.pairs),
        shared=shared,
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


def optimizers(inventory: Inventory) -> tuple[str, ...]:
    """Addresses of the optimizers, whose state belongs to the weights that are replaced."""
    return tuple(format_address(address) for address in inventory.optimizers)


def _dense(table: Table, name: str) -> TensorRef:
    ref = table.entries[name]
    if not isinstance(ref, TensorRef):
        raise UnsupportedError(f"a {ref.layout} tensor cannot be patched", address=name)
    return ref


# ------------------------------------------------------------------------------------ shared memory


def _viewed_elsewhere(
    checkpoint: Checkpoint, model: Table, patches: list[Patch]
) -> tuple[str, ...]:
    targets = {patch.name: patch.target for patch in patches}
    return shared_with_others(targets, _outside(checkpoint.tree, model))


def _shared_error(checkpoint: Checkpoint, shared: tuple[str, ...]) -> UnsupportedError:
    some = ", ".join(shared[:3])
    return UnsupportedError(
        f"{len(shared)} tensors elsewhere view the bytes that would change: {some}",
        path=checkpoint.path,
        hint=f"--allow-shared changes them too; or {OTHERWISE}",
    )


def _outside(tree: Tree, table: Table) -> Iterator[tuple[Address, TensorRef]]:
    """Every tensor that is no entry of the table, which may have several addresses."""
    own = {table.prefix + name for name in table.entries}
    for visit in walk(tree):
        for key, child in visit.children if visit.alias_of is None else ():
            is_own = visit.node is table.node and str(key) in own
            if isinstance(child, TensorRef) and not is_own:
                yield (*visit.address, key), child


def _without_ties(checkpoint: Checkpoint, patches: list[Patch]) -> tuple[Patch, ...]:
    """Tied tensors are one target; their averages must agree, byte for byte."""
    first: dict[object, Patch] = {}
    for patch in patches:
        known = first.setdefault(patch.target.chunks, patch)
        if known is not patch and not same_values(checkpoint.reader, known.source, patch.source):
            raise EmaRefusedError(
                f"tied to {known.name} in the model, but their averages differ",
                path=checkpoint.path,
                address=patch.name,
                hint="ckptool extract-ema keeps both",
            )
    return tuple(first.values())


def _refuse_overlaps(checkpoint: Checkpoint, patches: tuple[Patch, ...]) -> None:
    """Targets that overlap in part must get the same bytes where they do."""
    reach: Patch | None = None  # the one so far that ends last
    for patch in sorted((p for p in patches if p.is_plain), key=_start):
        if reach is not None and not _agree(checkpoint.reader, reach, patch):
            raise EmaRefusedError(
                f"overlaps {reach.name} in the model, but their averages differ",
                path=checkpoint.path,
                address=patch.name,
                hint="ckptool extract-ema keeps both",
            )
        if reach is None or _end(patch) > _end(reach):
            reach = patch


def _start(patch: Patch) -> int:
    return patch.target.chunks[0].span.offset


def _end(patch: Patch) -> int:
    return _start(patch) + patch.target.chunks[0].span.nbytes


def _agree(reader: TensorReader, one: Patch, other: Patch) -> bool:
    """Whether two patches, the second beginning later, put equal bytes where both reach."""
    shared = min(_end(one), _end(other)) - _start(other)
    if shared <= 0:
        return True
    ours, theirs = one.source.chunks[0].span, other.source.chunks[0].span
    return reader.read(ours, _start(other) - _start(one), shared) == reader.read(theirs, 0, shared)
