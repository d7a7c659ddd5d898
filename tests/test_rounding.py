"""Rounding by arithmetic, with torch as the judge of every bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.casting import converted
from ckptool.dtypes import BY_NAME
from ckptool.numerics import numpy_dtype
from ckptool.rounding import NARROW, ROW, WORTH_IT, is_rounded, rounded
from judge import tensor_bytes

NARROW_TYPES = sorted(NARROW)


def by_torch(values, wanted):
    """The bits that torch has for them."""
    data = tensor_bytes(torch.from_numpy(values).to(getattr(torch, wanted)))
    return np.frombuffer(data, f"u{numpy_dtype(BY_NAME[wanted]).itemsize}")


def bits_of(made):
    return made.view(f"u{made.itemsize}")


def around_every_step(wanted):
    """All values of a type, what lies halfway to the next, and the next float32 on either side."""
    kind = getattr(torch, wanted)
    every = torch.arange(1 << 8 * kind.itemsize, dtype=torch.int32)
    every = every.to(torch.uint16 if kind.itemsize == 2 else torch.uint8).view(kind).float()
    steps = np.unique(every[every.isfinite()].numpy())
    middle = ((steps[1:].astype(np.float64) + steps[:-1]) / 2).astype(np.float32)
    edges = np.concatenate([steps, [np.float32(-0.0)], middle, steps * np.float32(0.5)])
    around = [np.nextafter(edges, np.float32(to)) for to in (-np.inf, np.inf)]
    return np.concatenate([edges, *around])


@pytest.mark.parametrize("wanted", NARROW_TYPES)
def test_around_every_step(wanted):
    values = around_every_step(wanted)
    made, left = rounded(values, numpy_dtype(BY_NAME[wanted]))
    assert not left
    np.testing.assert_array_equal(bits_of(made), by_torch(values, wanted))


@pytest.mark.parametrize("wanted", NARROW_TYPES)
def test_random_bits_of_float32(wanted):
    """Of all magnitudes below the largest, subnormal ones among them."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, np.uint32)
    values = bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        values = values[np.abs(values) < 240]
    made, left = rounded(values, numpy_dtype(BY_NAME[wanted]))
    assert not left
    assert values.size > 3 * ROW
    np.testing.assert_array_equal(bits_of(made), by_torch(values, wanted))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e30, -65520.0, 61440.0, 464.1, 248.0])
@pytest.mark.parametrize("wanted", NARROW_TYPES)
def test_a_row_with_what_does_not_fit_is_left_to_others(wanted, odd):
    values = np.linspace(-3, 3, 2 * ROW + 7, dtype=np.float32)
    values[ROW + 5] = odd
    kind = numpy_dtype(BY_NAME[wanted])
    fits = bool(np.isfinite(by_torch(values, wanted).view(kind).astype(np.float32)).all())
    _, left = rounded(values, kind)
    if wanted != "float8_e4m3fn":  # takes its largest value for what is beyond
        assert (left == []) == fits
    assert left in ([], [slice(ROW, 2 * ROW)])
    made = converted(values, kind).values
    found, expected = bits_of(made), by_torch(values, wanted)
    is_nan = np.isnan(made.astype(np.float32))
    np.testing.assert_array_equal(found[~is_nan], expected[~is_nan])
    assert np.isnan(expected.view(kind).astype(np.float32)[is_nan]).all()


@given(st.lists(st.floats(width=32), min_size=1, max_size=20), st.sampled_from(NARROW_TYPES))
def test_any_values(values, wanted):
    """Many of each, so that they are worth it."""
    given_values = np.tile(np.array(values, np.float32), WORTH_IT)
    kind = numpy_dtype(BY_NAME[wanted])
    made = converted(given_values, kind).values
    few = converted(given_values[: len(values)], kind).values  # one by one
    np.testing.assert_array_equal(bits_of(made)[-len(values) :], bits_of(few))
    one_by_one = by_torch(given_values[: len(values)], wanted)
    numbers = ~np.isnan(few.astype(np.float32))
    np.testing.assert_array_equal(bits_of(few)[numbers], one_by_one[numbers])


@pytest.mark.parametrize("wanted", NARROW_TYPES)
@pytest.mark.parametrize("given", ["float64", "float32", "float16", "bfloat16"])
def test_from_other_floating_types(given, wanted):
    kinds = [numpy_dtype(BY_NAME[name]) for name in (given, wanted)]
    assert is_rounded(*kinds)
    values = np.linspace(-200, 200, WORTH_IT + 3).astype(kinds[0])
    made = converted(values.reshape(-1, 1)[::2], kinds[1]).values
    singles = values[::2].astype(np.float32)
    np.testing.assert_array_equal(bits_of(made).reshape(-1), by_torch(singles, wanted))


def test_integers_and_other_byte_orders_go_another_way():
    half, big = np.dtype("<f2"), np.dtype(">f2")
    assert not is_rounded(np.dtype("<i4"), half)
    assert not is_rounded(np.dtype("<f4"), big)
    assert not is_rounded(np.dtype("<f4"), np.dtype("<f8"))
