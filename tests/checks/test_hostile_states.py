"""Whatever stands where a trainer would put something else, every rule comes to a verdict."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ckptool.commands.verify import Request, chosen_rules, verify_file
from helpers import runs

REQUEST = Request(
    chosen_rules({"require": ["resume", "ema", "safe", "finite", "intact"], "strict": True})
)

ODD: dict[str, Any] = {
    "nothing": None,
    "text": "text\x1b[2J",
    "beyond floats": 10**400,
    "nan": float("nan"),
    "minus infinity": float("-inf"),
    "negative": -1,
    "true": True,
    "empty list": [],
    "lists": [[], [{}], [[1]]],
    "dict": {"a": {"b": [1]}, 3: None, None: 2.5, (1, 2): "x"},
    "tensor": torch.tensor([[1.0, float("nan")]]),
    "number in a tensor": torch.tensor(float("inf")),
    "no values": torch.empty(0, 3),
    "integers": torch.arange(5),
    "object": runs.Net(),
}


def places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place down to three levels; of long lists and many states the first few."""
    found = [at] if at else []
    if isinstance(node, dict) and len(at) < 3:
        for key in list(node)[:4] if len(at) > 1 else node:
            found += places(node[key], (*at, key))
    elif isinstance(node, list) and len(at) < 3:
        for index in range(min(2, len(node))):
            found += places(node[index], (*at, index))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_every_place_may_hold_anything(name, state, tmp_path):
    path = tmp_path / runs.NAME
    for place in (*places(state), ("optimizer", "state", 0, "step"), ("ema", "decay")):
        made = copy.deepcopy(state)
        node = made
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = ODD[name]
        torch.save(made, path)
        report = verify_file(path, REQUEST)
        broken = [f.message for f in report.findings if "broke off" in f.message]
        assert not broken, (place, broken)
