"""One pickle with everything around it: its tree, the names it mentions, and what is nested inside.

``torch.storage._load_from_bytes`` holds a whole ``torch.save`` as a bytes object: plain pickles of modules
(StyleGAN, EDM) keep every storage so. Such bytes are opened in place as another container, by the same
readers, down to ``MAX_NESTING`` levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ckptool.errors import DamagedError
from ckptool.formats.base import NamedGlobal, SourceFile
from ckptool.formats.byte_sources import ByteSource
from ckptool.formats.pickle_tree import PickleMachine
from ckptool.formats.torch_objects import TorchBuilder

MAX_NESTING = 4


@dataclass(frozen=True, slots=True)
class PickledObject:
    """What :func:`read_pickled` returns."""

    tree: Any
    globals_named: tuple[NamedGlobal, ...]
    end: int  # offset behind the pickle's STOP, in its source


def read_pickled(
    source: ByteSource,
    file: SourceFile,
    builder: TorchBuilder,
    *,
    name: str,
    offset: int = 0,
) -> PickledObject:
    """The pickle at ``offset`` of ``source``, with torch's objects recognised."""
    machine = PickleMachine(source, offset, builder)
    tree = machine.run()
    named = tuple(NamedGlobal(ref, ref in builder.called, name) for ref in machine.globals)
    return PickledObject(tree, named, machine.end)
