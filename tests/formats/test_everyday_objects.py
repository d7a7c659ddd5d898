"""Objects that people save hold functions too: where nothing calls them, there is no alarm."""

from __future__ import annotations

import argparse
import calendar
import collections
import datetime as dt
import statistics
import string
import textwrap
import time
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional


def activation(value):
    return functional.relu(value)


def hook(*_args):
    """Do nothing."""


class Activation(nn.Module):
    """A module that holds functions as attributes."""

    def __init__(self):
        super().__init__()
        self.function = functional.gelu
        self.table = {"relu": functional.relu, "own": activation}
        self.counts = collections.defaultdict(activation)


class Settings:
    """Settings with functions and classes."""

    def __init__(self):
        self.function, self.cls, self.options = activation, Activation, [functional.relu]


@dataclass(frozen=True)
class Key:
    """An object that is hashed."""

    name: str
    when: dt.datetime | None = None


class Items(torch.utils.data.Dataset):
    """A dataset with a transformation."""

    def __init__(self):
        self.transform, self.data = activation, [1, 2]

    def __len__(self):
        return len(self.data)

    def __getitem__(self, at):
        return self.data[at]


class Point(NamedTuple):
    """A row whose values have the form of the arguments of a metaclass."""

    name: str
    shape: tuple[int, ...]
    extra: dict


def network() -> nn.Module:
    made = nn.Sequential(nn.Linear(2, 2), Activation(), nn.LSTM(2, 2))
    made.append(nn.TransformerEncoderLayer(4, 2, activation=functional.gelu))
    return made


def hooked() -> nn.Module:
    made = network()
    made.register_forward_hook(hook)
    made[0].register_forward_pre_hook(hook)
    made[0]._register_load_state_dict_pre_hook(hook, with_module=True)
    made.register_load_state_dict_post_hook(hook)
    return made


def configured() -> nn.Module:
    made = nn.Linear(2, 2)
    made.settings, made.norm = Settings(), nn.LayerNorm
    return made


def noted() -> nn.Parameter:
    made = nn.Parameter(torch.zeros(2))
    made.initializer = activation
    return made


def by_modules() -> dict:
    first, second = nn.Linear(2, 2), Activation()
    return {first: {"sum": torch.zeros(2)}, second: 1}


EVERYDAY = {
    "network": network,
    "hooks": hooked,
    "attributes of a module": configured,
    "attributes of a parameter": noted,
    "spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(3, 3)),
    "averaged model": lambda: torch.optim.swa_utils.AveragedModel(network(), avg_fn=activation),
    "data parallel": lambda: nn.DataParallel(network()),
    "namespace": lambda: argparse.Namespace(function=activation, settings=Settings()),
    "subset": lambda: torch.utils.data.Subset(Items(), [0]),
    "loader": lambda: torch.utils.data.DataLoader(Items(), collate_fn=activation),
    "rows": lambda: [
        Point("a", (1,), {"x": 1}),
        Point("b", (1,), {"settings": Settings()}),
        Point("c", (), {"function": activation}),
    ],
    "modules as keys": by_modules,
    "dates as keys": lambda: {
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC): 1,
        Key("a", dt.datetime(2026, 1, 1, tzinfo=dt.UTC)): 2,
    },
    "prepared calls": lambda: [partial(activation, Settings()), partial(nn.LayerNorm, eps=1)],
    "user dict": lambda: collections.UserDict(function=activation),
    "exception": lambda: ValueError("x", Settings()),
    "distance": lambda: nn.TripletMarginWithDistanceLoss(distance_function=activation),
    "Python's objects of data": lambda: [
        collections.ChainMap({"a": 1}), collections.UserString("a"), string.Template("a"),
        calendar.Calendar(), statistics.NormalDist(), textwrap.TextWrapper(),
        time.gmtime(0),
    ],
    "quantized network": lambda: torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)), {nn.Linear, nn.LSTM}
    ),
    "packed sequence": lambda: nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)]),
}  # fmt: skip


@pytest.mark.parametrize("what", EVERYDAY)
def test_an_object_that_holds_functions_is_no_danger_by_itself(what, ckptool, tmp_path):
    path = tmp_path / "object.pt"
    torch.save({"object": EVERYDAY[what]()}, path)
    output = ckptool("verify", path, "--json")
    assert not [found for found in output.json["findings"] if found["rule"] == "CK201"]
