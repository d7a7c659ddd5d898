"""Tar archives of ``torch.save`` in torch 0.1, until early 2017.

Layout: members, each a row of pickles with raw bytes between them, all little-endian::

    sys_info   a pickle: facts about the machine, ignored by torch
    storages   a pickle: their number. For each a pickle (key, location, storage class),
               int64 number of elements, the elements.
               Then a pickle: [(view's key, root's key, offset, numel)], in elements
    tensors    a pickle: their number. For each a pickle (key, storage's key, tensor class),
               int32 ndim, 4 bytes unused, int64 sizes[ndim], strides[ndim], storage offset
    pickle     the object; persistent ids are keys in digits for tensors, tuples for module classes

Rules, each with its reason:

* Nothing is extracted: values are slices of the archive. Only those four member names matter; the
  names in pickles among the other members are recorded.
* The last of several members with one name is read, as in ``tarfile`` and so in torch. It must be a
  file: torch would follow a link, also out of the archive.
* A tar archive with none of these members is an archive of files, not a damaged checkpoint.

``tar_members.py`` describes the tar. A member of 8 GiB and more needs an extended header for its
size, or GNU's base-256 numbers.

Source: torch 2.13 ``torch/serialization.py``, ``legacy_load``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Any

from ckptool.errors import DamagedError, UnknownFormatError, UnsupportedError
from ckptool.formats.base import Checkpoint, FileFormat
from ckptool.formats.behind import listen_behind
from ckptool.formats.nested import checkpoint_of, pickles_of
from ckptool.formats.other_zips import OF_ARCHIVES, refuse_checkpoints
from ckptool.formats.pickles.literal import OTHERWISE, Literal, Made, Persisted, read_literal
from ckptool.formats.pickles.reader import Pickles
from ckptool.formats.pickles.storages import StorageKey, storage_key
from ckptool.formats.pickles.tensor_views import as_text, storage_dtype, storage_view, tensor_view
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.formats.tar_members import TarMember, is_tar, tar_members
from ckptool.sources.base import ByteSpan, Source
from ckptool.sources.window import Window
from ckptool.tree.nodes import MAX_DIGITS, GlobalRef, StorageRef, TensorRef

MEMBERS = ("sys_info", "pickle", "tensors", "storages")
MAX_LISTENED = 1 << 12  # other members that are looked into for a pickle
MAX_SHOWN = 4  # names of other members in a message

Objects = dict[StorageKey, StorageRef | TensorRef]  # storages and tensors, by their keys


class TorchTar(FileFormat):
    """See the module's docstring."""

    name = "torch-tar"
    title = "torch 0.1 (tar)"
    written_by = "torch 0.1"
    is_patchable = is_rewritable = may_trail = keeps_order = begins_as_tar = True

    def matches(self, head: bytes) -> bool:
        """Return whether a tar begins, by its magic word or (older) its first header's checksum."""
        return head[257:262] == b"ustar" or is_tar(head)

    def literal(self, file: Source) -> Literal:
        """Return the object, with each tensor as newer torch pickles it, and the storages."""
        objects: Objects = {}
        members, _ = torch_members(file)
        pickles = pickles_of("pickle")
        _read_storages(_Cursor(members["storages"], pickles, "storages"), objects)
        roots = _Roots(each for each in objects.values() if isinstance(each, StorageRef))
        _read_tensors(_Cursor(members["tensors"], pickles, "tensors"), objects)

        def found(saved_id: Any) -> Any:
            if isinstance(saved_id, tuple) and saved_id:
                return saved_id[0]
            return roots.pickled(objects.get(_number(saved_id)))

        tree, _ = read_literal(members["pickle"], 0, found)
        return Literal(tree, roots.spans)

    def open(self, file: Source) -> Checkpoint:
        """Return the checkpoint in a tar; read everything but the values of storages."""
        members, others = torch_members(file)
        objects: Objects = {}
        pickles = pickles_of("pickle")
        with pickles.telling():
            _listen_to_others(file, others, pickles)
            if "sys_info" in members:  # new versions of torch skip it, old ones ran it
                pickles.listen(members["sys_info"], 0, "sys_info")
            _read_storages(_Cursor(members["storages"], pickles, "storages"), objects)
            _read_tensors(_Cursor(members["tensors"], pickles, "tensors"), objects)
            tree, _ = pickles.read(members["pickle"], TarBuilder(objects, pickles))
        return checkpoint_of(self, file, tree, pickles)


# ----------------------------------------------------------------------------------------- the tar


def torch_members(file: Source) -> tuple[dict[str, Window], list[TarMember]]:
    """Return the four members of a torch archive as windows of the file, and others with content.

    Of the others there is one more than are looked into, if there are so many.

    Raises:
        UnknownFormatError: the tar is not one of torch's.
        DamagedError: one of the four is missing, or the archive is broken.
    """
    found: dict[str, TarMember] = {}
    others: list[TarMember] = []
    named: list[str] = []
    for member in tar_members(file):
        other: TarMember | None = member
        if member.name in MEMBERS:
            other, found[member.name] = found.get(member.name), member
        elif len(named) < MAX_SHOWN or member.name.endswith(OF_ARCHIVES):
            named.append(member.name)
        if other is not None and other.size and len(others) <= MAX_LISTENED:
            others.append(other)
    if not found:
        names = ", ".join(repr(name)[:40] for name in named[:MAX_SHOWN]) or "nothing"
        raise UnknownFormatError(
            f"a tar archive, but not written by torch.save; it holds {names}",
            hint="unpack it and point ckptool at the checkpoint inside",
        )
    refuse_checkpoints(named)
    missing = [name for name in MEMBERS[1:] if name not in found]
    if missing:
        raise DamagedError(f"the archive lacks its member {missing[0]!r}; it may be cut off")
    for member in found.values():
        if not member.is_file:  # torch would unpack a link to wherever it leads
            raise DamagedError(f"the member {member.name!r} is no file, but a link or a directory")
    own = {
        name: Window(file, found[name].offset, found[name].size)
        for name in MEMBERS
        if name in found
    }
    return own, others


def _listen_to_others(file: Source, others: Sequence[TarMember], pickles: Pickles) -> None:
    """Record the names in members that torch does not read: who unpacks the archive has them too.

    Raises:
        UnsupportedError: there are more than can be followed in useful time.
    """
    if len(others) > MAX_LISTENED:
        raise UnsupportedError(f"an archive with more than {MAX_LISTENED:,} other files")
    for member in others:
        listen_behind(Window(file, member.offset, member.size), 0, pickles, member.name)


# ------------------------------------------------------------------------------------- the members


class _Cursor:
    """A position in a member, from which pickles and raw numbers are read in turn."""

    def __init__(self, source: Source, pickles: Pickles, label: str) -> None:
        self.source, self.at = source, 0
        self._pickles, self._label = pickles, label

    def pickle(self) -> Any:
        """Return the value of the pickle that begins here."""
        value, self.at = self._pickles.read_short(self.source, self.at, self._label)
        return value

    def count(self) -> int:
        """Return a pickled count; it allocates nothing, since the items must still follow."""
        value = self.pickle()
        if type(value) is not int or value < 0:
            raise DamagedError("a pickled count is no count")
        return value

    def triple(self) -> tuple[Any, Any, Any]:
        """Return a pickled tuple of three."""
        value = self.pickle()
        if not isinstance(value, tuple) or len(value) != 3:
            raise DamagedError("a pickled description does not have three parts")
        return value

    def numbers(self, layout: str) -> tuple[int, ...]:
        """Return raw little-endian numbers."""
        row = Struct("<" + layout)
        values: tuple[int, ...] = row.unpack(self.source.read(self.at, row.size))
        self.at += row.size
        return values

    def skip(self, nbytes: int) -> ByteSpan:
        """Return the place of the next ``nbytes`` bytes, and skip them."""
        span = self.source.span(self.at, nbytes)
        self.at += nbytes
        return span


def _read_storages(cursor: _Cursor, objects: Objects) -> None:
    for _ in range(cursor.count()):
        key, location, cls = cursor.triple()
        dtype = storage_dtype(cls)
        (numel,) = cursor.numbers("q")
        span = cursor.skip(numel * dtype.itemsize)
        objects[storage_key(key)] = StorageRef(dtype, span, as_text(location))
    views = cursor.pickle()
    if not isinstance(views, list):
        raise DamagedError("behind the storages there is no list of their views")
    for view in views:
        if not isinstance(view, tuple) or len(view) != 4:
            raise DamagedError("a view of a storage is not described by four values")
        key, root, offset, numel = view
        objects[storage_key(key)] = storage_view(_storage(objects, root), (key, offset, numel))


def _read_tensors(cursor: _Cursor, objects: Objects) -> None:
    for _ in range(cursor.count()):
        key, root, _cls = cursor.triple()
        (ndim, _) = cursor.numbers("2i")
        cursor.source.span(cursor.at, 16 * max(ndim, 0))  # raises before it allocates so much
        sizes, strides = cursor.numbers(f"{max(ndim, 0)}q"), cursor.numbers(f"{max(ndim, 0)}q")
        (offset,) = cursor.numbers("q")
        storage = _storage(objects, root)
        if not sizes and not storage.nbytes:  # torch 0.1 had no 0-dim tensors: it is empty
            sizes, strides = (0,), (1,)
        objects[storage_key(key)] = tensor_view(storage, offset, sizes, strides)


class _Roots:
    """The storages of a file that are no parts of others, in the order of the file."""

    def __init__(self, storages: Iterable[StorageRef]) -> None:
        self.spans: dict[str, ByteSpan] = {}
        self._storages: dict[str, StorageRef] = {}
        self._made: dict[int, Made] = {}  # by the id of the tensor: one tensor stays one
        end = 0
        placed = [(each.span, each) for each in storages if each.span is not None]
        for span, each in sorted(placed, key=lambda p: (p[0].offset, -p[0].nbytes)):
            if span.offset + span.nbytes > end or not self.spans:
                key, end = str(len(self.spans)), span.offset + span.nbytes
                self.spans[key], self._storages[key] = span, each

    def pickled(self, tensor: StorageRef | TensorRef | None) -> Made:
        """Return the call that makes a tensor, as torch has pickled it since 0.4.

        Raises:
            UnsupportedError: a storage without a tensor, or of a dtype that had no storages.
        """
        if not isinstance(tensor, TensorRef) or tensor.dtype.storage_class is None:
            raise UnsupportedError("a storage that is no tensor's", hint=OTHERWISE)
        if id(tensor) in self._made:
            return self._made[id(tensor)]
        chunk = tensor.chunks[0]
        key = next(k for k, s in self.spans.items() if _holds(s, chunk.span))
        storage, span = self._storages[key], self.spans[key]
        width = tensor.dtype.itemsize
        cls = GlobalRef("torch", tensor.dtype.storage_class)
        saved_id = ("storage", cls, key, storage.device, span.nbytes // width)
        offset = (chunk.span.offset - span.offset) // width
        hooks = Made(GlobalRef("collections", "OrderedDict"), ())
        args = (Persisted(saved_id), offset, tensor.shape, chunk.strides, False, hooks)
        made = self._made[id(tensor)] = Made(GlobalRef("torch._utils", "_rebuild_tensor_v2"), args)
        return made


def _holds(storage: ByteSpan, part: ByteSpan) -> bool:
    begins = storage.offset <= part.offset
    return begins and part.offset + part.nbytes <= storage.offset + storage.nbytes


def _storage(objects: Objects, key: Any) -> StorageRef:
    storage = objects.get(storage_key(key))
    if not isinstance(storage, StorageRef):
        raise DamagedError(f"there is no storage {as_text(key):.60}")
    return storage


def _number(saved_id: Any) -> int:
    """Return the key, a memory address of the writer, for a persistent id: its decimal digits."""
    text = as_text(saved_id)
    if not (text.isascii() and text.isdigit()) or len(text) > MAX_DIGITS:
        raise DamagedError(f"the persistent id {text!r:.60} is no number of a tensor")
    return int(text)


class TarBuilder(TorchBuilder):
    """A builder that finds tensors by their keys."""

    def __init__(self, objects: Objects, pickles: Pickles) -> None:
        super().__init__(lambda _key, _nbytes: None, pickles.open_nested)
        self._objects = objects

    def persistent(self, saved_id: Any) -> Any:
        """Return a tensor or storage by its key; the class of ``(class, source file, source)``."""
        if isinstance(saved_id, tuple) and saved_id:
            if not all(map(self.is_part_of_id, saved_id)):  # torch asks whether they are true
                self.note_misuse("persistent_load", (saved_id,))
            return saved_id[0]
        key = _number(saved_id)
        if key not in self._objects:
            raise DamagedError(f"there is no tensor {key}")
        return self._objects[key]
