"""Small tensors that are compared together have the numbers of each by itself, to the last bit."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.commands.diff import diff
from ckptool.comparison import arrays, devices, engine, small_runs
from ckptool.comparison.digests import tensor_digest, tensor_digests
from ckptool.comparison.engine import Engine
from ckptool.comparison.leaves import TensorLeaf
from ckptool.comparison.operands import Side
from ckptool.comparison.tolerances import Tolerance
from ckptool.comparison.values import Job, values_of
from ckptool.dtypes import BY_NAME
from ckptool.errors import CkptError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import TensorReader
from ckptool.sources.base import ByteSpan
from ckptool.sources.local import LocalFile
from ckptool.sources.memory import Memory
from ckptool.tensors import windows
from ckptool.tree.geometry import contiguous_strides
from ckptool.tree.nodes import Chunk, TensorRef
from helpers.thinned import examples

DTYPES = ["float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e8m0fnu"]
OTHERS = ["int64", "uint64", "int8", "bool", "complex64", "complex32", "bits8", "uint16"]
RULES = [Tolerance(), Tolerance(atol=0.5), Tolerance(rtol=1e-3), Tolerance(ulp=2)]
SHAPES = [(), (1,), (3,), (4, 4), (2, 3, 1), (0, 3), (257,), (8191,), (8192,), (9000,)]


def stored(data, names, spread):
    """One side: tensors one behind the other in one file, some with bytes between."""
    offset, refs = 0, []
    source = Memory(data)
    reader = TensorReader(source)
    for (dtype, shape, order, is_shared), gap in zip(names, spread, strict=True):
        known = BY_NAME[dtype]
        nbytes = known.itemsize * int(np.prod(shape, dtype=int))
        at = 0 if is_shared else offset + gap
        span = ByteSpan(source, at, nbytes)
        chunk = Chunk(span, (0,) * len(shape), shape, contiguous_strides(shape))
        refs.append(TensorRef(known, shape, (chunk,), byteorder=order))
        offset = max(offset, at + nbytes)
    return [values_of(TensorLeaf(ref, reader)) for ref in refs]


KINDS = st.tuples(
    st.sampled_from(DTYPES * 3 + OTHERS),
    st.sampled_from(SHAPES),
    st.sampled_from(["little"] * 7 + ["big"]),
    st.sampled_from([False] * 7 + [True]),
).filter(lambda kind: kind[2] == "little" or BY_NAME[kind[0]].numpy)  # others are refused


@given(st.data())
@examples(100)
def test_together_and_one_by_one_give_the_same_numbers(data):
    count = data.draw(st.integers(1, 25))
    names = data.draw(st.lists(KINDS, min_size=count, max_size=count))
    names *= 2  # so that some are alike
    seed = data.draw(st.integers(0, 1 << 30))
    generator = np.random.default_rng(seed)
    one = generator.normal(size=1 << 20).astype("f4").tobytes()
    if data.draw(st.booleans()):  # NaN, infinities and numbers of all sizes
        one = generator.bytes(len(one))
    other = bytearray(one)
    changes = len(other) if data.draw(st.booleans()) else data.draw(st.integers(0, 40))
    for at in generator.integers(0, len(other), min(changes, 1 << 12)):
        other[at] ^= 1 << generator.integers(0, 8)
    far = generator.choice([0, 0, 0, 60, 3000], (2, len(names))).tolist()
    rules = [data.draw(st.sampled_from(RULES)) for _ in names]
    sides = stored(one, names, far[0]), stored(bytes(other), names, far[1])
    jobs = [Job(a, b, rule) for a, b, rule in zip(*sides, rules, strict=True)]
    together = Engine("cpu", 1, lambda _: None).compare(jobs)
    with patch.object(engine, "is_small", lambda _: False):
        by_one = Engine("cpu", 1, lambda _: None).compare(jobs)
    assert list(map(repr, together)) == list(map(repr, by_one))


def test_two_dtypes_are_compared_by_value():
    tensors = {"float32": np.arange(6, dtype="f4"), "float64": np.arange(6, dtype="f8")}
    sides = [
        stored(v.tobytes(), [(name, (6,), "little", False)], [0]) for name, v in tensors.items()
    ]
    (outcome,) = Engine("cpu", 1, lambda _: None).compare([Job(*sides[0], *sides[1], Tolerance())])
    assert not outcome.identical
    assert outcome.partial.differing == 0


@pytest.fixture
def reads():
    """The reads of files on this machine."""
    found = []
    fetch = LocalFile.fetch

    def counted(self, *args):
        found.append(args)
        return fetch(self, *args)

    with patch.object(LocalFile, "fetch", counted):
        yield found


@pytest.mark.parametrize("offset", [0, 1])
def test_many_small_tensors_take_few_reads(tmp_path, offset, reads):
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for file, more in zip(files, (0, offset), strict=True):
        torch.save({f"layers.{n}": torch.arange(4.0) + n + more for n in range(500)}, file)
    with open_checkpoint(files[0]) as a, open_checkpoint(files[1]) as b:
        jobs = [
            Job(
                *(values_of(TensorLeaf(side.tree[name], side.reader)) for side in (a, b)),
                Tolerance(),
            )
            for name in a.tree
        ]
        reads.clear()
        outcomes = Engine("cpu", 1, lambda _: None).compare(jobs)
    assert {outcome.identical for outcome in outcomes} == {not offset}
    assert len(reads) == 2


def test_digests_of_many_small_tensors_are_theirs_and_take_few_reads(tmp_path, reads):
    tensors = {f"layers.{n}": torch.arange(4.0) + n for n in range(500)}
    tensors |= {"view": torch.rand(4, 3).T, "none": torch.empty(0, 3), "large": torch.rand(50_000)}
    torch.save(tensors, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as file:
        one_by_one = [tensor_digest(file.reader, ref) for ref in file.tree.values()]
        reads.clear()
        assert tensor_digests(file.reader, list(file.tree.values())) == one_by_one
    assert len(reads) < 10


def test_two_parts_of_a_file_are_read_of_one(tmp_path):
    torch.save({"a": {"w": torch.ones(3)}, "b": {"w": torch.zeros(3)}}, tmp_path / "c.pt")
    with Side(f"{tmp_path / 'c.pt'}#a") as one:
        with Side(f"{tmp_path / 'c.pt'}#b", beside=one) as other:
            assert other.checkpoint is one.checkpoint
        with pytest.raises(CkptError):
            Side(f"{tmp_path / 'c.pt'}#c", beside=one)
    assert not diff(f"{tmp_path / 'c.pt'}#a", f"{tmp_path / 'c.pt'}#b").equal


def test_small_tensors_are_one_run():
    """So that they are read whole, and those with equal bytes have no part to be measured."""
    assert min(arrays.BLOCK, devices.STAGED // 8) >= windows.SMALL
    (side,) = stored(bytes(12), [("float32", (3,), "little", False)], [0])
    assert not small_runs.is_small(Job(side, side, Tolerance()))
