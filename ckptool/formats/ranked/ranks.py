"""Files of the ranks of one save: none is missing, doubled, exchanged or from another save."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from math import copysign, inf
from pathlib import Path
from struct import pack, unpack

from ckptool.errors import DamagedError
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.regex import regex
from ckptool.tree.nodes import TensorRef, Tree

SHOWN = 4  # names in a message
PREFIX = 1 << 12  # bytes of each tensor by which ranks are told apart
# The names of the files of ranks, and fields that DeepSpeed writes beside the model.
FILE = regex(
    r"((?P<kind>.*?)[_.-])?(world_size_(?P<world>\d{1,9})_)?(rank|shard)[_-]?(?P<rank>\d{1,9})"
    r"(-of-(?P<of>\d{1,9}))?\.(pt|pth|bin|ckpt|safetensors)"
)
MODULE, OPTIMIZER = "module", "optimizer"
WORLD, MODEL_WORLD = "dp_world_size", "mp_world_size"
MAX_WORLD = 1 << 20  # processes; no run has had more, and a claim of more is not counted up to


def world_by_name(match: re.Match[str]) -> int | None:
    """Return the number of ranks in a file's name; None if it has none."""
    told = match["world"] or match["of"]
    return None if told is None else int(told)


def refuse_missing(found: Mapping[int, str], count: int, why: str) -> None:
    """Refuse ranks that are missing or too many.

    Args:
        found: the name of each rank's file.
        count: the number of ranks of the save.
        why: where the number is from, for the message.

    Raises:
        DamagedError: the ranks are not 0 to ``count - 1``; the message names them.
    """
    if not 0 < count <= MAX_WORLD:
        raise DamagedError(f"{why} {count:,} ranks, which no run has")
    missing = list(islice((rank for rank in range(count) if rank not in found), SHOWN + 1))
    if missing:
        more = count - len([rank for rank in found if rank < count]) - SHOWN
        raise DamagedError(
            f"{why} {_counted(count)}, and {_files_of(missing)} missing"
            + (f", with {more:,} more" if more > 0 else ""),
            hint="fetch them from where the others came from",
        )
    extra = sorted(rank for rank in found if rank >= count)
    if extra:
        raise DamagedError(
            f"{why} {_counted(count)}, but there is also {found[extra[0]]}",
            hint="files of two saves are in one folder: fetch it again",
        )


def refuse_different(said: Mapping[str, object], what: str) -> None:
    """Refuse files that state different values of ``what``, given by the names of the files.

    Raises:
        DamagedError: two files differ; the message names both.
    """
    names = iter(said.items())
    first, value = next(names)
    for name, other in names:
        if other != value:
            raise DamagedError(
                f"{what} is {value!s:.40} in {first}, but {other!s:.40} in {name}: "
                "they are from two saves",
                hint="fetch all files of one save again",
            )


def refuse_copies(reader: TensorReader, values: Mapping[str, Sequence[TensorRef]]) -> None:
    """Refuse two files with the same values, of which one is a copy under another rank's name.

    A file whose values are all alike tells nothing: a part of a normalisation may be all ones.

    Args:
        reader: of all the files.
        values: the tensors that differ from rank to rank, by the names of the files.

    Raises:
        DamagedError: two files hold the same; the message names both.
    """
    seen: dict[bytes, str] = {}
    for name, refs in values.items():
        digest = _digest_of_beginnings(reader, refs)
        if digest in seen:
            raise DamagedError(
                f"{name} holds the same values as {seen[digest]}: one is a copy of the other",
                hint="fetch the file of each rank from where the others came from",
            )
        if digest is not None:
            seen[digest] = name


def refuse_renamed(files: Mapping[str, Checkpoint]) -> None:
    """Refuse files of one directory that have each other's names.

    ``torch.save`` calls the directory in its zip after the file that it writes. A name that none of
    the files has says nothing, as "archive" does, which torch takes where it writes to no file.

    Only a circle proves it: files that were numbered anew have names of others, too, but at the end
    of the row one whose name is gone.

    Raises:
        DamagedError: following the names that files were saved under leads back to the first.
    """
    stems = {(Path(name).parent, Path(name).stem): name for name in files}
    given = {
        name: stems.get((Path(name).parent, part.saved_as), name) for name, part in files.items()
    }
    followed: set[str] = set()
    for first in given:
        name, row = first, set[str]()
        while name not in followed and name not in row:
            row.add(name)
            name = given[name]
        if name in row and name != given[name]:
            raise DamagedError(
                f"{name} was saved as {given[name]}: files are exchanged",
                hint="give the files their names back, or fetch them again",
            )
        followed |= row


def _digest_of_beginnings(reader: TensorReader, refs: Iterable[TensorRef]) -> bytes | None:
    """Return a digest of how the tensors begin; None if each begins with one value alone.

    The beginnings themselves may take gigabytes: a small file can have many tensors that view it.
    """
    from hashlib import sha256  # noqa: PLC0415 - 6 ms, for files of ranks only

    digest, tells = sha256(), False
    for ref in refs:
        for chunk in ref.chunks[:1]:
            data = reader.read(chunk.span, 0, PREFIX)
            digest.update(len(data).to_bytes(2, "little") + data)
            tells = tells or not _is_one_value(data, ref.dtype.itemsize)
    return digest.digest() if tells else None


def scalar(ref: TensorRef, reader: TensorReader) -> int | float | None:
    """Return the value of a tensor without dimensions; None if it has others, or no number."""
    code = NUMBERS.get(ref.dtype.name)
    if code is None or ref.shape or len(ref.chunks) != 1:
        return None
    order = ">" if ref.byteorder == "big" else "<"
    (value,) = unpack(order + code, reader.read(ref.chunks[0].span))
    found: int | float = value
    return found


def is_rounded(saved: Tree, master: Tree, reader: TensorReader) -> bool:
    """Return whether the first values of a tensor are float32 values in its dtype.

    True too where the two cannot be compared so, such as the placeholders of ZeRO stage 3.
    """
    if not (isinstance(saved, TensorRef) and isinstance(master, TensorRef)):
        return True
    code = ROUNDED.get(saved.dtype.name)
    plain = saved.is_stored_plainly and master.dtype.name == "float32"
    if code is None or not plain or saved.shape != master.shape or not master.chunks:
        return True
    span = master.chunks[0].span
    count = min(span.nbytes, PREFIX) // 4
    values = unpack(f"<{count}f", reader.read(span, 0, 4 * count))
    width = saved.dtype.itemsize
    return code(values) == reader.read(saved.chunks[0].span, 0, width * count)


def _half(value: float) -> bytes:
    try:
        return pack("<e", value)
    except OverflowError:
        return pack("<e", copysign(inf, value))


def _bfloat16(values: Sequence[float]) -> bytes:
    """Return values rounded to the nearest, ties to even: the upper halves of float32."""
    bits = unpack(f"<{len(values)}I", pack(f"<{len(values)}f", *values))
    return pack(f"<{len(bits)}H", *((n + 0x7FFF + (n >> 16 & 1)) >> 16 & 0xFFFF for n in bits))


NUMBERS = {"float32": "f", "float64": "d", "int64": "q", "int32": "i"}  # struct's codes
ROUNDED: Mapping[str, Callable[[Sequence[float]], bytes]] = {
    "float32": lambda values: pack(f"<{len(values)}f", *values),
    "float16": lambda values: b"".join(map(_half, values)),
    "bfloat16": _bfloat16,
}


def _is_one_value(data: bytes, width: int) -> bool:
    return data == data[:width] * (len(data) // width)


def _counted(count: int) -> str:
    return f"{count:,} rank{'s' if count != 1 else ''}"


def _files_of(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"the file of rank {ranks[0]} is"
    return f"the files of ranks {', '.join(map(str, ranks[:SHOWN]))} are"
