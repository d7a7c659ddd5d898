"""Writes safetensors: 8 bytes of header length, a JSON header, then the tensors without holes.

The header is ours, since the library's writer wants every tensor in memory at once; the order is
the library's (wide types first, then by name), which keeps every tensor aligned to its width. The
library is the judge of the result: :func:`check` reopens it with ``safe_open`` before it replaces
anything.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from ckptool.errors import UnsupportedError
from ckptool.formats.base import SourceFile, TensorReader
from ckptool.formats.safetensors_file import LENGTH_BYTES, METADATA, parse_json
from ckptool.numerics import Progress, no_progress, value_bytes
from ckptool.tree import TensorRef
from ckptool.writers.base import PartialFile, expect

ALIGNMENT = 8


def write(
    output: PartialFile,
    tensors: Mapping[str, TensorRef],
    reader: TensorReader,
    metadata: Mapping[str, str],
    progress: Progress = no_progress,
) -> None:
    """Write the tensors under their names; shared storages are written once for each name.

    Raises:
        UnsupportedError: a type or a name that the format cannot hold.
    """
    ordered = sorted(tensors.items(), key=lambda kv: (-kv[1].dtype.itemsize, kv[0]))
    output.write(_header(ordered, metadata))
    for _, ref in ordered:
        if ref.is_stored_plainly:
            output.copy(reader, ref.chunks[0].span, progress)
        else:
            for block in value_bytes(reader, ref):
                output.write(block)
                progress(len(block))


def _header(ordered: list[tuple[str, TensorRef]], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {METADATA: dict(metadata)}
    offset = 0
    for name, ref in ordered:
        header[name] = {
            "dtype": _tag(name, ref),
            "shape": _shape(ref),
            "data_offsets": [offset, offset + ref.nbytes],
        }
        offset += ref.nbytes
    return _encoded(header)


def with_metadata(file: SourceFile, metadata: Mapping[str, str]) -> bytes:
    """The header of a file, with other metadata; names, order and offsets stay."""
    length = int.from_bytes(file.read(0, LENGTH_BYTES), "little")
    fields = parse_json(file.read(LENGTH_BYTES, length))
    fields.pop(METADATA, None)
    return _encoded({METADATA: dict(metadata), **fields})


def _encoded(header: Mapping[str, object]) -> bytes:
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UnsupportedError(
            "a tensor's name is not valid text, which safetensors needs"
        ) from error
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _tag(name: str, ref: TensorRef) -> str:
    if ref.dtype.safetensors is None or ref.quantizer is not None or name == METADATA:
        raise UnsupportedError(
            f"safetensors cannot hold a {ref.dtype} tensor of this name",
            address=name,
            hint="write a torch file instead: -o NAME.pt",
        )
    if not ref.chunks:
        raise UnsupportedError("a meta tensor has no values to write", address=name)
    return ref.dtype.safetensors


def _shape(ref: TensorRef) -> list[int]:
    """Safetensors counts the values of packed types, torch their bytes."""
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
