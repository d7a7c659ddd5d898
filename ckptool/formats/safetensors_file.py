"""The safetensors format: a JSON header and one run of bytes.

Layout::

    8 bytes   N, the header's length, little-endian
    N bytes   the header, a JSON object padded with spaces
              {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, …,
               "__metadata__": {"text": "text"}}
    the rest  the values, little-endian and in C order; offsets count from here

See https://github.com/huggingface/safetensors#format.

Rules, each with its reason:

* The header takes at most 100 MB and is complete, so that a wrong length allocates no memory.
* It begins with ``{``, is UTF-8 and strict JSON, and has no key twice, so that all readers see the
  same tensors.
* Sizes and offsets are integers from 0 to 2^64-1, written as integers; ``__metadata__`` maps text
  to text.
* The tensors, sorted by offset, cover the rest of the file without holes, overlaps or remains, so
  that nothing can hide between them. This rule finds files that were cut off or have grown.
* Each span has the length that shape and dtype give, in whole bytes.
* A dtype or a field that is not in the table is an error that names it, never a guess.

F4 counts logical values, two to a byte; torch's ``float4_e2m1fn_x2`` counts bytes. So the last
dimension is halved, as in ``safetensors.torch``. F6 has no counterpart in torch.

The reference is the safetensors library, which must accept every file that is accepted here. It is
not used, since its ``safe_open`` imports numpy and does not tell where the values lie.

Source: safetensors 0.8 ``safetensors/src/tensor.rs``, ``read_metadata`` and ``Metadata::validate``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ckptool.dtypes import BY_SAFETENSORS_TAG, DType
from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.base import Checkpoint, FileFormat, TensorReader, are_too_many
from ckptool.formats.provenance import KEY
from ckptool.formats.ranked.sharding_info import as_parts
from ckptool.formats.texts import is_header, json_object, without_repeats
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan, Source
from ckptool.tree.geometry import contiguous_strides
from ckptool.tree.nodes import Chunk, TensorRef

LENGTH_BYTES = 8
MAX_HEADER = 100_000_000
MAX_METADATA = 1 << 17  # entries; stricter than the library, whose users do not show all entries
MAX_UINT64 = (1 << 64) - 1
METADATA = "__metadata__"
# Keys of the metadata of a file or an index that are no names of shared tensors.
NO_TIES = frozenset({"format", "total_size", KEY})
FIELDS = {"dtype", "shape", "data_offsets"}

_BITS = {tag: row.itemsize * 8 // row.packed for tag, row in BY_SAFETENSORS_TAG.items()}
_WITHOUT_TORCH_TYPE = {"F6_E2M3", "F6_E3M2"}


class SafetensorsFile(FileFormat):
    """See the module's docstring."""

    name = "safetensors"
    written_by = "the safetensors library"
    suffixes = (".safetensors",)
    is_pickle = False
    is_exclusive = is_patchable = True

    def matches(self, head: bytes) -> bool:
        """Return whether a header may follow its length."""
        return is_header(head)

    def open(self, file: Source) -> Checkpoint:
        """Return the checkpoint that a header describes; nothing else is read."""
        header = read_header(file)
        tree = {entry.name: _tensor(file, header.data_offset, entry) for entry in header.entries}
        tree |= {name: tree[kept] for name, kept in noted_ties(header.metadata, tree)}
        return Checkpoint(
            path=file.place,
            format=self,
            size_bytes=file.size,
            tree=as_parts(tree, header.metadata, file.name),
            reader=TensorReader(file),
            metadata=dict(header.metadata),
        )


SAFETENSORS = SafetensorsFile()


def noted_ties(metadata: Mapping[str, str], names: Collection[str]) -> list[tuple[str, str]]:
    """Return (name, written name) of the shared tensors that the metadata records.

    ``safetensors.torch.save_model`` writes one name and records the others; ``load_model`` restores
    them all, so the file holds them all. ``format: pt`` records none, although a tensor may be
    called ``pt``.
    """
    return [
        (name, kept)
        for name, kept in metadata.items()
        if kept in names and name not in names and name not in NO_TIES
    ]


class Entry(NamedTuple):
    """A tensor in the header; its offsets count from the end of the header."""

    name: str
    tag: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """A header that follows the rules."""

    entries: tuple[Entry, ...]
    data_offset: int  # of the values, in the file
    metadata: dict[str, str]


def read_header(file: Source) -> Header:
    """Return the header of a file after a check of every rule.

    Raises:
        DamagedError: a rule is broken; the message says which, and for which tensor.
        UnsupportedError: torch does not have the dtype.
    """
    length = header_length(file)
    fields = parse_json(file.read(LENGTH_BYTES, length))
    metadata = _metadata(fields.pop(METADATA, None))
    if are_too_many(len(fields), file.size):  # stricter than the library too
        raise DamagedError(
            f"the header has {len(fields):,} tensors of next to no values, which would take too "
            "long to look at",
            hint="write the tensors to several files",
        )
    entries = tuple(_entry(name, value) for name, value in fields.items())
    data_offset = LENGTH_BYTES + length
    check_cover(entries, file.size - data_offset)
    return Header(entries, data_offset, metadata)


def header_length(file: Source) -> int:
    """Return the length of the header in bytes, before anything of that size is read.

    Raises:
        DamagedError: the safetensors library would not read such a long header.
    """
    length = int.from_bytes(file.read(0, LENGTH_BYTES), "little")
    if length > MAX_HEADER:
        raise DamagedError(
            f"the header takes {length:,} bytes, and the safetensors library refuses to read "
            f"headers above {MAX_HEADER:,} bytes (100 MB)",
            hint="write the tensors to several files: each has a header of its own; a length that "
            "no header has is damage",
        )
    return length


# ---------------------------------------------------------------------------------------- the JSON


def parse_json(raw: bytes) -> dict[str, Any]:
    """Return a JSON object; refuse repeated keys and everything that strict readers refuse."""
    if raw[:1] != b"{":
        raise DamagedError("the header does not begin with {")
    return json_object(
        raw,
        "the header",
        object_pairs_hook=_plain_texts,
        parse_int=_plain_integer,
        parse_constant=_refuse_constant,
    )


def _plain_texts(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = without_repeats(pairs)
    for key, value in pairs:
        _check_text(key)
        if isinstance(value, str):
            _check_text(value)
    return made


def _check_text(text: str) -> None:
    """Refuse half a character (a lone surrogate), which JSON can escape but which is no text."""
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
        return UnsupportedError(f"the dtype {tag} does not exist in torch", address=name)
    return DamagedError(f"the dtype {tag!r:.60} is not known", address=name)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= MAX_UINT64 for value in values
    )


def _check_span(entry: Entry) -> None:
    """Refuse a span unless it is as long as the shape, in whole bytes and below 2^64 bits."""
    bits = 1
    for factor in (*entry.shape, _BITS[entry.tag]):
        bits *= factor
        if bits > MAX_UINT64:
            raise DamagedError(f"{_form(entry)} has more than 2^64 bits", address=entry.name)
    if bits % 8:
        raise DamagedError(f"{_form(entry)} does not fill whole bytes", address=entry.name)
    if entry.end - entry.begin != bits // 8:
        spanned = f"data_offsets span {entry.end - entry.begin} bytes"
        raise DamagedError(f"{spanned}, but {_form(entry)} takes {bits // 8}", address=entry.name)


def _form(entry: Entry) -> str:
    return f"shape {list(entry.shape)} in {entry.tag}"


def check_cover(entries: tuple[Entry, ...], size: int) -> None:
    """Refuse spans that do not cover the ``size`` bytes of values without holes or overlaps."""
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


def _tensor(file: Source, data_offset: int, entry: Entry) -> TensorRef:
    dtype = BY_SAFETENSORS_TAG[entry.tag]
    shape = _torch_shape(entry, dtype)
    span = ByteSpan(file, data_offset + entry.begin, entry.end - entry.begin)
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
