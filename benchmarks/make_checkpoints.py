"""Makes the checkpoints that the benchmarks read; run by the harness in a process of its own.

    python benchmarks/make_checkpoints.py training /tmp/checkpoint.pt

Written by ``torch.save``, holes included: ``skip_data`` leaves out the values and keeps their room.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data

Shape = tuple[int, ...]


def transformer(width: int, layers: int, vocabulary: int) -> dict[str, Shape]:
    """Names and shapes of a plain transformer: 12 tensors a layer."""
    return dict(_transformer(width, layers, vocabulary))


def _transformer(width: int, layers: int, vocabulary: int) -> Iterator[tuple[str, Shape]]:
    yield "embed.weight", (vocabulary, width)
    for i in range(layers):
        for name, (out, into) in {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }.items():
            yield f"blocks.{i}.{name}.weight", (out, into)
            yield f"blocks.{i}.{name}.bias", (out,)
        for name in ("norm1", "norm2"):
            yield f"blocks.{i}.{name}.weight", (width,)
            yield f"blocks.{i}.{name}.bias", (width,)
    yield "norm.weight", (width,)
    yield "norm.bias", (width,)


def experts(count: int) -> dict[str, Shape]:
    """``count`` names of a mixture of experts; small values, since only the names matter."""
    parts = ("w1.weight", "w2.weight", "w3.weight", "w1.bias", "w2.bias")
    return {
        f"model.layers.{i // 1280}.mlp.experts.{i // 5 % 256}.{parts[i % 5]}": (4, 4)
        for i in range(count)
    }


def weights(shapes: dict[str, Shape]) -> dict[str, torch.Tensor]:
    """Random float32 values, which no file system can share or squeeze."""
    return {name: torch.empty(shape).uniform_(-1, 1) for name, shape in shapes.items()}


def average(weight: torch.Tensor) -> torch.Tensor:
    """Values near those of ``weight``, as an average that trails behind it has."""
    return torch.empty_like(weight).uniform_(-0.01, 0.01).add_(weight)


def training_state(shapes: dict[str, Shape]) -> dict[str, Any]:
    """Model, EMA and Adam as a plain training loop saves them."""
    model = weights(shapes)
    state = {
        i: {
            "step": torch.tensor(1000.0),
            "exp_avg": torch.empty_like(weight).uniform_(-0.1, 0.1),
            "exp_avg_sq": torch.empty_like(weight).uniform_(0.1, 1),
        }
        for i, weight in enumerate(model.values())
    }
    group = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "params": list(state)}
    return {
        "epoch": 3,
        "global_step": 1000,
        "model_state_dict": model,
        "ema_state_dict": {name: average(weight) for name, weight in model.items()},
        "has_ema": True,
        "optimizer_state_dict": {"state": state, "param_groups": [group]},
        "best_val_loss": 0.25,
    }


MODEL = {"width": 768, "layers": 24, "vocabulary": 16_384}  # 182.7 million values: 2.9 GB with Adam
LARGE_MODEL = {"width": 6592, "layers": 24, "vocabulary": 140_000}  # 13.4 billion
NAMED = 100_000


def save_training(path: Path) -> None:
    """Model, EMA and Adam of the same 183 million values each: 2.9 GB."""
    torch.save(training_state(transformer(**MODEL)), path)


def save_half_training(path: Path) -> None:
    """The model in bfloat16, its EMA in float32, Adam in bfloat16: 1.8 GB."""
    state = training_state(transformer(**MODEL))
    model = {name: weight.bfloat16() for name, weight in state["model_state_dict"].items()}
    adam = {
        i: {name: value.bfloat16() for name, value in slots.items()}
        for i, slots in state["optimizer_state_dict"]["state"].items()
    }
    optimizer = state["optimizer_state_dict"] | {"state": adam}
    torch.save(state | {"model_state_dict": model, "optimizer_state_dict": optimizer}, path)


def save_holes(path: Path) -> None:
    """The same names with larger shapes: 200 GiB, of which no value is on the disk."""
    with FakeTensorMode(), skip_data(materialize_fake_tensors=True):
        torch.save(training_state(transformer(**LARGE_MODEL)), path)


def save_names(path: Path) -> None:
    """100,000 tensors, each with a storage of its own."""
    torch.save({"epoch": 3, "model_state_dict": weights(experts(NAMED))}, path)


def save_named_training(path: Path, times: int = 1) -> None:
    """100,000 tensors, or ``times`` as many, in a model, its EMA and Adam."""
    torch.save(training_state(experts(times * NAMED // 5)), path)


def save_small(path: Path) -> None:
    """A training state of a few thousand values."""
    torch.save(training_state(transformer(width=8, layers=2, vocabulary=16)), path)


def save_pair(dtype: torch.dtype, times: int = 1) -> Callable[[Path], None]:
    """A maker of two models in which every tensor differs: PATH and PATH with .b.

    Each has 0.73 GB, or ``times`` as much.
    """

    def save(path: Path) -> None:
        width = torch.empty(0, dtype=dtype).element_size()
        numel = times * MODEL_BYTES // 24 // width
        model = [torch.empty(numel).uniform_(-1, 1) for _ in range(24)]
        for name, shift in ((path, 0.0), (path.with_suffix(".b"), 0.01)):
            torch.save({f"w.{i}": (t + shift).to(dtype) for i, t in enumerate(model)}, name)

    return save


MODEL_BYTES = 730_000_000

MAKERS = {
    "training": save_training,
    "half-training": save_half_training,
    "holes": save_holes,
    "names": save_names,
    "named-training": save_named_training,
    "large-named-training": partial(save_named_training, times=10),
    "small": save_small,
    "pair-float32": save_pair(torch.float32),
    "pair-bfloat16": save_pair(torch.bfloat16),
    "pair-float8": save_pair(torch.float8_e4m3fn),
    "large-pair-float32": save_pair(torch.float32, 6),
}

if __name__ == "__main__":
    torch.manual_seed(0)
    MAKERS[sys.argv[1]](Path(sys.argv[2]))
