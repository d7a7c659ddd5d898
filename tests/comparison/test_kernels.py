"""Every number of a comparison, against float64 torch on the CPU, for tensors of all types."""

from __future__ import annotations

import dataclasses
import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.comparison import devices, engine
from ckptool.comparison import values as jobs
from ckptool.comparison.arrays import BLOCK, CODES
from ckptool.comparison.devices import Device
from ckptool.comparison.differences import distance_of
from ckptool.comparison.engine import Engine
from ckptool.comparison.tolerances import Tolerance
from ckptool.comparison.values import Job, Values
from ckptool.dtypes import BY_NAME
from ckptool.errors import UnsupportedError
from ckptool.formats.base import TensorReader
from ckptool.sources.base import ByteSpan
from ckptool.sources.local import LocalFile
from ckptool.sources.memory import Memory
from ckptool.tree.nodes import TensorRef
from helpers.samples import NEW_DTYPES, OLD_DTYPES
from helpers.thinned import examples, slow

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")

NUMERIC = [t for t in OLD_DTYPES + NEW_DTYPES if str(t).removeprefix("torch.") not in CODES]
DEVICES = {"numpy": None, "torch": "cpu", "cuda": "cuda"}
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
BACKENDS = ["numpy", "torch", pytest.param("cuda", marks=NO_GPU)]
EXACTLY = Tolerance()
CLOSE = 1e-12  # sums in another order


def compare(a, b, rule=EXACTLY, backend="numpy", threads=1, files=(None, None), counted=0):
    """The numbers for two flat tensors; None when their bytes are equal.

    Short ones go to a device too, and of those of a byte from ``counted`` on pairs are counted.
    """
    engine = Engine("cpu", threads, lambda _: None)
    if name := DEVICES[backend]:
        engine._device = Device(name)
    one, other = map(values, (a, b), files)
    with patch.object(devices, "LEAST", 0), patch.object(jobs, "COUNTED", counted):
        (outcome,) = engine.compare([Job(one, other, rule)])
    for side in (one, other):
        side.reader.close()
    return None if outcome.identical else distance_of(outcome.partial, tuple(a.shape))


def values(tensor, file=None):
    """Where its bytes come from: a pickle, or two places of a file."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    dtype = BY_NAME[str(tensor.dtype).removeprefix("torch.")]
    ref = TensorRef(dtype, tuple(tensor.shape), ())
    spans = (ByteSpan(Memory(data), 0, len(data)),)
    if file is not None:
        half = len(data) // 2
        file.write_bytes(data[half:] + data[:half])
        source = LocalFile(file)
        spans = (source.span(len(data) - half, half), source.span(0, len(data) - half))
        return Values(ref, TensorReader(source), dtype, len(data), spans)
    return Values(ref, TensorReader(), dtype, len(data), spans)


def from_bytes(data, dtype):
    raw = torch.tensor(list(data), dtype=torch.uint8)
    return (raw & 1 if dtype is torch.bool else raw).view(dtype)


@st.composite
def pairs(draw):
    """Two tensors of a type from any bytes, often equal in places: all of NaN, infinity, zeros."""
    dtype = draw(st.sampled_from(NUMERIC))
    size = torch.empty(0, dtype=dtype).element_size()
    count = draw(st.integers(1, 12))
    data = draw(st.binary(min_size=count * size, max_size=count * size))
    other = draw(st.binary(min_size=count * size, max_size=count * size))
    mask = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    mixed = b"".join(
        (data if same else other)[i * size : (i + 1) * size] for i, same in enumerate(mask)
    )
    return from_bytes(data, dtype), from_bytes(mixed, dtype)


def wide(tensor):
    if tensor.dtype.is_complex or tensor.dtype is torch.complex32:
        return tensor.to(torch.complex128)
    return tensor.to(torch.float64)


def same_places(x, y):
    if x.is_complex():
        return same_places(x.real, y.real) & same_places(x.imag, y.imag)
    return (x == y) | (x.isnan() & y.isnan())


def expected(a, b):
    """The definitions, written down with torch in float64."""
    x, y = wide(a), wide(b)
    finite = x.isfinite() & y.isfinite()
    odd = ~finite & ~same_places(x, y)
    x, y = x[finite], y[finite]
    distance, larger = (x - y).abs(), torch.maximum(x.abs(), y.abs())
    norms = [float(v.abs().square().sum()) for v in (x - y, x, y)]
    moving = distance > 0
    dot = float((x * y.conj()).real.sum())
    product = math.sqrt(norms[1]) * math.sqrt(norms[2])
    top = max(norms[1:])
    usable = math.isfinite(top) and math.isfinite(norms[0])
    return {
        "elements": a.numel(),
        "differing": int(moving.sum()) + int(odd.sum()),
        "nonfinite": int(odd.sum()),
        "max_abs": float(distance.max()) if len(x) else 0.0,
        "max_rel": min(float((distance / larger)[moving].max()), 2.0) if moving.any() else 0.0,
        "mean_abs": float(distance.sum()) / max(len(x), 1),
        "rms": math.sqrt(norms[0] / max(len(x), 1)),
        "relative_l2": math.sqrt(norms[0] / top) if usable and top else 0.0 if usable else None,
        "cosine": dot / product if product and math.isfinite(product * dot) else None,
    }


def assert_numbers(found, wanted):
    for name, number in wanted.items():
        ours = getattr(found, name)
        if number is None or ours is None or not math.isfinite(number):
            assert ours is None or number is None or ours == number, (name, ours, number)
        else:
            assert ours == pytest.approx(number, rel=CLOSE, abs=1e-300), (name, ours, number)


EXACT = {torch.int64, torch.uint64}


@pytest.mark.parametrize("backend", BACKENDS)
@examples(150)
@given(pair=pairs())
def test_every_number_is_that_of_float64_torch(backend, pair):
    found = compare(*pair, backend=backend)
    if found is None:
        assert pair[0].view(torch.uint8).equal(pair[1].view(torch.uint8))
    elif pair[0].dtype not in EXACT:
        assert_numbers(found, expected(*pair))
        if pair[0].dtype.itemsize == 1:
            assert_numbers(compare(*pair, backend=backend, counted=1 << 20), expected(*pair))


@examples(100)
@given(pair=pairs())
def test_the_worst_lies_where_it_is_said_to(pair):
    found = compare(*pair)
    if found is None or pair[0].dtype in EXACT:
        return
    x, y = wide(pair[0]), wide(pair[1])
    odd = ~(x.isfinite() & y.isfinite()) & ~same_places(x, y)
    if odd.any():
        assert found.worst_at == (int(odd.int().argmax()),)
    elif found.differing:
        (at,) = found.worst_at
        assert float((x - y).abs()[at]) == found.max_abs
        assert not ((x - y).abs()[:at] >= found.max_abs).any()


@examples(100)
@given(pair=pairs())
def test_sides_can_be_swapped(pair):
    one, other = compare(*pair), compare(*reversed(pair))
    assert one == other


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64])
@given(data=st.data())
def test_long_integers_are_exact(dtype, data):
    info = torch.iinfo(dtype)
    ints = st.lists(st.integers(info.min, info.max), min_size=5, max_size=5)
    near = data.draw(ints)
    far = data.draw(st.one_of(ints, st.just([n ^ 1 for n in near])))
    distances = [abs(x - y) for x, y in zip(near, far, strict=True)]
    for backend in ("numpy", "torch"):
        found = compare(torch.tensor(near, dtype=dtype), torch.tensor(far, dtype=dtype),
                        backend=backend)  # fmt: skip
        if found is None:
            assert not any(distances)
            continue
        assert found.max_abs == max(distances)
        assert isinstance(found.max_abs, int)
        assert found.differing == sum(map(bool, distances))
        assert found.worst_at == (distances.index(max(distances)),)


def test_neighbours_beyond_the_integers_of_float64_differ():
    big = torch.tensor([2**53, 2**62, -(2**62)])
    found = compare(big, big + 1)
    assert (found.differing, found.max_abs) == (3, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@examples(100)
@given(pair=pairs(), atol=st.sampled_from([0.0, 1e-3, 1.0]), rtol=st.sampled_from([0.0, 0.01, 1.0]))
def test_beyond_the_tolerance_is_counted_as_defined(backend, pair, atol, rtol):
    counted = (0, 1 << 20) if pair[0].dtype.itemsize == 1 else (0,)
    found, *others = (
        compare(*pair, Tolerance("*", atol, rtol), backend, counted=n) for n in counted
    )
    if found is None or pair[0].dtype in EXACT:
        return
    assert all(other.beyond == found.beyond for other in others)
    x, y = wide(pair[0]), wide(pair[1])
    finite = x.isfinite() & y.isfinite()
    odd = ~finite & ~same_places(x, y)
    limit = torch.maximum(x.abs(), y.abs()) * rtol + atol
    is_exact = not (pair[0].dtype.is_floating_point or x.is_complex())
    far = ((x - y).abs() > (0 * limit if is_exact else limit)) & finite
    assert found.beyond == int(far.sum()) + int(odd.sum())


FLOATS = [t for t in NUMERIC if t.is_floating_point]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_step_between_neighbours_is_one_ulp(dtype, backend):
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    size = torch.empty(0, dtype=dtype).element_size()
    a = torch.tensor([33, 34, 35], dtype=bits[size])
    b = a + torch.tensor([1, 2, 3], dtype=bits[size])
    for limit, beyond in ((0, 3), (1, 2), (2, 1), (3, 0)):
        rule = Tolerance("*", 0, 0, limit)
        for counted in (0, 1 << 20):
            found = compare(a.view(dtype), b.view(dtype), rule, backend, counted=counted)
            assert (found.differing, found.beyond) == (3, beyond)


@pytest.mark.parametrize("counted", [0, 1 << 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_type_without_a_sign_has_steps_through_all_its_codes(backend, counted):
    a, b = (
        torch.tensor(codes, dtype=torch.uint8).view(torch.float8_e8m0fnu)
        for codes in ([127, 0, 254], [128, 128, 253])
    )
    found = compare(a, b, Tolerance("*", 0, 0, 1), backend, counted=counted)
    assert (found.differing, found.beyond) == (3, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ulp_counts_across_zero(backend):
    tiny = torch.tensor([5e-324], dtype=torch.float64)
    for limit, beyond in ((1, 1), (2, 0)):
        assert compare(tiny, -tiny, Tolerance("*", 0, 0, limit), backend).beyond == beyond


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("one", "other", "differing", "nonfinite"),
    [
        (math.nan, math.nan, 0, 0),
        (math.nan, 1.0, 1, 1),
        (math.inf, math.inf, 0, 0),
        (math.inf, -math.inf, 1, 1),
        (math.inf, math.nan, 1, 1),
        (-0.0, 0.0, 0, 0),
        (1e308, -1e308, 1, 0),
    ],
)
def test_what_is_not_finite_equals_only_itself(one, other, differing, nonfinite, backend):
    a, b = (torch.tensor([2.0, value], dtype=torch.float64) for value in (one, other))
    b[0] = -0.0 if differing == 0 else 2.0
    a[0] = 0.0 if differing == 0 else 2.0  # so that the bytes differ
    found = compare(a, b, Tolerance("*", 1e300, 10.0), backend)
    assert (found.differing, found.nonfinite) == (differing, nonfinite)
    assert found.beyond == nonfinite or one == 1e308


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float8_e5m2, slow(torch.float32), slow(torch.int64)]
)
def test_the_number_of_threads_does_not_matter(dtype, monkeypatch):
    """Each of several tasks is of a megabyte; as they are, the tasks are too large for a test."""
    for name in ("TASK", "BYTE_RUN"):
        monkeypatch.setattr(engine, name, 1 << 20)
    torch.manual_seed(0)
    count = (3 << 20) + 12_345 if dtype is torch.float8_e5m2 else 6 * BLOCK + 123
    a = (torch.randn(count) * 100).to(dtype)
    b = a.clone()
    b[BLOCK // 2 :: 7] = (torch.randn(count) * 100).to(dtype)[BLOCK // 2 :: 7]
    b[3 * BLOCK : 5 * BLOCK] = a[3 * BLOCK : 5 * BLOCK]  # some runs are equal
    alone = compare(a, b)
    assert alone == compare(a, b, threads=4)
    if dtype is not torch.int64:
        assert_numbers(alone, expected(a, b))


@pytest.mark.parametrize("kinds", [
    (torch.float32, torch.bfloat16), (torch.float64, torch.float32), (torch.int64, torch.float32),
    (torch.uint64, torch.int64), (torch.int32, torch.int64), (torch.complex64, torch.float32),
    (torch.float8_e4m3fn, torch.float16), (torch.bool, torch.uint8),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_types_are_compared_in_a_wider_one(kinds, backend):
    torch.manual_seed(1)
    a, b = ((torch.randn(200) * 3).abs().to(kind) for kind in kinds)
    a, b = (t.to(torch.complex128) if torch.complex64 in kinds else t for t in (a, b))
    assert_numbers(compare(a, b, backend=backend), expected(a, b))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_number_differs_once_from_an_integer_that_float64_rounds(backend):
    found = compare(torch.tensor([2**53 + 1]), torch.tensor([math.nan]).double(), backend=backend)
    assert (found.differing, found.beyond, found.nonfinite, found.max_abs) == (1, 1, 1, 0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float32], ids=str)
def test_of_equally_bad_places_the_first_is_named(dtype):
    a = torch.tensor([0, 0, 1, 0, 1]).to(dtype)
    b = torch.tensor([0, 1, 0, 1, 0]).to(dtype)
    assert compare(a, b).worst_at == compare(b, a).worst_at == (1,)


def test_an_empty_tensor_equals_itself():
    assert compare(torch.empty(0, 3), torch.empty(0, 3)) is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", NUMERIC, ids=str)
def test_many_blocks_give_the_numbers_of_the_processor(dtype, backend, tmp_path, monkeypatch):
    """More than there are slots, and than results that stay on a device."""
    for name, few in (("STAGED", 1 << 18), ("UNSEEN", 2), ("TABLES", 2)):
        monkeypatch.setattr(devices, name, few)
    torch.manual_seed(0)
    count = (8 if dtype.itemsize == 1 else 3) * BLOCK + 77
    a, b = ((torch.randn(count).abs() * 3).floor().to(dtype) for _ in "ab")
    b[: BLOCK // 2] = a[: BLOCK // 2]  # some runs are equal
    here = compare(a, b, threads=2)
    wanted = dataclasses.asdict(here)
    del wanted["worst_at"]
    for files in ((None, None), (tmp_path / "a", tmp_path / "b")):
        there = compare(a, b, backend=backend, threads=2, files=files)
        assert (there.differing, there.worst_at) == (here.differing, here.worst_at)
        assert_numbers(there, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_equal_bytes_are_equal_on_every_device(count, backend, tmp_path):
    a = torch.arange(count, dtype=torch.float32)
    assert compare(a, a, backend=backend, files=(tmp_path / "a", tmp_path / "b")) is None
    if count:
        b = a.clone()
        b[-1] += 1
        assert compare(a, b, backend=backend, files=(tmp_path / "a", tmp_path / "b")).differing == 1


@pytest.mark.parametrize("backend", ["torch", pytest.param("cuda", marks=NO_GPU)])
def test_a_device_that_fails_is_no_bug(backend, monkeypatch):
    def no_room(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMuch more")

    monkeypatch.setattr(torch, "subtract", no_room)
    with pytest.raises(UnsupportedError, match=r"Tried to allocate 2 GiB\.$") as told:
        compare(torch.ones(4), torch.zeros(4), backend=backend)
    assert "--device cpu" in told.value.hint
