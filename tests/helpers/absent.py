"""Classes that cannot be imported where the checkpoint is read, and a loader with stubs for them.

The classes exist while :func:`present` runs: so files are written that name a module which nobody
has any more, as files of a training repository do.
"""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Self

import torch

MODULE = "absent_lab"

SOURCE = """
import enum
from collections import OrderedDict
from dataclasses import dataclass, field
from torch import nn

class Config:
    def __init__(self, **fields):
        self.__dict__.update(fields)

class Slotted:
    __slots__ = ("left", "right")

class Phase(enum.Enum):
    WARMUP = "warmup"
    STEADY = 2

@dataclass
class Schedule:
    warmup: int = 10
    milestones: list = field(default_factory=lambda: [1, 2])

class Registry(dict):
    pass

class History(list):
    pass

class Named(OrderedDict):
    pass

class Rebuilt:
    def __init__(self, made_from):
        self.made_from = made_from
    def __reduce__(self):
        return rebuild, (self.made_from,), {"kept": self.made_from}

def rebuild(made_from):
    return Rebuilt(made_from)

class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
"""


@contextmanager
def present() -> Iterator[types.ModuleType]:
    """The module, which can be imported as long as the block runs."""
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    try:
        exec(SOURCE, module.__dict__)
        yield module
    finally:
        del sys.modules[MODULE]


def instances(lab: types.ModuleType) -> dict[str, object]:
    """What a training script of that laboratory saves."""
    slotted = lab.Slotted()
    slotted.left, slotted.right = 1, [2.5, None]
    registry, history = lab.Registry(a=1), lab.History([1, 2])
    registry.best, history.best = 0.5, 0.25
    return {
        "config": lab.Config(lr=1e-3, nested=lab.Config(layers=(1, 2))),
        "slotted": slotted,
        "phases": [lab.Phase.WARMUP, lab.Phase.STEADY, lab.Phase.WARMUP],
        "schedule": lab.Schedule(),
        "registry": registry,
        "history": history,
        "named": lab.Named(z=1, a=[2]),
        "rebuilt": lab.Rebuilt([1, 2]),
        "head": lab.Head(),
        "class": lab.Head,
    }


class Stub(dict):
    """Takes whatever a pickle does to an object, and keeps it as attributes and items."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        stub = super().__new__(cls)
        stub.__dict__["made_from"] = (args, kwargs)
        return stub

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        self.__dict__["state"] = state

    def extend(self, elements: list[object]) -> None:
        self.__dict__.setdefault("elements", []).extend(elements)

    def append(self, element: object) -> None:
        self.extend([element])


_stubs: dict[str, type] = {}


class Unpickler(pickle.Unpickler):
    """Classes of the absent module are stubs, each always the same."""

    def find_class(self, module: str, name: str) -> object:
        if module == MODULE:
            return _stubs.setdefault(name, type(name, (Stub,), {"__module__": MODULE}))
        return super().find_class(module, name)


def _load(file, **options: object) -> object:
    return Unpickler(file, **options).load()


STUBS = SimpleNamespace(__name__="stubs", Unpickler=Unpickler, load=_load)  # a ``pickle_module``


def loose(path) -> object:
    """What torch makes of the file, with stubs for classes that are not installed."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            try:
                return super().find_class(module, name)
            except (ImportError, AttributeError):
                return stubs.setdefault((module, name), type(name, (Stub,), {"__module__": module}))

    stand_in = SimpleNamespace(
        __name__="stubs", Unpickler=Unpickler, load=lambda file, **o: Unpickler(file, **o).load()
    )
    return torch.load(path, weights_only=False, pickle_module=stand_in)


stubs: dict[tuple[str, str], type] = {}
