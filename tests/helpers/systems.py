"""The training systems of ``fixtures/``: a row for each checkpoint that has an average."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from helpers.paths import FIXTURES
from helpers.tensors import truth


def load_script(name: str) -> ModuleType:
    """A script of ``fixtures/`` with its net and its own loading code; nothing is trained."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FIXTURES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@dataclass(frozen=True)
class System:
    """A checkpoint, where its weights are, and the script that wrote it and reads it."""

    path: Path
    script: str
    ema: str
    model: str
    layout: str
    aliases: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.path.parent.name}-{self.path.stem}"

    @cached_property
    def online(self) -> dict[str, torch.Tensor]:
        return truth(self.path, "online")

    @cached_property
    def averaged(self) -> dict[str, torch.Tensor]:
        return truth(self.path, "averaged")

    @property
    def consumer(self) -> Any:
        return load_script(self.script)


def _row(path: str, *rest: Any, **more: Any) -> System:
    return System(FIXTURES / "ema" / path, *rest, **more)


CALLBACK = "callbacks/EMACallback/ema"

SYSTEMS = (
    _row("emacallback/exported.ckpt", "make_emacallback", "ema_state_dict", "state_dict",
         "callback-export", aliases=(CALLBACK,)),
    _row("emacallback/callback_only.ckpt", "make_emacallback", CALLBACK, "state_dict",
         "callback-state"),
    _row("has_ema/partial.pt", "make_has_ema", "ema_state_dict", "model_state_dict", "has-ema"),
    _row("has_ema/late.pt", "make_has_ema", "ema_state_dict", "model_state_dict", "has-ema"),
    _row("ema_shadow/raw.pt", "make_ema_shadow", "ema_shadow", "state_dict", "ema-shadow"),
)  # fmt: skip


def inputs(script: str) -> torch.Tensor:
    """The same inputs in every run, as the script's net takes them."""
    generator = torch.Generator().manual_seed(0)
    if script == "make_ema_shadow":
        return torch.randint(0, 12, (4, 6), generator=generator)
    shape = {"make_has_ema": (4, 1, 6, 6), "make_dora": (4, 5)}.get(script, (4, 6))
    return torch.randn(shape, generator=generator)


@torch.no_grad()
def outputs(net: torch.nn.Module, script: str) -> torch.Tensor:
    """What the net makes of them."""
    return net.eval()(inputs(script))
