"""CK51x: checks of random generators' states, without which a resumed run differs.

The forms are those that the setters accept. ``torch.set_rng_state`` takes 5056 bytes on the CPU,
``numpy.random.set_state`` the result of ``get_state``, and ``random.setstate`` words in a tuple; it
refuses a list, as JSON makes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts
from ckptool.checks.parts import excused
from ckptool.contents.inventory import CPU_BYTES, DEVICE_BYTES, MT19937_WORDS
from ckptool.contents.walks import ByLevel
from ckptool.names import says, whole
from ckptool.reports.rules import finding
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import Address, ArrayRef, BytesRef, GlobalRef, Opaque, TensorRef, Tree
from ckptool.tree.walking import children

NAMED = whole("rng", "random_state$", "rand_state$", "randstate$", "randomstate$")
OF_DEVICE = whole("cuda", "gpu", "mps", "xpu", "npu", "hpu", "musa", "mlu", "tracker")
OF_CPU = whole("cpu", "torch_rng", "^rng_state$")
SEED = whole("seed")
WORDS = MT19937_WORDS
MAX_DEPTH = 4


def _torch_present(subject: Subject) -> Verdicts:
    rng = subject.training.rng
    missing = [] if "torch" in rng else ["torch on the CPU"]
    if "cuda" not in rng and were_on_cuda(subject):
        missing.append("CUDA, where the weights were")
    if missing:
        message = f"missing RNG states: {' and '.join(missing)}"
        yield excused(subject, "rng", "CK510") or finding("CK510", "", message)


def were_on_cuda(subject: Subject) -> bool:
    """Return whether weights were saved from a GPU, so the run may have drawn numbers there."""
    return any(
        ref.device.startswith("cuda") and ref.dtype.is_floating
        for ref in subject.weight_tensors.values()
    )


def _others_present(subject: Subject) -> Verdicts:
    missing = missing_beside_torch(subject)
    if missing and unstored_by_choice(subject) is None:
        message = f"missing RNG states: {' and '.join(missing)}"
        yield excused(subject, "rng", "CK511") or finding("CK511", "", message)


def _each_other_present(subject: Subject) -> Verdicts:
    kind = unstored_by_choice(subject)
    if kind is not None:
        stored = f"torch's and {next(NAMES[other] for other in NAMES if other != kind)}'s"
        message = f"the state of {NAMES[kind]}'s random generator is missing, {stored} are stored"
        yield excused(subject, "rng", "CK531") or finding("CK531", "", message)


NAMES = {"numpy": "numpy", "python": "Python"}  # of the generators besides torch's, in sentences


def missing_beside_torch(subject: Subject) -> list[str]:
    """Return the generators besides torch's whose state is not stored."""
    return [kind for kind in NAMES if kind not in subject.training.rng]


def unstored_by_choice(subject: Subject) -> str | None:
    """Return the only generator whose state is not stored; None: all are, or more are missing.

    A script that stores torch's state and one of the two others knows of random states, so it seems
    to have chosen. It has chosen rightly if nothing draws from the third, which no file shows.
    """
    missing = missing_beside_torch(subject)
    return missing[0] if len(missing) == 1 and "torch" in subject.training.rng else None


def _forms(subject: Subject) -> Verdicts:
    found = list(_named_states(subject.checkpoint.tree))
    for address, node in found:
        wrong = _wrong(node, tuple(map(str, address)))
        if wrong:
            yield finding("CK512", format_address(address), wrong)
    if not found:
        yield NotChecked("CK512", "no RNG state", is_absent=True)


def _named_states(tree: Tree) -> Iterator[tuple[Address, Tree]]:
    """Yield the nodes under keys that name a generator's state, with their key paths."""
    walk = ByLevel[tuple[Address, Tree, bool]](MAX_DEPTH, ((), tree, False))
    for address, node, was_named in walk:
        for key, child in children(node) if isinstance(node, (dict, list, tuple)) else ():
            is_named = was_named or (isinstance(key, str) and says(key, NAMED))
            if _is_collection(child, is_named=is_named):
                walk.enter((*address, key), child, is_named)
            elif is_named and not _is_nothing(str(key), child):
                yield (*address, key), child


def _is_collection(node: Tree, *, is_named: bool) -> bool:
    """Return whether it is a dict or list of states: one for each rank, device or library."""
    if isinstance(node, dict):
        return "bit_generator" not in node
    if not is_named or not isinstance(node, (list, tuple)) or not node:
        return False
    is_one = isinstance(node[0], (int, str)) or all(isinstance(p, TensorRef) for p in node)
    return not is_one and any(isinstance(part, _PARTS) for part in node)


_PARTS = (dict, list, tuple, TensorRef)


def _is_nothing(key: str, node: Tree) -> bool:
    """Return whether it is no state, but None, [] (no CUDA device), a seed, setting or object."""
    if isinstance(node, (list, tuple)) and says(key, SEED):
        return True
    is_plain = isinstance(node, (int, float, str, bytes, BytesRef, Opaque, GlobalRef, dict))
    return node is None or node in ([], ()) or is_plain


def _wrong(node: Any, path: tuple[str, ...]) -> str | None:
    """Return why a setter would refuse it; None if it would not."""
    if isinstance(node, TensorRef):
        return _wrong_tensor(node, path)
    if isinstance(node, ArrayRef):
        return None if _is_jax_key(node) else f"an array of {list(node.shape)} {node.dtype}"
    if not isinstance(node, (list, tuple)):
        return f"a {type(node).__name__} is no generator's state"
    if all(isinstance(part, TensorRef) for part in node):
        return next(filter(None, (_wrong_tensor(part, path, in_list=True) for part in node)), None)
    if isinstance(node[0], str):
        return _wrong_numpy(node)
    return _wrong_python(node)


def _is_jax_key(array: ArrayRef) -> bool:
    return array.dtype.lstrip("<>|=") == "u4" and array.shape[-1:] in {(2,), (4,)}


def _wrong_tensor(ref: TensorRef, path: tuple[str, ...], *, in_list: bool = False) -> str | None:
    if ref.dtype.name != "uint8" or len(ref.shape) != 1:
        form = f"a {ref.dtype} tensor of shape {list(ref.shape)}"
        return f"{form}; torch wants a row of bytes (uint8)"
    if ref.device != "cpu":
        return f"it lies on {ref.device}; torch.set_rng_state wants it on the CPU"
    of_device = any(says(key, OF_DEVICE) for key in path)
    is_cpu = not of_device and not in_list and any(says(key, OF_CPU) for key in path)
    if ref.shape[0] != CPU_BYTES and (is_cpu or ref.shape[0] not in DEVICE_BYTES):
        return f"{ref.shape[0]} bytes; torch wants {min(DEVICE_BYTES) if of_device else CPU_BYTES}"
    return None


def _wrong_numpy(state: Any) -> str | None:
    if state[0] != "MT19937" or len(state) < 3:
        return f"the generator {state[0]!r:.20} is not the one that numpy.random.set_state takes"
    keys, at = state[1], state[2]
    count = len(keys) if isinstance(keys, (list, tuple)) else 0
    if isinstance(keys, (ArrayRef, TensorRef)) and keys.shape:  # set_state takes both
        count = keys.shape[0]
    if count != WORDS:
        return f"{count} words; numpy's generator has {WORDS}"
    return None if isinstance(at, int) else "its position is no integer"


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
    Check(("CK531",), _each_other_present),
    Check(("CK512",), _forms),
)
