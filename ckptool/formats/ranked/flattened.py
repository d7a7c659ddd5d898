"""The flattened parameters of fairscale's FSDP, whose files say what is in them.

Layout, of the file of each rank (``fairseq --use-sharded-state``, metaseq)::

    model            flat_param_0, layer.flat_param_0, …: one run of the elements of many
                     parameters, cut among the ranks, padded at the end; and the buffers
    shard_metadata   for each module that was flattened its path, and for each of its flat
                     parameters the names, shapes and numels in it, and the padding of this rank

Rules: without their padding the runs of all ranks are the named parameters, one after the other.
Shared parameters have the values of the one that is named. Buffers are those of rank 0. A module
with ``no_broadcast_optim_state`` is not cut: each rank holds a whole one. They may be experts, of
which each rank has its own; then they are refused, since all have the same names.

torch's own FSDP1 writes flat parameters too (``StateDictType.LOCAL_STATE_DICT``), but no metadata;
nothing can be taken from those.

Source: fairscale 0.4.13 ``nn/data_parallel/fully_sharded_data_parallel.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.base import TensorReader
from ckptool.formats.ranked.assembly import FETCH, Joined, Run, Work, from_runs
from ckptool.formats.ranked.ranks import refuse_copies, refuse_different
from ckptool.formats.ranked.zero import shapes_of
from ckptool.formats.same_values import SameValues
from ckptool.records import NamedTuple
from ckptool.tree.nodes import TensorRef, Tree, fields_of

MODEL, METADATA = "model", "shard_metadata"
PARAMS, SHARED = "param_metadata", "shared_param_info"
FLATTENED = "flattened parameters, cut into equal runs (fairscale's FSDP)"


class Flat(NamedTuple):
    """A flat parameter, as one rank describes it."""

    shapes: Mapping[Any, tuple[int, ...]]  # of the parameters in it, by key path
    padding: int  # elements at the end of this rank's part
    is_whole: bool  # every rank has a whole one, which is the same or of its own


def is_flattened(tree: Tree) -> bool:
    """Return whether a file of a rank has flat parameters, and says what is in them."""
    return PARAMS in fields_of(fields_of(tree).get(METADATA))


def unflattened(trees: Mapping[str, Tree], reader: TensorReader) -> dict[str, Tree]:
    """Return the trees of all ranks by file, with the joined parameters in the first one.

    Raises:
        DamagedError: a rank is of another save, a copy, or the runs do not fill the parameters.
        UnsupportedError: parameters that are not cut are not the same in all ranks.
    """
    plans = {file: _plan(tree, file) for file, tree in trees.items()}
    shared = {file: [*_shared(tree)] for file, tree in trees.items()}
    described = {
        f: ({k: p.shapes for k, p in plan.items()}, shared[f]) for f, plan in plans.items()
    }
    refuse_different(described, "the description of its parameters")
    models = {file: fields_of(fields_of(tree).get(MODEL)) for file, tree in trees.items()}
    parts = {
        file: {key: _part(models[file].get(key), key, flat) for key, flat in plan.items()}
        for file, plan in plans.items()
    }
    first = next(iter(trees))
    cut = [key for key, flat in plans[first].items() if not flat.is_whole]
    refuse_copies(reader, {file: [held[key] for key in cut] for file, held in parts.items()})
    for key in cut:
        _refuse_exchanged(key, parts, plans)
    found: dict[Any, Tree] = {}
    same, work = SameValues(reader), Work()
    for key, flat in plans[first].items():
        held = [of_rank[key] for of_rank in parts.values()]
        if flat.is_whole:
            _refuse_own(key, dict(zip(parts, held, strict=True)), same)
        found |= _cut(key, Joined(held[:1] if flat.is_whole else held), flat.shapes, work)
    for source, other in shared[first]:
        if source not in found:
            raise DamagedError(f"{METADATA} has no parameter that it shares", address=str(source))
        found[other] = found[source]
    rest = {file: _rest(tree, plans[file]) for file, tree in trees.items()}
    return rest | {first: {**rest[first], MODEL: {**found, **rest[first][MODEL]}}}


def _plan(tree: Tree, file: str) -> dict[str, Flat]:
    """Return the flat parameters by key, as the metadata of one rank describes them."""
    if not is_flattened(tree):
        raise DamagedError(f"{file} has no {METADATA}, which other ranks have", hint=FETCH)
    listed = fields_of(fields_of(tree)[METADATA])[PARAMS]
    plan = {}
    for module in map(fields_of, listed if isinstance(listed, list) else ()):
        path = module.get("fsdp_path")
        start = f"{path}." if isinstance(path, str) and path else ""
        for key, each in fields_of(module.get("params")).items():
            fields = fields_of(each)
            shapes, padding = _named_shapes(fields, start), fields.get("padding")
            if shapes is None or type(padding) is not int or padding < 0:
                raise DamagedError(f"{METADATA} in {file} does not describe {start}{key!s:.80}")
            is_whole = bool(module.get("no_broadcast_optim_state"))
            plan[f"{start}{key}"] = Flat(shapes, padding, is_whole)
    return plan


def _named_shapes(fields: Mapping[Any, Any], start: str) -> dict[Any, tuple[int, ...]] | None:
    """Return the shapes of the parameters in a flat one; None if it does not state them."""
    names, shapes = fields.get("names"), fields.get("shapes")
    if not (isinstance(names, (list, tuple)) and isinstance(shapes, (list, tuple))):
        return None
    if len(names) != len(shapes):
        return None
    return shapes_of({f"{start}{name}": shape for name, shape in zip(names, shapes, strict=True)})


def _part(node: Tree, key: str, flat: Flat) -> TensorRef:
    """Return a rank's part of a flat parameter, without its padding."""
    if not isinstance(node, TensorRef) or flat.padding > node.numel:
        raise DamagedError("a rank has no such part of the flattened parameters", address=key)
    count = node.numel - flat.padding
    return from_runs(key, (count,), [Run(node, 0, count)])


def _refuse_own(key: str, held: Mapping[str, TensorRef], same: SameValues) -> None:
    """Refuse a parameter that each rank holds whole unless all hold the same values."""
    (first, one), *others = held.items()
    for file, other in others:
        if not same.are_equal(one, other):
            raise UnsupportedError(
                f"{first} and {file} each hold a whole one, with other values: experts, of which "
                "each rank has its own under the same name, are not joined",
                address=key,
                hint="name the file of a rank to see what it holds: ckptool inspect FILE",
            )


def _refuse_exchanged(
    key: str, parts: Mapping[str, Mapping[str, TensorRef]], plans: Mapping[str, Mapping[str, Flat]]
) -> None:
    """Refuse padding before elements of a later rank: only the end of a flat one is padded."""
    padded = None
    for file, held in parts.items():
        if padded and held[key].numel:
            raise DamagedError(
                f"{padded} ends with padding, but {file}, of a later rank, has values: files of "
                "several ranks are exchanged",
                address=key,
                hint="fetch the file of each rank from where the others came from",
            )
        padded = file if plans[file][key].padding else padded


def _cut(
    key: str, flat: Joined, shapes: Mapping[Any, tuple[int, ...]], work: Work
) -> dict[Any, Tree]:
    """Return the parameters in a flat one."""
    wanted = sum(map(prod, shapes.values()))
    if wanted != flat.numel:
        raise DamagedError(
            f"its parts have {flat.numel:,} elements, and the parameters in it {wanted:,}",
            address=key,
            hint=FETCH,
        )
    found, start = {}, 0
    for name, shape in shapes.items():
        count = prod(shape)
        found[name] = from_runs(name, shape, flat.between(start, count), work)
        start += count
    return found


def _shared(tree: Tree) -> Iterator[tuple[Any, Any]]:
    """Yield (name, other name) of parameters that are one; as in fairscale, of the last module."""
    listed = fields_of(fields_of(tree)[METADATA])[PARAMS]
    pairs = fields_of(listed[-1]).get(SHARED) if listed else ()
    for pair in pairs if isinstance(pairs, list) else ():
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise DamagedError(f"{SHARED} in {METADATA} lists no pairs")
        yield pair


def _rest(tree: Tree, plan: Mapping[str, Flat]) -> dict[Any, Tree]:
    """Return what a rank holds besides its flat parameters and their description."""
    fields = {key: value for key, value in fields_of(tree).items() if key != METADATA}
    model = fields_of(fields.get(MODEL))
    return {**fields, MODEL: {key: value for key, value in model.items() if key not in plan}}
