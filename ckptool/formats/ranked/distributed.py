"""The parts that one rank holds of a DTensor or a ShardedTensor, and where they belong.

A DTensor states its mesh of processes, the place of its rank there, and a placement for each
dimension of the mesh: ``Shard(dim)`` cuts a dimension of the tensor as ``torch.chunk`` does, so
that the last parts may be smaller or empty; ``Replicate()`` does not cut it. Meshes that cut one
dimension twice cut it one after the other, and a ``_StridedShard`` is cut last. A ``Partial()``
part holds summands. A ShardedTensor lists the offsets and sizes of its shards.

Source: torch 2.13 ``distributed/tensor/placement_types.py``, ``distributed/device_mesh.py``,
``distributed/_shard/sharded_tensor/api.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, TypeGuard

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.pickles.local_parts import LOCAL_PARTS
from ckptool.formats.ranked.assembly import Box
from ckptool.records import NamedTuple
from ckptool.tree.geometry import are_sizes
from ckptool.tree.nodes import CompositeTensor, Opaque, TensorRef, Tree, fields_of

WHERE = "_coordinate_on_dim"  # the place of a rank in its mesh


class Held(NamedTuple):
    """A part of a tensor that a rank holds."""

    box: Box
    ref: TensorRef


def is_distributed(node: Tree) -> TypeGuard[CompositeTensor | TensorRef]:
    """Return whether a node is a tensor of which each rank may hold a part.

    A part that has the shape of the whole is a plain tensor, of the subclass.
    """
    kind = node.layout if isinstance(node, CompositeTensor) else getattr(node, "subclass", None)
    return kind in LOCAL_PARTS


def world_of(node: CompositeTensor | TensorRef) -> int | None:
    """Return the number of ranks that share a tensor, as it states it; None if it does not."""
    sizes = _mesh_sizes(_mesh(node))
    return prod(sizes) if sizes is not None else _integer(_group(node).get("global_world_size"))


def rank_of(node: CompositeTensor | TensorRef) -> int | None:
    """Return the rank whose part this is, as the tensor states it; None if it does not."""
    return _integer(_mesh(node).get("_rank", _group(node).get("global_rank")))


def strategy_of(node: CompositeTensor | TensorRef) -> str:
    """Return how a tensor is shared: ``DTensor on a mesh of 2 × 4: Replicate, Shard(0)``."""
    name = (node.layout if isinstance(node, CompositeTensor) else node.subclass or "").split(".")
    sizes = _mesh_sizes(_mesh(node))
    placements = fields_of(_attributes(node).get("_spec")).get("placements")
    if sizes is None or not isinstance(placements, (tuple, list)):
        return name[-1]
    mesh = " × ".join(map(str, sizes))
    cuts = ", ".join(
        f"Shard({axis})" if type(axis := fields_of(each).get("dim")) is int else _kind(each)
        for each in placements
    )
    return f"{name[-1]} on a mesh of {mesh}: {cuts}"


def _group(node: CompositeTensor | TensorRef) -> Mapping[Any, Any]:
    """Return the state of a ShardedTensor's group of processes."""
    return next((f for f in map(fields_of, _states(node)) if "global_world_size" in f), {})


def _integer(value: Any) -> int | None:
    return value if type(value) is int else None


def parts_of(node: CompositeTensor | TensorRef, name: str) -> Iterator[Held]:
    """Yield the parts of a tensor that this rank holds; a rank may hold an empty one, or none.

    Raises:
        DamagedError: the tensor does not say where its part belongs.
        UnsupportedError: its ranks hold summands, or it is placed in another way.
    """
    local: Any = node
    if isinstance(node, TensorRef):
        if not LOCAL_PARTS[node.subclass or ""]:
            yield Held(Box((0,) * len(node.shape), node.shape), node)
            return
    else:
        attribute = LOCAL_PARTS[node.layout]
        if not attribute:
            yield from _shards(_states(node), name)
            return
        local = _attributes(node).get(attribute)
    if not isinstance(local, TensorRef):
        raise UnsupportedError("its local part is no plain tensor", address=name)
    box = _box_of(node, name)
    if local.shape != box.sizes:
        raise DamagedError(
            f"its part has the shape {list(local.shape)}, and its place {list(box.sizes)}",
            address=name,
        )
    yield Held(box, local)


def _attributes(node: CompositeTensor | TensorRef) -> Mapping[Any, Any]:
    return fields_of(node.state if isinstance(node, TensorRef) else node.wrapper)


def _states(node: CompositeTensor | TensorRef) -> Sequence[Any]:
    state = node.wrapper.state if isinstance(node, CompositeTensor) and node.wrapper else None
    return state if isinstance(state, tuple) else ()


# ----------------------------------------------------------------------------------------- DTensor


def _box_of(node: CompositeTensor | TensorRef, name: str) -> Box:
    """Return the place of a rank's part of a DTensor."""
    spec = _attributes(node).get("_spec")
    placements = fields_of(spec).get("placements")
    mesh = _mesh(node)
    where, sizes = mesh.get(WHERE), _mesh_sizes(mesh)
    if (
        not (isinstance(where, (tuple, list)) and isinstance(placements, (tuple, list)))
        or sizes is None
        or not len(where) == len(placements) == len(sizes)
    ):
        raise DamagedError("it does not say where its part belongs", address=name)
    _refuse_other_stride(placements, sizes, name)
    starts, lengths = [0] * len(node.shape), [*node.shape]
    for placement, place, count in _in_order(placements, where, sizes):
        kind, axis = _kind(placement), fields_of(placement).get("dim")
        if kind == "Replicate":
            continue
        if kind not in CUTTING or type(axis) is not int or not 0 <= axis < len(starts):
            raise UnsupportedError(
                f"its placement is {kind}, and only Shard and Replicate are joined", address=name
            )
        if type(place) is not int or not 0 <= place < count:
            raise DamagedError("its rank is not in its mesh", address=name)
        step = -(-lengths[axis] // count)
        first = min(place * step, lengths[axis])
        starts[axis] += first
        lengths[axis] = min(step, lengths[axis] - first)
    return Box((*starts,), (*lengths,))


CUTTING = ("Shard", "_StridedShard")


def _refuse_other_stride(placements: Sequence[Any], sizes: Sequence[int], name: str) -> None:
    """Refuse a strided cut unless the mesh cuts the same dimension so often behind it."""
    for nth, placement in enumerate(placements):
        if _kind(placement) == CUTTING[1]:
            fields = fields_of(placement)
            behind = zip(placements[nth + 1 :], sizes[nth + 1 :], strict=True)
            same = (n for p, n in behind if fields_of(p).get("dim") == fields.get("dim"))
            if fields.get("split_factor") != prod(same):
                raise UnsupportedError("its parts are rows that lie apart", address=name)


def _in_order(
    placements: Sequence[Any], where: Sequence[Any], sizes: Sequence[int]
) -> list[tuple[Any, Any, int]]:
    """Return (placement, place in the mesh, size of the mesh), strided cuts last."""
    rows = [*zip(placements, where, sizes, strict=True)]
    return sorted(rows, key=lambda row: _kind(row[0]) == CUTTING[1])


def _kind(placement: Any) -> str:
    name = placement.qualname if isinstance(placement, Opaque) else type(placement).__name__
    return name.rpartition(".")[2]


def _mesh(node: CompositeTensor | TensorRef) -> Mapping[Any, Any]:
    return fields_of(fields_of(_attributes(node).get("_spec")).get("mesh"))


def _mesh_sizes(mesh: Mapping[Any, Any]) -> tuple[int, ...] | None:
    """Return the shape of a mesh: of its layout, or before torch 2.9 of its tensor of ranks."""
    ranks = mesh.get("mesh")
    if isinstance(ranks, TensorRef):
        return ranks.shape
    axes = fields_of(mesh.get("_layout")).get("axes")
    if not isinstance(axes, tuple):
        return None
    shapes = [fields_of(axis).get("shape") for axis in axes]
    sizes = [prod(shape) if are_sizes(shape) else 0 for shape in shapes]
    return (*sizes,) if all(sizes) else None


# ----------------------------------------------------------------------------------- ShardedTensor


def _shards(states: Sequence[Any], name: str) -> Iterator[Held]:
    listed = states[0] if states else None
    if not isinstance(listed, (list, tuple)):
        raise DamagedError("it lists no shards", address=name)
    for shard in listed:
        fields = fields_of(shard)
        place = fields_of(fields.get("metadata"))
        offsets, sizes = place.get("shard_offsets"), place.get("shard_sizes")
        local = fields.get("tensor")
        if not (are_sizes(offsets) and are_sizes(sizes) and isinstance(local, TensorRef)):
            raise DamagedError("it does not say where its part belongs", address=name)
        if local.shape != tuple(sizes):
            raise DamagedError("a shard has another shape than it says", address=name)
        yield Held(Box(tuple(offsets), tuple(sizes)), local)
