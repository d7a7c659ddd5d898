"""Archives that hold checkpoints: NeMo's ``.nemo`` files, stable-baselines3's zips.

Layouts::

    NeMo, a tar              ./model_config.yaml; ./model_weights.ckpt (torch.save), or
                             ./model_weights/ with a distributed checkpoint; tokenizers
    stable-baselines3, a zip data (JSON, with objects as pickles in base64), policy.pth,
                             policy.optimizer.pth, pytorch_variables.pth; _stable_baselines3_version

The tree has a key for each checkpoint, which is its name in the archive, and ``data`` for the plain
values of that JSON.

Rules, each with its reason:

* Nothing is extracted: values are slices of the archive, so its checkpoints must be stored.
* A member with the suffix of a checkpoint must open, unless it begins as nothing that is known:
  other programs use the suffixes too.
* The objects in ``data`` are unpickled by stable-baselines3, which looks for no version first, so
  their names are recorded in any zip; so are those of every other member that begins as a pickle.
* Names that unpack to one file (``policy.pth`` and ``./policy.pth``) are refused: which of them is
  meant depends on the reader. ``./`` before all names of a tar is no part of them.
* Weights that NeMo cut among ranks (``tp_rank_01_pp_rank_000/``) are refused: the archive does not
  say how to join them.
* An archive without checkpoints is refused as what its own reader would call it.

Source: NeMo 2.4 ``core/connectors/save_restore_connector.py``, stable-baselines3 2.9
``common/save_util.py``.
"""

from __future__ import annotations

import binascii
import posixpath
from abc import abstractmethod
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping
from json import JSONDecodeError
from pathlib import PurePosixPath
from typing import Any

from ckptool.errors import CkptError, DamagedError, UnknownFormatError, UnsupportedError
from ckptool.formats.base import Checkpoint, FileFormat, TensorReader
from ckptool.formats.behind import listen_behind
from ckptool.formats.dcp import METADATA, SHARD, Saved, missing_file, read_plan
from ckptool.formats.folders import globals_by_file, joined
from ckptool.formats.nested import pickles_of
from ckptool.formats.other_zips import other_zip
from ckptool.formats.pickles.reader import Pickles
from ckptool.formats.tar_members import tar_members
from ckptool.formats.texts import from_json
from ckptool.formats.torch_tar import TorchTar
from ckptool.formats.unopened import CHECKPOINT_SUFFIXES
from ckptool.formats.zips.records import STORED, ZipArchive, is_zip
from ckptool.formats.zips.zipfile_view import seen_by_zipfile
from ckptool.records import NamedTuple, replace
from ckptool.regex import regex
from ckptool.sources.base import Source
from ckptool.sources.memory import Memory
from ckptool.sources.window import Window
from ckptool.tree.nodes import Tree

INSIDE = CHECKPOINT_SUFFIXES - {".model"}  # a tokenizer is no checkpoint
MAX_MEMBERS = 100_000
MAX_CHECKPOINTS = 1000  # members that are opened as one
MAX_LISTENED = 1 << 12  # members that are looked into for a pickle
SB3_SIGN, SB3_DATA = "_stable_baselines3_version", "data"
SHOWN = 4  # ranks in a message
MAX_DATA = 64 << 20  # bytes of that JSON
RANK = regex(r"(?:.*/)?((?:mp|tp)_rank_\d+(?:_pp_rank_\d+)?)/.*")  # of NeMo's directories
PICKLED = ":serialized:"  # the key of an object there, as a pickle in base64

OpenSource = Callable[[Source], Checkpoint]


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    source: Source | None  # None: it is compressed, or a link


class Archive(FileFormat):
    """An archive, of which each member with a checkpoint is a part of one tree."""

    unpacking: str  # the command for the hint
    settings = ""  # the member with stable-baselines3's JSON, where it looks for one

    def __init__(self, open_source: OpenSource) -> None:
        self._open_source = open_source

    @abstractmethod
    def members(self, file: Source) -> Iterator[Member]:
        """Yield the files in the archive.

        Raises:
            UnknownFormatError: it is an archive of another kind.
        """

    def open(self, file: Source) -> Checkpoint:
        """Return one checkpoint of all in the archive; read the headers and pickles in place."""
        members = self._listed(file)
        planned = {name for name in members if PurePosixPath(name).name == METADATA}
        chunked = {str(PurePosixPath(name).parent) for name in planned}
        _refuse_ranks(members)
        parts: dict[str, Checkpoint] = {}
        named = [name for name in members if PurePosixPath(name).suffix in INSIDE]
        if len(named) > MAX_CHECKPOINTS:
            raise UnsupportedError(f"an archive with more than {MAX_CHECKPOINTS:,} checkpoints")
        for name in named:
            part = self._part(name, members[name], file)
            if part is not None:
                parts[name] = part
        saved = {name: _planned(name, members) for name in sorted(chunked)}
        if not parts and not saved:
            raise UnknownFormatError("an archive without checkpoints")
        pickles = pickles_of(SB3_DATA)
        tree: dict[Any, Tree] = {name: part.tree for name, part in parts.items()}
        tree |= {name: plan.tree for name, plan in saved.items()}
        if data := members.get(self.settings):
            values = _plain_values(data, pickles, is_certain=SB3_SIGN in members)
            tree |= {} if values is None else {SB3_DATA: values}
        others = [n for n in members if n not in parts and not n.endswith(SHARD)]
        if len(others) > MAX_LISTENED:  # one of them could be a pickle that nobody looked at
            raise UnsupportedError(f"an archive with more than {MAX_LISTENED:,} other files")
        for name in others:
            listen_behind(self._in_place(name, members[name], file), 0, pickles, name)
        names = (
            *globals_by_file(parts),
            *(n for plan in saved.values() for n in plan.globals_named),
            *pickles.globals_named,
        )
        whole = joined(self, file.place, parts, tree, globals_named=names)
        return replace(whole, size_bytes=file.size, reader=TensorReader(file))

    def _listed(self, file: Source) -> dict[str, Source | None]:
        """Return the members by their names."""
        members: dict[str, Source | None] = {}
        unpacked: dict[str, str] = {}
        for name, source in self.members(file):
            path = posixpath.normpath(name)
            if path.startswith(("/", "../")):
                raise DamagedError(
                    "the archive has a file that unpacks outside of it", address=name
                )
            first = unpacked.setdefault(path.casefold(), name)
            if len(unpacked) == len(members):
                raise DamagedError(
                    f"the archive has two files that unpack to one; the other is {first!r:.80}",
                    address=name,
                )
            members[name] = source
            if len(members) > MAX_MEMBERS:
                raise UnsupportedError(f"an archive of more than {MAX_MEMBERS:,} files")
        return members

    def _part(self, name: str, source: Source | None, file: Source) -> Checkpoint | None:
        """Return the checkpoint in a member; None for a file of another program."""
        try:
            return self._open_source(self._in_place(name, source, file))
        except CkptError as error:
            if isinstance(error, UnknownFormatError) and not error.rule:
                return None
            error.address = f"{name}: {error.address}" if error.address else name
            raise

    def _in_place(self, name: str, source: Source | None, file: Source) -> Source:
        """Return the bytes of a member."""
        if source is None:
            raise UnsupportedError(
                "it is compressed or a link in its archive, so that it cannot be read in place",
                address=name,
                hint=f"{self.unpacking} '{file.name}' unpacks it; name the files inside",
            )
        return source


class TarArchive(Archive):
    """A tar that is not one of torch 0.1; see the module's docstring."""

    name = "tar-archive"
    written_by = "NeMo (`.nemo`): an uncompressed tar with checkpoints in it"
    unread_checksums = "the checksums of the zips inside the archive are not read"
    may_trail = begins_as_tar = True
    unpacking = "tar -xf"

    def matches(self, head: bytes) -> bool:
        """Return whether a tar begins."""
        return TorchTar().matches(head)

    def members(self, file: Source) -> Iterator[Member]:
        """Yield the files in a tar, in their order."""
        for name, is_file, offset, size, is_directory in tar_members(file):
            if not is_directory:
                at = Window(file, offset, size) if is_file else None
                yield Member(name.removeprefix("./"), at)


class ZipOfCheckpoints(Archive):
    """A zip that is no file of torch; see the module's docstring."""

    name = "zip-archive"
    written_by = "stable-baselines3: a zip with stored checkpoints in it"
    has_checksums = True
    unpacking = "unzip"
    settings = SB3_DATA

    def matches(self, head: bytes) -> bool:
        """Return whether a zip begins."""
        return is_zip(head)

    def members(self, file: Source) -> Iterator[Member]:
        """Yield the files in a zip.

        Raises:
            DamagedError: two files have one name.
        """
        archive = ZipArchive(file)
        archive.get("")  # which refuses equal names
        refusal = other_zip(archive)
        if refusal is not None:
            raise refusal
        if seen_by_zipfile(archive) is not None:
            raise DamagedError("the archive has two directories, and zipfile reads the other one")
        for record in archive.records:
            if record.size or not record.name.endswith("/"):
                is_stored = record.method == STORED
                at = archive.data_offset(record) if is_stored else 0
                yield Member(record.name, Window(file, at, record.size) if is_stored else None)


def _refuse_ranks(names: Iterable[str]) -> None:
    """Refuse weights of which each rank has a slice."""
    ranks = sorted({match[1] for name in names if (match := RANK.fullmatch(name))})
    if len(ranks) > 1:
        raise UnsupportedError(
            f"its weights are cut among {len(ranks)} ranks ({', '.join(ranks[:SHOWN])}), and it "
            "does not say how to join them",
            hint="load it with NeMo on as many ranks, and save it as a distributed checkpoint",
        )


def _planned(folder: str, members: Mapping[str, Source | None]) -> Saved:
    """Return the distributed checkpoint in a directory of the archive."""
    within = "" if folder == "." else f"{folder}/"

    def opened(name: str) -> Source:
        source = members.get(within + name)
        if source is None:
            raise missing_file(within + name)
        return source

    return read_plan(opened(METADATA), opened)


def _plain_values(source: Source, pickles: Pickles, *, is_certain: bool) -> Tree:
    """Return the plain values of stable-baselines3's JSON; record the names in its pickles.

    Returns:
        None for a file of another program, which may have any content if not ``is_certain``.
    """
    try:
        document = _document(source)
    except DamagedError as error:
        is_json = not isinstance(error.__cause__, (JSONDecodeError, UnicodeDecodeError))
        if is_certain or is_json:
            raise
        return None
    plain: dict[Any, Tree] = {}
    for key, value in document.items():
        if not isinstance(value, dict) or PICKLED not in value:
            plain[key] = value
            continue
        try:
            data = b64decode(str(value[PICKLED]))
        except (binascii.Error, ValueError) as error:
            raise DamagedError("a pickle in its JSON is no base64", address=key) from error
        with pickles.telling():
            pickles.listen(Memory(data), 0, f"{SB3_DATA}: {key:.80}")
    return plain


def _document(source: Source) -> dict[str, Any]:
    if source.size > MAX_DATA:
        raise DamagedError(f"{source.size:,} bytes of JSON, more than is read", address=SB3_DATA)
    try:
        document = from_json(source.read(0, source.size).decode())
    except ValueError as error:
        raise DamagedError(f"its JSON cannot be read: {error}", address=SB3_DATA) from error
    if not isinstance(document, dict):
        raise DamagedError("its JSON is no object", address=SB3_DATA)
    return document
