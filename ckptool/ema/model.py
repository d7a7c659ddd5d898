"""Choice of the model among the state dicts of a file: the one that a naive loader would take.

The model has no keyword in its key path. If EMA weights are named after another such state dict,
that one is the model.
"""

from __future__ import annotations

import sys
from typing import Any

from ckptool.contents.inventory import CPU_BYTES, DEVICE_BYTES, Leaf, Table, is_row_of_bytes
from ckptool.ema.groups import Group
from ckptool.ema.metadata import split_counters
from ckptool.names import AVERAGES, Marker, marker_in, unmarked
from ckptool.records import replace

# Keys under which loaders look for the model, the usual ones first.
MODEL_KEYS = (
    "state_dict", "model_state_dict", "model", "net", "module", "params", "student", "encoder",
    "generator", "G", "g", "unet", "network_weights", "network", "weights",
    *(f"{name}{suffix}" for name in ("model", "pytorch_model", "adapter_model")  # in directories
      for suffix in (".safetensors", ".bin", ".ckpt")),
)  # fmt: skip


def marker_of(table: Table) -> Marker | None:
    """Return the keyword in the key path of a state dict."""
    return marker_in(str(key) for key in table.address)


def choose_model(tables: list[Table]) -> Table | None:
    """Return the state dict that a naive loader would take for the model's, or None."""
    named = [t for t in tables if t.entries and any(not name.isdigit() for name in t.entries)]
    named = [t for t in named if not all(map(_is_random_state, t.entries.values()))]
    for key in MODEL_KEYS:
        for table in named:
            if table.address == (key,):
                return table
    usual = [t for t in named if t.address and str(t.address[-1]) in MODEL_KEYS]
    return max(usual or [t for t in named if len(t.address) <= 1], key=_size, default=None)


def _is_random_state(leaf: Leaf) -> bool:
    """Return whether a tensor has the length of the state of a random generator of torch."""
    return is_row_of_bytes(leaf) and leaf.shape[0] in {CPU_BYTES, *DEVICE_BYTES}


def averaged_model(plain: list[Table], proposals: list[Group]) -> Table | None:
    """Return the model: the usual one, or another state dict after which alone EMAs are named.

    In ``{"encoder": …, "decoder": …, "decoder_ema": …}`` it is the decoder.
    """
    usual = choose_model(plain)
    names = _names_before_marking(proposals)
    twins = [t for t in plain if _has_average_called_after(t, names)]
    if usual in twins or not twins:
        return usual
    return choose_model(twins) or max(twins, key=_size)


def _names_before_marking(groups: list[Group]) -> dict[str, Any]:
    """Return the key paths of EMAs without their keywords, as a tree, the last key first.

    The value at ``""``, which is no key, is the number of tensors of the smallest EMA of that name.
    The result is a tree, since a hostile file can have thousands of EMAs at thousands of levels.
    """
    names: dict[str, Any] = {}
    for group in groups:
        bare = [unmarked(k) if marker_in([k]) else k for k in map(str, group.table.address)]
        name = [key for key in bare if key]
        if group.marker.kind in AVERAGES and name:
            at = names
            for key in reversed(name):
                at = at.setdefault(key, {})
            at[""] = min(at.get("", sys.maxsize), len(group.table.entries))
    return names


def _has_average_called_after(table: Table, names: dict[str, Any]) -> bool:
    """Return whether an EMA is named after a state dict, and has no more tensors than it."""
    at = names
    for key in map(str, reversed(table.address)):
        at = at.get(key, {}) if key else {}
        if len(table.entries) + 1 >= at.get("", sys.maxsize):  # it may count its updates
            return True
    return False


def _size(table: Table) -> int:
    return sum(ref.nbytes for ref in table.tensors.values())


def without(table: Table, groups: list[Group]) -> Table:
    """Return a state dict without the names of the groups that are parts of it."""
    left_out = {
        group.table.key_of(name)
        for group in groups
        if group.table.node is table.node
        for name in group.table.entries
    }
    rest = {name: ref for name, ref in table.entries.items() if name not in left_out}
    return replace(table, entries=rest)


def without_counters(table: Table) -> Table | None:
    """Return a state dict without counters of its own; None if nothing else is left.

    Counters under a prefix are buffers of the model.
    """
    _, counting = split_counters(table, None)
    own = {name for name in counting if "." not in name}
    if not own:
        return table if table.entries else None
    entries = {name: ref for name, ref in table.entries.items() if name not in own}
    return replace(table, entries=entries) if entries else None
