"""Comparison of drawn programs with torch: ``python tests/fuzzing/same_weights.py BEGIN END``.

The judge is ``torch.load`` with ``weights_only=True``, else without. Where both it and ckptool
accept a file, the tensors are equal, bit for bit.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import torch
from programs import checkpoint
from torch.distributed.tensor import DTensor  # importing it lets torch's safe loader take them

import ckptool
from ckptool.errors import CkptError
from ckptool.formats import open_checkpoint
from ckptool.tensors.blocks import value_bytes
from ckptool.tree.describing import as_key
from ckptool.tree.nodes import Opaque, PathText, TensorRef, is_container
from helpers.absent import Stub
from helpers.judge import tensor_bytes

NO_NEGATIVE = {torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.float8_e4m3fn}
OUTCOMES = ("torch refuses", "refused", "same", "different")


def load(path: Path) -> Any:
    """What torch makes of the file; the programs are harmless. None: it refuses the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for weights_only in (True, False):
            try:
                return torch.load(path, weights_only=weights_only)
            except Exception:  # noqa: BLE001 - whatever it refuses
                continue
    return None


def outcome(path: Path) -> tuple[str, list[str]]:
    """One of ``OUTCOMES``, and the differences."""
    loaded = load(path)
    if not isinstance(loaded, dict):
        return "torch refuses", []
    try:
        with open_checkpoint(path) as opened:
            wrong = list(differences(opened.tree, loaded, opened.reader))
        result = "same"
        wrong += list(extracted(path, loaded))
    except CkptError as error:
        return "refused", [str(error)]
    return ("different" if wrong else result), wrong


def differences(node: Any, loaded: Any, reader: Any) -> Iterator[str]:
    """Yield where our tensors are not those of torch; a node that is no tensor is not judged."""
    yield from _differences(node, loaded, reader, "", set())


def _differences(
    node: Any, loaded: Any, reader: Any, at: str, met: set[tuple[int, int]]
) -> Iterator[str]:
    pair = id(node), id(loaded)
    # Containers may hold themselves. A stub stands for an object, of which the judge knows nothing.
    if pair in met or is_unknown(loaded):
        return
    if is_container(node):
        met.add(pair)
    if isinstance(node, TensorRef):
        if not isinstance(loaded, torch.Tensor):
            yield f"{at}: {node} is {type(loaded)} in torch"
        elif (why := unequal(node, loaded, reader)) is not None:
            yield f"{at}: {why}"
    elif isinstance(node, dict):
        if not isinstance(loaded, dict) or len(node) != len(loaded):
            yield f"{at}: {list(node)} are {list(loaded) if isinstance(loaded, dict) else loaded}"
            return
        for (key, part), (theirs, value) in zip(node.items(), loaded.items(), strict=True):
            if is_other(key, theirs):
                yield f"{at}: the key {key!r} is {theirs!r}"
            yield from _differences(part, value, reader, f"{at}/{key}", met)
    elif isinstance(node, (list, tuple)) and isinstance(loaded, (list, tuple)):
        if len(node) != len(loaded):
            yield f"{at}: {len(node)} items are {len(loaded)}"
            return
        for i, (part, value) in enumerate(zip(node, loaded, strict=True)):
            yield from _differences(part, value, reader, f"{at}/{i}", met)
    elif isinstance(node, Opaque) and isinstance(loaded, dict):
        yield from _differences(node.items or {}, loaded, reader, at, met)


def is_unknown(loaded: Any) -> bool:
    """Whether the judge has a stub without items in place of an object."""
    return isinstance(loaded, Stub) and not loaded


def is_other(key: Any, theirs: Any) -> bool:
    """Whether a key is another one than torch's; objects are not judged."""
    if isinstance(key, PathText):
        return str(key) != str(theirs)
    if isinstance(key, tuple) and isinstance(theirs, tuple) and len(key) == len(theirs):
        return any(map(is_other, key, theirs))
    return isinstance(key, (str, bytes, int, float, tuple)) and key != theirs


def unequal(ref: TensorRef, loaded: torch.Tensor, reader: Any) -> str | None:
    if loaded.layout is not torch.strided or loaded.is_nested:
        return f"{ref} is {loaded.layout}"
    if ref.dtype.name != str(loaded.dtype).removeprefix("torch."):
        return f"{ref.dtype} is {loaded.dtype}"
    if ref.shape != tuple(loaded.shape):
        return f"{ref.shape} is {tuple(loaded.shape)}"
    if (loaded.device.type == "meta") != (not ref.chunks):
        return f"{ref} is on {loaded.device}"
    if loaded.device.type == "meta":
        return None
    flags = ("conj" in ref.lazy, "neg" in ref.lazy)
    if flags != (loaded.is_conj(), loaded.is_neg()):
        return f"{ref.lazy} is conj {loaded.is_conj()}, neg {loaded.is_neg()}"
    if ref.lazy or loaded.is_quantized:
        return None
    if isinstance(loaded, DTensor):
        loaded = loaded.to_local()
    ours = b"".join(value_bytes(reader, ref))
    return None if ours == tensor_bytes(loaded) else f"other values: {ours!r}"


def extracted(path: Path, loaded: dict[Any, Any]):
    """Yield where the weights that the library returns are not those of torch."""
    try:
        found = ckptool.load_state_dict(path, "model", model="ema")
    except CkptError:
        return
    wanted = loaded.get("ema")
    tensors = {k: v for k, v in wanted.items() if isinstance(v, torch.Tensor)}
    if not tensors:  # the dicts in it were taken as parts of one state dict
        return
    named = {name_of(key): value for key, value in tensors.items()}
    if set(named) != set(found) or len(named) != len(tensors):
        yield f"extracted {list(found)}, torch has {list(tensors)}"
        return
    for name, ours in found.items():
        theirs = named[name]
        same = ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if theirs.device.type == "meta":
            yield f"extracted {name!r} as {ours}, torch has {theirs}"
            continue
        theirs = theirs.detach()
        if theirs.is_neg() and theirs.dtype in NO_NEGATIVE:
            continue
        theirs = theirs.resolve_neg().resolve_conj()
        if not same or tensor_bytes(ours.contiguous()) != tensor_bytes(theirs.contiguous()):
            yield f"extracted {name!r} as {ours}, torch has {theirs}"


def name_of(key: Any) -> str:
    if isinstance(key, PurePath):
        return str(key)
    if not isinstance(key, (str, bytes, int, float, complex, tuple, frozenset, type(None))):
        return "an object, which has no name"
    return str(as_key(tuple(key) if isinstance(key, tuple) else key))


def main(begin: int, end: int) -> int:
    counted: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        for seed in range(begin, end):
            path.write_bytes(checkpoint(seed))
            result, wrong = outcome(path)
            counted[result] += 1
            if result == "different":
                sys.stdout.write("\n  ".join([str(seed), *wrong]) + "\n")
    sys.stdout.write(f"{dict(counted)}\n")
    return int(counted["different"] > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
