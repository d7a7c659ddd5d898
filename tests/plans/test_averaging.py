"""The plan of a mean, on tensors in memory."""

from __future__ import annotations

import numpy as np
import pytest

from ckptool.dtypes import BY_NAME
from ckptool.errors import UsageError
from ckptool.formats.base import TensorReader
from ckptool.plans.averaging import Member, combine
from ckptool.plans.weighing import Shares
from ckptool.sources.memory import Memory
from ckptool.tensors.blocks import value_bytes
from ckptool.tensors.casting import Casting
from ckptool.tree.geometry import contiguous_strides
from ckptool.tree.nodes import Chunk, TensorRef

FLOAT, COUNT = BY_NAME["float32"], BY_NAME["int64"]


def member(name: str, **values) -> Member:
    """A state dict of arrays, each with memory of its own."""
    tensors = {}
    for key, value in values.items():
        array = np.asarray(value)
        memory = Memory(array.tobytes())
        chunk = Chunk(
            memory.span(0, memory.size), (0,) * array.ndim, array.shape,
            contiguous_strides(array.shape),
        )  # fmt: skip
        dtype = COUNT if array.dtype.kind == "i" else FLOAT
        tensors[key.replace("_", ".", 1)] = TensorRef(dtype, array.shape, (chunk,))
    return Member(name, TensorReader(), tensors)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def values_of(ref: TensorRef) -> list[float]:
    data = b"".join(value_bytes(TensorReader(), ref))
    return np.frombuffer(data, np.int64 if ref.dtype is COUNT else np.float32).tolist()


ONE = member("1.pt", bn_running_var=floats(1, 3), bn_steps=np.array(1), w=floats(0, 2))
TWO = member("2.pt", bn_running_var=floats(3, 5), bn_steps=np.array(2), w=floats(4, 4))


@pytest.mark.parametrize(("buffers", "variance"), [("average", [2, 4]), ("newest", [3, 5])])
def test_floats_are_averaged_and_others_are_of_the_newest(buffers, variance):
    found = combine([ONE, TWO], Shares((1, 1), 2), Casting(), buffers=buffers)
    assert {name: values_of(ref) for name, ref in found.tensors.items()} == {
        "bn.running_var": variance, "bn.steps": [2], "w": [2, 3],
    }  # fmt: skip
    assert found.newest == (
        ("bn.steps",) if buffers == "average" else ("bn.running_var", "bn.steps")
    )
    assert found.statistics == (("bn.running_var",) if buffers == "average" else ())


def test_other_names_and_kinds_are_refused():
    one, shares = member("1.pt", v=floats(1)), Shares((1, 0))
    with pytest.raises(UsageError, match=r"1\.pt has no w, which 2\.pt has"):
        combine([one, member("2.pt", w=floats(1))], shares, Casting(), buffers="average")
    counts = member("2.pt", v=np.array([1]))
    with pytest.raises(UsageError, match=r"v is float32 \[1\] in 1\.pt and int64 \[1\] in 2\.pt"):
        combine([one, counts], shares, Casting(), buffers="average")
