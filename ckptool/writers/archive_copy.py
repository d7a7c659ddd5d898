"""A torch zip that is written from a pickle and from records of other files, each copied as it is.

The plan is made before anything is written: by ``stripped_zip.py``, which cuts instructions out of
the source's pickle, or by ``rewritten_zip.py``, which writes another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from ckptool.errors import DamagedError, about
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.formats.torch_records import PROVENANCE
from ckptool.process.progress import Progress, announce
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan
from ckptool.tensors.blocks import BLOCK, room
from ckptool.tensors.casting import side_by_side
from ckptool.tensors.crc import Seen, crc32
from ckptool.tree.addresses import format_address, node_at
from ckptool.tree.nodes import Address, ArrayRef, Tree
from ckptool.tree.walking import tensors
from ckptool.writers.files.whole_file import PartialFile, expect
from ckptool.writers.zip_archive import ArchiveWriter


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
        # A container that lies in a dropped part, too, had its first key path there.
        was = wanted[address] if address in wanted else node_at(old, address)
        if was != ref and not isinstance(was, ArrayRef):
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
    offsets: list[int] = []
    crcs: dict[str, int] = {}
    for piece in plan.pieces:
        archive.begin(piece.name)
        offsets.append(output.skip(piece.span.nbytes))
        archive.end(partial(crcs.__getitem__, piece.name))
    own_note = f"{plan.folder}{PROVENANCE}"
    if not any(piece.name == own_note for piece in plan.pieces):
        archive.add_bytes(own_note, note.encode())
    spans = [piece.span for piece in plan.pieces]
    copied = _copied(spans, offsets, checkpoint.reader, output, progress)
    for piece, crc in zip(plan.pieces, copied, strict=True):
        crcs[piece.name] = crc
        if piece.crc not in {None, crc} and piece.span.nbytes:
            if not force:
                raise DamagedError(
                    f"the bytes of the record {piece.name} do not fit its checksum",
                    path=checkpoint.path,
                    hint="get the file again or take an earlier one; --force copies them as they "
                    "are",
                )
            crcs[piece.name] = piece.crc or 0  # so that the copy shows the damage too
    archive.finish()


class _Part(NamedTuple):
    """A part of a piece that is copied in one go."""

    piece: int  # its number
    span: ByteSpan
    offset: int  # in the output


def _copied(
    spans: Sequence[ByteSpan],
    offsets: Sequence[int],
    reader: TensorReader,
    output: PartialFile,
    progress: Progress,
) -> list[int]:
    """Copy runs of bytes by a few threads; return the checksum of each.

    Bytes need no numpy, whose import takes longer than 100 MB take.
    """
    announce(progress, sum(span.nbytes for span in spans))
    seen = [Seen()] * len(spans)

    def copy(part: _Part) -> tuple[int, Seen]:
        block = room()[: part.span.nbytes]
        reader.fill(block, part.span)
        output.patch(block, part.offset)
        return part.piece, Seen(len(block), crc32(block))

    parts = _parts(spans, offsets, output)
    with closing(side_by_side(copy, parts, lambda part: part.span.nbytes)) as results:
        for piece, done in results:
            seen[piece] = seen[piece].then(done)
            progress(done.nbytes)
    return [each.crc for each in seen]


def _parts(
    spans: Sequence[ByteSpan], offsets: Sequence[int], output: PartialFile
) -> Iterator[_Part]:
    """Yield parts of at most ``BLOCK`` bytes, after space for them is prepared in the output."""
    end = output.position
    for number, (span, offset) in enumerate(zip(spans, offsets, strict=True)):
        for done in range(0, span.nbytes, BLOCK):
            output.make_way(offset + done, end)
            nbytes = min(BLOCK, span.nbytes - done)
            part = ByteSpan(span.source, span.offset + done, nbytes)
            yield _Part(number, part, offset + done)


def check_copy(plan: ArchiveCopy, path: Path) -> None:
    """Open the archive: it must have the tensors of the plan.

    Raises:
        CkptError: it cannot be opened, or a tensor is missing.
    """
    wanted = {address: (ref.dtype, ref.shape) for address, ref in tensors(plan.tree)}
    with about(path), open_checkpoint(path) as written:
        found = {at: (ref.dtype, ref.shape) for at, ref in tensors(written.tree)}
    expect(found == wanted, "other tensors", path)
