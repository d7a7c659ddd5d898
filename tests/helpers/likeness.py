"""Whether two loaded checkpoints are the same at all depths, classes that are missing included.

The one idea: two objects are the same when they would pickle to the same thing. What an object is
made of it says itself (``__reduce_ex__``), so that an enum, a partial, a sparse tensor and an
instance of a class that nobody has are all compared by one rule. Plain tensors are compared to the
last bit of what they show, and by how they lie in their storage; which tensors share a storage is
compared for both sides as a whole.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from helpers.judge import storage_bytes, tensor_bytes

BY_REPR = (type(None), bool, int, float, complex, str, bytes, bytearray)  # NaN equals itself so
BY_IDENTITY = (type, FunctionType, BuiltinFunctionType, MethodDescriptorType)
PROTOCOL = 2


def assert_same_objects(found: object, wanted: object) -> None:
    """Two loaded checkpoints, or parts of them, are the same, ties of tensors included."""
    likeness = Likeness()
    likeness.same(found, wanted, "")
    ties = likeness.ties
    assert len(ties) == len({ours for ours, _ in ties}) == len({theirs for _, theirs in ties})


class Likeness:
    """Asserts, and remembers pairs of storages."""

    def __init__(self) -> None:
        self.ties: set[tuple[int, int]] = set()
        self._met: dict[int, tuple[object, object]] = {}  # keeps what it met alive

    def same(self, found: object, wanted: object, at: str) -> None:
        """Equal at all depths."""
        assert type(found) is type(wanted), at
        if isinstance(wanted, BY_IDENTITY):
            assert found is wanted, at
        elif type(wanted) in BY_REPR:
            assert repr(found) == repr(wanted), at
        elif id(wanted) not in self._met:
            self._met[id(wanted)] = (found, wanted)
            self._same_parts(found, wanted, at)
        else:
            assert self._met[id(wanted)][0] is found, f"{at}: not the same object as before"

    def _same_parts(self, found: object, wanted: object, at: str) -> None:
        if isinstance(wanted, Tensor) and is_plain(wanted):
            self.same_tensor(found, wanted, at)
        elif isinstance(wanted, (torch.TypedStorage, torch.UntypedStorage)):
            assert _stored(found) == _stored(wanted), at
        elif type(wanted) is dict:
            self._same_items(found, wanted, at)
        elif type(wanted) in {list, tuple}:
            self._same_rows(found, wanted, at)
        elif type(wanted) in {set, frozenset}:
            assert found == wanted, at
        else:
            self._same_rows(_reduced(found), _reduced(wanted), f"{at}({type(wanted).__name__})")

    def same_tensor(self, found: Tensor, wanted: Tensor, at: str) -> None:
        """Equal in type, in every bit, and in how it lies in its storage."""
        assert facts(found) == facts(wanted), at
        assert tensor_bytes(found) == tensor_bytes(wanted), at
        self.same(found.__dict__, wanted.__dict__, at)
        self.tie(found, wanted)

    def tie(self, found: Tensor, wanted: Tensor) -> None:
        """Remember the storages of two tensors that are the same."""
        if wanted.untyped_storage().nbytes():
            pointers = (found.untyped_storage().data_ptr(), wanted.untyped_storage().data_ptr())
            self.ties.add(pointers)

    def _same_items(self, found: dict, wanted: dict, at: str) -> None:
        self._same_rows(list(found), list(wanted), f"{at}<keys>")
        for (key, theirs), ours in zip(wanted.items(), found.values(), strict=True):
            self.same(ours, theirs, f"{at}/{key}")

    def _same_rows(self, found: Iterable, wanted: Iterable, at: str) -> None:
        ours, theirs = list(found), list(wanted)
        assert len(ours) == len(theirs), at
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            self.same(one, other, f"{at}/{index}")


def facts(tensor: Tensor) -> tuple:
    """What a tensor is, without its values."""
    return (
        tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.requires_grad,
        tensor.is_conj(), tensor.is_neg(), tensor.untyped_storage().nbytes(),
    )  # fmt: skip


def _stored(storage: torch.TypedStorage | torch.UntypedStorage) -> bytes:
    return storage_bytes(getattr(storage, "_untyped_storage", storage))


def is_plain(tensor: Tensor) -> bool:
    """Whether it is one run of values in a storage; others are made of such."""
    return (
        tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
        and tensor.device.type == "cpu"
        and not is_traceable_wrapper_subclass(tensor)  # such as DTensor, which has no storage
    )


def _reduced(obj: object) -> list[object]:
    """What pickle would write of an object, iterators as lists."""
    reduce = copyreg.dispatch_table.get(type(obj))
    reduced = reduce(obj) if reduce else obj.__reduce_ex__(PROTOCOL)
    if isinstance(reduced, str):  # pickled by its name
        return [reduced]
    return [
        list(part) if hasattr(part, "__next__") else part for part in reduced if part is not None
    ]
