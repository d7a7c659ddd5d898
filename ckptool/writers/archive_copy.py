"""A torch zip that is written from a pickle and from records of other files, each copied as it is.

The plan is made before anything is written: by ``stripped_zip.py``, which cuts instructions out of
the source's pickle, or by ``rewritten_zip.py``, which writes another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ckptool.dtypes import BY_NAME
from ckptool.errors import CkptError, DamagedError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.formats.torch_records import PROVENANCE
from ckptool.process.progress import Progress
from ckptool.sources.base import ByteSpan
from ckptool.tensors.casting import Casting
from ckptool.tree.addresses import format_address, node_at
from ckptool.tree.nodes import Address, ArrayRef, Chunk, TensorRef, Tree
from ckptool.tree.walking import tensors
from ckptool.writers.files.whole_file import PartialFile, expect
from ckptool.writers.transfer import Move, transfer
from ckptool.writers.values import Account
from ckptool.writers.zip_archive import ArchiveWriter

BYTES = BY_NAME["uint8"]


class Piece(NamedTuple):
    """A record that is copied from somewhere."""

    name: str  # with the directory of all records
    span: ByteSpan
    crc: int | None = None  # that its bytes should have


class ArchiveCopy(NamedTuple):
    """The plan of an archive."""

    folder: str  # the directory of all records, with its slash
    pickle: bytes
    tree: Tree  # that the pickle makes
    pieces: Sequence[Piece]

    @property
    def nbytes(self) -> int:
        """Size of what is copied, in bytes."""
        return len(self.pickle) + sum(piece.span.nbytes for piece in self.pieces)


def refuse_other_tensors(old: Tree, new: Tree, dropped: Sequence[Address]) -> None:
    """Compare the tensors that stay with those of the source, in both directions.

    Raises:
        DamagedError: one is missing, or another one.
    """
    found, wanted = dict(tensors(new)), dict(tensors(old))
    for address, ref in found.items():
        if wanted.get(address) != ref and not isinstance(node_at(old, address), ArrayRef):
            raise DamagedError("the tensor would be another one", address=format_address(address))
    for address in wanted:
        is_dropped = any(address[: len(path)] == path for path in dropped)
        if not is_dropped and address not in found:
            raise DamagedError("the tensor would be missing", address=format_address(address))


def write_copy(
    plan: ArchiveCopy,
    output: PartialFile,
    checkpoint: Checkpoint,
    note: str,
    progress: Progress,
    *,
    force: bool,
) -> None:
    """Write the archive, and compare each record with its checksum on the way.

    Raises:
        DamagedError: a record does not fit its checksum, without ``force``.
        OutputError: there is no room.
    """
    output.need(plan.nbytes)
    archive = ArchiveWriter(output)
    archive.add_bytes(f"{plan.folder}data.pkl", plan.pickle)
    moves: list[Move] = []
    crcs: dict[str, int] = {}
    for piece in plan.pieces:
        archive.begin(piece.name)
        moves.append(Move(piece.name, _flat(piece.span), output.skip(piece.span.nbytes)))
        archive.end(partial(crcs.__getitem__, piece.name))
    own_note = f"{plan.folder}{PROVENANCE}"
    if not any(piece.name == own_note for piece in plan.pieces):
        archive.add_bytes(own_note, note.encode())
    moved = transfer(moves, checkpoint.reader, Casting(), Account(), output, progress)
    for piece, (run, _) in zip(plan.pieces, moved, strict=True):
        crcs[piece.name] = run.crc
        if piece.crc not in {None, run.crc} and piece.span.nbytes:
            if not force:
                raise DamagedError(
                    f"the bytes of the record {piece.name} do not fit its checksum",
                    path=checkpoint.path,
                    hint="get the file again or take an earlier one; --force copies them as they "
                    "are",
                )
            crcs[piece.name] = piece.crc or 0  # so that the copy shows the damage too
    archive.finish()


def _flat(span: ByteSpan) -> TensorRef:
    shape = (span.nbytes,)
    return TensorRef(BYTES, shape, (Chunk(span, (0,), shape, (1,)),))


def check_copy(plan: ArchiveCopy, path: Path) -> None:
    """Open the archive: it must have the tensors of the plan.

    Raises:
        CkptError: it cannot be opened, or a tensor is missing.
    """
    wanted = {address: (ref.dtype, ref.shape) for address, ref in tensors(plan.tree)}
    try:
        with open_checkpoint(path) as written:
            found = {at: (ref.dtype, ref.shape) for at, ref in tensors(written.tree)}
    except CkptError as error:
        raise error.at(path) from error.__cause__
    expect(found == wanted, "other tensors", path)
