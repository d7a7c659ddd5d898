"""Inspection of PyTorch training checkpoints and their EMA weights, without running their code.

    >>> import ckptool
    >>> with ckptool.open_checkpoint("fixtures/ema/has_ema/late.pt") as checkpoint:
    ...     checkpoint.format_name
    'torch-zip'

``open_checkpoint`` gives the tree of any checkpoint. ``load_state_dict`` gives torch tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from ckptool.api import load_state_dict
    from ckptool.errors import CkptError
    from ckptool.formats import open_checkpoint

__all__ = ["CkptError", "__version__", "load_state_dict", "open_checkpoint"]

# The module of each public name. It is imported on first use, so `import ckptool` costs nothing.
_HOMES = {
    "CkptError": "ckptool.errors",
    "load_state_dict": "ckptool.api",
    "open_checkpoint": "ckptool.formats",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module  # noqa: PLC0415

    if name not in _HOMES:
        raise AttributeError(f"module 'ckptool' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
