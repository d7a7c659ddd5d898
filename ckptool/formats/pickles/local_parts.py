"""The local parts of tensors that are distributed among processes."""

from __future__ import annotations

from collections.abc import Mapping

from ckptool.tree.nodes import CompositeTensor, Opaque, TensorRef

UNINITIALIZED = "uninitialized"

# Subclasses that hold the part of one process, and the attribute with that part.
LOCAL_PARTS: Mapping[str, str] = {
    "torch.distributed.tensor.DTensor": "_local_tensor",
    "torch.distributed._tensor.api.DTensor": "_local_tensor",
    "torch.distributed.tensor._api.DTensor": "_local_tensor",
    "torch.distributed._shard.sharded_tensor.api.ShardedTensor": "",  # a list of shards
}


def local_parts(tensor: CompositeTensor) -> tuple[TensorRef, ...]:
    """Return the parts that this file holds of a tensor distributed among processes."""
    name, wrapper = LOCAL_PARTS.get(tensor.layout), tensor.wrapper
    if name is None or wrapper is None:
        return ()
    if name:
        found = [wrapper.attributes.get(name)]
    else:
        shards = wrapper.state[0] if isinstance(wrapper.state, tuple) and wrapper.state else ()
        listed = shards if isinstance(shards, (list, tuple)) else ()
        found = [s.attributes.get("tensor") for s in listed if isinstance(s, Opaque)]
    return tuple(part for part in found if isinstance(part, TensorRef))
