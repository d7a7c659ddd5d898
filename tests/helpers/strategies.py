"""Hypothesis: element types, shapes, strided views of shared storages, nested trees, plain data."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from helpers.samples import NEW_DTYPES, OLD_DTYPES, filled

MAX_DIMS, MAX_SIZE, MAX_STEP = 4, 4, 5


def dtypes(*, new: bool = True) -> st.SearchStrategy[torch.dtype]:
    """Element types that ``torch.save`` can write."""
    return st.sampled_from(OLD_DTYPES + (NEW_DTYPES if new else ()))


def shapes(min_size: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    """Sizes of tensors; with ``min_size`` 0 some are empty, and some have no dimension."""
    return st.lists(st.integers(min_size, MAX_SIZE), max_size=MAX_DIMS).map(tuple)


def contiguous_tensors(*, new: bool = True) -> st.SearchStrategy[torch.Tensor]:
    """Tensors in C order, each with a storage of its own."""
    return st.builds(
        lambda dtype, shape: filled(dtype, int(torch.Size(shape).numel())).view(shape),
        dtypes(new=new),
        shapes(),
    )


@st.composite
def strided_views(draw, storage: torch.Tensor) -> torch.Tensor:
    """A view of ``storage`` (a flat tensor) by any shape, strides and offset that fit."""
    shape = draw(shapes())
    room = storage.numel() - 1
    strides = []
    for size in shape:
        step = draw(st.integers(0, min(MAX_STEP, room // (size - 1)) if size > 1 else MAX_STEP))
        room -= max(size - 1, 0) * step
        strides.append(step)
    offset = draw(st.integers(0, max(room, 0)))
    return storage.as_strided(shape, strides, offset)


@st.composite
def tensor_pools(draw, *, new: bool = True) -> list[torch.Tensor]:
    """Tensors of which several may view one storage."""
    storages = [
        filled(draw(dtypes(new=new)), draw(st.integers(1, 60)))
        for _ in range(draw(st.integers(1, 3)))
    ]
    count = draw(st.integers(1, 5))
    return [draw(strided_views(draw(one_of_many(storages)))) for _ in range(count)]


def one_of_many(items: list) -> st.SearchStrategy[object]:
    """``sampled_from`` without its repr of the items, which some element types do not have."""
    return st.integers(0, len(items) - 1).map(lambda index: items[index])


def texts() -> st.SearchStrategy[str]:
    """Strings, also such as only Python can hold (lone surrogates)."""
    return st.text(st.characters(exclude_categories=()), max_size=8)


def scalars() -> st.SearchStrategy[object]:
    """What stands beside the weights; NaN is left out, since it equals nothing."""
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(2**80), 2**80),
        st.floats(allow_nan=False),
        st.complex_numbers(allow_nan=False),
        texts(),
        st.binary(max_size=8),
    )


def keys() -> st.SearchStrategy[object]:
    """Dict keys."""
    return st.one_of(
        texts(), st.integers(-1000, 1000), st.none(), st.tuples(texts(), st.integers(0, 9))
    )


def trees(leaves: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Nested containers of ``leaves``."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(keys(), inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
        ),
        max_leaves=12,
    )


def plain_data() -> st.SearchStrategy[object]:
    """What a pickle holds without naming a class, sets included."""
    sets = st.sets(st.one_of(texts(), st.integers()), max_size=4)
    return trees(st.one_of(scalars(), sets, sets.map(frozenset)))


@st.composite
def checkpoints(draw, *, new: bool = True) -> object:
    """A tree of scalars and tensors, some tied, some in it more than once."""
    pool = draw(tensor_pools(new=new))
    leaves = st.one_of(one_of_many(pool), scalars())
    return draw(trees(leaves))
