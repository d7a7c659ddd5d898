"""A torch zip made of a file of any container of torch: the same object, pickled anew.

So files of torch before 1.6 become zips, and objects that were made plain are written. The pickle
has protocol 2, every class and call in it is as it was, and storages are copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckptool.errors import UnsupportedError
from ckptool.formats.base import Checkpoint
from ckptool.formats.nested import pickles_of
from ckptool.formats.pickles.literal import Literal
from ckptool.formats.pickles.storages import StorageKey
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.formats.pickles.weights_only import first_refusal
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tree.nodes import Address
from ckptool.writers.archive_copy import ArchiveCopy, Piece, refuse_other_tensors
from ckptool.writers.pickle_tree import pickled
from ckptool.writers.torch_zip import ARCHIVE

FOLDER = f"{ARCHIVE}/"


def plan_rewritten(
    checkpoint: Checkpoint,
    literal: Literal,
    tree: Any,
    more: Mapping[str, ByteSpan],
    dropped: Sequence[Address],
) -> ArchiveCopy:
    """Return the plan of an archive of an object.

    Args:
        checkpoint: the source; its tensors must be those of the archive.
        literal: the object as the source has it, with its storages.
        tree: what is written of it.
        more: storages that the source does not have, by their keys.
        dropped: key paths of what is left out.

    Raises:
        UnsupportedError: the object cannot be pickled.
        DamagedError: a tensor would be another one.
    """
    pickle = pickled(tree)
    storages = {**literal.storages, **more}
    used: dict[str, ByteSpan] = {}

    def locate(key: StorageKey, nbytes: int) -> ByteSpan:
        span = used[str(key)] = storages[str(key)]
        return ByteSpan(span.source, span.offset, nbytes)

    pickles = pickles_of("data.pkl")
    builder = TorchBuilder(locate, pickles.open_nested, literal.byteorder)
    made, _ = pickles.read(Memory(pickle), builder)
    refuse_other_tensors(checkpoint.tree, made, dropped)
    words = {"byteorder": literal.byteorder.encode(), "version": b"3\n"}
    pieces = [
        *(_piece(literal, name, span) for name, span in literal.others.items()),
        *(Piece(FOLDER + name, _in_memory(word)) for name, word in words.items()),
        *(_piece(literal, f"data/{key}", span) for key, span in used.items()),
    ]
    return ArchiveCopy(FOLDER, pickle, made, pieces)


def _piece(literal: Literal, name: str, span: ByteSpan) -> Piece:
    return Piece(FOLDER + name, span, literal.checksums.get(span))


def _in_memory(data: bytes) -> ByteSpan:
    return ByteSpan(Memory(data), 0, len(data))


def refuse_unsafe(pickle: bytes) -> None:
    """Refuse a pickle that the safe loader refuses.

    Raises:
        UnsupportedError: it is one.
    """
    refusal = first_refusal(pickle)
    if refusal:
        raise UnsupportedError(f"torch.load(weights_only=True) would refuse {refusal.what}")
