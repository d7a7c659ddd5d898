"""Which bytes of two files may differ after a promotion: the slot's, and what a container keeps of
them. Everything else is compared byte for byte.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ckptool.formats import open_checkpoint

DESCRIPTOR = b"PK\x07\x08"
HAS_DESCRIPTOR = 0x8


def assert_only_the_slot_differs(path: Path, output: Path, slot: str) -> None:
    """``slot`` is the key of the model's state dict, or the prefix of its names."""
    rule = _RULES.get(path.read_bytes()[:2], _same_bytes)
    if path.suffix == ".safetensors":
        rule = _same_groups
    rule(path, output, slot_mask(path, slot))


def slot_mask(path: Path, slot: str) -> np.ndarray:
    """True at every byte of the file that an element of the slot's tensors takes."""
    mask = np.zeros(path.stat().st_size, bool)
    with open_checkpoint(path) as checkpoint:
        tree = checkpoint.tree
        entries = (
            tree[slot] if slot in tree else {n: r for n, r in tree.items() if n.startswith(slot)}
        )
        for ref in entries.values():
            for chunk in ref.chunks if ref.numel else ():
                mask[_places(chunk, ref.dtype.itemsize)] = True
    return mask


def _places(chunk, width: int) -> np.ndarray:
    """Offsets of all bytes of a strided block, gaps left out."""
    at = np.array([chunk.span.offset])
    for size, stride in zip(chunk.shape, chunk.strides, strict=True):
        at = (at[:, None] + np.arange(size) * stride * width).reshape(-1)
    return (at[:, None] + np.arange(width)).reshape(-1)


def _same_bytes(path: Path, output: Path, mask: np.ndarray) -> None:
    """A container that keeps nothing about its bytes."""
    ours, theirs = _read(output), _read(path)
    assert len(ours) == len(theirs)
    assert np.array_equal(ours[~mask], theirs[~mask])


def _same_archive(path: Path, output: Path, mask: np.ndarray) -> None:
    """A zip: checksums may differ; the directory moved behind one more record."""
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(output) as after:
        assert after.testzip() is None
        start, ours, theirs = before.start_dir, after.infolist(), before.infolist()
        assert after.comment == before.comment
        for our, their in zip(ours, theirs, strict=False):
            assert _fields(our) == _fields(their)
        assert [record.filename for record in ours[len(theirs) :]] == [
            f"{theirs[0].filename.partition('/')[0]}/ckptool.json"
        ]
        assert json.loads(after.read(ours[-1]))["source"] == path.name
        mask[_checksums(path.read_bytes(), theirs)] = True
        _assert_descriptors(output.read_bytes(), ours)
    kept = ~mask[:start]
    assert np.array_equal(_read(output)[:start][kept], _read(path)[:start][kept])


def _fields(record: zipfile.ZipInfo) -> dict[str, object]:
    names = set(zipfile.ZipInfo.__slots__) - {"CRC", "_end_offset"}
    return {name: getattr(record, name, None) for name in names}


def _checksums(data: bytes, records: list[zipfile.ZipInfo]) -> list[int]:
    """Offsets of the checksums in local headers and data descriptors."""
    starts = [record.header_offset + 14 for record in records]
    starts += [at for _, at in _descriptors(data, records)]
    return [at for start in starts for at in range(start, start + 4)]


def _assert_descriptors(data: bytes, records: list[zipfile.ZipInfo]) -> None:
    """``testzip`` looks at the directory's checksums alone; those behind the data are the same."""
    for record, at in _descriptors(data, records):
        assert data[at : at + 4] == record.CRC.to_bytes(4, "little"), record.filename


def _descriptors(
    data: bytes, records: list[zipfile.ZipInfo]
) -> Iterator[tuple[zipfile.ZipInfo, int]]:
    """Records with a data descriptor, and the offset of the checksum in it."""
    for record in records:
        if record.flag_bits & HAS_DESCRIPTOR:
            at = record.header_offset
            lengths = [int.from_bytes(data[at + i : at + i + 2], "little") for i in (26, 28)]
            end = at + 30 + sum(lengths) + record.compress_size
            assert data[end : end + 4] == DESCRIPTOR
            yield record, end + 4


def _same_groups(path: Path, output: Path, mask: np.ndarray) -> None:
    """A safetensors file: the header says the same apart from the note; the values moved."""
    (our_start, ours), (their_start, theirs) = _header(output), _header(path)
    note = json.loads(ours["__metadata__"].pop("ckptool"))
    assert note["source"] == path.name
    assert list(ours.pop("__metadata__").items()) == list(theirs.pop("__metadata__").items())
    assert list(ours.items()) == list(theirs.items())
    kept = ~mask[their_start:]
    found, wanted = _read(output)[our_start:], _read(path)[their_start:]
    assert len(found) == len(wanted)
    assert np.array_equal(found[kept], wanted[kept])


def _header(path: Path) -> tuple[int, dict]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return start, json.loads(data[8:start])


def _read(path: Path) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), np.uint8)


_RULES = {b"PK": _same_archive}
