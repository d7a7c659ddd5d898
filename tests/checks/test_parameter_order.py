"""Orders in which an optimizer may have been given the parameters, and orders that none gives."""

from __future__ import annotations

import pytest

from ckptool.checks.parameter_order import is_explained

MODEL = [
    ("module.stem.weight", (8, 3)), ("module.stem.bias", (8,)),
    ("module.body.weight", (5, 8)), ("module.body.bias", (5,)),
    ("module.head.weight", (2, 5)), ("module.head.bias", (2,)),
]  # fmt: skip
SHAPES = [shape for _, shape in MODEL]
NUMBERED = [(f"layers.{i}.weight", (i + 1, 2)) for i in range(12)]


@pytest.mark.parametrize(
    "order",
    [
        SHAPES,
        SHAPES[::-1],
        [shape for _, shape in sorted(MODEL)],
        SHAPES[::2] + SHAPES[1::2],
        SHAPES[1::2] + SHAPES[::2],
        sorted(SHAPES, key=lambda shape: shape[0] * (shape[1:] or (1,))[0]),
        SHAPES[4:] + SHAPES[:4],
        SHAPES[:2],
        [None, *SHAPES[1:]],
    ],
    ids=["the model's", "reversed", "by name", "weights first", "biases first", "small first",
         "the head first", "a part", "one without moments"],
)  # fmt: skip
def test_an_order_that_people_use_explains_the_states(order):
    assert is_explained([order], MODEL)


def test_groups_each_follow_the_order():
    assert is_explained([SHAPES[::2], SHAPES[1::2]], MODEL)
    assert not is_explained([SHAPES[::2], [(5,), (8,), (2,)]], MODEL)


def test_numbers_sorted_as_text_are_found_out():
    as_text = [shape for _, shape in sorted(NUMBERED, key=lambda each: each[0])]
    permuted = [as_text[5], *as_text[:5], *as_text[6:]]
    assert is_explained([as_text], NUMBERED)
    assert not is_explained([permuted], NUMBERED)


def test_shapes_of_another_model_are_not_explained():
    assert not is_explained([[(8, 3), (7,)]], MODEL)
