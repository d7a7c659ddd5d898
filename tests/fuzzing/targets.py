"""What is fuzzed: each parser as a function of bytes that may refuse, and may do nothing else.

A target returns, or raises :class:`~ckptool.errors.CkptError`. Anything else that it raises is a
bug, and so is a run beyond ``SECONDS`` or memory beyond ``MEMORY``, which the caller watches.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ckptool.contents.inventory import take_inventory
from ckptool.contents.sections import sections
from ckptool.contents.training import read_training_state
from ckptool.dtypes import BY_NAME
from ckptool.ema.findings import ema_findings
from ckptool.ema.locate import locate_ema
from ckptool.errors import CkptError
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.formats.pickles.machine import PickleMachine
from ckptool.formats.pickles.tensor_views import tensor_view
from ckptool.formats.plain_pickle import PlainPickle
from ckptool.formats.safetensors_file import SafetensorsFile
from ckptool.formats.torch_legacy import TorchLegacy
from ckptool.formats.torch_tar import TorchTar
from ckptool.formats.torch_zip import TorchZip
from ckptool.render.text import printable
from ckptool.sources.base import ByteSpan
from ckptool.sources.local import LocalFile
from ckptool.sources.memory import Memory
from ckptool.tree.addresses import format_address
from ckptool.tree.geometry import contiguous_strides
from ckptool.tree.nodes import StorageRef, Tree
from ckptool.tree.walking import tensors

Target = Callable[[bytes], None]

SECONDS = 20
MEMORY = 2 << 30  # bytes


@contextlib.contextmanager
def as_file(data: bytes) -> Iterator[Path]:
    """The bytes as a file in memory."""
    fd = os.memfd_create("ckptool-fuzz")
    try:
        os.write(fd, data)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def look_at(checkpoint: Checkpoint) -> None:
    """What every command does first: names of everything, and the run's state."""
    for address, _ref in tensors(checkpoint.tree):
        printable(format_address(address))
    take_inventory(checkpoint.tree)
    read_training_state(checkpoint.tree, checkpoint.reader)


def reading(known: TorchZip | TorchLegacy | TorchTar | PlainPickle | SafetensorsFile) -> Target:
    """The target of a format, whatever the first bytes are."""

    def target(data: bytes) -> None:
        with contextlib.suppress(CkptError):
            look_at(known.open(Memory(data)))

    return target


def read_pickle(data: bytes) -> None:
    """The stack machine alone, and then with torch's calls."""
    with contextlib.suppress(CkptError):
        PickleMachine(Memory(data)).run()
    reading(PlainPickle())(data)


KEYS = (
    "state_dict", "model", "ema", "ema_state_dict", "shadow", "optimizer", "state", "param_groups",
    "params", "exp_avg", "step", "decay", "num_updates", "module", "n_averaged", "callbacks",
    "weight", "a.weight", "b.bias", "model.a.weight", "ema_model.a.weight", "aweight", "0",
    "x" * 99,
)  # fmt: skip
SHAPES = ((), (1,), (2,), (2, 3), (3, 2), (4,), (0,))
VALUES = Memory(bytes(range(1, 97)) * 4)


def tree_of(data: bytes) -> Tree:
    """A training state that the bytes spell: each opens, closes or fills a container."""
    root: dict[Any, Any] = {}
    stack: list[Any] = [root]
    for kind, choice in zip(data[::2], data[1::2], strict=False):
        key = KEYS[choice % len(KEYS)]
        value: Any = _leaf(kind, choice)
        if kind % 8 == 0:
            value = {}
        elif kind % 8 == 1:
            value = []
        elif kind % 8 == 2 and len(stack) > 1:
            stack.pop()
            continue
        elif kind % 8 == 3:  # a container that is there already, or itself
            value = stack[choice % len(stack)]
        if isinstance(stack[-1], dict):
            stack[-1][key] = value
        else:
            stack[-1].append(value)
        if kind % 8 in {0, 1}:
            stack.append(value)
    return root


def _leaf(kind: int, choice: int) -> Any:
    if kind % 8 == 4:
        return (None, True, 0, 12, 0.999, -1.0, float("nan"), "ema", 10**400)[choice % 9]
    shape = SHAPES[choice % len(SHAPES)]
    dtype = BY_NAME[("float32", "float16", "int64", "bfloat16")[kind // 8 % 4]]
    storage = StorageRef(dtype, ByteSpan(VALUES, kind, 96))
    return tensor_view(storage, 0, shape, contiguous_strides(shape))


def locate(data: bytes) -> None:
    """The averages, wherever a training state could have them."""
    with as_file(b"") as path, contextlib.suppress(CkptError), LocalFile(path) as file:
        tree = tree_of(data)
        checkpoint = Checkpoint(path, PlainPickle(), 0, tree, TensorReader(file))
        location = locate_ema(checkpoint)
        sections(tree, location.roles)
        tuple(ema_findings(checkpoint, location))
        read_training_state(tree, checkpoint.reader)


TARGETS: Mapping[str, Target] = {
    "pickle": read_pickle,
    "zip": reading(TorchZip()),
    "legacy": reading(TorchLegacy()),
    "tar": reading(TorchTar()),
    "safetensors": reading(SafetensorsFile()),
    "locator": locate,
}
