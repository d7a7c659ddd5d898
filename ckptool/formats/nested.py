"""A ``torch.save`` stream inside a pickle: ``torch.storage._load_from_bytes(b"...")``.

A storage is pickled so outside of ``torch.save``. The bytes are a stream in the legacy layout (or a
zip, if they were made by hand) whose object is the storage. They are opened in place, so that a
snapshot of 300 MB takes no more memory than its structure. Protocol 2 writes bytes as text; such
bytes exist decoded in memory alone.
"""

from __future__ import annotations

from typing import Any

from ckptool.errors import DamagedError
from ckptool.formats.base import Checkpoint, Format, TensorReader
from ckptool.formats.pickles.reader import Pickles
from ckptool.formats.torch_records import TorchRecords
from ckptool.formats.zips.records import ZipArchive, is_zip
from ckptool.sources.base import Source
from ckptool.sources.memory import Memory
from ckptool.sources.window import Copied, Window
from ckptool.tree.nodes import BytesRef, SpannedBytes, Tree


def pickles_of(label: str) -> Pickles:
    """Return a reader for the pickles of a file and the streams nested in them.

    ``label`` names the file's own pickle, for messages.
    """
    return Pickles(label, read_stream)


def checkpoint_of(kind: Format, file: Source, tree: Tree, read: Pickles, **more: Any) -> Checkpoint:
    """Return the checkpoint in a file, whose pickles made the tree; ``more`` are other fields."""
    fields: dict[str, Any] = {
        "globals_named": read.globals_named,
        "nested_archives": read.nested_archives,
        "notes": tuple(read.notes),
    }
    reader = TensorReader(file)
    return Checkpoint(file.place, kind, file.size, tree, reader, **{**fields, **more})


def read_stream(data: Any, pickles: Pickles) -> Any:
    """Return the value in the bytes, read as ``torch.load`` would.

    Raises:
        DamagedError: they are no bytes, or not of ``torch.save``.
    """
    if isinstance(data, str):  # bytes of Python 2 that happened to be text
        data = data.encode()
    if not isinstance(data, (bytes, bytearray, BytesRef)):
        raise DamagedError(f"a stream of torch.save is a {type(data).__name__} instead of bytes")
    return read_source(_source_of(data), pickles)


def _source_of(data: bytes | bytearray | BytesRef) -> Source:
    """Return a bytes object of a pickle as a source, in place where possible."""
    if isinstance(data, BytesRef):
        return Window(*data.span)
    return Copied(data, data.span) if isinstance(data, SpannedBytes) else Memory(bytes(data))


def read_source(source: Source, pickles: Pickles) -> Any:
    """Return the value of the ``torch.save`` stream that fills ``source``.

    Raises:
        DamagedError: it is no such stream.
    """
    from ckptool.formats import legacy_stream  # noqa: PLC0415 - few pickles nest a stream

    head = source.read(0, min(legacy_stream.MAGIC_BYTES, source.size))
    if is_zip(head):
        pickles.note_archive(source)
        return TorchRecords(ZipArchive(source)).read_tree(pickles)
    if legacy_stream.is_legacy(head):
        return legacy_stream.read_stream(source, pickles).tree
    pickles.listen(source, 0)  # a loader runs the pickle before it checks the magic number
    raise DamagedError("bytes inside the pickle should be a stream of torch.save and are not")
