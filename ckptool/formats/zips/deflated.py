"""Storages in deflated records, which are unpacked instead of read in place.

``zip -r`` and other archivers compress the records of a checkpoint that was unpacked, and torch
loads them. Their values have no place in the file, so nothing can be overwritten there. Each is
unpacked once, at its first read. The unpacked bytes of all records are limited, so that a small
file cannot fill the memory.
"""

from __future__ import annotations

import zlib
from _thread import allocate_lock  # see formats/base.py
from collections.abc import Iterator
from io import BytesIO

from ckptool.formats.zips.directory import ZipRecord
from ckptool.formats.zips.inflating import unpacked
from ckptool.formats.zips.records import ZipArchive
from ckptool.sources.base import Source


class DeflatedRecord(Source):
    """The bytes of a deflated record, unpacked at the first read and kept until it is closed."""

    def __init__(self, archive: ZipArchive, record: ZipRecord) -> None:
        name = f"{record.size} bytes of the compressed record {record.name!r:.80}"
        super().__init__(name, record.size)
        self.archive, self.record = archive, record
        self.keeps = record.size
        self.start = archive.data_offset(record)
        self._unpacked: bytes | None = None
        self._unpacking = allocate_lock()  # threads read

    def fetch(self, offset: int, nbytes: int) -> bytes:
        """Return a slice of the unpacked bytes.

        Raises:
            DamagedError: the record cannot be unpacked.
        """
        with self._unpacking:
            if self._unpacked is None:
                room = BytesIO()  # a joined list of pieces would hold the bytes twice
                for piece in self.pieces():
                    room.write(piece)
                self._unpacked = room.getvalue()
            return self._unpacked[offset : offset + nbytes]

    def close(self) -> None:
        """Drop the unpacked bytes."""
        self._unpacked = None

    def pieces(self) -> Iterator[bytes]:
        """Yield the unpacked bytes piece by piece, and keep none."""
        read = self.archive.source.read
        return unpacked(self.record, lambda at, nbytes: read(self.start + at, nbytes))

    def checksum(self) -> int:
        """Return the CRC-32 of the unpacked bytes, whose length is checked too."""
        crc = 0
        for piece in self.pieces():
            crc = zlib.crc32(piece, crc)
        return crc
