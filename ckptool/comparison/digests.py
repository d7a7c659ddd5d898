"""Digests of tensors: SHA-256 over dtype, shape and canonical bytes, the same in every file.

Canonical bytes are the values in C order and little-endian, as a safetensors file stores them. So
strides, byte order, container and sharing do not count, but -0.0 and the payload of a NaN do.
One line precedes the bytes: ``float32 4,3``, with a hash of the parameters of a quantized tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from itertools import chain

from ckptool.comparison.leaves import Digest, Leaf, TensorLeaf
from ckptool.comparison.values import packing
from ckptool.formats.base import TensorReader
from ckptool.process.limits import usable_cpus
from ckptool.tensors.blocks import in_batches, value_bytes
from ckptool.tensors.volume import refuse_repetition
from ckptool.tensors.windows import SMALL, read_each
from ckptool.tree.nodes import TensorRef

BATCH = 1 << 20  # bytes of the tensors that a thread takes at a time,
LEAST = 1 << 10  # of which each counts for at least so many: small ones cost calls


def tensor_digest(reader: TensorReader, ref: TensorRef) -> str:
    """Return the digest in hexadecimal; a tensor without values (meta) is hashed as not stored.

    Raises:
        DamagedError: the file ends too soon.
    """
    digest = sha256(_form(reader, ref))
    if not ref.chunks:
        digest.update(b"not stored")
    else:
        for block in value_bytes(reader, ref):
            digest.update(block)
    return digest.hexdigest()


def _form(reader: TensorReader, ref: TensorRef) -> bytes:
    """Return the line that precedes the bytes."""
    shape = ",".join(map(str, ref.shape))
    return f"{ref.dtype.name} {shape} {packing(reader, ref).hex()}\n".encode()


def digest_of(leaf: Leaf) -> str:
    """Return the digest of a tensor, computed unless it is known already."""
    return leaf.sha256 if isinstance(leaf, Digest) else tensor_digest(leaf.reader, leaf.ref)


def digests_of(leaves: Sequence[Leaf]) -> list[str]:
    """Return the digests of several leaves, in order, by all CPUs: SHA-256 takes the time."""
    held = [leaf for leaf in leaves if isinstance(leaf, TensorLeaf)]
    refuse_repetition(leaf.ref for leaf in held)
    for reader in {leaf.reader: None for leaf in held}:
        reader.expect_values(leaf.ref for leaf in held if leaf.reader is reader)
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - it brings logging along

    with ThreadPoolExecutor(usable_cpus()) as pool:
        return list(chain.from_iterable(pool.map(_batch, in_batches(leaves, _cost, BATCH))))


def _cost(leaf: Leaf) -> int:
    return max(LEAST, leaf.nbytes if isinstance(leaf, Digest) else leaf.ref.nbytes)


def _batch(leaves: Sequence[Leaf]) -> list[str]:
    """Return the digests of a batch; small tensors are read together."""
    small = [each for each in leaves if isinstance(each, TensorLeaf) and _is_small(each.ref)]
    readers = {leaf.ref.chunks[0].span.source: leaf.reader for leaf in small}
    data = read_each(
        [leaf.ref.chunks[0].span for leaf in small],
        lambda span: readers[span.source].read(span),
    )
    known = {
        id(leaf): sha256(_form(leaf.reader, leaf.ref) + part).hexdigest()
        for leaf, part in zip(small, data, strict=True)
    }
    return [known.get(id(leaf)) or digest_of(leaf) for leaf in leaves]


def _is_small(ref: TensorRef) -> bool:
    return ref.is_stored_plainly and ref.chunks[0].span.nbytes <= SMALL


def tensor_digests(reader: TensorReader, refs: Sequence[TensorRef]) -> list[str]:
    """Return the digests of several tensors of one checkpoint, in their order."""
    return digests_of([TensorLeaf(ref, reader) for ref in refs])
