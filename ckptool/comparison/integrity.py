"""Check of the checksums of records that differ: an apparent difference may be damage.

A file of ``torch.save`` has a checksum for each record, which loaders ignore. Reading a whole
record to check it costs as much as comparing it, so only suspects are checked. These are the
records of tensors in which no more bytes differ than a bad sector or page could hold, and the
pickle when plain values differ. A checksum of 0 was not computed; other formats have none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from ckptool.errors import DamagedError
from ckptool.formats.base import Checkpoint
from ckptool.formats.zips.checksums import Checksummed, checksummed_records
from ckptool.sources.base import ByteSpan, Source
from ckptool.tensors.crc import checksum, crc32
from ckptool.tensors.windows import windows
from ckptool.tree.nodes import TensorRef

SUSPECT = 1 << 16  # bytes that differ in a suspect tensor, at most


def refuse_damaged(
    checkpoint: Checkpoint, suspects: Iterable[TensorRef], *, values_differ: bool
) -> None:
    """Check the records that hold the suspects, and the pickle if ``values_differ``.

    Raises:
        DamagedError: a record does not match its checksum.
    """
    if not checkpoint.format.has_checksums:
        return
    file = checkpoint.source
    spans = (chunk.span for ref in suspects for chunk in ref.chunks)
    offsets = sorted(span.offset for span in spans if span.source is file)
    if not offsets and not values_differ:
        return
    wanted = [
        record
        for record in checksummed_records(file)
        if record.crc is not None
        and (_holds_one(record, offsets) or (values_differ and record.name.endswith(".pkl")))
    ]
    for record, found in zip(wanted, _checksums(file, wanted), strict=True):
        if found != record.crc:
            raise DamagedError(
                f"the record {record.name!r} does not have its checksum: its bytes were changed "
                "after they were written",
                path=checkpoint.path,
                hint="take another copy: differing values prove nothing while one file is damaged",
            )


def _checksums(file: Source, records: Iterable[Checksummed]) -> Iterator[int]:
    """Yield the checksums of the bytes; small records that lie near each other are read at once."""
    for window in windows(ByteSpan(file, record.offset, record.nbytes) for record in records):
        if len(window.places) == 1:
            yield checksum(file.read, window.nbytes, window.offset)
        else:
            data = memoryview(file.read(window.offset, window.nbytes))
            yield from (crc32(data[start:stop]) for start, stop in window.places)


def _holds_one(record: Checksummed, offsets: list[int]) -> bool:
    at = bisect_left(offsets, record.offset)
    return at < len(offsets) and offsets[at] < record.offset + record.nbytes
