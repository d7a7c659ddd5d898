"""The members of a tar archive, with the names, sizes and places that Python's ``tarfile`` gives.

Layout (POSIX.1-2017 ``pax``, GNU tar), all in blocks of 512 bytes::

    header   name, numbers in octal text, checksum, kind, link, magic word, device, prefix
    data     of files only: links, directories, devices and pipes have none, whatever they state

Headers of some kinds are not members. They extend the next one: ``x`` (``X`` in Solaris) has pax
records ``length key=value``, ``L`` the whole name and ``K`` the whole link; ``g`` extends all that
follow.

Rules, each with its reason: torch unpacks an archive with ``tarfile``, so a member that we missed
would be a pickle that torch runs and ckptool has not read.

* What changes names, sizes or places here is what does so in ``tarfile``. Extensions apply from
  the one nearest to the member outwards. The prefix counts whatever the magic word says. A member
  of an unknown kind is a file. A name that ends in a slash makes an old file a directory.
* Where versions of ``tarfile`` differ, or guess, the archive is refused: numbers that are no plain
  octal, records that are not of the standard, headers behind which it stops without a word, global
  names and sizes, sparse files. No writer of checkpoints makes any of them.
* ``tarfile`` itself is not used: it reads extended headers of any size into memory, nests as deep
  as the file says, and in some versions searches them in quadratic time.

Source: Python 3.11 to 3.14 ``tarfile.py``, ``TarInfo.frombuf`` and ``_proc_member``.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.sources.base import Source

BLOCK = 512
MAX_EXTENSION = 1 << 20  # bytes of one header that extends the next
MAX_EXTENSIONS = 16  # headers that extend one member

_WITHOUT_DATA = b"123456"  # links, devices, directories, pipes
_NAME_KINDS, _PAX_KINDS = b"LK", b"xXg"
_NUMBERS = (slice(100, 108), slice(108, 116), slice(116, 124), slice(124, 136), slice(136, 148),
            slice(329, 337), slice(337, 345))  # fmt: skip
_SIZE, _CHECKSUM = slice(124, 136), slice(148, 156)
_OCTAL = regex(rb"[ 0-7]*")
_RECORD = regex(rb"([0-9]{1,7}) ([^=\n]+)=")
_PAX_SIZE = regex(r"[0-9]{1,19}")
_REPACK = "unpack the archive and pack it again"
_OF_ALL = frozenset({"path", "linkpath", "size"})  # keys that no archive sets for all members


class TarMember(NamedTuple):
    """A member of an archive: a file, unless ``is_file`` is false."""

    name: str
    is_file: bool
    offset: int  # of its data
    size: int  # bytes of its data
    is_directory: bool = False


class _Header(NamedTuple):
    name: str
    kind: bytes
    size: int


class _Extension(NamedTuple):
    """Fields that a header sets in the next one."""

    name: str | None = None
    size: int | None = None


def is_tar(head: bytes) -> bool:
    """Return whether ``tarfile`` takes the first block for a header: its checksum is right.

    The checksum is the sum of all bytes, signed or not, with its own eight as spaces.
    """
    block = head[:BLOCK]
    if len(block) < BLOCK or not any(block):
        return False
    stated = _any_number(block[_CHECKSUM])
    if stated is None:
        return False
    spaces = 8 * ord(" ")
    summed = block[: _CHECKSUM.start] + block[_CHECKSUM.stop :]
    return stated - spaces in {sum(summed), sum(memoryview(summed).cast("b"))}


def tar_members(source: Source) -> Iterator[TarMember]:
    """Yield the members of an archive in their order.

    Raises:
        DamagedError: the archive is broken, or versions of ``tarfile`` would differ about it.
        UnsupportedError: a file in it is sparse.
    """
    at = 0
    extensions: list[_Extension] = []
    while at < source.size:
        block = source.read(at, BLOCK)
        if not any(block):
            break
        header = _parse(block, at)
        at += BLOCK
        if header.kind in _NAME_KINDS or header.kind in _PAX_KINDS:
            if len(extensions) == MAX_EXTENSIONS:
                raise DamagedError(f"more than {MAX_EXTENSIONS} headers extend one tar member")
            extensions.append(_read_extension(source, at, header))
            at += _padded(header.size)
            continue
        member = _member(header, at, extensions)
        extensions = []
        source.check_place(at, member.size)  # the better message: it says which bytes are missing
        at += _padded(member.size)
        yield member
    if extensions or at > source.size:
        raise DamagedError("truncated: the tar archive ends inside a member")


def _member(header: _Header, at: int, extensions: list[_Extension]) -> TarMember:
    name, size = header.name, header.size
    for extension in reversed(extensions):  # the nearest first
        name = name if extension.name is None else extension.name
        size = size if extension.size is None else extension.size
    if header.kind == b"5":
        name = name.rstrip("/")
    has_data = header.kind not in _WITHOUT_DATA
    is_directory = header.kind == b"5"
    return TarMember(name, has_data, at, size if has_data else 0, is_directory)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


# ------------------------------------------------------------------------------------- one header


def _parse(block: bytes, at: int) -> _Header:
    if not is_tar(block):
        raise DamagedError(f"at offset {at} there is no tar header, or its checksum is wrong")
    for field in _NUMBERS:
        _number(block[field])
    name, prefix, kind = _text(block[:100]), _text(block[345:500]), block[156:157]
    if kind == b"S":
        raise UnsupportedError(
            f"the tar member {name!r:.80} is a sparse file",
            hint="unpack the archive and pack it again",
        )
    if kind == b"\0" and name.endswith("/"):
        kind = b"5"
    if prefix and kind not in _NAME_KINDS:
        name = f"{prefix}/{name}"
    size = _number(block[_SIZE])
    if size < 0:
        raise DamagedError(f"the tar member {name!r:.80} has a negative size")
    return _Header(name, kind, size)


def _number(raw: bytes) -> int:
    """Return a number in octal digits, or as GNU writes it: base 256 with the top bit set."""
    if raw[0] not in {0x80, 0xFF} and not _OCTAL.fullmatch(raw.partition(b"\0")[0]):
        raise DamagedError(f"a tar header has the number {raw!r}, which is not octal")
    number = _any_number(raw)
    if number is None:  # spaces between digits
        raise DamagedError(f"a tar header has the number {raw!r}, which is not octal")
    return number


def _any_number(raw: bytes) -> int | None:
    """Return the number that ``tarfile`` reads; None if it reads none."""
    if raw[0] in {0x80, 0xFF}:
        value = int.from_bytes(raw[1:], "big")
        return value if raw[0] == 0x80 else value - 256 ** (len(raw) - 1)
    try:
        return int(raw.partition(b"\0")[0].decode("ascii").strip() or "0", 8)
    except ValueError:
        return None


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")


# ---------------------------------------------------------------------- headers that extend others


def _read_extension(source: Source, at: int, header: _Header) -> _Extension:
    if header.size > MAX_EXTENSION:
        raise DamagedError(f"an extended tar header of {header.size} bytes")
    data = source.read(at, _padded(header.size))
    if header.kind == b"L":
        return _Extension(name=_text(data))
    if header.kind == b"K":
        return _Extension()
    records = _pax_records(data)
    if any(key.startswith("GNU.sparse") for key in records):
        raise UnsupportedError("the tar archive has a sparse file", hint=_REPACK)
    if header.kind == b"g":
        of_all = sorted(_OF_ALL & records.keys())
        if of_all:
            raise DamagedError(f"an extended tar header sets the {of_all[0]} of all members")
        return _Extension()
    return _Extension(_pax_path(records), _pax_size(records))


def _pax_path(records: dict[str, str]) -> str | None:
    path = records.get("path")
    return None if path is None else path.rstrip("/")


def _pax_size(records: dict[str, str]) -> int | None:
    size = records.get("size")
    if size is None:
        return None
    if not _PAX_SIZE.fullmatch(size):
        raise DamagedError(f"an extended tar header has the size {size!r:.40}")
    return int(size)


def _pax_records(data: bytes) -> dict[str, str]:
    """Return the records of an extended header: ``length key=value``, each with a newline."""
    records: dict[str, str] = {}
    at = 0
    while at < len(data) and data[at]:
        found = _RECORD.match(data, at)
        end = at + int(found[1]) if found else 0
        if found is None or not found.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise DamagedError("an extended tar header is not made of records")
        key, value = found[2], data[found.end() : end - 1]
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        at = end
    if any(data[at:]):
        raise DamagedError("an extended tar header has bytes behind its records")
    return records
