"""Base classes of the formats, and the checkpoint that a format returns.

A format is one module with a :class:`FileFormat`, which recognises a file by its first bytes, or a
:class:`FolderFormat` for directories. Both open a :class:`Checkpoint`. Formats read from a
:class:`~ckptool.sources.base.Source`, so that a short file is an error and never a short read.
"""

from __future__ import annotations

from _thread import allocate_lock  # all that is needed of threading, which takes 0.7 ms
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.records import NamedTuple, field, record, replace
from ckptool.sources.base import ByteSpan, Closing, Source
from ckptool.tree.nodes import Address, GlobalRef, Opaque, TensorRef, Tree

if TYPE_CHECKING:
    from ckptool.formats.pickles.literal import Literal  # for files that are written again

MAX_UNPACKED = 1 << 29  # bytes that the compressed records of a checkpoint may unpack to

MAX_TENSORS = 1 << 18  # that are always read one by one,
A_TENSOR = 1 << 11  # or one for so many bytes of values: each takes time of its own


def are_too_many(tensors: int, nbytes: int) -> bool:
    """Return whether tensors are so many, with so few bytes, that each would take too long."""
    return tensors > max(MAX_TENSORS, nbytes // A_TENSOR)


def check_unpacked(last: str, total: int) -> None:
    """Refuse compressed records that unpack to too much memory; ``last`` names one of them.

    Raises:
        UnsupportedError: the total is above the limit.
    """
    if total > MAX_UNPACKED:
        raise UnsupportedError(
            f"unpack it first: with {last:.160} its compressed records come to "
            f"{total:,} bytes, and at most {MAX_UNPACKED:,} are read",
            hint="load it and save it again with torch.save, or unzip it and zip it with -0",
        )


class TensorReader:
    """A reader of spans, which keeps the sources of a checkpoint open.

    A compressed record is unpacked once, and kept until the reader is closed.
    """

    def __init__(self, *opened: Source) -> None:
        self.opened = opened
        self._unpacked: set[Source] = set()
        self._kept = 0  # bytes that these keep
        self._unpacking = allocate_lock()  # threads read

    def take_over(self, other: TensorReader) -> None:
        """Keep the sources of another reader open for as long as this one is."""
        self.opened += other.opened
        other.opened = ()

    def read(self, span: ByteSpan, start: int = 0, nbytes: int | None = None) -> bytes:
        """Return ``nbytes`` bytes of the span from ``start``; by default all from there on.

        Raises:
            UnsupportedError: the compressed records unpack to more than is kept.
        """
        source, offset, size = span
        if source.keeps:
            self.admit(source)
        count = size - start if nbytes is None else min(nbytes, size - start)
        return source.read(offset + start, count)

    def expect(self, spans: Iterable[ByteSpan]) -> None:
        """Announce spans that will be read, about in this order, to sources that are not near."""
        if all(source.is_near for source in self.opened):
            return
        runs: dict[Source, list[tuple[int, int]]] = {}
        for source, offset, nbytes in spans:
            runs.setdefault(source, []).append((offset, nbytes))
        for source, own in runs.items():
            source.expect(own)

    def expect_values(self, refs: Iterable[TensorRef]) -> None:
        """Announce all bytes of tensors."""
        self.expect(chunk.span for ref in refs for chunk in ref.chunks)

    def read_into(self, room: memoryview, span: ByteSpan) -> bytes | memoryview:
        """Return all bytes of a span, in ``room`` if they fit."""
        if span.nbytes > len(room):
            return self.read(span)
        filled = room[: span.nbytes]
        self.fill(filled, span)
        return filled

    def fill(self, buffer: memoryview, span: ByteSpan) -> None:
        """Fill ``buffer`` with the bytes of the span, which is as long."""
        if span.source.keeps:
            self.admit(span.source)
        span.source.fill(buffer, span.offset)

    def admit(self, source: Source) -> None:
        """Count the bytes that a source keeps in memory from its first read on.

        Raises:
            UnsupportedError: with the sources before, they are too many.
        """
        with self._unpacking:
            if source.keeps and source not in self._unpacked:
                check_unpacked(repr(source), self._kept + source.keeps)
                self._kept += source.keeps
                self._unpacked.add(source)

    def refuse_changed(self) -> None:
        """Refuse sources that were written to since they were opened.

        Raises:
            DamagedError: one was; the bytes that were read may be of two versions.
        """
        for source in self.opened:
            if source.has_changed():
                raise DamagedError(
                    "the file was written to while it was read",
                    path=source.path or source.name,
                    hint="wait until the job that writes it has finished",
                )

    def close(self) -> None:
        """Close every source."""
        for source in (*self.opened, *self._unpacked):
            source.close()
        self._unpacked.clear()
        self._kept = 0


KNOWN, UNKNOWN, DANGEROUS = "known", "unknown", "dangerous"  # the trust in a name


class NamedGlobal(NamedTuple):
    """A class or function that a pickle names, and its use there."""

    ref: GlobalRef
    called: bool  # by REDUCE, OBJ, INST or NEWOBJ_EX: an unpickler would run it as a function
    pickle: str  # the pickle that names it: data.pkl, or a key path inside another
    uses: tuple[Opaque, ...] = ()  # its first calls, where ckptool does not understand them
    looks_up: bool = False  # getattr that is called for public attributes of classes alone
    of_data: bool = False  # called with plain values alone, as objects of a class are built
    is_misused: bool = False  # vetted, but reached or given what the vetting does not cover
    given: Sequence[Opaque] = ()  # all such calls
    is_put_off: bool = False  # bound to arguments for other code to call; ``uses`` are these calls


class Note(NamedTuple):
    """A remark of a format on a file that it can read."""

    rule: str  # CK111
    address: str  # a part of the container
    message: str


class PickleExtent(NamedTuple):
    """The place of a pickle, so that it can be read again."""

    read: Callable[[int, int], bytes]  # (offset, bytes)
    begin: int
    end: int
    is_plain: bool  # torch's weights-only loader reads it to its end, if it allows the names


NAME_IT = "name the state dict that you want: --only model, or PATH#ADDRESS"


class Format:
    """The name and the abilities of a format; a format overrides the fields in which it differs.

    Code that treats one format unlike others asks for an ability, never for the name.
    """

    name: str
    title = ""  # what people call it, if not by its name
    written_by: str  # for the table of ``docs/formats.md``
    suffixes: tuple[str, ...] = ()  # of files that ckptool writes in this format
    is_pickle = True  # loading it may run a pickle
    is_exclusive = False  # its suffixes are for no other format
    is_patchable = False  # one file whose values promote-ema can overwrite in place
    is_of_parts = False  # several files, each of which loads as a checkpoint by itself
    is_weights_only = False  # torch.load(weights_only=True) reads it
    as_one_file = ""  # a sentence: what makes one file of a whole directory, since ckptool does not
    loaded_by = ""  # the call that reads it, where torch.load(weights_only=True) refuses it
    has_checksums = False  # one zip archive: torch writes a checksum for each record
    unread_checksums = ""  # the reason why its checksums are not read
    may_trail = False  # bytes behind the last value are not read
    begins_as_pickle = False  # its first bytes are a pickle, which is read
    begins_as_tar = False  # torch.load takes it for a tar too
    keeps_order = False  # its state dicts have the key order of the model

    is_rewritable = False  # it holds one object of torch.save; see :meth:`literal`

    def literal(self, file: Source) -> Literal:
        """Return the one object in a file, so that it can be written again.

        Raises:
            UnsupportedError: there are several, or none; or it is not as ``torch.save`` writes it.
        """
        raise UnsupportedError(
            f"a file of torch.save can be written again whole, and this is {self.name}",
            path=file.path,
            hint="; ".join(filter(None, (NAME_IT, self.as_one_file))),
        )


@record(slots=True)
class Checkpoint(Closing):
    """An open checkpoint, the tree and the reader of its bytes; a context manager."""

    path: Path
    format: Format
    size_bytes: int  # of the file, or of all files
    tree: Tree
    reader: TensorReader
    globals_named: tuple[NamedGlobal, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)  # that the container carries
    notes: tuple[Note, ...] = ()  # where other readers could see another file in the same bytes
    pickles: tuple[PickleExtent, ...] = ()  # of the container, without pickles inside pickles
    nested_archives: tuple[ByteSpan, ...] = ()  # zips inside its pickles, maybe with checksums
    parts: tuple[Path, ...] = ()  # files that were read and closed again
    storage_bytes: int | None = None  # of the storages that tensors view; None: there are none
    is_part: bool = False  # the tree is only the part that an operand names
    world: int | None = None  # processes that saved it, where the files say so
    strategy: str | None = None  # how they shared the tensors among them
    saved_as: str = ""  # the name of the file, without suffix, when torch.save wrote it
    of_one_rank: tuple[Address, ...] = ()  # key paths of what single processes keep
    # Comparisons of tensors that several files hold, which raise an error where they differ; those
    # that would read too much while the files are opened.
    uncompared: tuple[Callable[[], None], ...] = ()

    @property
    def format_name(self) -> str:
        """The name of the format, such as torch-zip, safetensors or dcp."""
        return self.format.name

    @property
    def source(self) -> Source:
        """The bytes of a checkpoint that is one file."""
        return self.reader.opened[0]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it consists of, open ones and others; nothing may be written over them."""
        opened = (source.path for source in self.reader.opened)
        return (self.path, *(path for path in opened if path is not None), *self.parts)

    def with_files_of(self, others: Iterable[Checkpoint]) -> Checkpoint:
        """Return the checkpoint with the files of others, too: of what is written from all."""
        every = (self, *others)
        opened = (source for each in every for source in each.reader.opened)
        parts = tuple(path for each in every for path in each.files)
        return replace(self, reader=TensorReader(*opened), parts=parts)

    @property
    def is_local(self) -> bool:
        """True if it is in a directory of this machine, where other files may belong to it."""
        return all(source.path and source.is_near for source in self.reader.opened)

    def refuse_different_copies(self) -> None:
        """Compare the tensors that several files hold, before a command takes values.

        Raises:
            DamagedError: a tensor has other values in another file.
            RepetitionError: to compare them would take too long.
        """
        for compare in self.uncompared:
            compare()

    def close(self) -> None:
        """Close the files; the tree stays usable, but its values cannot be read."""
        self.reader.close()


class FileFormat(Format, ABC):
    """A format of files; ``formats/__init__.py`` and ``others.py`` have the instances."""

    @abstractmethod
    def matches(self, head: bytes) -> bool:
        """Return whether the file is of this format; ``head`` is its first 4 KiB."""

    @abstractmethod
    def open(self, file: Source) -> Checkpoint:
        """Return the file as a checkpoint, which from then on owns it.

        Raises:
            DamagedError: the file breaks the rules of the format.
        """


class FolderFormat(Format, ABC):
    """A format of directories that are one checkpoint; ``directories.py`` has the instances."""

    # Pattern for names of its files, without the directories before them -> what such a file holds.
    file_kinds: tuple[tuple[str, str], ...] = ()

    @abstractmethod
    def matches(self, folder: Path) -> bool:
        """Return whether the directory is of this format."""

    @abstractmethod
    def open(self, folder: Path) -> Checkpoint:
        """Return the directory as a checkpoint.

        Raises:
            DamagedError: the directory breaks the rules of the format.
        """
