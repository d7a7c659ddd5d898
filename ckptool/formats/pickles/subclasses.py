"""Tensor subclasses as plain tensors, or with the tensors that they are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckptool.formats.pickles.local_parts import LOCAL_PARTS, local_parts
from ckptool.formats.pickles.machine import name_of
from ckptool.formats.pickles.trust import is_own
from ckptool.records import replace
from ckptool.tree.nodes import CONTAINERS, TENSORS, CompositeTensor, Opaque, TensorRef
from ckptool.tree.walking import children

# Placements in which a process holds values. In a partial placement it holds summands of them.
_PLACED = frozenset({"Replicate", "Shard", "_StridedShard"})


def _whole(tensor: CompositeTensor) -> TensorRef | CompositeTensor:
    """Return the local part as a plain tensor if it is the whole tensor; else return ``tensor``.

    The local part is the whole, and has its shape, in a replicated DTensor and in one whose mesh
    has one process. A partial one has the same shape, but is not the whole.
    """
    parts, wrapper = local_parts(tensor), tensor.wrapper
    if len(parts) != 1 or wrapper is None:
        return tensor
    (part,) = parts
    if part.shape != tensor.shape or part.dtype is not tensor.dtype or _is_partial(wrapper):
        return tensor
    rest = {key: value for key, value in wrapper.attributes.items() if value is not part}
    return replace(part, subclass=tensor.layout, state=rest)


def _is_partial(wrapper: Opaque) -> bool:
    """Return whether a placement is a sum that is still to be made, or is not known."""
    spec = wrapper.attributes.get("_spec")
    if not isinstance(spec, Opaque):  # a ShardedTensor has no summands
        return LOCAL_PARTS.get(wrapper.qualname) != ""
    placements = spec.attributes.get("placements")
    if not isinstance(placements, (tuple, list)):
        return True
    return not all(isinstance(p, Opaque) and _last(p.qualname) in _PLACED for p in placements)


def _last(qualname: str) -> str:
    return qualname.rpartition(".")[2]


def as_subclass(made: Any, cls: Any) -> Any:
    """Return a torch.Tensor subclass that has its state, with its parts or as a plain tensor."""
    if isinstance(made, Opaque):  # a subclass with its own function: jagged and masked tensors
        first = next((part for _, part in children(made) if isinstance(part, TensorRef)), None)
        if first is None:
            return made
        made = CompositeTensor(name_of(cls), first.dtype, first.shape, {}, made)
    if not isinstance(made, CompositeTensor) or made.wrapper is None:
        return made
    if made.layout != name_of(cls):  # the other class reads the values as it likes
        return replace(made, layout=name_of(cls))
    parts = {str(k): v for k, v in children(made.wrapper) if isinstance(v, TensorRef)}
    return _whole(replace(made, parts=parts))


def of_subclass(
    made: TensorRef, cls: str, state: Any, meter: Callable[[tuple[Any, ...]], None]
) -> TensorRef | CompositeTensor:
    """Return a plain tensor as one of a class, with its state; ``meter`` counts what is looked at.

    It is a composite where the class may read its values from other tensors in its state, as
    ``FunctionalTensor`` does from ``elem``: they are not those of the tensor itself.
    """
    if not _reads_others(cls, state, meter):
        return replace(made, subclass=None if cls in NO_SUBCLASS else cls, state=state)
    held = Opaque("", state=state).attributes
    parts = {str(name): part for name, part in held.items() if isinstance(part, TensorRef)}
    return CompositeTensor(cls, made.dtype, made.shape, parts, Opaque(cls, (made,), state=state))


def _reads_others(cls: str, state: Any, meter: Callable[[tuple[Any, ...]], None]) -> bool:
    """Return whether a class may read its values from elsewhere than the tensor that it is made of.

    Classes of torch's may, which all but ``NO_SUBCLASS`` exist for; others, if they hold a tensor,
    or more than ``MAX_PARTS`` containers to look for one in.
    """
    if cls in NO_SUBCLASS:
        return False
    waiting, met = [state], set[int]()
    while waiting and len(met) < MAX_PARTS:
        node = waiting.pop()
        if isinstance(node, TENSORS):
            return True
        if isinstance(node, CONTAINERS) and id(node) not in met:
            met.add(id(node))
            parts = children(node)
            meter((parts,))
            waiting += [part for _, part in parts]
    return bool(waiting) or is_own(cls)


MAX_PARTS = 1 << 8


# Classes that torch saves as subclasses if the tensor has attributes.
NO_SUBCLASS = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
