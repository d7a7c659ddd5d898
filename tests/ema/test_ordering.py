"""Lists without names: the order of the model, found by shape and value, or nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ckptool.ema.ordering import order_names
from helpers.thinned import examples
from helpers.twins import CountingReader, drawn, near, ref, stored

LAYERS = {f"layers.{i}.weight": (3, 3) for i in range(5)}


def order(model: dict[str, Tensor], average: list[Tensor], groups=()):
    entries = {name: stored(tensor) for name, tensor in model.items()}
    listed = [(str(i), stored(tensor)) for i, tensor in enumerate(average)]
    return order_names(entries, listed, CountingReader(), groups)


def names_of(found) -> list[str]:
    """The model's names in the order of the list."""
    return sorted(found.pairs, key=lambda name: int(found.pairs[name]))


# ----------------------------------------------------------------------------------------- by shape


def test_the_only_order_that_shapes_allow():
    model = drawn({"a": (2, 3), "b": (4,), "c": (3, 2)})
    found = order(model, list(near(model).values()))
    assert (found.ways, names_of(found)) == (1, ["a", "b", "c"])


def test_frozen_tensors_that_shapes_tell():
    model = drawn({"a": (2, 3), "b": (4,), "c": (3, 2)})
    found = order(model, [near(model)["a"], near(model)["c"]])
    assert (found.ways, names_of(found)) == (1, ["a", "c"])


def test_batch_statistics_are_skipped():
    model = drawn(
        {"bn.weight": (3,), "bn.bias": (3,), "bn.running_mean": (3,), "bn.running_var": (3,)}
    )
    model["bn.num_batches_tracked"] = torch.tensor(4)
    average = near(model)
    found = order(model, [average["bn.weight"], average["bn.bias"]])
    assert names_of(found) == ["bn.weight", "bn.bias"]


def test_list_of_every_tensor_with_buffers():
    model = drawn(
        {"bn.weight": (3,), "bn.running_mean": (3,), "bn.running_var": (3,), "head": (2, 3)}
    )
    model["bn.num_batches_tracked"] = torch.tensor(4)
    found = order(model, list(near(model).values()))
    assert names_of(found) == list(model)


def test_small_biases_are_not_taken_for_statistics():
    """Relative to a value near zero everything is far, the right partner too."""
    model = drawn(
        {
            "bn.weight": (3,),
            "bn.bias": (3,),
            "bn.running_mean": (3,),
            "bn.running_var": (3,),
            "w": (3, 3),
        }
    )
    model["bn.bias"] = torch.tensor([0.01, -0.02, 0.01])
    average = near(model) | {"bn.bias": torch.tensor([0.03, 0.01, -0.02])}
    found = order(model, [average[n] for n in ("bn.weight", "bn.bias", "w")])
    assert names_of(found) == ["bn.weight", "bn.bias", "w"]


# ---------------------------------------------------------------------------------------- by values


@pytest.mark.parametrize("frozen", range(5))
def test_values_decide_which_of_equal_layers_is_missing(frozen):
    model = drawn(LAYERS)
    average = near(model)
    kept = [name for i, name in enumerate(LAYERS) if i != frozen]
    found = order(model, [average[name] for name in kept])
    assert (found.ways, names_of(found)) == (5, kept)


def test_tie_of_values_is_no_order():
    model = {name: torch.ones(3, 3) for name in LAYERS}
    found = order(model, [torch.ones(3, 3) * 1.01] * 4)
    assert (found.ways, found.pairs) == (5, {})


def test_near_tie_of_values_is_no_order():
    """Norms near their ones: a frozen one may be nearer to the average than the trained one."""
    model = {f"{i}": torch.full((3,), value) for i, value in enumerate((1.0, 1.02, 1.0))}
    assert order(model, [torch.full((3,), 1.001)]).pairs == {}


def test_zeros_are_no_order():
    model = {name: torch.zeros(3, 3) for name in LAYERS}
    assert order(model, [torch.zeros(3, 3)] * 4).pairs == {}


def test_unrelated_values_are_no_order():
    assert order(drawn(LAYERS), list(drawn(LAYERS, 9).values())[:4]).pairs == {}


def test_values_that_are_not_finite_are_no_order():
    model = drawn(LAYERS)
    average = [torch.full((3, 3), float("nan"))] * 4
    assert order(model, average).pairs == {}


def test_exchanged_layers_are_no_order():
    """Shapes allow one order only, and values say that it is not the one."""
    model = drawn(LAYERS)
    average = list(near(model).values())
    average[1], average[3] = average[3], average[1]
    assert order(model, average).pairs == {}


def test_groups_of_an_optimizer_have_orders_of_their_own():
    model = drawn(
        {f"{i}.{part}": shape for i in range(3) for part, shape in (("w", (3, 3)), ("b", (3,)))}
    )
    kept = [name for name in model if "w" in name] + [name for name in model if "b" in name]
    average = near(model)
    listed = [average[name] for name in kept]
    assert order(model, listed) is None or order(model, listed).pairs == {}
    assert names_of(order(model, listed, groups=(3, 3))) == kept


# ----------------------------------------------------------------------------------- what cannot be


def test_longer_list_than_the_model_fits_nowhere():
    assert order(drawn(LAYERS), list(drawn(LAYERS).values()) * 2) is None


def test_empty_list_fits_nowhere():
    assert order(drawn(LAYERS), []) is None


def test_other_shapes_fit_nowhere():
    assert order(drawn(LAYERS), [torch.ones(7)]) is None


def test_tables_too_large_to_try_are_left():
    model = {f"{i}": ref(2) for i in range(4000)}
    assert order_names(model, [(str(i), ref(2)) for i in range(2000)], CountingReader()) is None


def test_reads_are_bounded():
    model = {name: torch.randn(300, 300) for name in LAYERS}
    entries = {name: stored(tensor) for name, tensor in model.items()}
    listed = [(str(i), stored(t)) for i, t in enumerate(list(near(model).values())[:4])]
    reader = CountingReader()
    assert order_names(entries, listed, reader).pairs
    assert max(reader.sizes) <= 4096


# ----------------------------------------------------------------------------------------- property

shapes = st.sampled_from([(), (2,), (3,), (2, 2), (3, 3)])


@examples(150)
@given(
    st.lists(shapes, min_size=2, max_size=12),
    st.data(),
    st.integers(0, 2**16),
    st.sampled_from([0.001, 0.02, 0.1]),
)
def test_the_order_is_the_true_one_or_none(layers, data, seed, noise):
    """A model of random shapes, some of it frozen, an average near it: never a wrong name."""
    model = drawn({f"p{i}": shape for i, shape in enumerate(layers)}, seed)
    kept = data.draw(st.lists(st.sampled_from(list(model)), min_size=1, unique=True).map(sorted))
    kept = [name for name in model if name in kept]
    average = near(model, seed + 1, noise)
    found = order(model, [average[name] for name in kept])
    assert found is not None
    if found.pairs and not _is_close_call(model, average, kept, names_of(found)):
        assert names_of(found) == kept


def _is_close_call(model, average, kept, chosen) -> bool:
    """Whether the noise brought a wrong name nearer than the true one: values cannot know."""

    def far(ours: Tensor, theirs: Tensor) -> float:
        larger = max(float(ours.norm()), float(theirs.norm()))
        return float((ours - theirs).norm()) / larger if larger else math.inf

    true = sum(far(model[name], average[name]) for name in kept)
    other = sum(far(model[name], average[kept[i]]) for i, name in enumerate(chosen))
    return other < true
