"""Random checkpoints: a promotion that is done changes the slot alone, in all that torch loads."""

from __future__ import annotations

import gc
import types
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from ckptool.commands.promote_ema import promote_ema
from ckptool.errors import CkptError
from helpers import hidden_views

CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
PLAIN = (str, int, float, bytes, type(None))
STORAGES = (torch.UntypedStorage, torch.TypedStorage)


def slot_of(content) -> dict[str, Tensor]:
    """The dict with the model's tensors."""
    model = content["model"]
    return model if isinstance(model, dict) else model._parameters


def uses(content) -> Counter[object]:
    """What each reference in the loaded object leads to, but for those from the slot to its own."""
    slot, found, seen = slot_of(content), Counter(), {}
    waiting = [(None, content)]
    while waiting:
        holder, value = waiting.pop()
        if holder is not slot or not any(value is own for own in slot.values()):
            found[facts(value)] += 1
        if id(value) not in seen and not isinstance(value, (*CODE, *PLAIN)):
            seen[id(value)] = value
            waiting += [(value, part) for part in parts(value)]
    return found


def parts(value) -> list[object]:
    """What an object refers to; a tensor's and a storage's attributes are found by name."""
    if isinstance(value, Tensor):
        return [value.__dict__, value._backward_hooks]
    if isinstance(value, STORAGES):
        return [getattr(value, "__dict__", {})] if isinstance(value, torch.UntypedStorage) else []
    found = gc.get_referents(value)
    return found + list(value.ravel()) if isinstance(value, np.ndarray) else found


def facts(value) -> object:
    """The bytes that a value shows; nothing of a container, whose parts are counted."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, STORAGES):
        return bytes(getattr(value, "_untyped_storage", value))
    return repr(value) if isinstance(value, PLAIN) else type(value)


def promoted(path, output, **options) -> bool:
    """Promote; False where that is refused."""
    try:
        promote_ema(path, output, ema="ema", model="model", **options)
    except CkptError:
        return False
    return True


@pytest.mark.parametrize("seed", range(80))
def test_a_promotion_changes_the_slot_alone(seed, tmp_path):
    path, output = tmp_path / "last.pt", tmp_path / "out.pt"
    path.write_bytes(hidden_views.write(seed))
    if promoted(path, output):
        try:
            before = hidden_views.load(path)
        except (ValueError, TypeError):
            return  # torch does not load it
        after = hidden_views.load(output)
        average = before["ema"]
        assert all(torch.equal(slot_of(after)[name], average[name]) for name in average)
        assert uses(after) == uses(before)


def test_most_of_these_files_are_promoted_or_refused_for_a_view(tmp_path):
    """The property above is not empty."""
    path = tmp_path / "last.pt"
    done = Counter()
    for seed in range(30):
        path.write_bytes(hidden_views.write(seed))
        is_done = promoted(path, tmp_path / f"{seed}.pt")
        done[is_done, is_done or promoted(path, tmp_path / f"{seed}.pt", allow_shared=True)] += 1
    assert done[True, True] >= 5
    assert done[False, True] >= 5
