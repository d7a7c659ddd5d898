"""What a file says of its averages: decay, updates, flags. Nothing is made up, nothing is computed.

Metadata stands in many places: counters among the weights, scalars beside them, a dict that the
layout names, a dict inside the state dict (``_extra_state``), numbers in a list parallel to
several tracks, a ``config.json`` in a marked folder. All are looked at; the place nearest to the
weights wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ckptool.evidence import scalar_value
from ckptool.formats.base import Checkpoint
from ckptool.inventory import Leaf, Table, scalars_in
from ckptool.layouts import EmaLayout, metadata_at
from ckptool.markers import marker_in
from ckptool.siblings import config_beside
from ckptool.tree import Address, TensorRef, Tree, children, node_at, nodes_on

# Scalars beside averaged weights that describe them.
META_KEYS = frozenset({
    "decay", "num_updates", "updates", "n_averaged", "update_every", "update_start_step",
    "update_after_step", "optimization_step", "cur_step", "current_step", "step", "steps",
    "initted",
    "last_global_step", "latest_update_step", "latest_update_epoch", "store_on_cpu", "use_buffers",
    "min_decay", "inv_gamma", "power", "use_ema_warmup", "every_n_steps", "using_ema", "has_ema",
    "ema_decay", "count", "is_holding_ema_weights", "ema_started", "ema_weights_active",
})  # fmt: skip
ROOT_META_KEYS = frozenset(
    {"using_ema", "has_ema", "ema_decay", "updates"}
)  # clear without a neighbour


class Scalars:
    """The plain values and the dicts directly in a node; each node is looked through once."""

    def __init__(self) -> None:
        self._values: dict[int, dict[str, Any]] = {}  # by the node's identity
        self._dicts: dict[int, list[tuple[str, dict[Any, Any]]]] = {}

    def of(self, node: Tree) -> dict[str, Any]:
        """See :func:`~ckptool.inventory.scalars_in`."""
        found = self._values.get(id(node))
        if found is None:
            found = self._values[id(node)] = scalars_in(node)
        return found

    def dicts_in(self, node: Tree) -> list[tuple[str, dict[Any, Any]]]:
        """The dicts among the values of a dict."""
        found = self._dicts.get(id(node))
        if found is None:
            parts = node.items() if isinstance(node, dict) else ()
            found = [(str(key), value) for key, value in parts if isinstance(value, dict)]
            self._dicts[id(node)] = found
        return found


def read_metadata(
    checkpoint: Checkpoint,
    table: Table,
    addresses: list[Address],
    layout: EmaLayout | None,
    counters: Mapping[str, Leaf],
    scalars: Scalars,
) -> dict[str, Any]:
    """Everything that describes the table; ``counters`` stood among its weights."""
    tree, found = checkpoint.tree, {}
    root = scalars.of(tree)
    found.update({key: root[key] for key in root if key in ROOT_META_KEYS})
    around = [node for address in addresses for node in _around(tree, address)]
    if table.prefix:  # the container of the part
        around.insert(0, table.node)
    places = [scalars.of(node) for node in around] + metadata_at(tree, layout)
    places += [scalars.of(node) for node in _extra_states(table, scalars)] + [_config_of(table)]
    for values in reversed(places):
        found.update({key: values[key] for key in values if key in META_KEYS})
    found.update({name.rpartition(".")[2]: ref for name, ref in counters.items()})
    found.update(_nth_of_lists(tree, addresses[0]))
    return {key: scalar_value(checkpoint.reader, value) for key, value in found.items()}


MAX_AROUND = 32  # levels; deeper, only the parent is asked, since no trainer nests so


def _around(tree: Tree, address: Address) -> Iterator[Tree]:
    """The containers around a table, the nearest first: its parent, and all that are marked."""
    parents = list(nodes_on(tree, address[:-1]))
    is_deep = len(parents) > MAX_AROUND
    for depth, node in reversed(list(enumerate(parents, 1))):
        if depth == len(parents) or (not is_deep and marker_in(map(str, address[:depth]))):
            yield node


def layout_metadata(checkpoint: Checkpoint, layout: EmaLayout) -> dict[str, Any]:
    """What stands at the places that a layout names, and nowhere else."""
    values = {k: v for place in metadata_at(checkpoint.tree, layout) for k, v in place.items()}
    known = {key: value for key, value in values.items() if key in META_KEYS}
    return {key: scalar_value(checkpoint.reader, value) for key, value in known.items()}


def split_counters(table: Table, main: Table | None) -> tuple[dict[str, Leaf], dict[str, Leaf]]:
    """(weights, one-element tensors that describe them: n_averaged, decay, step)."""
    counting: dict[str, Leaf] = {
        name: ref
        for name, ref in table.entries.items()
        if isinstance(ref, TensorRef) and ref.numel == 1 and name.rpartition(".")[2] in META_KEYS
    }
    if not counting:
        return dict(table.entries), {}
    known = {name.rpartition(".")[2] for name in main.entries} if main else set()
    own = {name: ref for name, ref in counting.items() if name.rpartition(".")[2] not in known}
    return {name: ref for name, ref in table.entries.items() if name not in own}, own


def _extra_states(table: Table, scalars: Scalars) -> Iterator[Tree]:
    """Dicts inside a state dict under the table's prefix: ``ema._extra_state``."""
    if table.prefix:
        for key, value in scalars.dicts_in(table.node):
            if key.startswith(table.prefix):
                yield value


def _config_of(table: Table) -> dict[str, Any]:
    """The settings beside the file, where its folder is marked: ``unet_ema/config.json``."""
    first = next(iter(table.tensors.values()), None)
    source = first.chunks[0].span.source if first is not None and first.chunks else None
    is_marked = isinstance(source, Path) and marker_in([source.parent.name]) is not None
    return config_beside(source) if is_marked and isinstance(source, Path) else {}


def _nth_of_lists(tree: Tree, address: Address) -> dict[str, Any]:
    """For one of several tracks in a list: the numbers at its place in the lists beside it."""
    if len(address) < 2 or not isinstance(address[-1], int):
        return {}
    tracks, around = node_at(tree, address[:-1]), node_at(tree, address[:-2])
    return {
        str(key).removesuffix("s"): node[address[-1]]
        for key, node in children(around)
        if isinstance(node, (list, tuple))
        and node is not tracks
        and len(node) == len(tracks)
        and all(isinstance(value, (int, float)) for value in node)
    }
