"""The protocol in which the object of a torch file was pickled."""

from __future__ import annotations

from ckptool.formats.base import Checkpoint, SourceFile
from ckptool.formats.byte_sources import FileWindow
from ckptool.formats.zip_records import ZipArchive, is_zip

PROTO = 0x80  # the opcode; the version follows


def pickle_protocol(checkpoint: Checkpoint) -> int:
    """2 for what ``torch.save`` writes unasked; 0 or 1 where the pickle does not say."""
    (file, *_) = checkpoint.reader.opened
    first = file.read(_pickle_offset(file), 2)
    return first[1] if first[0] == PROTO else 0


def _pickle_offset(file: SourceFile) -> int:
    """Of ``data.pkl`` in a zip; the pickles of the old container begin the file, all alike."""
    if not is_zip(file.head(4)):
        return 0
    archive = ZipArchive(FileWindow(file))
    record = next(r for r in archive.records if r.name.endswith("/data.pkl"))
    return archive.data_offset(record)
