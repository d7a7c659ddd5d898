"""CK51x: the states of random generators, without which a resumed run goes another way.

The forms are those that the setters accept: ``torch.set_rng_state`` 5056 bytes on the CPU,
``numpy.random.set_state`` what ``get_state`` gave, and ``random.setstate`` words in a tuple: a
list, as JSON makes it, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from typing import Any

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts
from ckptool.rules import finding
from ckptool.tree import (
    Address,
    ArrayRef,
    Opaque,
    TensorRef,
    Tree,
    children,
    format_address,
    unseen,
)

NAMED = re.compile(r"rng|rand(om)?_?states?$", re.IGNORECASE)
CPU_BYTES = 5056
DEVICE_BYTES = frozenset({16, 44, 816016, 824016})  # CUDA, MPS, CUDA before torch 1.6
WORDS = 624
MAX_DEPTH = 3


def _torch_present(subject: Subject) -> Verdicts:
    rng = subject.training.rng
    missing = [] if "torch" in rng else ["torch's on the CPU"]
    on_cuda = any(ref.device.startswith("cuda") for ref in subject.weight_tensors.values())
    if on_cuda and "cuda" not in rng:
        missing.append("CUDA's, on which the weights were")
    if missing:
        yield finding("CK510", "", f"missing: {' and '.join(missing)}")


def _others_present(subject: Subject) -> Verdicts:
    missing = [kind for kind in ("numpy", "python") if kind not in subject.training.rng]
    if missing:
        yield finding("CK511", "", f"missing: {' and '.join(missing)}")


def _forms(subject: Subject) -> Verdicts:
    found = list(_named_states(subject.checkpoint.tree))
    for address, node in found:
        wrong = _wrong(node, is_cpu=not re.search("cuda|gpu", "/".join(map(str, address)).lower()))
        if wrong:
            yield finding("CK512", format_address(address), wrong)
    if not found:
        yield NotChecked("CK512", "there are no states of random generators", is_absent=True)


def _named_states(tree: Tree) -> Iterator[tuple[Address, Tree]]:
    """What stands under a key that says it is a generator's state."""
    level: list[tuple[Address, Tree, bool]] = [((), tree, False)]
    seen: set[Hashable] = set()
    for _ in range(MAX_DEPTH):
        inner: list[tuple[Address, Tree, bool]] = []
        for address, node, was_named in unseen(level, seen):
            for key, child in children(node) if isinstance(node, dict) else ():
                is_named = was_named or bool(NAMED.search(str(key)))
                if isinstance(child, dict) and "bit_generator" not in child:
                    inner.append(((*address, key), child, is_named))
                elif is_named and not _is_nothing(child):
                    yield (*address, key), child
        level = inner


def _is_nothing(node: Tree) -> bool:
    """None, an empty list (no CUDA device), a seed, an object of the generator's own class."""
    return node is None or node in ([], ()) or isinstance(node, (int, Opaque, dict))


def _wrong(node: Any, *, is_cpu: bool) -> str | None:
    """Why a setter would refuse it; None: it would not."""
    if isinstance(node, TensorRef):
        return _wrong_tensor(node, is_cpu=is_cpu)
    if isinstance(node, ArrayRef):
        return None if _is_jax_key(node) else f"an array of {list(node.shape)} {node.dtype}"
    if not isinstance(node, (list, tuple)):
        return f"a {type(node).__name__} is no generator's state"
    if all(isinstance(part, TensorRef) for part in node):
        return next(filter(None, (_wrong_tensor(part, is_cpu=False) for part in node)), None)
    if isinstance(node[0], str):
        return _wrong_numpy(node)
    return _wrong_python(node)


def _is_jax_key(array: ArrayRef) -> bool:
    return array.dtype.lstrip("<>|=") == "u4" and array.shape[-1:] in {(2,), (4,)}


def _wrong_tensor(ref: TensorRef, *, is_cpu: bool) -> str | None:
    if ref.dtype.name != "uint8" or len(ref.shape) != 1:
        return f"a {ref.dtype} tensor of shape {list(ref.shape)}; wanted is a row of bytes (uint8)"
    if ref.device != "cpu":
        return f"it lies on {ref.device}; torch.set_rng_state wants it on the CPU"
    if ref.shape[0] != CPU_BYTES and (is_cpu or ref.shape[0] not in DEVICE_BYTES):
        return f"{ref.shape[0]} bytes; wanted are {CPU_BYTES if is_cpu else min(DEVICE_BYTES)}"
    return None


def _wrong_numpy(state: Any) -> str | None:
    if state[0] != "MT19937" or len(state) < 3:
        return f"the generator {state[0]!r:.20} is not the one that numpy.random.set_state takes"
    keys, at = state[1], state[2]
    count = keys.shape[0] if isinstance(keys, ArrayRef) and keys.shape else _length(keys)
    if count != WORDS:
        return f"{count} words; numpy's generator has {WORDS}"
    return None if isinstance(at, int) else "its position is no integer"


def _length(keys: Any) -> int:
    return len(keys) if isinstance(keys, (list, tuple)) else 0


def _wrong_python(state: Any) -> str | None:
    if len(state) != 3 or state[0] != 3 or not isinstance(state[1], (list, tuple)):
        return "not of the form of random.getstate(): (3, 625 integers, None)"
    if not isinstance(state[1], tuple):
        return "lists, as JSON makes them; random.setstate wants tuples"
    words = state[1]
    if len(words) != WORDS + 1 or not all(isinstance(w, int) and 0 <= w < 2**32 for w in words):
        return f"{len(words)} words; Python's generator has {WORDS + 1} of 32 bits"
    return None if words[-1] <= WORDS else "its position is out of range"


CHECKS = (
    Check(("CK510",), _torch_present),
    Check(("CK511",), _others_present),
    Check(("CK512",), _forms),
)
