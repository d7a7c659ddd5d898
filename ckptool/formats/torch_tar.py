"""``torch.save`` of torch 0.1, up to early 2017: a tar archive.

Layout: members, each a row of pickles with raw bytes between them, all little-endian::

    sys_info   a pickle: facts about the machine, ignored by torch
    storages   a pickle: how many. For each a pickle (key, location, storage class),
               int64 number of elements, the elements.
               Then a pickle: [(view's key, root's key, offset, numel)], in elements
    tensors    a pickle: how many. For each a pickle (key, storage's key, tensor class),
               int32 ndim, 4 bytes unused, int64 sizes[ndim], strides[ndim], storage offset
    pickle     the object, tensors as persistent ids: keys as text; classes of modules as tuples

Rules, each with its reason:

* Nothing is extracted: values are slices of the archive. Member names mean nothing but those four.
* Of equal names the last is taken, as ``tarfile`` and so torch does.
* A tar archive with none of these members is a folder of files, not a damaged checkpoint.

The tar is ustar with pax headers, which a member of 8 GiB and more needs for its size; GNU's
base-256 sizes are read too.

Source: torch 2.13 ``torch/serialization.py``, ``legacy_load``; POSIX.1-2017 ``pax``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Any, NamedTuple

from ckptool.errors import DamagedError, UnknownFormatError
from ckptool.formats.base import Checkpoint, SourceFile, TensorReader
from ckptool.formats.byte_sources import ByteSource, FileWindow
from ckptool.formats.pickled import Pickles
from ckptool.formats.torch_objects import (
    TorchBuilder,
    storage_dtype,
    storage_view,
    tensor_view,
)
from ckptool.tree import ByteSpan, StorageRef, TensorRef

MEMBERS = ("sys_info", "pickle", "tensors", "storages")
BLOCK = 512
MAX_PAX = 1 << 20  # bytes of one extended header

Objects = dict[str, StorageRef | TensorRef]  # by key as text


class TorchTar:
    """See the module's docstring."""

    name = "torch-tar"

    def matches(self, head: bytes) -> bool:
        """A tar archive, by its magic word or, older, by the checksum of its first header."""
        return head[257:262] == b"ustar" or _is_header(head[:BLOCK])

    def open(self, file: SourceFile) -> Checkpoint:
        """The checkpoint in a tar; reads everything but the values of storages."""
        members = torch_members(FileWindow(file), file)
        objects: Objects = {}
        pickles = Pickles(file, "pickle")
        with pickles.telling():
            if "sys_info" in members:  # newer torch skips it, older ran it like the others
                pickles.listen(members["sys_info"], 0, "sys_info")
            _read_storages(_Cursor(members["storages"], pickles, "storages"), objects)
            _read_tensors(_Cursor(members["tensors"], pickles, "tensors"), objects)
            tree, _ = pickles.read(members["pickle"], TarBuilder(objects, pickles))
        return Checkpoint(
            path=file.path,
            format_name=self.name,
            size_bytes=file.size,
            tree=tree,
            reader=TensorReader(file),
            globals_named=pickles.globals_named,
        )


# ----------------------------------------------------------------------------------------- the tar


class TarHeader(NamedTuple):
    """One member's header block."""

    name: str
    kind: bytes  # b"0" or b"\0": a regular file
    size: int

    @property
    def data_size(self) -> int:
        """Bytes behind the header; links and folders have none, whatever they say."""
        return 0 if self.kind in {b"1", b"2", b"3", b"4", b"5", b"6"} else self.size


def torch_members(source: ByteSource, file: SourceFile) -> dict[str, FileWindow]:
    """The four members of a torch archive as windows of the file.

    Raises:
        UnknownFormatError: a tar, but not one of torch's.
        DamagedError: one of the four is missing, or the archive is broken.
    """
    found = {
        header.name: (offset, header.size)
        for offset, header in read_headers(source)
        if header.kind in {b"0", b"\0", b"7"}
    }
    if not found.keys() & set(MEMBERS):
        names = ", ".join(repr(name)[:40] for name in list(found)[:4]) or "nothing"
        raise UnknownFormatError(
            f"a tar archive, but not written by torch.save; it holds {names}",
            hint="unpack it and point ckptool at the checkpoint inside",
        )
    missing = [name for name in MEMBERS[1:] if name not in found]
    if missing:
        raise DamagedError(f"the archive lacks its member {missing[0]!r}; it may be cut off")
    return {name: FileWindow(file, *found[name]) for name in MEMBERS if name in found}


def read_headers(source: ByteSource) -> Iterator[tuple[int, TarHeader]]:
    """Each member's header with the offset of its data, extended headers applied."""
    at = 0
    extended: dict[str, str] = {}
    while at < source.size:
        block = source.read(at, BLOCK)
        if not any(block):
            return
        header = _parse_header(block, at)
        source.span(at + BLOCK, header.data_size)  # raises when it reaches past the end
        if header.kind == b"x":
            extended = _pax_records(source, at + BLOCK, header.size)
        else:
            header, extended = _extend(header, extended), {}
            source.span(at + BLOCK, header.data_size)
            yield at + BLOCK, header
        at += BLOCK + -(-header.data_size // BLOCK) * BLOCK


def _parse_header(block: bytes, at: int) -> TarHeader:
    if not _is_header(block):
        raise DamagedError(f"at offset {at} there is no tar header, or its checksum is wrong")
    name, prefix = _tar_text(block[:100]), _tar_text(block[345:500])
    if prefix and block[257:263] == b"ustar\0":
        name = f"{prefix}/{name}"
    return TarHeader(name, block[156:157], _tar_number(block[124:136]))


def _is_header(block: bytes) -> bool:
    """Whether the sum of its bytes is the one that it says, its own eight counted as spaces."""
    if len(block) < BLOCK or not any(block):
        return False
    try:
        return _tar_number(block[148:156]) == sum(block) - sum(block[148:156]) + 8 * ord(" ")
    except DamagedError:
        return False


def _tar_number(raw: bytes) -> int:
    """Octal digits, or in GNU's way base 256 with the top bit set."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    digits = raw.partition(b"\0")[0].strip() or b"0"
    if digits.strip(b"01234567"):
        raise DamagedError(f"a tar header has the number {digits!r}, which is not octal")
    return int(digits, 8)


def _tar_text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _pax_records(source: ByteSource, at: int, size: int) -> dict[str, str]:
    """The records of an extended header: ``length key=value``, each with a newline."""
    if size > MAX_PAX:
        raise DamagedError(f"an extended tar header of {size} bytes")
    records: dict[str, str] = {}
    left = source.read(at, size).rstrip(b"\0")
    while left:
        digits, space, _ = left.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        if length <= len(digits):  # it would not end behind its beginning
            raise DamagedError("an extended tar header has a record without a length")
        key, equals, value = left[len(digits) + 1 : length - 1].partition(b"=")
        if not (space and equals and length <= len(left)):
            raise DamagedError("an extended tar header is not made of records")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        left = left[length:]
    return records


def _extend(header: TarHeader, records: Mapping[str, str]) -> TarHeader:
    size = records.get("size", "")
    if size.isascii() and size.isdigit() and len(size) < 20:
        header = header._replace(size=int(size))
    return header._replace(name=records.get("path", header.name))


# ------------------------------------------------------------------------------------- the members


class _Cursor:
    """Reads pickles and raw numbers from a member, one behind the other."""

    def __init__(self, source: ByteSource, pickles: Pickles, label: str) -> None:
        self.source, self.at = source, 0
        self._pickles, self._label = pickles, label

    def pickle(self) -> Any:
        """The value of the pickle that begins here."""
        value, self.at = self._pickles.read_short(self.source, self.at, self._label)
        return value

    def count(self) -> int:
        """A pickled count; what it counts must still follow, so it allocates nothing."""
        value = self.pickle()
        if type(value) is not int or value < 0:
            raise DamagedError("a pickled count is no count")
        return value

    def triple(self) -> tuple[Any, Any, Any]:
        """A pickled tuple of three."""
        value = self.pickle()
        if not isinstance(value, tuple) or len(value) != 3:
            raise DamagedError("a pickled description does not have three parts")
        return value

    def numbers(self, layout: str) -> tuple[int, ...]:
        """Raw numbers, little-endian."""
        row = Struct("<" + layout)
        values: tuple[int, ...] = row.unpack(self.source.read(self.at, row.size))
        self.at += row.size
        return values

    def skip(self, nbytes: int) -> ByteSpan:
        """A run of bytes as a place."""
        span = self.source.span(self.at, nbytes)
        self.at += nbytes
        return span


def _read_storages(cursor: _Cursor, objects: Objects) -> None:
    for _ in range(cursor.count()):
        key, location, cls = cursor.triple()
        dtype = storage_dtype(cls)
        (numel,) = cursor.numbers("q")
        span = cursor.skip(numel * dtype.itemsize)
        objects[_key(key)] = StorageRef(dtype, span, _key(location))
    views = cursor.pickle()
    if not isinstance(views, list):
        raise DamagedError("behind the storages there is no list of their views")
    for view in views:
        if not isinstance(view, tuple) or len(view) != 4:
            raise DamagedError("a view of a storage is not described by four values")
        key, root, offset, numel = view
        objects[_key(key)] = storage_view(_storage(objects, root), (key, offset, numel))


def _read_tensors(cursor: _Cursor, objects: Objects) -> None:
    for _ in range(cursor.count()):
        key, storage_key, _cls = cursor.triple()
        (ndim, _) = cursor.numbers("2i")
        cursor.source.span(
            cursor.at, 16 * max(ndim, 0)
        )  # raises before anything of that size is made
        sizes, strides = cursor.numbers(f"{max(ndim, 0)}q"), cursor.numbers(f"{max(ndim, 0)}q")
        (offset,) = cursor.numbers("q")
        storage = _storage(objects, storage_key)
        if not sizes and not storage.nbytes:  # torch 0.1 had no 0-dim tensors: this is an empty one
            sizes, strides = (0,), (1,)
        objects[_key(key)] = tensor_view(storage, offset, sizes, strides)


def _storage(objects: Objects, key: Any) -> StorageRef:
    storage = objects.get(_key(key))
    if not isinstance(storage, StorageRef):
        raise DamagedError(f"there is no storage {_key(key):.60}")
    return storage


def _key(value: Any) -> str:
    """Keys are addresses in the memory of the writer: integers, and text in persistent ids."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, (str, int)):
        return str(value)
    raise DamagedError(f"a key is a {type(value).__name__}")


class TarBuilder(TorchBuilder):
    """Knows tensors by their keys."""

    def __init__(self, objects: Objects, pickles: Pickles) -> None:
        super().__init__(lambda _key, _nbytes: None, pickles.open_nested)
        self._objects = objects

    def persistent(self, saved_id: Any) -> Any:
        """A tensor or storage by its key; ``(class, source file, source)`` as the class."""
        if isinstance(saved_id, tuple) and saved_id:
            return saved_id[0]
        key = _key(saved_id)
        if key not in self._objects:
            raise DamagedError(f"there is no tensor {key:.60}")
        return self._objects[key]
