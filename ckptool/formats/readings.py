"""Other readings of a file: what loaders see in it that choose by other marks than ckptool.

A file can be two files. Torch looks at the first four bytes for a zip, then asks ``tarfile``, then
unpickles from the first byte; ``torch.jit.load`` looks for a zip from the end; by its suffix the
same file goes to safetensors. So a file of one format is looked at for the others too:

=====================  ====================================================================
checkpoints in a zip   refused: an agent's loader, or NeMo's, reads those and not the rest; in the
or tar of torch        module of each format
a tar from byte 0      refused: ``torch.load`` takes a file for a tar before it unpickles it
a pickle from byte 0   CK110, if it has names: hardly a file is a pickle by accident
a zip at the end       CK110, and everything in it that a loader would run is reported; refused if
                       it holds checkpoints
safetensors in a zip   CK110
=====================  ====================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from ckptool.errors import CkptError, DamagedError, UnknownFormatError
from ckptool.formats.base import DANGEROUS, Checkpoint, FileFormat, Note
from ckptool.formats.nested import pickles_of
from ckptool.formats.other_records import OtherRecords
from ckptool.formats.other_zips import refuse_checkpoints
from ckptool.formats.pickles.plain_names import trust_of
from ckptool.formats.pickles.reader import SHORT, Pickles
from ckptool.formats.tar_members import is_tar
from ckptool.formats.texts import is_header
from ckptool.formats.torch_records import TorchRecords
from ckptool.formats.zips.directory import find_end
from ckptool.formats.zips.records import ZipArchive, is_zip
from ckptool.formats.zips.zipfile_view import directory_of_zipfile
from ckptool.records import replace
from ckptool.sources.base import Source
from ckptool.sources.window import Window

NO_ACCIDENT = "get it from its author again; no program writes such a file by accident"


def with_other_readings(checkpoint: Checkpoint, file: Source, kind: FileFormat) -> Checkpoint:
    """Return the checkpoint with notes on other readings of its file, and the names in them.

    Raises:
        DamagedError: the file is a tar archive or a compressed stream too, or ends in a zip that
            is damaged.
    """
    head = file.head(SHORT)
    if is_tar(head) and not kind.begins_as_tar:
        raise DamagedError(
            f"two files in one: it begins as {kind.name} and as a tar archive, which loaders of "
            "torch files take it for",
            hint=NO_ACCIDENT,
        )
    packed = None if is_zip(head) or kind.begins_as_pickle else _compression(head)
    if packed is not None:
        raise DamagedError(
            f"two files in one: it begins as {kind.name} and as a {packed} stream, which "
            "joblib.load unpacks to a pickle",
            hint=NO_ACCIDENT,
        )
    pickles = pickles_of("the zip at its end")
    with pickles.telling():
        # A pickle can end in a zip, the bytes of a torch.save, if nothing is behind it; a tar in a
        # member.
        is_pickle = kind.begins_as_pickle and "trailing_bytes" not in checkpoint.metadata
        is_nested = is_pickle or kind.begins_as_tar
        notes = (
            *_as_another(file, head, kind, pickles),
            *_zip_at_end(file, pickles, is_nested=is_nested),
        )
    if not notes:
        return checkpoint
    return replace(
        checkpoint,
        notes=(*checkpoint.notes, *notes),
        globals_named=(*checkpoint.globals_named, *pickles.globals_named),
    )


def _compression(head: bytes) -> str | None:
    from ckptool.formats.compressed import compression  # noqa: PLC0415 - torch zips are none

    return compression(head)


def _as_another(file: Source, head: bytes, kind: FileFormat, pickles: Pickles) -> Iterator[Note]:
    """Yield notes on other readings from the first byte on."""
    if is_zip(head):
        if is_header(head) and _is_safetensors(file):
            yield _note("safetensors", "by its suffix loaders could see another file")
    elif not kind.begins_as_pickle and _names_as_pickle(file, pickles):
        yield _note("a pickle from its first byte", "other readers would run it")


def _zip_at_end(file: Source, pickles: Pickles, *, is_nested: bool) -> Iterator[Note]:
    """Yield a note on a zip that ends another file, and record the names in its pickles."""
    archive, shift = _archive_at_end(file)
    if archive is None:
        return
    if shift and is_nested:
        yield from _zip_inside(archive, pickles)
        return
    refuse_checkpoints(record.name for record in archive.records)
    with suppress(UnknownFormatError):  # a zip of something else
        TorchRecords(archive).read_tree(pickles)
    OtherRecords(archive, pickles).listen()
    message = "a zip archive ends here, so that other readers could see another file"
    yield Note("CK110", "", f"{message}; torch and ckptool read the beginning")


def _zip_inside(archive: ZipArchive, pickles: Pickles) -> Iterator[Note]:
    """Yield a note on a zip at the end of a pickle or a tar, if a reader would run what is in it.

    ``torch.hub`` looks for a zip of one file from the end of any file.
    """
    if len(archive.records) == 1:
        OtherRecords(archive, pickles).listen()
    if any(trust_of(named) == DANGEROUS for named in pickles.globals_named):
        yield _note("a zip, which is inside of it", "other readers would run it")


def _note(what: str, why: str) -> Note:
    return Note("CK110", "", f"the file is also {what}: {why}")


def _is_safetensors(file: Source) -> bool:
    from ckptool.formats.safetensors_file import read_header  # noqa: PLC0415 - zips begin as none

    try:
        read_header(file)
    except CkptError:
        return False
    return True


def _names_as_pickle(file: Source, pickles: Pickles) -> bool:
    """Return whether the file, read as a pickle, has names; record them (see ``listen_aside``)."""
    before = len(pickles.globals_named)
    pickles.listen_aside(file, 0, "the file read as a pickle", SHORT)
    return len(pickles.globals_named) > before


def _archive_at_end(file: Source) -> tuple[ZipArchive | None, int]:
    """Return the zip that readers find from the end of another file, and where it begins.

    Its offsets count from the file's beginning (torch), or from its own (``zipfile``).
    """
    end = None if is_zip(file.head(4)) else find_end(file, is_certain=False)
    if end is None:
        return None, 0
    for shift in (0, end.gap) if end.gap > 0 else (0,):
        at = end.directory_offset + shift
        if end.records and at + 4 <= file.size and file.read(at, 4) == b"PK\x01\x02":
            return ZipArchive(Window(file, shift) if shift else file), shift
    shift, directory = directory_of_zipfile(file, end) or (0, None)
    if directory is None or shift < 0:
        return None, 0
    return ZipArchive(Window(file, shift) if shift else file, directory), shift
