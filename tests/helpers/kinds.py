"""Models and averages of them, a row a kind: types, strides, ties, and what an average may lack.

A row makes ``(model, average)``. What promotion must make of the model is what ``load_state_dict``
makes of it: :func:`loaded`.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from helpers.making import Weights, average_of, floats_to, weights

Pair = tuple[Weights, Weights]


def loaded(model: Weights, average: Weights) -> Weights:
    """The model after ``load_state_dict(average, strict=False)``: ``copy_``, name by name."""
    made = copy.deepcopy(model)  # with its strides and ties
    for name in made.keys() & average.keys():
        made[name].copy_(average[name])
    return made


def noise(*shape: int, seed: int = 11) -> Tensor:
    """Values that no two tests of one seed tell apart."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------- types


def plain() -> Pair:
    model = weights()
    return model, average_of(model)


def bfloat16_with_float32_average() -> Pair:
    return floats_to(weights(), torch.bfloat16), average_of(weights())


def float32_with_float16_average() -> Pair:
    return weights(), floats_to(average_of(weights()), torch.float16)


def float32_with_float64_average() -> Pair:
    return weights(), floats_to(average_of(weights()), torch.float64)


def float64() -> Pair:
    model = floats_to(weights(), torch.float64)
    return model, average_of(model)


def float8() -> Pair:
    model = weights(**{"fp8.weight": noise(8, 4).to(torch.float8_e4m3fn)})
    return model, average_of(weights()) | {
        "fp8.weight": noise(8, 4, seed=12).to(torch.float8_e4m3fn)
    }


def float8_with_float32_average() -> Pair:
    kinds = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
    wide = {f"{str(kind)[6:]}.weight": noise(8, 4) for kind in kinds}
    narrow = {name: t.to(kind) for (name, t), kind in zip(wide.items(), kinds, strict=True)}
    return weights(**narrow), average_of(weights(**wide))


def complex_values() -> Pair:
    waves = torch.view_as_complex(noise(4, 3, 2))
    model = weights(waves=waves, doubled=waves.to(torch.complex128))
    return model, average_of(weights()) | {"waves": waves * 0.9, "doubled": model["doubled"] * 0.9}


def conjugated_average() -> Pair:
    waves = torch.view_as_complex(noise(4, 3, 2))
    return weights(waves=waves), average_of(weights()) | {"waves": (waves * 0.9).conj()}


def counters_as_floats() -> Pair:
    """An average that went over all of the state dict by ``lerp``: BatchNorm's counter too."""
    counter = {"norm.num_batches_tracked": torch.tensor(700)}
    return weights(**counter), average_of(weights()) | {
        "norm.num_batches_tracked": torch.tensor(699.0)
    }


# ------------------------------------------------------------------------------------- strides


def channels_last() -> Pair:
    """The slot in channels_last, the average in C order, and the other way round."""
    images = noise(4, 3, 5, 2)
    turned = images.to(memory_format=torch.channels_last)
    model = weights(
        **{"conv1.weight": turned, "conv2.weight": images, "conv3.weight": turned.clone()}
    )
    average = average_of(weights())
    average["conv1.weight"] = images * 0.9
    average["conv2.weight"] = turned * 0.9
    average["conv3.weight"] = turned * 0.8
    return model, average


def transposed() -> Pair:
    model = weights(**{"proj.weight": noise(6, 4).t(), "out.weight": noise(3, 5)})
    average = {name: tensor.contiguous() for name, tensor in average_of(model).items()}
    return model, average | {"out.weight": average["out.weight"].t().contiguous().t()}


def views_with_gaps() -> Pair:
    table = noise(60)
    model = weights(
        window=table[7:19].view(3, 4),
        gaps=table[30:50].view(4, 5)[::2, 1:4],
        even=noise(12, seed=1)[::2],
    )
    average = {name: tensor.contiguous() for name, tensor in average_of(model).items()}
    return model, average | {"even": noise(24)[::4]}


def channels_last_cast() -> Pair:
    images = noise(4, 3, 5, 2).bfloat16().to(memory_format=torch.channels_last)
    return weights(conv=images), average_of(weights()) | {"conv": noise(4, 3, 5, 2)}


# ------------------------------------------------------------------------------- shared storages


def tied() -> Pair:
    shared = noise(5, 3)
    model = weights(**{"embed.weight": shared, "decoder.weight": shared})
    same = noise(5, 3, seed=2)
    return model, average_of(weights()) | {"embed.weight": same, "decoder.weight": same}


def tied_average_has_one() -> Pair:
    shared = noise(5, 3)
    model = weights(**{"embed.weight": shared, "decoder.weight": shared})
    return model, average_of(weights(**{"embed.weight": shared}))


def tied_and_cast() -> Pair:
    model, average = tied()
    tied_half = model["embed.weight"].bfloat16()
    half = floats_to(model, torch.bfloat16)
    return half | {"embed.weight": tied_half, "decoder.weight": tied_half}, average


def flat_storages() -> Pair:
    """All of the model in one storage, all of the average in another, as FSDP and apex lay it."""
    return _in_one_storage(weights()), _in_one_storage(average_of(weights()))


def one_storage() -> Pair:
    """Model and average beside each other in the same storage."""
    model = {n: t for n, t in weights().items() if t.is_floating_point()}
    halves = {"model": model, "average": average_of(model)}
    parts = {f"{half} {name}": t for half, state in halves.items() for name, t in state.items()}
    views = _in_one_storage(parts)
    ours, theirs = ({name: views[f"{half} {name}"] for name in model} for half in halves)
    return ours, theirs


def _in_one_storage(state: Weights) -> Weights:
    floating = {name: t for name, t in state.items() if t.is_floating_point()}
    flat = torch.cat([tensor.reshape(-1) for tensor in floating.values()])
    parts = flat.split([tensor.numel() for tensor in floating.values()])
    views = {n: part.view(t.shape) for (n, t), part in zip(floating.items(), parts, strict=True)}
    return state | views


# ----------------------------------------------------------------------- odd shapes, fewer names


def small() -> Pair:
    """Tensors without dimensions, without elements, with one element."""
    model = weights(
        scalar=torch.tensor(2.5),
        empty=torch.empty(0),
        flat=torch.empty(3, 0, 2),
        one=noise(1, 1, 1),
    )
    return model, average_of(model)


def without_buffers() -> Pair:
    buffers = {
        "norm.running_mean": noise(4),
        "norm.running_var": noise(4).abs(),
        "norm.num_batches_tracked": torch.tensor(700),
    }
    return weights(**buffers), average_of(weights())


KINDS = (
    plain, bfloat16_with_float32_average, float32_with_float16_average,
    float32_with_float64_average, counters_as_floats, float64, complex_values, conjugated_average,
    channels_last, transposed, views_with_gaps, channels_last_cast,
    tied, tied_average_has_one, tied_and_cast, flat_storages, one_storage,
    small, without_buffers,
    float8, float8_with_float32_average,
)  # fmt: skip
