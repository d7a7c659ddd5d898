"""Pickles and streams behind the first one of a file, which a second load would run.

``rows.py`` has the rules. Behind a row may be a zip, which ``torch.load`` reads from there.
"""

from __future__ import annotations

from contextlib import suppress

from ckptool.errors import DamagedError, UnknownFormatError
from ckptool.formats.pickles.reader import Pickles
from ckptool.formats.rows import listen_to_row
from ckptool.formats.torch_records import TorchRecords
from ckptool.formats.zips.directory import find_end
from ckptool.formats.zips.records import ZipArchive, is_zip
from ckptool.sources.base import Source
from ckptool.sources.window import Window


def listen_behind(source: Source, offset: int, pickles: Pickles, name: str = "") -> None:
    """Record the names in the row of pickles and streams that begins at ``offset``.

    ``name`` is that of the source, if it is a file in an archive.

    Raises:
        UnsupportedError: there are more than can be followed in useful time.
    """
    at = listen_to_row(source, offset, pickles, name, first=1 if name else 2)
    if at < source.size:
        _listen_to_zip(source, at, pickles)


def _listen_to_zip(source: Source, at: int, pickles: Pickles) -> None:
    """Record the names in a zip at ``at``; torch counts offsets from where it begins to read."""
    if not is_zip(source.read(at, min(4, source.size - at))):
        return
    try:
        with suppress(UnknownFormatError):  # a zip of something else
            records = TorchRecords(ZipArchive(Window(source, at)))
            records.read_tree(pickles)
            records.listen_to_others(pickles)
    except DamagedError:
        if not _counts_from_the_beginning(source):
            raise


def _counts_from_the_beginning(source: Source) -> bool:
    """Return whether the offsets of a zip at the end count from the file's first byte.

    Then it is another reading of the whole file, which ``readings.py`` reports.
    """
    end = find_end(source, is_certain=False)
    if end is None or end.directory_offset + 4 > source.size:
        return False
    return source.read(end.directory_offset, 4) == b"PK\x01\x02"
