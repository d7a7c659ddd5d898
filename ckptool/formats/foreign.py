"""Files that are no checkpoints, and of which other loaders than torch's unpickle a part.

``numpy.load`` unpickles arrays of objects, in a ``.npy`` file or in any zip. ``joblib.load``
unpacks a compressed file and unpickles it. Such files lie beside checkpoints: statistics, scalers,
caches.
"""

from __future__ import annotations

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.base import NamedGlobal
from ckptool.formats.behind import listen_behind
from ckptool.formats.compressed import compression, unpacked
from ckptool.formats.nested import pickles_of
from ckptool.formats.other_records import OtherRecords
from ckptool.formats.pickles.following import Follower
from ckptool.formats.pickles.machine import PickleMachine
from ckptool.formats.pickles.reader import SHORT, Pickles
from ckptool.formats.tar_members import is_tar
from ckptool.formats.zips.records import ZipArchive, is_zip
from ckptool.sources.base import Source
from ckptool.sources.memory import Memory

FIRST, MOST = 1 << 12, 64 << 20  # unpacked bytes that are looked at, and of a pickle


def names_in(file: Source) -> tuple[NamedGlobal, ...]:
    """Return the names in a file that its loader would meet.

    Raises:
        CkptError: it cannot be looked at whole.
    """
    pickles = pickles_of("the file")
    with pickles.telling():
        _listen(file, pickles)
    return pickles.globals_named


def _listen(file: Source, pickles: Pickles) -> None:
    head = file.head(SHORT)
    packed = compression(head)
    if is_zip(head):
        archive = ZipArchive(file)
        OtherRecords(archive, pickles).listen_to_arrays(archive.records)
    elif packed is not None:
        _listen_to_unpacked(file, packed, pickles)
    else:
        listen_behind(file, 0, pickles, "the file")


def _listen_to_unpacked(file: Source, packed: str, pickles: Pickles) -> None:
    data = file.read(0, min(file.size, MOST))
    begin = unpacked(data, FIRST)
    if begin is None:
        raise UnsupportedError(f"compressed with {packed}")
    if is_tar(begin) or is_zip(begin):
        raise UnsupportedError(f"an archive, compressed with {packed}")
    if len(begin) == FIRST and not _may_be_pickle(begin):
        return  # text or numbers: not all of a long log is unpacked
    made = unpacked(data, MOST) or b""
    if MOST in {len(made), len(data)}:
        raise UnsupportedError(f"compressed with {packed}, and more than {MOST:,} bytes")
    listen_behind(Memory(made), 0, pickles, "the file")


def _may_be_pickle(begin: bytes) -> bool:
    """Return whether the instructions of a pickle reach the end of these bytes."""
    machine = PickleMachine(Memory(begin), builder=Follower())
    try:
        machine.run()
    except DamagedError as error:
        return error.message.startswith("truncated")
    return True
