"""Pickles and streams behind the first one of a file, which a second load would run.

``pickle.load`` and ``torch.load`` leave an open file where the first object ends, so programs write
several objects into one file and load them in turn. All are followed, wherever they stand in the
row: each begins where the one before it ends, and a stream of ``torch.save`` also ends behind the
values that follow its five pickles.
"""

from __future__ import annotations

from contextlib import suppress

from ckptool.errors import DamagedError, UnknownFormatError, UnsupportedError
from ckptool.formats.legacy_stream import MAGIC_NUMBER, stream_end
from ckptool.formats.pickles.reader import Pickles
from ckptool.formats.torch_records import TorchRecords
from ckptool.formats.zips.directory import find_end
from ckptool.formats.zips.records import ZipArchive, is_zip
from ckptool.sources.base import Source
from ckptool.sources.window import Window

MAX_BEHIND = 1 << 14  # pickles, one behind the other
READ_AT_ONCE = 512  # bytes: most of many pickles are short
MOST_READ = 3  # times the file, before the windows of short pickles


def listen_behind(source: Source, offset: int, pickles: Pickles) -> None:
    """Record the names in the row of pickles and streams that begins at ``offset``.

    Raises:
        UnsupportedError: there are more than can be followed in useful time.
    """
    metered = _Metered(source, MOST_READ * source.size + MAX_BEHIND * READ_AT_ONCE)
    at, then = offset, 0  # then: where the last stream ends
    for number in range(2, MAX_BEHIND):
        if at >= source.size:
            return
        heard = pickles.listen_aside(metered, at, f"pickle {number} of the file", READ_AT_ONCE)
        if metered.left < 0:
            break
        if type(heard.value) is int and heard.value == MAGIC_NUMBER:
            then = max(then, stream_end(source, at) or 0)
        if heard.end is None and then <= at:
            _listen_to_zip(source, at, pickles)
            return
        at, then = (then, 0) if heard.end is None else (heard.end, then)
    raise UnsupportedError(
        f"more pickles behind the first than can be followed (at most {MAX_BEHIND:,})",
        hint="split the file: load each object and save it to a file of its own",
    )


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


class _Metered(Window):
    """A source that gives only so many bytes in all."""

    def __init__(self, source: Source, allowed: int) -> None:
        super().__init__(source, 0)
        self.left = allowed

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return bytes of the source.

        Raises:
            UnsupportedError: they are more than allowed.
        """
        self.left -= nbytes
        if self.left < 0:
            raise UnsupportedError("more pickles than can be followed")
        return super().read(offset, nbytes)
