"""Tensors from parts: assembled, they are the whole; a part too few or too many is refused."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptool.dtypes import BY_NAME
from ckptool.errors import DamagedError
from ckptool.formats.base import TensorReader
from ckptool.formats.ranked.assembly import (
    Box,
    Joined,
    Run,
    flat_boxes,
    from_boxes,
    from_runs,
    held_boxes,
)
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tensors import blocks
from ckptool.tensors.blocks import in_order, value_bytes
from ckptool.tree.nodes import Chunk, TensorRef

INT32 = BY_NAME["int32"]

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def held(values: np.ndarray) -> TensorRef:
    """A tensor in a file of its own."""
    data = values.astype("<i4").tobytes()
    span = ByteSpan(Memory(data), 0, len(data))
    steps = tuple(stride // 4 for stride in np.empty(values.shape, "<i4").strides)
    return TensorRef(INT32, values.shape, (Chunk(span, (0,) * values.ndim, values.shape, steps),))


def read(ref: TensorRef) -> np.ndarray:
    data = b"".join(value_bytes(TensorReader(), ref))
    return np.frombuffer(data, "<i4").reshape(ref.shape)


def cuts(draw, size: int) -> list[int]:
    inside = draw(st.lists(st.integers(0, size), max_size=3))
    return [0, *sorted(inside), size]


@given(st.data(), shapes)
def test_runs_of_flat_buffers_are_the_tensor(data, shape):
    """As ZeRO stages 1 and 2: a buffer that is cut anywhere, with other tensors around."""
    before, after = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))
    flat = np.arange(before + prod(shape) + after)
    ends = cuts(data.draw, len(flat))
    ranks = [held(flat[a:b]) for a, b in pairwise(ends)]
    ref = from_runs("w", shape, Joined(ranks).between(before, prod(shape)))
    assert ref.shape == shape
    assert in_order(ref)
    assert np.array_equal(read(ref), flat[before : before + prod(shape)].reshape(shape))


@given(st.data(), shapes)
def test_the_boxes_of_a_run_are_few_and_in_order(data, shape):
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, prod(shape))] * 2)))
    whole = np.arange(prod(shape)).reshape(shape)
    found = [*flat_boxes(shape, start, stop)]
    pieces = [
        whole[tuple(slice(o, o + s) for o, s in zip(*box, strict=True))].ravel() for box in found
    ]
    assert np.array_equal(np.concatenate([*pieces, np.empty(0, int)]), np.arange(start, stop))
    assert len(found) <= max(1, 2 * len(shape) - 1)


@given(st.data(), st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple))
def test_boxes_of_a_mesh_are_the_tensor(data, shape):
    """As meshes cut: along each axis, into parts of any size, some of them empty."""
    whole = np.arange(prod(shape)).reshape(shape)
    boxes = [Box((), ())]
    for size in shape:
        ends = cuts(data.draw, size)
        boxes = [
            Box((*box.offsets, a), (*box.sizes, b - a)) for box in boxes for a, b in pairwise(ends)
        ]
    boxes = data.draw(st.permutations(boxes))
    parts = {
        box: held(whole[tuple(slice(o, o + s) for o, s in zip(*box, strict=True))]) for box in boxes
    }
    kept = held_boxes(boxes, shape, "w")
    ref = from_boxes("w", shape, ((box, parts[box]) for box in kept))
    assert np.array_equal(read(ref), whole)


def test_interleaved_chunks_are_read_slab_by_slab(monkeypatch):
    """Columns in two files: no more than a block is held at a time."""
    monkeypatch.setattr(blocks, "BLOCK", 64)
    whole = np.arange(40 * 7).reshape(40, 7)
    left, right = Box((0, 0), (40, 3)), Box((0, 3), (40, 4))
    ref = from_boxes("w", (40, 7), [(left, held(whole[:, :3])), (right, held(whole[:, 3:]))])
    read_at_once = [values.nbytes for values in blocks.blocks(TensorReader(), ref)]
    assert np.array_equal(read(ref), whole)
    assert max(read_at_once) <= 64


FOUR = [Box((0, 0), (1, 4)), Box((1, 0), (1, 2)), Box((1, 2), (1, 2))]


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        (FOUR[:2], "do not cover"),
        ([*FOUR, FOUR[0]], "do not cover"),
        ([FOUR[0], FOUR[1], FOUR[1]], "overlap"),
        ([FOUR[0], Box((1, 1), (1, 4))], "reaches out"),
        ([Box((0,), (8,))], "reaches out"),
    ],
)
def test_a_hole_or_an_overlap_is_refused(boxes, said):
    with pytest.raises(DamagedError, match=said):
        held_boxes(boxes, (2, 4), "w")
    assert held_boxes(FOUR, (2, 4), "w") == FOUR


def test_too_few_elements_are_refused():
    flat = held(np.arange(6))
    with pytest.raises(DamagedError, match="5 elements"):
        from_runs("w", (2, 3), [Run(flat, 0, 5)])
    with pytest.raises(DamagedError, match="ends too soon"):
        from_runs("w", (2, 3), [Run(flat, 1, 6)])
    with pytest.raises(DamagedError, match="not a flat tensor"):
        from_runs("w", (2, 3), [Run(held(np.arange(6).reshape(2, 3)), 0, 6)])
