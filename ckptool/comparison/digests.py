"""The digest of a tensor: SHA-256 over type, shape and canonical bytes, the same in every file.

Canonical bytes are the values in C order and little-endian, as a safetensors file stores them. So
strides, byte order, container and sharing do not count, and -0.0 and the payload of a NaN do.
Before the bytes goes one line: ``float32 4,3``, with what a quantized tensor's integers mean.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256

from ckptool.comparison.leaves import Digest, Held, Leaf
from ckptool.comparison.values import packing
from ckptool.formats.base import TensorReader
from ckptool.numerics import value_bytes
from ckptool.tree import TensorRef


def tensor_digest(reader: TensorReader, ref: TensorRef) -> str:
    """The digest in hexadecimal; of a tensor without values (meta) it says just that.

    Raises:
        DamagedError: the file ends too soon.
    """
    shape = ",".join(map(str, ref.shape))
    digest = sha256(f"{ref.dtype.name} {shape} {packing(reader, ref).hex()}\n".encode())
    if not ref.chunks:
        digest.update(b"not stored")
    else:
        for block in value_bytes(reader, ref):
            digest.update(block)
    return digest.hexdigest()


def digest_of(leaf: Leaf) -> str:
    """Of a tensor that is held, or known already."""
    return leaf.sha256 if isinstance(leaf, Digest) else tensor_digest(leaf.reader, leaf.ref)


def digests_of(leaves: Sequence[Leaf]) -> list[str]:
    """Of several, in their order, by all processors: SHA-256 is what takes the time."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - it brings logging along

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(digest_of, leaves))


def tensor_digests(reader: TensorReader, refs: Sequence[TensorRef]) -> list[str]:
    """Of several tensors of one checkpoint, in their order."""
    return digests_of([Held(ref, reader) for ref in refs])
