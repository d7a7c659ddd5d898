"""A whole ``torch.save`` inside a pickle: ``torch.storage._load_from_bytes(b"...")``.

Storages pickle themselves so when no ``torch.save`` is around them: the bytes are a stream in the
legacy layout (or a zip, if somebody made them by hand) whose object is the storage. They are
opened in place, so that a snapshot of 300 MB costs no more memory than its structure. Protocol 2
spells bytes as text; what was spelled so exists only in memory.
"""

from __future__ import annotations

from typing import Any

from ckptool.errors import DamagedError
from ckptool.formats import torch_legacy, torch_zip
from ckptool.formats.byte_sources import ByteSource, source_of
from ckptool.formats.pickled import Pickles
from ckptool.formats.zip_records import ZipArchive, is_zip
from ckptool.tree import BytesRef


def read_stream(data: Any, pickles: Pickles) -> Any:
    """The value in the bytes, read as ``torch.load`` would.

    Raises:
        DamagedError: not bytes, or not of ``torch.save``.
    """
    if isinstance(data, str):  # Python 2 made no difference; the bytes happened to be text
        data = data.encode()
    if not isinstance(data, (bytes, bytearray, BytesRef)):
        raise DamagedError(f"a stream of torch.save is a {type(data).__name__} instead of bytes")
    return read_source(source_of(data, pickles.file), pickles)


def read_source(source: ByteSource, pickles: Pickles) -> Any:
    """The value of the ``torch.save`` that fills ``source``.

    Raises:
        DamagedError: it is none.
    """
    head = source.read(0, min(torch_legacy.MAGIC_BYTES, source.size))
    if is_zip(head):
        return torch_zip.TorchRecords(ZipArchive(source)).read_tree(pickles)
    if torch_legacy.is_legacy(head):
        return torch_legacy.read_stream(source, pickles).tree
    pickles.listen(source, 0)  # a loader runs it before it misses the magic number
    raise DamagedError("bytes inside the pickle should be a stream of torch.save and are not")
