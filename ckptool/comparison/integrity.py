"""Whether what looks like a difference is damage.

A file of ``torch.save`` has a checksum for each record, which loaders do not look at. Reading a
whole record to check it costs as much as comparing it, so only suspects are checked: records of
tensors of which no more differs than a bad sector or page could hold, and the pickle when plain
values differ. A checksum of 0 was not computed; other formats have none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from ckptool.crc import crc32
from ckptool.errors import DamagedError
from ckptool.formats.base import Checkpoint, SourceFile
from ckptool.formats.byte_sources import FileWindow
from ckptool.formats.zip_records import NO_CRC, STORED, ZipArchive, ZipRecord
from ckptool.tree import TensorRef

SUSPECT = 1 << 16  # bytes of a tensor that differ at most
BLOCK = 1 << 20


def refuse_damaged(
    checkpoint: Checkpoint, suspects: Iterable[TensorRef], *, values_differ: bool
) -> None:
    """Check the records that hold the suspects, and the pickle if ``values_differ``.

    Raises:
        DamagedError: one does not have its checksum.
    """
    offsets = sorted(
        chunk.span.offset
        for ref in suspects
        for chunk in ref.chunks
        if chunk.span.source == checkpoint.path
    )
    if checkpoint.format_name != "torch-zip" or not (offsets or values_differ):
        return
    file = checkpoint.reader.file(checkpoint.path)
    archive = ZipArchive(FileWindow(file))
    for start, record in _suspected(archive, offsets, values_differ=values_differ):
        if _checksum(file, start, record.size) != record.crc:
            raise DamagedError(
                f"the record {record.name!r} does not have its checksum: its bytes were changed "
                "after they were written",
                path=checkpoint.path,
                hint="take another copy; that the values differ says nothing while one is damaged",
            )


def _suspected(
    archive: ZipArchive, offsets: list[int], *, values_differ: bool
) -> Iterator[tuple[int, ZipRecord]]:
    for record in archive.records:
        if record.crc == NO_CRC or record.method != STORED:
            continue
        start = archive.data_offset(record)
        at = bisect_left(offsets, start)
        holds_one = at < len(offsets) and offsets[at] < start + record.size
        if holds_one or (values_differ and record.name.endswith(".pkl")):
            yield start, record


def _checksum(file: SourceFile, start: int, nbytes: int) -> int:
    crc = 0
    for done in range(0, nbytes, BLOCK):
        crc = crc32(file.read(start + done, min(BLOCK, nbytes - done)), crc)
    return crc
