"""A writer of safetensors files: header length, a JSON header, then tensors without holes.

The length takes 8 bytes. The header is written here, since the library's writer wants every tensor
in memory at once. The order is the library's (wide dtypes first, then by name), which keeps every
tensor aligned to its width. The library judges the result: :func:`check` reopens the file with
``safe_open`` before the file replaces another.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from json.encoder import encode_basestring as _quoted  # as ``json.dumps`` has it
from pathlib import Path

from ckptool.errors import UnsupportedError
from ckptool.formats.safetensors_file import LENGTH_BYTES, METADATA, parse_json
from ckptool.records import NamedTuple
from ckptool.sources.base import Source
from ckptool.tensors.casting import Casting
from ckptool.tree.nodes import TensorRef
from ckptool.writers.files.whole_file import PartialFile, expect
from ckptool.writers.transfer import Move, Transfer, to_read_back, transfer
from ckptool.writers.values import WrittenRun, check_runs

ALIGNMENT = 8


class Layout(NamedTuple):
    """The tensors in the order of the file, with the offsets of their values from the first on."""

    places: Sequence[tuple[str, TensorRef, int]]
    nbytes: int  # of all values
    entries: str  # the header's text of them


def plan(tensors: Mapping[str, TensorRef], casting: Casting) -> Layout:
    """Return the layout of a file; shared storages are written once for each name.

    Raises:
        UnsupportedError: a dtype or a name that the format cannot hold.
    """
    places: list[tuple[str, TensorRef, int]] = []
    entries: list[str] = []
    offset = 0
    forms: dict[object, tuple[str, int]] = {}  # most tensors have the form of many others
    for name, ref in _ordered(tensors, casting):
        tag = _tag(name, ref, casting)
        form = tag, casting.dtype_of(ref).name, ref.dtype.name, ref.shape
        if form not in forms:
            shape = ",".join(map(str, _shape(ref)))
            forms[form] = f'{{"dtype":"{tag}","shape":[{shape}],', casting.nbytes_of(ref)
        head, nbytes = forms[form]
        end = offset + nbytes
        entries.append(f'{_quoted(name)}:{head}"data_offsets":[{offset},{end}]}}')
        places.append((name, ref, offset))
        offset = end
    layout = Layout(places, offset, ",".join(entries))
    header(layout, {})  # refuses names that are no text
    return layout


def write(
    output: PartialFile, layout: Layout, metadata: Mapping[str, str], how: Transfer
) -> tuple[WrittenRun, ...]:
    """Write the tensors of a layout.

    Returns:
        The runs of bytes that differ from the bytes read, for :func:`check_written`.

    Raises:
        UnsupportedError: the metadata are no text.
    """
    output.write(header(layout, metadata))
    start = output.skip(layout.nbytes)
    moves = [Move(name, ref, start + offset) for name, ref, offset in layout.places]
    return to_read_back(transfer(moves, how, output))


def _ordered(tensors: Mapping[str, TensorRef], casting: Casting) -> list[tuple[str, TensorRef]]:
    return sorted(tensors.items(), key=lambda kv: (-casting.dtype_of(kv[1]).itemsize, kv[0]))


def header(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    """Return the beginning of the file, up to its first value.

    Raises:
        UnsupportedError: a name that is no text.
    """
    first = _as_json({METADATA: dict(metadata)})
    return _framed(f"{first[:-1]},{layout.entries}}}" if layout.entries else first)


def with_metadata(file: Source, metadata: Mapping[str, str]) -> bytes:
    """Return the header of a file with other metadata; names, order and offsets stay."""
    length = int.from_bytes(file.read(0, LENGTH_BYTES), "little")
    fields = parse_json(file.read(LENGTH_BYTES, length))
    fields.pop(METADATA, None)
    return _framed(_as_json({METADATA: dict(metadata), **fields}))


def _as_json(fields: Mapping[str, object]) -> str:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


def _framed(header: str) -> bytes:
    """Return the text of a header as the file has it: its length, and its bytes, aligned."""
    try:
        text = header.encode()
    except UnicodeEncodeError as error:
        raise UnsupportedError(
            "a tensor's name is not valid text, which safetensors needs"
        ) from error
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _tag(name: str, ref: TensorRef, casting: Casting) -> str:
    tag = casting.dtype_of(ref).safetensors
    if tag is None or ref.quantizer is not None or name == METADATA:
        raise UnsupportedError(
            f"safetensors cannot hold a {ref.dtype} tensor of this name",
            address=name,
            hint="write a torch file instead: -o NAME.pt",
        )
    if not ref.chunks:
        raise UnsupportedError("a meta tensor has no values to write", address=name)
    return tag


def _shape(ref: TensorRef) -> list[int]:
    """Return the shape in values, as safetensors counts packed dtypes; torch counts their bytes."""
    if ref.dtype.packed == 1 or not ref.shape:
        return list(ref.shape)
    return [*ref.shape[:-1], ref.shape[-1] * ref.dtype.packed]


def check(path: Path, names: Collection[str]) -> None:
    """Reopen a written file with the safetensors library.

    Raises:
        DamagedError: the library does not read it, or reads other names.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as opened:
            expect(set(opened.keys()) == set(names), "other names", path)
    except SafetensorError as error:
        expect(False, str(error), path)


def check_written(
    path: Path,
    tensors: Mapping[str, TensorRef],
    casting: Casting = Casting(),  # noqa: B008 - never changed
    runs: Iterable[WrittenRun] = (),
) -> None:
    """Compare a written file with what :func:`write` was given, and with what it returned.

    Raises:
        DamagedError: the library does not read it, or reads other names, dtypes, shapes or bytes.
    """
    from safetensors import safe_open

    check(path, tensors)
    with safe_open(path, "numpy") as opened:
        for name, ref in tensors.items():
            found, tag = opened.get_slice(name), _tag(name, ref, casting)
            as_planned = (found.get_dtype(), found.get_shape()) == (tag, _shape(ref))
            expect(as_planned, f"{name} is of another type or shape", path)
    check_runs(path, runs)
