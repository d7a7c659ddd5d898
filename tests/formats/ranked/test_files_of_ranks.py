"""What is said of the ranks of a save, by the module that every format of ranks uses."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from ckptool.dtypes import BY_NAME
from ckptool.errors import DamagedError
from ckptool.formats.base import Checkpoint, Format, TensorReader
from ckptool.formats.ranked.ranks import (
    is_rounded,
    refuse_copies,
    refuse_different,
    refuse_missing,
    refuse_renamed,
    scalar,
)
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tree.nodes import Chunk, TensorRef

READER = TensorReader()


def held(tensor: torch.Tensor) -> TensorRef:
    data = (
        tensor.contiguous().view(torch.uint8).numpy().tobytes()
        if tensor.ndim
        else struct.pack("<f" if tensor.is_floating_point() else "<q", tensor.item())
    )
    chunk = Chunk(
        ByteSpan(Memory(data), 0, len(data)), (0,) * tensor.ndim, (*tensor.shape,), tensor.stride()
    )
    return TensorRef(BY_NAME[str(tensor.dtype)[6:]], (*tensor.shape,), (chunk,))


@pytest.mark.parametrize(
    ("found", "count", "said"),
    [
        ({0: "a", 2: "c"}, 3, "the file of rank 1 is missing"),
        ({0: "a"}, 1_000_000, "ranks 1, 2, 3, 4 are missing, with 999,995 more"),
        ({0: "a", 1: "b", 2: "c"}, 2, "but there is also c"),
        ({0: "a"}, 10**12, "which no run has"),
        ({0: "a"}, 0, "which no run has"),
    ],
)
def test_missing_and_extra_ranks_are_named(found, count, said):
    with pytest.raises(DamagedError, match=said):
        refuse_missing(found, count, "the states are of")
    refuse_missing({0: "a", 1: "b"}, 2, "the states are of")


def test_two_values_name_both_files():
    with pytest.raises(DamagedError, match="step is 3 in a, but 4 in c"):
        refuse_different({"a": 3, "b": 3, "c": 4}, "step")
    refuse_different({"a": 3, "b": 3}, "step")


def test_copies_are_told_from_parts_that_are_all_alike():
    ones, values = held(torch.ones(5)), held(torch.arange(5.0))
    refuse_copies(READER, {"a": [ones], "b": [ones]})
    refuse_copies(READER, {"a": [ones, values], "b": [ones, held(torch.arange(1.0, 6.0))]})
    with pytest.raises(DamagedError, match="b holds the same values as a"):
        refuse_copies(READER, {"a": [ones, values], "b": [ones, values]})


def saved_as(*stems: str) -> dict[str, Checkpoint]:
    names = (f"{folder}rank_{n}.pt" for folder in ("", "a/") for n in range(len(stems)))
    kinds = (*stems, *(f"rank_{n}" for n in range(len(stems))))
    return {
        name: Checkpoint(Path(name), Format(), 0, {}, READER, saved_as=stem)
        for name, stem in zip(names, kinds, strict=True)
    }


@pytest.mark.parametrize("stems", [
    ("rank_0", "rank_1", "rank_2"),
    ("archive", "", "rank_9"),
    (".", "..", "a/rank_0"),  # which no file is called, but a directory in a zip may be
    ("rank_0", "rank_0", "rank_2"),  # a copy, which its values show
    ("rank_1", "rank_9", "rank_2"),  # renamed, since the file of rank 0 was lost
    ("rank_1", "rank_2", "rank_3"),  # numbered anew, from 0
], ids=str)  # fmt: skip
def test_names_that_prove_no_exchange(stems):
    refuse_renamed(saved_as(*stems))


@pytest.mark.parametrize(
    "stems", [("rank_1", "rank_0", "rank_2"), ("archive", "rank_2", "rank_1")], ids=str
)
def test_files_that_have_each_others_names(stems):
    with pytest.raises(DamagedError, match=r"rank_\d.pt was saved as rank_\d.pt: files are exch"):
        refuse_renamed(saved_as(*stems))


def test_files_in_a_circle_have_each_others_names():
    with pytest.raises(DamagedError, match=r"rank_0.pt was saved as rank_1.pt"):
        refuse_renamed(saved_as("rank_1", "rank_2", "rank_0"))


@pytest.mark.parametrize("value", [torch.tensor(3.0), torch.tensor(3)])
def test_a_tensor_without_dimensions_is_a_number(value):
    assert scalar(held(value), READER) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounded_values_are_those_of_torch(dtype):
    torch.manual_seed(0)
    master = torch.cat([torch.randn(500) * 10.0**e for e in range(-8, 7)])
    saved = master.to(dtype)
    for start in range(0, len(master), 500):
        part = slice(start, start + 500)
        assert is_rounded(held(saved[part]), held(master[part]), READER)
    other = saved.clone()
    other[3] += 1
    assert not is_rounded(held(other), held(master), READER)
