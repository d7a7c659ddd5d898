"""Metadata that a file states about its EMA weights: decay, updates, flags.

Nothing is made up or computed. Metadata can be counters among the weights, scalars beside them, a
dict that the layout names, a dict inside the state dict (``_extra_state``), numbers in a list
parallel to several tracks, or a ``config.json`` in a directory with a keyword. All are read; the
value nearest to the weights takes precedence.

The decay may also be among the settings of the run, ``args/ema_decay`` or ``config/ema/decay``: a
dict, an ``argparse.Namespace`` or a configuration. The key of the decay rarely names a part of the
file, so its words decide: a decay or a rate is the EMA's if its key, or one around it, has a
keyword. Settings of other averages (of a codebook, of batch statistics, of the loss) have words of
their own and are skipped. If two settings differ in value, none is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from math import prod
from operator import attrgetter
from pathlib import Path
from typing import Any

from ckptool.contents.inventory import Leaf, Table, scalars_in
from ckptool.contents.walks import ByLevel
from ckptool.ema.layouts import EmaLayout, metadata_at
from ckptool.errors import CkptError
from ckptool.formats.base import Checkpoint
from ckptool.formats.texts import load_json
from ckptool.names import AVERAGES, marker_in, says, whole, words
from ckptool.reports.base import DECAYS, UPDATES
from ckptool.sources.local import LocalFile
from ckptool.tensors.sample import scalar_value
from ckptool.tree.addresses import format_address, node_at, nodes_on
from ckptool.tree.nodes import Address, Opaque, TensorRef, Tree, is_container
from ckptool.tree.walking import children

SETTINGS = frozenset({
    "arg", "args", "arguments", "cfg", "conf", "config", "configs", "hparams", "hyper", "hps",
    "hyperparameters", "opt", "options", "params", "settings", "flags",
})  # fmt: skip
# Settings that make the decay smaller in the beginning, or different from the stated one.
VARYING = frozenset({
    "inv_gamma", "optimization_step", "faster_decay_at_start", "use_num_updates", "model_ema_steps",
})  # fmt: skip
DECAY = frozenset({"decay", "rate"})
OTHERS = frozenset({
    "vq", "codebook", "quantizer", "quantize", "bn", "norm", "batchnorm", "loss", "grad",
    "gradient", "lr", "learning", "weight", "router", "scale", "center", "queue",
})  # fmt: skip
BOXES = frozenset({"_content", "_val", "_store", "__dict__"})  # inner keys of configuration objects
WARM_UP = whole("warm", "warmup")
MAX_DEPTH = 6
MAX_NODES = 2_000


def ema_settings(tree: Tree) -> dict[str, tuple[str, Any]]:
    """Return ``decay`` and the settings that vary it: name -> (key path, value).

    The result is empty if there is no decay, or if several differ.
    """
    marked = [each for each in _settings(tree) if _is_of_average(_words_of(each[0]))]
    decays = [(at, value) for at, value in marked if DECAY & _words_of(at)[-1]]
    decays = [(at, value) for at, value in decays if not isinstance(value, bool)]
    if len({value for _, value in decays}) != 1:
        return {}
    address, value = min(decays, key=lambda each: len(each[0]))
    found = {str(at[-1]): (format_address(at), v) for at, v in marked if varies_decay(str(at[-1]))}
    return {"decay": (format_address(address), value), **found}


def varies_decay(key: str) -> bool:
    """Return whether a setting makes the decay differ from the stated one, at first or always."""
    return key in VARYING or says(key, WARM_UP)


def _settings(tree: Tree) -> Iterator[tuple[Address, float]]:
    """Yield the numbers under the top-level keys that hold settings, with their key paths."""
    walk = ByLevel[tuple[Address, Tree]](MAX_NODES)
    for key, node in children(tree) if isinstance(tree, dict) else ():
        if is_container(node) and SETTINGS.intersection(words(str(key))):
            walk.enter((key,), node)
    for address, node in islice(walk, MAX_NODES):
        for key, value in children(node):
            place = address if key in BOXES else (*address, key)
            if type(value) in {int, float, bool}:
                yield place, value
            elif len(place) < MAX_DEPTH and isinstance(value, (dict, Opaque)):
                walk.enter(place, value)


def _words_of(address: Address) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(words(str(key))) for key in address)


def _is_of_average(keys: tuple[frozenset[str], ...]) -> bool:
    """Return whether one of the keys has a keyword of an EMA, and none a word in OTHERS."""
    marked = any(
        (marker := marker_in(sorted(key))) is not None and marker.kind in AVERAGES for key in keys
    )
    return marked and not any(OTHERS & key for key in keys)


# ----------------------------------------------------------------------------------------- metadata


FLAGS = ("has_ema", "using_ema")  # at the top; the second states that the run averages
DECLARATIONS = ("has_ema", "ema_state_dict")  # keys by which a file states that it has no EMA
# Scalars beside EMA weights that describe them.
META_KEYS = frozenset({
    *DECAYS, *UPDATES, *FLAGS, "update_every", "update_start_step", "update_after_step",
    "optimization_step", "cur_step", "current_step", "step", "steps", "initted",
    "last_global_step", "latest_update_step", "latest_update_epoch", "store_on_cpu", "use_buffers",
    "min_decay", "inv_gamma", "power", "use_ema_warmup", "every_n_steps", "count",
    "is_holding_ema_weights", "ema_started", "ema_weights_active", "ema_warmup",
    "faster_decay_at_start", "use_num_updates",
})  # fmt: skip
ROOT_META_KEYS = frozenset({*FLAGS, "ema_decay", "updates"})  # clear at the top


def first_of(names: Iterable[str], meta: Mapping[str, Any]) -> Any:
    """Return the value of the first name that is stated; None if none is."""
    return next((meta[name] for name in names if meta.get(name) is not None), None)


class Scalars:
    """The plain values and the dicts directly in a node; each node is read once."""

    def __init__(self) -> None:
        self._values: dict[int, dict[str, Any]] = {}  # by the node's identity
        self._dicts: dict[int, list[tuple[str, dict[Any, Any]]]] = {}

    def of(self, node: Tree) -> dict[str, Any]:
        """Return the plain values: see :func:`~ckptool.contents.inventory.scalars_in`."""
        found = self._values.get(id(node))
        if found is None:
            found = self._values[id(node)] = scalars_in(node)
        return found

    def dicts_in(self, node: Tree) -> list[tuple[str, dict[Any, Any]]]:
        """Return the keys, as text, and the dicts among the values of a dict."""
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
    """Return the metadata of a state dict; ``counters`` were among its weights."""
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


MAX_AROUND = 32  # levels; deeper, only the parent is read, since no trainer nests so deep


def _around(tree: Tree, address: Address) -> Iterator[Tree]:
    """Yield the parent of a state dict, then its outer containers whose key path has a keyword."""
    parents = list(nodes_on(tree, address[:-1]))
    is_deep = len(parents) > MAX_AROUND
    for depth, node in reversed(list(enumerate(parents, 1))):
        if depth == len(parents) or (not is_deep and marker_in(map(str, address[:depth]))):
            yield node


def layout_metadata(checkpoint: Checkpoint, layout: EmaLayout) -> dict[str, Any]:
    """Return the metadata at the key paths that a layout names, and nowhere else."""
    values = {k: v for place in metadata_at(checkpoint.tree, layout) for k, v in place.items()}
    known = {key: value for key, value in values.items() if key in META_KEYS}
    return {key: scalar_value(checkpoint.reader, value) for key, value in known.items()}


_SHAPE = attrgetter("shape")


def split_counters(table: Table, main: Table | None) -> tuple[dict[str, Leaf], dict[str, Leaf]]:
    """Return the weights, and the one-element tensors that describe them (n_averaged, step)."""
    shapes = set(map(_SHAPE, table.entries.values()))
    ones = {shape for shape in shapes if prod(shape) == 1}
    counting: dict[str, Leaf] = {
        name: ref
        for name, ref in (table.entries.items() if ones else ())
        if ref.shape in ones and isinstance(ref, TensorRef) and name.rpartition(".")[2] in META_KEYS
    }
    if not counting:
        return dict(table.entries), {}
    known = {name.rpartition(".")[2] for name in main.entries} if main else set()
    own = {name: ref for name, ref in counting.items() if name.rpartition(".")[2] not in known}
    return {name: ref for name, ref in table.entries.items() if name not in own}, own


def _extra_states(table: Table, scalars: Scalars) -> Iterator[Tree]:
    """Yield dicts inside a state dict under the candidate's prefix: ``ema._extra_state``."""
    if table.prefix:
        for key, value in scalars.dicts_in(table.node):
            if key.startswith(table.prefix):
                yield value


def _config_of(table: Table) -> dict[str, Any]:
    """Return ``config.json`` beside the file if the directory has a keyword: ``unet_ema/``."""
    first = next(iter(table.tensors.values()), None)
    source = first.chunks[0].span.source if first is not None and first.chunks else None
    path = source.path if source else None
    return config_beside(path) if path and marker_in([path.parent.name]) is not None else {}


MAX_CONFIG = 1 << 20  # bytes


def config_beside(path: Path) -> dict[str, Any]:
    """Return ``config.json`` beside a file: diffusers writes the settings of the EMA there."""
    config = path.with_name("config.json")
    try:
        with LocalFile(config) as file:  # only regular files: a pipe would never end
            fields = load_json(file.head(MAX_CONFIG))
    except (CkptError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _nth_of_lists(tree: Tree, address: Address) -> dict[str, Any]:
    """Return the numbers of one of several tracks in a list, from the lists parallel to it."""
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
