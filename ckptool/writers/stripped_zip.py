"""A copy of a torch zip without some parts: without their items in the pickle and their storages.

Everything else is copied: the pickle's other instructions, all storages that they still use, and
records of other kinds. Two records are left out, since they state where torch put its storages.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import suppress

from ckptool.errors import AddressError, DamagedError, UnsupportedError
from ckptool.formats.base import Checkpoint
from ckptool.formats.nested import pickles_of
from ckptool.formats.pickles.storages import StorageKey
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.formats.torch_records import TorchRecords
from ckptool.formats.torch_zip import TorchZip
from ckptool.formats.zips.checksums import known_crc
from ckptool.formats.zips.directory import ZipRecord
from ckptool.formats.zips.records import NO_CRC, STORED, ZipArchive, folded
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tree.addresses import format_address, node_at
from ckptool.tree.nodes import Address, Tree
from ckptool.writers.archive_copy import ArchiveCopy, Piece, refuse_other_tensors
from ckptool.writers.pickle_cut import OTHERWISE, without_items

OF_PLACES = frozenset({".format_version", ".storage_alignment"})


def plan_stripped(checkpoint: Checkpoint, dropped: Sequence[Address]) -> ArchiveCopy:
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
    refuse_other_tensors(checkpoint.tree, tree, dropped)
    storages = folded(f"{records.folder}data/")
    left_out = {records.folder + name for name in OF_PLACES} | {records.pickle.name}
    pieces = tuple(
        Piece(record.name, spans[record.name], known_crc(record))
        for record in archive.records
        if record.name not in left_out
        and (not folded(record.name).startswith(storages) or folded(record.name) in used)
    )
    return ArchiveCopy(records.folder, pickle, tree, pieces)


def _refuse_odd(checkpoint: Checkpoint, archive: ZipArchive) -> None:
    """Refuse archives that torch does not write: readers could see different records in them."""
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
    """Refuse a pickle that does not fit its checksum: the copy would have one that fits."""
    if record.crc not in {NO_CRC, zlib.crc32(pickle)}:
        raise DamagedError(
            f"the bytes of the record {record.name} do not fit its checksum",
            path=checkpoint.path,
            hint="get the file again or take an earlier one",
        )


def _refuse_other_keys(
    checkpoint: Checkpoint, new: Tree, dropped: Sequence[tuple[str, ...]]
) -> None:
    """Refuse a pickle that sets a key in several ways, of which one was cut."""
    for path in dropped:
        with suppress(AddressError):
            node_at(new, path)
            raise UnsupportedError(
                "the pickle sets this key in several ways, so it cannot be left out",
                path=checkpoint.path,
                address=format_address(path),
                hint=OTHERWISE,
            )
