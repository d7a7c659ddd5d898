"""A directory into which a torch zip was unpacked: a file for each of its records.

Layout, as ``torch_records.py`` describes it::

    data.pkl     the object
    byteorder    little or big; absent in old files: little
    version      a number
    data/<key>   the bytes of one storage

torch reads it after ``zip -0 -r model.pt DIR``. A storage's file is a name in ``data``, never a
path out of it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from ckptool.errors import CkptError, DamagedError, UnreadableError, UnsupportedError
from ckptool.formats.base import Checkpoint, FolderFormat, Note, TensorReader
from ckptool.formats.behind import listen_behind
from ckptool.formats.folders import all_or_none
from ckptool.formats.nested import pickles_of
from ckptool.formats.pickles.reader import Pickles
from ckptool.formats.pickles.storages import StorageKey
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.formats.zips.records import folded
from ckptool.sources.base import ByteSpan, Source
from ckptool.sources.places import open_file

PICKLE, VERSION, BYTEORDER, DATA = "data.pkl", "version", "byteorder", "data"
CODE = ("constants.pkl", "code")  # of TorchScript
MAX_WORD = 16  # bytes of a record that holds one word


class UnpackedZip(FolderFormat):
    """See the module's docstring."""

    name = "unpacked-zip"
    title = "unzipped torch.save"
    written_by = "a file of `torch.save` that was unzipped: a folder with `data.pkl` and `data/`"

    def matches(self, folder: Path) -> bool:
        """Return whether the directory has the pickle and the version."""
        return (folder / PICKLE).is_file() and (folder / VERSION).is_file()

    def open(self, folder: Path) -> Checkpoint:
        """Return the checkpoint; read only the pickles."""
        if any(folded(path.name) in CODE for path in folder.iterdir()):
            raise UnsupportedError(
                "an unpacked TorchScript archive, whose code runs when it is loaded",
                path=folder,
                hint=f"zip -0 -r model.pt '{folder}' packs it; ckptool reads the file",
            )
        pickles = pickles_of(PICKLE)
        with all_or_none() as opened:
            files = _Files(folder, opened)
            byteorder = files.word(BYTEORDER) or "little"
            if byteorder not in {"little", "big"}:
                raise DamagedError(f"the byte order is {byteorder!r:.20}, neither little nor big")
            with pickles.telling():
                builder = TorchBuilder(files.storage, pickles.open_nested, byteorder)
                pickle = files.opened(folder / PICKLE)
                tree, end = pickles.read(pickle, builder)
                listen_behind(pickle, end, pickles, PICKLE)
                unread = [name for name in files.other_pickles() if not files.listen(name, pickles)]
            sources = [*files.by_path.values()]
        message = "another pickle in the directory, which cannot be read to its end"
        return Checkpoint(
            path=folder,
            format=self,
            size_bytes=sum(source.size for source in sources),
            tree=tree,
            reader=TensorReader(*sources),
            globals_named=pickles.globals_named,
            nested_archives=pickles.nested_archives,
            notes=(*pickles.notes, *(Note("CK113", name, message) for name in unread)),
            storage_bytes=builder.storages.nbytes,
        )


class _Files:
    """The files of the directory, opened when they are needed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.by_path: dict[Path, Source] = {}

    def opened(self, path: Path) -> Source:
        """Return a file, opened once."""
        if path not in self.by_path:
            self.by_path[path] = file = open_file(path)
            self._stack.callback(file.close)
        return self.by_path[path]

    def word(self, name: str) -> str | None:
        """Return the content of a file of one word; None if there is none."""
        if not (self._folder / name).is_file():
            return None
        file = self.opened(self._folder / name)
        return file.read(0, min(file.size, MAX_WORD)).decode("latin-1")

    def storage(self, key: StorageKey, nbytes: int) -> ByteSpan:
        """Return the place of a storage.

        Raises:
            DamagedError: its file is missing or too short, or its key is no name of a file.
        """
        name = key if isinstance(key, str) else repr(key)
        if name in {"", ".", ".."} or "/" in name or "\0" in name:
            raise DamagedError(f"the key of a storage leads out of the directory: {name!r:.80}")
        try:
            file = self.opened(self._folder / DATA / name)
        except UnreadableError as error:
            if os.path.lexists(self._folder / DATA / name):
                raise  # it is there: permissions, or too many open files
            said = f"the file {DATA}/{name:.80} is missing, {nbytes} bytes of values with it"
            raise DamagedError(said, path=error.path) from error
        if file.size < nbytes:
            raise DamagedError(f"the file {DATA}/{name:.80} has {file.size} of {nbytes} bytes")
        return file.span(0, nbytes)

    def other_pickles(self) -> list[str]:
        """Return the names of other pickles: loaders of the archive may read them."""
        return sorted(path.name for path in self._folder.glob("*.pkl") if path.name != PICKLE)

    def listen(self, name: str, pickles: Pickles) -> bool:
        """Note the names in another pickle; return whether it could be read."""
        try:
            file = self.opened(self._folder / name)
        except CkptError:
            return False
        end = pickles.listen(file, 0, name)
        if end is not None:
            listen_behind(file, end, pickles, name)
        return end is not None
