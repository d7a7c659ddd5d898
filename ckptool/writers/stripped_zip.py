"""A copy of a torch zip without some parts: without their items in the pickle and their storages.

Everything else is copied: the pickle's other instructions, all storages that they still use, and
records of other kinds. Two records are left out, since they state where torch put its storages.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ckptool.dtypes import BY_NAME
from ckptool.errors import AddressError, CkptError, DamagedError, UnsupportedError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.formats.nested import pickles_of
from ckptool.formats.pickles.storages import StorageKey
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.formats.torch_records import PROVENANCE, TorchRecords
from ckptool.formats.torch_zip import TorchZip
from ckptool.formats.zips.directory import ZipRecord
from ckptool.formats.zips.records import NO_CRC, STORED, ZipArchive, folded
from ckptool.process.progress import Progress
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tensors.casting import Casting
from ckptool.tree.addresses import format_address, node_at
from ckptool.tree.nodes import Address, Chunk, TensorRef, Tree
from ckptool.tree.walking import tensors
from ckptool.writers.files.whole_file import PartialFile, expect
from ckptool.writers.pickle_cut import OTHERWISE, without_items
from ckptool.writers.transfer import Move, transfer
from ckptool.writers.values import Account
from ckptool.writers.zip_archive import ArchiveWriter

OF_PLACES = frozenset({".format_version", ".storage_alignment"})
BYTES = BY_NAME["uint8"]


class Stripped(NamedTuple):
    """The plan of the copy."""

    folder: str  # the directory of all records
    pickle: bytes
    tree: Tree  # that the pickle makes
    copied: tuple[ZipRecord, ...]  # in the order of the file
    spans: Mapping[str, ByteSpan]  # of these records
    has_note: bool  # one of them is the record of provenance

    @property
    def nbytes(self) -> int:
        """Size of what is copied, in bytes."""
        return len(self.pickle) + sum(record.size for record in self.copied)


def plan_stripped(checkpoint: Checkpoint, dropped: Sequence[Address]) -> Stripped:
    """Return the plan of a copy without the items at these key paths, whose keys are texts.

    Raises:
        UnsupportedError: the container or its pickle cannot be cut.
        AddressError: there is no item of a dict at a key path.
        DamagedError: what would stay is not what it was.
    """
    if not isinstance(checkpoint.format, TorchZip):
        raise UnsupportedError(
            f"parts can be dropped from files of torch.save, and this is {checkpoint.format_name}",
            path=checkpoint.path,
            hint="name the state dict that you want: --only model, or PATH#ADDRESS",
        )
    archive = ZipArchive(checkpoint.source)
    records = TorchRecords(archive)
    spans = {record.name: archive.span(record, record.size) for record in archive.records}
    _refuse_odd(checkpoint, archive)
    paths = [tuple(map(str, address)) for address in dropped]
    program = archive.read(records.pickle)
    _refuse_damaged(checkpoint, records.pickle, program)
    pickle = without_items(program, paths)
    used: set[str] = set()

    def locate(key: StorageKey, nbytes: int) -> ByteSpan | None:
        used.add(folded(f"{records.folder}data/{key if isinstance(key, str) else repr(key)}"))
        return records.locate(key, nbytes)

    pickles = pickles_of("data.pkl")
    builder = TorchBuilder(locate, pickles.open_nested, records.byteorder)
    tree, _ = pickles.read(Memory(pickle), builder)
    _refuse_other_keys(checkpoint, tree, paths)
    _refuse_other_tensors(checkpoint.tree, tree, dropped)
    storages = folded(f"{records.folder}data/")
    left_out = {records.folder + name for name in OF_PLACES} | {records.pickle.name}
    copied = tuple(
        record
        for record in archive.records
        if record.name not in left_out
        and (not folded(record.name).startswith(storages) or folded(record.name) in used)
    )
    has_note = records.get(PROVENANCE) is not None
    return Stripped(records.folder, pickle, tree, copied, spans, has_note)


def _refuse_odd(checkpoint: Checkpoint, archive: ZipArchive) -> None:
    """Refuse archives that torch does not write: readers could see different records in them.

    Raises:
        UnsupportedError: it is one.
    """
    odd = next((doubt for _, doubt in archive.doubts), None) or next(iter(archive.refusals), None)
    if any(record.method != STORED for record in archive.records):
        odd = "its records are compressed"
    if odd:
        raise UnsupportedError(
            f"parts cannot be dropped from this archive: {odd}",
            path=checkpoint.path,
            hint=OTHERWISE,
        )


def _refuse_damaged(checkpoint: Checkpoint, record: ZipRecord, pickle: bytes) -> None:
    """Refuse a pickle that does not fit its checksum: the copy would have one that fits.

    Raises:
        DamagedError: it does not fit.
    """
    if record.crc not in {NO_CRC, zlib.crc32(pickle)}:
        raise DamagedError(
            f"the bytes of the record {record.name} do not fit its checksum",
            path=checkpoint.path,
            hint="get the file again or take an earlier one",
        )


def _refuse_other_keys(
    checkpoint: Checkpoint, new: Tree, dropped: Sequence[tuple[str, ...]]
) -> None:
    """Refuse a pickle that sets a key in several ways, of which one was cut.

    Raises:
        UnsupportedError: a key is still there.
    """
    for path in dropped:
        with suppress(AddressError):
            node_at(new, path)
            raise UnsupportedError(
                "the pickle sets this key in several ways, so it cannot be left out",
                path=checkpoint.path,
                address=format_address(path),
                hint=OTHERWISE,
            )


def _refuse_other_tensors(old: Tree, new: Tree, dropped: Sequence[Address]) -> None:
    """Compare the tensors that stay with those of the whole file, in both directions.

    Raises:
        DamagedError: one is missing, or another one.
    """
    found = dict(tensors(new))
    for address, ref in found.items():
        if node_at(old, address) != ref:
            raise DamagedError("the tensor would be another one", address=format_address(address))
    for address, _ in tensors(old):
        is_dropped = any(address[: len(path)] == path for path in dropped)
        if not is_dropped and address not in found:
            raise DamagedError("the tensor would be missing", address=format_address(address))


def write_stripped(
    plan: Stripped,
    output: PartialFile,
    checkpoint: Checkpoint,
    note: str,
    progress: Progress,
    *,
    force: bool,
) -> None:
    """Write the copy, and compare each record with its checksum on the way.

    Raises:
        DamagedError: a record does not fit its checksum, without ``force``.
        OutputError: there is no room.
    """
    output.need(plan.nbytes)
    archive = ArchiveWriter(output)
    archive.add_bytes(f"{plan.folder}data.pkl", plan.pickle)
    moves: list[Move] = []
    crcs: dict[str, int] = {}
    for record in plan.copied:
        archive.begin(record.name)
        span = plan.spans[record.name]
        moves.append(Move(record.name, _flat(span), output.skip(record.size)))
        archive.end(partial(crcs.__getitem__, record.name))
    if not plan.has_note:
        archive.add_bytes(f"{plan.folder}{PROVENANCE}", note.encode())
    moved = transfer(moves, checkpoint.reader, Casting(), Account(), output, progress)
    for record, (run, _) in zip(plan.copied, moved, strict=True):
        crcs[record.name] = run.crc
        if record.crc not in {NO_CRC, run.crc} and record.size:
            if not force:
                raise DamagedError(
                    f"the bytes of the record {record.name} do not fit its checksum",
                    path=checkpoint.path,
                    hint="get the file again or take an earlier one; --force copies them as they "
                    "are",
                )
            crcs[record.name] = record.crc  # so that the copy shows the damage too
    archive.finish()


def _flat(span: ByteSpan) -> TensorRef:
    shape = (span.nbytes,)
    return TensorRef(BYTES, shape, (Chunk(span, (0,), shape, (1,)),))


def check_stripped(plan: Stripped, path: Path) -> None:
    """Open the copy: it must have the tensors of the plan.

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
