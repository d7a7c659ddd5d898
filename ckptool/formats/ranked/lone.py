"""A file of one rank that is opened alone: its plain tensors may be parts of the weights.

The name tells it, ``ema_rank_0.safetensors``, ``model_world_size_8_rank_3.pt``, or a field that
DeepSpeed writes beside the model. Tensors that state that they are parts need no note;
``unplain.py`` refuses them.
"""

from __future__ import annotations

from itertools import islice

from ckptool.formats.base import Checkpoint, Note
from ckptool.formats.pickles.local_parts import LOCAL_PARTS
from ckptool.formats.ranked.ranks import FILE, MODEL_WORLD, MODULE, world_by_name
from ckptool.names import marker_in
from ckptool.records import replace
from ckptool.tree.nodes import TensorRef, fields_of
from ckptool.tree.walking import whole_tensors

RULE = "CK126"
LOOKED_AT = 64  # tensors; in a state dict one of the first is floating


def with_note_on_rank(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint of one file, with a note if it is of one rank."""
    fields = fields_of(checkpoint.tree)
    slices = fields.get(MODEL_WORLD)
    if MODULE in fields and type(slices) is int and slices > 1:
        said = f"DeepSpeed wrote it for one of {slices:,} ranks, each with a slice of the model"
        return replace(checkpoint, notes=(*checkpoint.notes, Note(RULE, MODEL_WORLD, said)))
    name = checkpoint.path.name
    may_say = "rank" in name or "shard" in name  # the pattern takes time to compile
    match = FILE.fullmatch(name) if may_say else None
    if match is None:
        return checkpoint
    world = world_by_name(match)
    is_told = bool(marker_in([match["kind"] or ""])) if world is None else world > 1
    if not is_told or not _is_plain(checkpoint):
        return checkpoint
    count = "" if world is None else f" of {world:,}"
    said = (
        f"by its name it is of rank {int(match['rank'])}{count}, and its tensors do not say "
        "whether they are the whole weights or the part of this rank"
    )
    return replace(checkpoint, notes=(*checkpoint.notes, Note(RULE, "", said)))


def _is_plain(checkpoint: Checkpoint) -> bool:
    """Return whether the first floating tensor is a plain one."""
    found = (node for _, node in islice(whole_tensors(checkpoint.tree), LOOKED_AT))
    first = next((node for node in found if node.dtype.is_floating), None)
    return isinstance(first, TensorRef) and first.subclass not in LOCAL_PARTS
