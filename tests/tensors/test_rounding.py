"""Rounding to 16 and 8 bits, with torch as the judge of every bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.dtypes import BY_NAME
from ckptool.tensors.blocks import cast, numpy_dtype
from helpers.judge import tensor_bytes

NARROW_TYPES = [
    "bfloat16", "float16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"
]  # fmt: skip


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


def made_of(values, wanted):
    return bits_of(cast(values, numpy_dtype(BY_NAME[wanted])))


def is_nan(bits, wanted):
    return np.isnan(bits.view(numpy_dtype(BY_NAME[wanted])).astype(np.float32))


@pytest.mark.parametrize("wanted", NARROW_TYPES)
def test_around_every_step(wanted):
    values = around_every_step(wanted)
    np.testing.assert_array_equal(made_of(values, wanted), by_torch(values, wanted))


@pytest.mark.parametrize("wanted", NARROW_TYPES)
def test_random_bits_of_float32(wanted):
    """Of all magnitudes, subnormal, infinite and NaN among them."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, np.uint32)
    values = bits.view(np.float32)
    made, expected = made_of(values, wanted), by_torch(values, wanted)
    same = is_nan(expected, wanted)
    np.testing.assert_array_equal(is_nan(made, wanted), same)
    np.testing.assert_array_equal(made[~same], expected[~same])


@given(st.lists(st.floats(width=32), min_size=1, max_size=20), st.sampled_from(NARROW_TYPES))
def test_any_values(given_values, wanted):
    values = np.array(given_values, np.float32)
    made, expected = made_of(values, wanted), by_torch(values, wanted)
    numbers = ~is_nan(expected, wanted)
    np.testing.assert_array_equal(made[numbers], expected[numbers])
    assert is_nan(made, wanted)[~numbers].all()


@pytest.mark.parametrize("wanted", NARROW_TYPES)
@pytest.mark.parametrize("given", ["float64", "float32", "float16", "bfloat16"])
def test_from_other_floating_types(given, wanted):
    values = np.linspace(-200, 200, 4099).astype(numpy_dtype(BY_NAME[given]))
    made = cast(values.reshape(-1, 1)[::2], numpy_dtype(BY_NAME[wanted]))
    singles = values[::2].astype(np.float32)
    np.testing.assert_array_equal(bits_of(made).reshape(-1), by_torch(singles, wanted))


def test_big_endian_values():
    values = np.linspace(-200, 200, 4099, dtype=">f4")
    made = made_of(values, "float8_e5m2")
    np.testing.assert_array_equal(made, by_torch(values.astype("<f4"), "float8_e5m2"))
