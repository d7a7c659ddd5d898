"""The plan of a promotion, made before anything is written: which bytes take which values.

Other tensors may use the bytes of the model's state dict: tied weights share them, views overlap,
and a snapshot elsewhere may view them too. Patches of the same bytes are compared, and must agree.
A tensor elsewhere that would change too is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from ckptool.contents.completeness import find_remainder
from ckptool.contents.given import refuse_given
from ckptool.contents.inventory import Inventory, Leaf, Table, take_inventory
from ckptool.contents.selection import select_table
from ckptool.contents.unplain import (
    ALIKE,
    COMPUTED,
    PLACEHOLDER,
    Unplain,
    placeholders,
    refuse_incomplete,
)
from ckptool.contents.uses import Runs, find_uses
from ckptool.ema.candidates import Candidate, EmaLocation, table_address
from ckptool.errors import EmaRefusedError, UnsupportedError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.formats.pickles.trace import Trace
from ckptool.records import NamedTuple
from ckptool.sources.base import overlapping
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import Address, TensorRef, Tree
from ckptool.tree.walking import walk
from ckptool.writers.contradictions import contradiction
from ckptool.writers.files.whole_file import expect
from ckptool.writers.patched_copy import OTHERWISE, Patch, check_patch


class Promotion(NamedTuple):
    """The plan, which ``--dry-run`` shows and the writers carry out."""

    patches: tuple[Patch, ...] = ()  # one for each run of bytes in the model's state dict
    kept: tuple[str, ...] = ()  # the model's tensors without EMA weights
    dropped: tuple[str, ...] = ()  # names of EMA weights that the model does not have
    tensors: int = 0  # number of the model's names that get EMA weights
    shared: tuple[str, ...] = ()  # key paths elsewhere of tensors that view bytes that change
    casts: Mapping[str, int] = {}  # ``float32 to bfloat16`` -> how many of the model's names

    @property
    def nbytes(self) -> int:
        """Number of bytes that are overwritten."""
        return sum(patch.target.nbytes for patch in self.patches)


def refuse_unpatchable(checkpoint: Checkpoint) -> None:
    """Refuse a container whose values cannot be overwritten in place.

    Raises:
        UnsupportedError: it is several files, or another container than those of ``writers``.
    """
    kind = checkpoint.format
    if kind.is_patchable:
        return
    is_one = checkpoint.path.is_file() and not kind.is_of_parts
    why = "its values cannot be overwritten" if is_one else "it is several files"
    raise UnsupportedError(
        f"a {kind.name} checkpoint cannot be patched: {why}",
        path=checkpoint.path,
        hint=f"ckptool extract-ema '{checkpoint.path}' -o model.safetensors writes the EMA "
        "weights to one file",
    )


def plan_promotion(
    checkpoint: Checkpoint,
    trace: Trace,
    location: EmaLocation,
    candidate: Candidate,
    *,
    allow_shared: bool,
    shared_hint: str = f"--allow-shared changes them too; or {OTHERWISE}",
) -> Promotion:
    """Plan to copy the EMA weights of ``candidate`` into the model's state dict.

    ``trace`` is that of the pickles of the checkpoint, ``shared_hint`` the hint for bytes that
    something else views.

    Raises:
        UnsupportedError: a container or tensor that cannot be patched, or, unless
            ``allow_shared``, bytes that something else views.
        EmaRefusedError: no model's state dict that they fit, or weights that share memory and
            whose EMA weights differ.
    """
    refuse_unpatchable(checkpoint)
    model, alignment = location.model, candidate.alignment
    if model is None or alignment is None or not alignment.pairs:
        raise EmaRefusedError(
            "the file has no state dict of a model that these weights fit",
            path=checkpoint.path,
            address=candidate.address,
            hint="name it: --model ADDRESS; or ckptool extract-ema",
        )
    _refuse_unsure(checkpoint, model, candidate)
    patches = [
        Patch(name, _dense(model, name), _dense(candidate.table, other))
        for name, other in alignment.pairs.items()
    ]
    # EMA weights that are the model's own bytes, as buffers often are, change nothing.
    patches = [p for p in patches if p.target.numel and _values(p.source) != _values(p.target)]
    for patch in patches:
        check_patch(patch, checkpoint.source)
    _refuse_nested(checkpoint, patches)
    refuse_given(checkpoint, (model, candidate.table), trace)
    shared = _viewed_elsewhere(checkpoint, trace, model, patches)
    if shared and not allow_shared:
        raise _shared_error(checkpoint, shared, shared_hint)
    return Promotion(
        _distinct(checkpoint, patches),
        kept=alignment.missing_keys,
        dropped=alignment.unexpected_keys,
        tensors=len(alignment.pairs),
        shared=shared,
        casts=_casts(patches),
    )


def _values(ref: TensorRef) -> object:
    return ref.chunks, ref.dtype, ref.byteorder, ref.lazy


def _refuse_nested(checkpoint: Checkpoint, patches: Iterable[Patch]) -> None:
    """Refuse a slot in a zip inside the pickle: its checksums would be those of the old values."""
    archives = Runs(checkpoint.nested_archives)
    found = next((patch for patch in patches if archives.overlap(patch.place)), None)
    if found is not None:
        raise UnsupportedError(
            "the tensor lies in a zip archive inside the pickle, which has checksums of its own",
            path=checkpoint.path,
            address=found.name,
            hint=OTHERWISE,
        )


def _refuse_unsure(checkpoint: Checkpoint, model: Table, candidate: Candidate) -> None:
    """Refuse weights of which this file does not tell the values that a loader finds.

    A promotion would change no value of placeholders. Of two keys that are written alike, it could
    change the wrong one. A weight that a function makes stays as it is.
    """
    for table in (model, candidate.table):
        found = {name: Unplain(PLACEHOLDER) for name in placeholders(table.entries)}
        beside = find_remainder((table,)).refused
        found |= {name: why for name, why in beside.items() if why.kind in (ALIKE, COMPUTED)}
        refuse_incomplete(found, len(table.entries.keys() | found), checkpoint.path)


def check_slot(path: Path, model: Table, shift: int) -> None:
    """Open the written file: the model's tensors must lie ``shift`` bytes after their old places.

    Raises:
        CkptError: the file cannot be opened, or a tensor lies elsewhere.
    """
    with open_checkpoint(path) as written:
        slot = select_table(take_inventory(written.tree), table_address(model))
    for name, ref in model.entries.items():
        found = slot.entries.get(name)
        expect(found is not None and _places(found) == _places(ref, shift), name, path)


def _places(leaf: Leaf, shift: int = 0) -> object:
    """Return a tensor's dtype (or layout), shape and offsets, without the name of its file."""
    if not isinstance(leaf, TensorRef):
        return leaf.layout, leaf.shape
    chunks = [(chunk.span.offset + shift, *chunk[1:]) for chunk in leaf.chunks]
    return leaf.dtype, leaf.shape, chunks


def _casts(patches: Iterable[Patch]) -> Mapping[str, int]:
    kinds = [(p.source.dtype, p.target.dtype) for p in patches]
    return Counter(f"{given} to {wanted}" for given, wanted in kinds if given is not wanted)


def optimizers(inventory: Inventory) -> tuple[str, ...]:
    """Return the key paths of optimizers, whose state belongs to the weights that are replaced."""
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
    checkpoint: Checkpoint, trace: Trace, model: Table, patches: list[Patch]
) -> tuple[str, ...]:
    """Return the places elsewhere that view bytes that the patches change: key paths, if any.

    The walk of the tree gives the key paths; the trace has the uses that have none.
    """
    runs = Runs(patch.place for patch in patches)
    own = {model.key_of(patch.name) for patch in patches}
    found = [
        (at, ref) for at, ref in _outside(checkpoint.tree, model.node, own) if runs.viewed_by(ref)
    ]
    known = {id(ref) for _, ref in found}
    uses = find_uses(checkpoint.tree, trace, runs, model.node, own)
    hidden = (str(use) for use in uses if id(use.value) not in known)
    return (*(format_address(address) for address, _ in found), *hidden)


def _shared_error(checkpoint: Checkpoint, shared: tuple[str, ...], hint: str) -> UnsupportedError:
    some = ", ".join(shared[:3])
    who = (
        "1 tensor elsewhere views" if len(shared) == 1 else f"{len(shared)} tensors elsewhere view"
    )
    return UnsupportedError(
        f"{who} the bytes that would change: {some}",
        path=checkpoint.path,
        hint=hint,
    )


def _outside(tree: Tree, slot: Tree, own: Collection[str]) -> Iterator[tuple[Address, TensorRef]]:
    """Yield all tensors but those in the slot that ``own`` names; some have several key paths."""
    for visit in walk(tree):
        for key, child in visit.children if visit.alias_of is None else ():
            is_own = visit.node is slot and str(key) in own
            if isinstance(child, TensorRef) and not is_own:
                yield (*visit.address, key), child


def _distinct(checkpoint: Checkpoint, patches: list[Patch]) -> tuple[Patch, ...]:
    """Return one patch for each target; refuse EMA weights that differ on bytes of two targets."""
    moves = {(p.target.chunks, p.target.dtype, p.source): p for p in reversed(patches)}
    for group in overlapping((patch.target.chunks[0].span, patch) for patch in moves.values()):
        found = contradiction(group, checkpoint.reader)
        if found is not None:
            raise _differ(checkpoint, *found)
    targets = {(p.target.chunks, p.target.dtype): p for p in reversed(patches)}
    return tuple(reversed(targets.values()))


def _differ(checkpoint: Checkpoint, one: Patch, other: Patch) -> EmaRefusedError:
    is_tied = one.target.chunks == other.target.chunks
    return EmaRefusedError(
        f"{'tied to' if is_tied else 'overlaps'} {one.name} in the model, "
        "but their averages differ",
        path=checkpoint.path,
        address=other.name,
        hint="ckptool extract-ema keeps both",
    )
