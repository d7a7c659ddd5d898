"""A writer of safetensors files: header length, a JSON header, then tensors without holes.

The length takes 8 bytes. The header is written here, since the library's writer wants every tensor
in memory at once. The order is the library's (wide dtypes first, then by name), which keeps every
tensor aligned to its width. The library judges the result: :func:`check` reopens the file with
``safe_open`` before the file replaces another.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ckptool.errors import UnsupportedError
from ckptool.formats.safetensors_file import LENGTH_BYTES, METADATA, parse_json
from ckptool.sources.base import Source
from ckptool.tensors.casting import Casting
from ckptool.tree.nodes import TensorRef
from ckptool.writers.files.whole_file import PartialFile, expect
from ckptool.writers.transfer import Move, Transfer, to_read_back, transfer
from ckptool.writers.values import WrittenRun, check_runs

ALIGNMENT = 8


def write(
    output: PartialFile,
    tensors: Mapping[str, TensorRef],
    metadata: Mapping[str, str],
    how: Transfer,
) -> tuple[WrittenRun, ...]:
    """Write the tensors under their names; shared storages are written once for each name.

    Returns:
        The runs of bytes that differ from the bytes read, for :func:`check_written`.

    Raises:
        UnsupportedError: a dtype or a name that the format cannot hold.
    """
    output.write(header(tensors, metadata, how.casting))
    moves = [
        Move(name, ref, output.skip(how.casting.nbytes_of(ref)))
        for name, ref in _ordered(tensors, how.casting)
    ]
    return to_read_back(transfer(moves, how, output))


def _ordered(tensors: Mapping[str, TensorRef], casting: Casting) -> list[tuple[str, TensorRef]]:
    return sorted(tensors.items(), key=lambda kv: (-casting.dtype_of(kv[1]).itemsize, kv[0]))


def header(
    tensors: Mapping[str, TensorRef], metadata: Mapping[str, str], casting: Casting
) -> bytes:
    """Return the beginning of the file, up to its first value.

    Raises:
        UnsupportedError: a dtype or a name that the format cannot hold.
    """
    entries: dict[str, object] = {METADATA: dict(metadata)}
    offset = 0
    for name, ref in _ordered(tensors, casting):
        end = offset + casting.nbytes_of(ref)
        tag = _tag(name, ref, casting)
        entries[name] = {"dtype": tag, "shape": _shape(ref), "data_offsets": [offset, end]}
        offset = end
    return _encoded(entries)


def with_metadata(file: Source, metadata: Mapping[str, str]) -> bytes:
    """Return the header of a file with other metadata; names, order and offsets stay."""
    length = int.from_bytes(file.read(0, LENGTH_BYTES), "little")
    fields = parse_json(file.read(LENGTH_BYTES, length))
    fields.pop(METADATA, None)
    return _encoded({METADATA: dict(metadata), **fields})


def _encoded(entries: Mapping[str, object]) -> bytes:
    try:
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
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
