"""What a few values say, and how few are read for it."""

from __future__ import annotations

import math

import pytest
import torch

from ckptool.ema.evidence import (
    BUDGET,
    CAREFUL,
    MAX_TENSORS,
    Agreement,
    Evidence,
    compare_sample,
    distance,
)
from ckptool.tensors.sample import PER_TENSOR, beginning, is_readable, scalar_value
from ckptool.tree.nodes import TensorRef
from helpers.twins import CountingReader, drawn, near, ref, stored

ONES = torch.ones(256)


def pairs(model, average):
    return [(stored(model[name]), stored(average[name])) for name in model]


def agreement(model, average) -> Agreement:
    return compare_sample(CountingReader(), pairs(model, average))


def test_identical():
    model = drawn()
    found = agreement(model, model)
    assert found.identical
    assert (found.distance, found.finite, found.unrelated) == (0.0, True, False)


def test_near():
    found = agreement(drawn(), near(drawn()))
    assert not found.identical
    assert 0.01 < found.distance < 0.2
    assert not found.unrelated


def test_unrelated():
    assert agreement(drawn(), drawn(seed=9)).unrelated


def test_distance_is_relative_to_the_model():
    assert agreement({"w": torch.ones(4)}, {"w": torch.full((4,), 1.5)}).distance == 0.5


def test_a_large_tensor_counts_as_large_in_the_distance():
    """Of both as many values are read, but the matrix is nearly all of the model."""
    model = {"w": torch.randn(256, 256, generator=torch.Generator().manual_seed(3)), "b": ONES}
    average = {"w": 1.1 * model["w"], "b": 1.5 * model["b"]}
    off, norm = (sum(float((t.double() ** 2).sum()) for t in each) for each in (
        [average[name] - model[name] for name in model], model.values()
    ))  # fmt: skip
    assert agreement(model, average).distance == pytest.approx(math.sqrt(off / norm), rel=0.02)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(value):
    found = agreement({"w": torch.ones(3)}, {"w": torch.tensor([1.0, value, 1.0])})
    assert not found.finite
    assert found.distance is None
    assert not found.unrelated


def test_nothing_to_compare():
    for model in ({}, {"n": torch.tensor(3)}, {"e": torch.empty(0)}):
        found = agreement(model, model)
        assert (found.compared, found.distance, found.identical) == (0, None, False)


def test_zeros_have_no_distance():
    assert agreement({"w": torch.zeros(3)}, {"w": torch.ones(3)}).distance is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_types(dtype):
    values = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=dtype)
    assert list(beginning(CountingReader(), stored(values))) == values.tolist()


def test_types_are_compared_by_value():
    model = {"w": torch.tensor([1.0, -2.0, 0.5])}
    half = {"w": model["w"].bfloat16()}
    assert agreement(model, half).distance == 0.0


def test_what_cannot_be_read_as_numbers_is_left():
    for tensor in (torch.tensor([1, 2]), torch.ones(2, dtype=torch.complex64), torch.empty(0)):
        assert not is_readable(stored(tensor))
    assert not is_readable(ref(3))


# ------------------------------------------------------------------------------------- what is read


def test_nothing_is_read_before_somebody_asks():
    reader = CountingReader()
    evidence = Evidence(reader, pairs(drawn(), near(drawn())))
    assert reader.sizes == []
    assert evidence.agreement.compared == 12
    seen = len(reader.sizes)
    assert evidence.agreement.compared == 12
    assert len(reader.sizes) == seen == 24


def test_reads_are_bounded_for_large_tensors():
    reader = CountingReader()
    model = {str(i): torch.zeros(2000, 40) for i in range(3)}
    compare_sample(reader, pairs(model, model))
    assert set(reader.sizes) == {PER_TENSOR}


def test_reads_are_bounded_for_many_tensors():
    reader = CountingReader()
    tensor = stored(torch.ones(2000))
    found = compare_sample(reader, [(tensor, tensor)] * 10_000)
    assert MAX_TENSORS // 2 < found.compared <= MAX_TENSORS
    assert sum(reader.sizes) <= 2 * BUDGET


@pytest.mark.parametrize("kinds", range(1, 13))
def test_sample_has_every_kind_of_layer(kinds):
    """Layers repeat; the one tensor of each that differs is seen, whatever their number."""
    same, other = stored(torch.ones(2)), stored(torch.zeros(2))
    for odd in range(kinds):
        layers = [(same, other if i == odd else same) for i in range(kinds)] * (640 // kinds)
        assert not compare_sample(CountingReader(), layers, CAREFUL).identical


def test_only_the_beginning_is_compared():
    """What differs further on is not seen, which is why a sample alone decides nothing."""
    model = {"w": torch.ones(5000)}
    other = {"w": torch.cat([torch.ones(4999), torch.zeros(1)])}
    assert agreement(model, other).identical


# ---------------------------------------------------------------------------------------- distances


def test_distance_of_two_tensors():
    reader = CountingReader()
    one, other = stored(torch.tensor([3.0, 4.0])), stored(torch.tensor([3.0, 9.0]))
    assert distance(reader, one, other) == 1.0
    assert distance(reader, one, one) == 0.0
    assert distance(reader, stored(torch.zeros(2)), one) == math.inf
    assert distance(reader, one, stored(torch.tensor([1, 2]))) == math.inf
    assert distance(reader, one, stored(torch.tensor([math.nan, 1.0]))) == math.inf


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(5),
        torch.tensor([5]),
        torch.tensor(0.25),
        torch.tensor(True),
        torch.tensor(-3, dtype=torch.int8),
        torch.tensor(0.5, dtype=torch.float16),
        torch.tensor(7, dtype=torch.uint8),
        torch.tensor(2**40),
    ],
)
def test_counters_are_numbers(tensor):
    assert scalar_value(CountingReader(), stored(tensor)) == tensor.item()


def test_other_things_are_no_counters():
    whole = stored(torch.ones(2))
    assert scalar_value(CountingReader(), whole) is whole
    assert scalar_value(CountingReader(), "0.99") == "0.99"
    assert isinstance(scalar_value(CountingReader(), ref()), TensorRef)


def test_values_whose_squares_overflow_are_finite_and_told_nothing_of():
    model, average = (
        {"w": torch.tensor([value, 1.0], dtype=torch.float64)} for value in (-4e109, -1e303)
    )
    found = agreement(model, average)
    assert (found.finite, found.distance) == (True, None)


def test_a_distance_that_is_not_told_has_a_reason():
    model, average = drawn(), near(drawn())
    assert agreement(model, average).why == ""
    spoiled = {name: torch.full_like(tensor, math.nan) for name, tensor in average.items()}
    assert "NaN" in agreement(model, spoiled).why
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    assert "all 0" in agreement(zeros, average).why
