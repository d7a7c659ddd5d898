"""Types of numpy's arrays: what numpy writes is believed, what denies its parts is reported."""

from __future__ import annotations

import pickle
from contextlib import suppress

import numpy as np
import pytest

from ckptool.errors import CkptError
from ckptool.formats.base import DANGEROUS
from ckptool.formats.pickles.numpy_types import DTYPE, is_true_to_parts
from ckptool.formats.pickles.plain_names import trust_of
from ckptool.formats.pickles.reader import Pickles
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.sources.memory import Memory
from ckptool.tree.nodes import Opaque
from helpers.assembling import (
    EMPTY_DICT,
    FALSE,
    NONE,
    TRUE,
    build,
    call,
    data,
    listed,
    name,
    new,
    number,
    pairs,
    row,
    text,
)
from helpers.quiet import is_reported

WRITTEN = {
    **{code: code for code in ("f4", "?", "O", "U3", "S3", "V8", "M8[7us]", "c8", ">i8", ">u2", "g",
                               "S0", "U0")},
    "objects": [("a", "O"), ("b", "i4")],
    "numbers": [("a", "f4"), ("b", "f4", (2,))],
    "rows of objects": ("O", (2,)),
    "nested": [("a", "U3"), ("x", [("y", "O", (2, 3))])],
    "no fields": [],
    "aligned": np.dtype([("a", "i1"), ("b", "f8")], align=True),
    "gaps": {"names": ["a"], "formats": ["f4"], "offsets": [4], "itemsize": 16},
    "overlapping": {"names": ["a", "b"], "formats": ["f4", "i2"], "offsets": [0, 0]},
    "titles": {"names": ["a"], "formats": ["O"], "titles": ["T"]},
    "record": np.rec.array([(1, 2.0)], names="a,b").dtype,
}  # fmt: skip


def dangers(body: bytes) -> list[str]:
    pickles = Pickles("data.pkl", lambda _data, _pickles: None)
    with suppress(CkptError):
        pickles.read(Memory(body), TorchBuilder(lambda *_: None))
    return [named.ref.qualname for named in pickles.globals_named if trust_of(named) == DANGEROUS]


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("kind", WRITTEN)
def test_what_numpy_writes_is_not_reported(kind, protocol):
    dtype = np.dtype(WRITTEN[kind])
    for value in (dtype, np.zeros(2, dtype), np.zeros((), dtype)[()]):
        assert dangers(pickle.dumps(value, protocol)) == []


def signed(n: int) -> bytes:
    return number(n) if n >= 0 else b"J" + n.to_bytes(4, "little", signed=True)


ONE = number(1)


def dtype(code: bytes, *, size: int, flags: int, fields: bytes = NONE, of: bytes = NONE) -> bytes:
    names = NONE if fields == NONE else row(text("f"))
    state = row(number(3), text("|"), of, names, fields, signed(size), ONE, number(flags))
    return build(call("numpy.dtype", code, FALSE, TRUE), state)


O8, I8 = dtype(text("O8"), size=-1, flags=63), dtype(text("i8"), size=-1, flags=0)
A_AND_B = row(text("a"), text("b"))


def field(code: bytes) -> bytes:
    """Return a type of 32 bytes with one field, and no flags of objects."""
    part = call("numpy.dtype", code, FALSE, TRUE)
    return dtype(text("V32"), size=32, flags=0, fields=pairs((text("f"), row(part, number(0)))))


def two(first: bytes, second: bytes, at: int, names: bytes = A_AND_B) -> bytes:
    """Return a type of 16 bytes with two fields, one of them at 0, and the flags of objects."""
    fields = pairs((text("a"), row(first, number(0))), (text("b"), row(second, number(at))))
    state = row(number(3), text("|"), NONE, names, fields, number(16), ONE, number(27))
    return build(call("numpy.dtype", text("V16"), FALSE, TRUE), state)


def versions(version: int, part: bytes) -> bytes:
    """Return a type of a field whose state has no flags."""
    fields = pairs((text("f"), row(part, number(0))))
    state = row(number(version), text("|"), NONE, row(text("f")), fields, number(8), ONE)
    return build(call("numpy.dtype", text("V8"), FALSE, TRUE), state)


LYING = {
    **{
        f"a field of {code!r}": field(code)
        for code in (
            text("i4,O"),
            text("object_"),
            text("(2,)O"),
            text("T"),
            data(b"O"),
            listed(),
            name("builtins.dict"),
            name("numpy.ndarray"),
            name("mylib.Row"),
        )
    },
    "a code of its own": dtype(text("i4,O"), size=-1, flags=0),
    "a class that numpy takes for objects": dtype(name("builtins.dict"), size=-1, flags=0),
    "a number over an object": two(O8, I8, 0),
    "a number over a part of an object": two(O8, I8, 4),
    "two objects in one place": two(O8, O8, 0),
    "objects without a name": two(O8, O8, 8, names=row(text("a"))),
    "no flags, which numpy does not compute": versions(3, O8),
    "no flags of objects": dtype(
        text("V8"), size=8, flags=16, fields=pairs((text("f"), row(O8, number(0))))
    ),
    "counted, but no list": dtype(
        text("V8"), size=8, flags=0x3D, fields=pairs((text("f"), row(O8, number(0))))
    ),
    "behind the end": dtype(
        text("V8"), size=8, flags=27, fields=pairs((text("f"), row(O8, number(8))))
    ),
    "objects without flags": dtype(text("O8"), size=-1, flags=0),
    "objects by their class": dtype(name("builtins.object"), size=-1, flags=0),
    "flags of objects on bytes": dtype(text("V8"), size=8, flags=27),
    "larger than its code": dtype(text("V8"), size=64, flags=0),
    "rows of objects": dtype(text("V16"), size=16, flags=0, of=row(O8, row(number(2)))),
    "rows that are longer": dtype(text("V8"), size=8, flags=63, of=row(O8, row(number(2)))),
    "fields that are no row": dtype(
        text("V8"), size=8, flags=27, fields=pairs((text("f"), EMPTY_DICT))
    ),
}


@pytest.mark.parametrize("lie", LYING)
def test_a_type_that_denies_its_parts_is_reported(lie):
    assert is_reported(LYING[lie])


TRUE_TYPES = [
    O8, I8, two(O8, I8, 8), two(I8, O8, 8), versions(2, I8), field(text("f8")),
    field(name("ml_dtypes.bfloat16")),
]  # fmt: skip


@pytest.mark.parametrize("true", TRUE_TYPES)
def test_a_type_that_says_what_it_is_is_not_reported(true):
    assert not is_reported(true)


def test_a_part_that_gets_its_objects_later_is_looked_at_again():
    plain = call("numpy.dtype", text("V8"), FALSE, TRUE) + b"\x94"
    outer = dtype(text("V8"), size=8, flags=16, fields=pairs((text("f"), row(b"h\x00", number(0)))))
    fields = pairs((text("f"), row(O8, number(0))))
    state = row(number(3), text("|"), NONE, row(text("f")), fields, number(8), ONE, number(27))
    assert not is_reported(row(plain, outer))
    assert is_reported(row(plain, outer, build(b"h\x00", state)))


BYTES = data(b"A" * 8)
PLAIN = call("numpy.dtype", text("V8"), FALSE, TRUE) + b"\x94"
AGAIN = b"h\x00"
MADE_OF_IT = {
    "an array": build(
        call("numpy._core.multiarray._reconstruct", name("numpy.ndarray"), row(ONE), data(b"b")),
        row(ONE, row(ONE), PLAIN, FALSE, BYTES),
    ),
    "a scalar": call("numpy._core.multiarray.scalar", PLAIN, BYTES),
    "a view": call("numpy._core.numeric._frombuffer", BYTES, PLAIN, row(ONE), text("C")),
    "an array without values": call("numpy.ndarray", row(ONE), PLAIN),
    "an array of the user's": new("mylib.Rows", row(ONE), PLAIN),
}  # fmt: skip


@pytest.mark.parametrize("kind", MADE_OF_IT)
def test_a_type_gets_no_objects_once_there_are_values_of_it(kind):
    fields = pairs((text("f"), row(O8, number(0))))
    state = row(number(3), text("|"), NONE, row(text("f")), fields, number(8), ONE, number(27))
    assert not is_reported(MADE_OF_IT[kind])
    assert is_reported(row(MADE_OF_IT[kind], build(AGAIN, state)))


@pytest.mark.parametrize("code", ["O", "i8,O", "T", "f8"])
@pytest.mark.parametrize("make", [call, new])
@pytest.mark.parametrize("cls", ["numpy.ndarray", "numpy.recarray", "numpy.rec.recarray"])
def test_a_buffer_of_the_file_is_no_array(cls, make, code):
    assert is_reported(make(cls, row(ONE), text(code), BYTES))
    assert is_reported(make(cls, row(ONE), NONE, NONE, BYTES))
    assert not is_reported(make(cls, row(ONE), text("f8")))


def test_states_of_the_first_versions_of_numpy_have_no_flags():
    made = Opaque(DTYPE, ("V8",))
    assert is_true_to_parts(made, (2, "|", None, None, None, 8, 1))
    assert not is_true_to_parts(made, (2, "|", None, None, None, 16, 1))
    assert is_true_to_parts(made, ("|", None, 8, 1))
    assert not is_true_to_parts(made, ("|", ("f",), {"f": (Opaque(DTYPE, ("O8",)), 0)}, 8, 1))
