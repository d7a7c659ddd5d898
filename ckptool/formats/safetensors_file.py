"""safetensors: a JSON header and one run of bytes, https://github.com/huggingface/safetensors#format.

Layout::

    8 bytes   N, the header's length, little-endian
    N bytes   the header, a JSON object padded with spaces
              {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, …,
               "__metadata__": {"text": "text"}}
    the rest  the values, little-endian and in C order; offsets count from here

Rules, each with its reason:

* The header takes at most 100 MB, and all of it is there: a wrong length must not allocate.
* It begins with ``{``, is UTF-8 and strict JSON, and no key comes twice: two readers must see one
  thing.
* Sizes and offsets are integers from 0 to 2^64-1, written as such; ``__metadata__`` maps text to
  text.
* The tensors, sorted by offset, cover the rest of the file without holes, overlaps or remains, so
  that nothing can hide between them; a file that was cut off or has grown is noticed here.
* Each span is as long as shape and element type say, in whole bytes.
* An element type or a field that is not in the table is an error that names it, never a guess.

F4 counts logical values, two to a byte; torch's ``float4_e2m1fn_x2`` counts bytes. So the last
dimension is halved, as ``safetensors.torch`` does. F6 has no counterpart in torch.

The judge is the library, which must accept whatever is accepted here. It is not used: its
``safe_open`` imports numpy, and keeps to itself where the values lie.

Source: safetensors 0.8 ``safetensors/src/tensor.rs``, ``read_metadata`` and ``Metadata::validate``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ckptool.dtypes import BY_SAFETENSORS_TAG, DType
from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.base import Checkpoint, SourceFile, TensorReader
from ckptool.tree import ByteSpan, Chunk, TensorRef, contiguous_strides

LENGTH_BYTES = 8
MAX_HEADER = 100_000_000
MAX_METADATA = 1 << 17  # entries; stricter than the library, whose users do not show them all
MAX_UINT64 = (1 << 64) - 1
METADATA = "__metadata__"
FIELDS = {"dtype", "shape", "data_offsets"}

_BITS = {tag: row.itemsize * 8 // row.packed for tag, row in BY_SAFETENSORS_TAG.items()}
_WITHOUT_TORCH_TYPE = {"F6_E2M3", "F6_E3M2"}


class SafetensorsFile:
    """See the module's docstring."""

    name = "safetensors"

    def matches(self, head: bytes) -> bool:
        """A ``{`` behind eight bytes, the last two 0: no text, no length beyond all disks."""
        return head[6:9] == b"\0\0{"

    def open(self, file: SourceFile) -> Checkpoint:
        """The checkpoint behind a header; reads nothing else."""
        header = read_header(file)
        tree = {entry.name: _tensor(file, header.data_offset, entry) for entry in header.entries}
        tree |= {name: tree[kept] for name, kept in noted_ties(header.metadata, tree)}
        return Checkpoint(
            path=file.path,
            format_name=self.name,
            size_bytes=file.size,
            tree=tree,
            reader=TensorReader(file),
            metadata=dict(header.metadata),
        )


def noted_ties(metadata: Mapping[str, str], names: Collection[str]) -> list[tuple[str, str]]:
    """(name, name that is written) of tied tensors, which ``safetensors.torch.save_model`` notes.

    ``load_model`` ties them again, so they are in the file for whoever loads it.
    """
    return [(n, kept) for n, kept in metadata.items() if kept in names and n not in names]


class Entry(NamedTuple):
    """One tensor, as the header has it; offsets count from the end of the header."""

    name: str
    tag: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """A header that keeps the rules."""

    entries: tuple[Entry, ...]
    data_offset: int  # of the values, in the file
    metadata: dict[str, str]


def read_header(file: SourceFile) -> Header:
    """The header of a file, with every rule checked.

    Raises:
        DamagedError: one is broken; the message says which, and for which tensor.
        UnsupportedError: an element type that torch does not have.
    """
    length = int.from_bytes(file.read(0, LENGTH_BYTES), "little")
    if length > MAX_HEADER:
        raise DamagedError(f"the header takes {length} bytes; at most {MAX_HEADER} are allowed")
    fields = parse_json(file.read(LENGTH_BYTES, length))
    metadata = _metadata(fields.pop(METADATA, None))
    entries = tuple(_entry(name, value) for name, value in fields.items())
    data_offset = LENGTH_BYTES + length
    check_cover(entries, file.size - data_offset)
    return Header(entries, data_offset, metadata)


# ---------------------------------------------------------------------------------------- the JSON


def parse_json(raw: bytes) -> dict[str, Any]:
    """A JSON object without repeated keys or anything that strict readers refuse."""
    if raw[:1] != b"{":
        raise DamagedError("the header does not begin with {")
    try:
        fields: dict[str, Any] = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_without_repeats,
            parse_int=_plain_integer,
            parse_constant=_refuse_constant,
        )
    except RecursionError as error:
        raise DamagedError("the header is nested without end") from error
    except ValueError as error:
        raise DamagedError(f"the header is no valid JSON: {error}") from error
    return fields


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DamagedError(f"the header has the key {twice!r:.100} twice")
    for key, value in pairs:
        _check_text(key)
        if isinstance(value, str):
            _check_text(value)
    return made


def _check_text(text: str) -> None:
    """JSON can spell half a character (a lone surrogate), which is no text."""
    if not text.isascii():
        text.encode("utf-8")  # raises UnicodeEncodeError, a ValueError


def _plain_integer(digits: str) -> int:
    if digits == "-0":  # a float to strict readers
        raise ValueError("-0 is no integer")
    return int(digits)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


# --------------------------------------------------------------------------------------- the rules


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise DamagedError(f"{METADATA} must map text to text")
    if len(value) > MAX_METADATA:
        raise DamagedError(f"{METADATA} has {len(value)} entries; at most {MAX_METADATA} are read")
    return value


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict):
        raise DamagedError("is described by no JSON object", address=name)
    if value.keys() != FIELDS:
        raise _wrong_fields(name, value)
    tag, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(tag, str) or tag not in _BITS:
        raise _unknown_dtype(name, tag)
    if not _are_sizes(shape):
        raise DamagedError("the shape must be a list of integers from 0 on", address=name)
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise DamagedError("data_offsets must be two integers from 0 on", address=name)
    entry = Entry(name, tag, tuple(shape), *offsets)
    _check_span(entry)
    return entry


def _wrong_fields(name: str, value: dict[str, Any]) -> DamagedError:
    missing = sorted(FIELDS - value.keys())
    if missing:
        return DamagedError(f"the header lacks its {missing[0]}", address=name)
    unknown = min(value.keys() - FIELDS)
    return DamagedError(f"the format has no field {unknown!r:.60}", address=name)


def _unknown_dtype(name: str, tag: Any) -> DamagedError | UnsupportedError:
    if isinstance(tag, str) and tag in _WITHOUT_TORCH_TYPE:
        return UnsupportedError(f"the element type {tag} does not exist in torch", address=name)
    return DamagedError(f"the element type {tag!r:.60} is not known", address=name)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= MAX_UINT64 for value in values
    )


def _check_span(entry: Entry) -> None:
    """The span holds the shape in whole bytes, and nothing overflows 64 bits on the way."""
    bits = 1
    for factor in (*entry.shape, _BITS[entry.tag]):
        bits *= factor
        if bits > MAX_UINT64:
            raise DamagedError(
                f"shape {list(entry.shape)} in {entry.tag} has more than 2^64 bits",
                address=entry.name,
            )
    if bits % 8:
        raise DamagedError(
            f"shape {list(entry.shape)} in {entry.tag} does not fill whole bytes",
            address=entry.name,
        )
    if entry.end - entry.begin != bits // 8:
        raise DamagedError(
            f"data_offsets span {entry.end - entry.begin} bytes, "
            f"but shape {list(entry.shape)} in {entry.tag} takes {bits // 8}",
            address=entry.name,
        )


def check_cover(entries: tuple[Entry, ...], size: int) -> None:
    """The spans cover the file's ``size`` bytes of values without holes or overlaps."""
    at = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != at:
            what = "an overlap" if entry.begin < at else "a hole"
            raise DamagedError(
                f"begins at {entry.begin}, but the values before it end at {at}: {what}",
                address=entry.name,
            )
        at = entry.end
    if at > size:
        raise DamagedError(
            f"truncated: the header describes {at} bytes of values, "
            f"but there are only {size} ({at - size} bytes short)"
        )
    if at < size:
        raise DamagedError(f"{size - at} bytes behind the last tensor belong to none")


# ------------------------------------------------------------------------------------- the tensors


def _tensor(file: SourceFile, data_offset: int, entry: Entry) -> TensorRef:
    dtype = BY_SAFETENSORS_TAG[entry.tag]
    shape = _torch_shape(entry, dtype)
    span = ByteSpan(file.path, data_offset + entry.begin, entry.end - entry.begin)
    chunk = Chunk(span, (0,) * len(shape), shape, contiguous_strides(shape))
    return TensorRef(dtype, shape, (chunk,))


def _torch_shape(entry: Entry, dtype: DType) -> tuple[int, ...]:
    if dtype.packed == 1:
        return entry.shape
    if not entry.shape or entry.shape[-1] % dtype.packed:
        raise UnsupportedError(
            f"shape {list(entry.shape)} in {entry.tag}: torch packs {dtype.packed} values "
            "of the last dimension into a byte, so it must be even",
            address=entry.name,
        )
    return (*entry.shape[:-1], entry.shape[-1] // dtype.packed)
