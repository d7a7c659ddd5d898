"""Zip archives of ``torch.save`` since 1.6; ``torch_records.py`` describes their records.

TorchScript archives (``torch.jit.save``) have the same records and more: see ``torchscript.py``.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from ckptool.formats.base import Checkpoint, FileFormat, Format, NamedGlobal
from ckptool.formats.nested import checkpoint_of, pickles_of
from ckptool.formats.other_records import OtherRecords
from ckptool.formats.script_code import is_torchscript
from ckptool.formats.torch_records import TorchRecords
from ckptool.formats.zips.records import STORED, ZipArchive, is_zip
from ckptool.sources.base import Source

if TYPE_CHECKING:
    from ckptool.formats.pickles.literal import Literal  # for files that are written again


def names_in_arrays(file: Source, offsets: Container[int]) -> tuple[NamedGlobal, ...]:
    """Return the names in arrays of objects among the records of a zip.

    Behind a URL records are not looked at when the file is opened.

    Args:
        file: the zip.
        offsets: the places of the stored records that begin as arrays. Compressed ones are looked
            into.

    Raises:
        CkptError: it is no zip of torch's, or has more arrays than can be followed.
    """
    archive, pickles = ZipArchive(file), pickles_of("data.pkl")
    OtherRecords(archive, pickles).listen_to_arrays(
        record
        for record in archive.records
        if record.method != STORED or archive.data_offset(record) in offsets
    )
    return pickles.globals_named


class TorchScript(Format):
    """The format of a torch zip that holds a program."""

    name = "torchscript"
    title = "TorchScript"
    written_by = "`torch.jit.save`: parameters and buffers, read from the archive's code"
    loaded_by = "torch.jit.load"
    has_checksums = True


TORCHSCRIPT = TorchScript()


class TorchZip(FileFormat):
    """See the module's docstring."""

    name = "torch-zip"
    title = "torch.save (zip)"
    written_by = "`torch.save` since 1.6, whatever the suffix"
    suffixes = (".pt", ".pth", ".ckpt", ".bin")
    is_patchable = is_rewritable = is_weights_only = has_checksums = keeps_order = True

    def matches(self, head: bytes) -> bool:
        """Return whether a zip begins, by its first four bytes, as in torch."""
        return is_zip(head)

    def literal(self, file: Source) -> Literal:
        """Return the object in the pickle, and the records of its storages."""
        archive = ZipArchive(file)
        return TorchRecords(archive).literal()

    def open(self, file: Source) -> Checkpoint:
        """Return the checkpoint in a zip; read only the directory, the pickle and the headers."""
        archive = ZipArchive(file)
        pickles = pickles_of("data.pkl")
        with pickles.telling():
            records = TorchRecords(archive)
            tree = records.read_tree(pickles)
            others = records.listen_to_others(pickles)
        made: Format = self
        if is_torchscript(archive, records.folder):
            from ckptool.formats.torchscript import (  # noqa: PLC0415 - torch.jit.save is rare
                name_modules,
                read_classes,
            )

            made = TORCHSCRIPT
            name_modules(tree, read_classes(archive, records.folder))
        return checkpoint_of(
            made, file, tree, pickles,
            pickles=pickles.extents,
            metadata=records.metadata,
            notes=(*records.notes(), *pickles.notes, *others),
            storage_bytes=records.storage_bytes,
            saved_as=records.folder.removesuffix("/"),
        )  # fmt: skip
