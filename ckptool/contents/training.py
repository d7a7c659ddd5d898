"""State of the training run in a checkpoint: progress, results, and the random states to resume.

Facts are scalars under known keys. ``FACTS`` lists the names in the order in which they are looked
for. The first one present at the top level, or in one of the ``HOLDERS`` below it, is shown. Random
states are recognised by their form, since scripts name them as they please.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptool.contents.inventory import (
    CPU_BYTES,
    DEVICE_BYTES,
    MT19937_WORDS,
    is_optimizer,
    is_row_of_bytes,
    is_state_dict,
    scalars_in,
)
from ckptool.contents.metrics import holds_results, is_best, is_metric, is_split
from ckptool.contents.monitors import Direction, Monitors
from ckptool.contents.walks import ByLevel
from ckptool.formats.base import TensorReader
from ckptool.names import holds, says, tokens, whole
from ckptool.records import NamedTuple
from ckptool.tensors.sample import scalar_value
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import Address, ArrayRef, Opaque, TensorRef, Tree, is_real
from ckptool.tree.walking import children

FACTS: Mapping[str, tuple[str, ...]] = {
    "epoch": (
        "epoch", "current_epoch", "cur_epoch", "start_epoch", "epochs_done", "epochs_run",
        "epoch_idx", "counter.ckpt",
    ),
    "global_step": (
        "global_step", "global_steps", "optimizer_step", "step", "iteration", "iter",
        "global_iteration",
        "current_step", "train_step", "n_iter", "iter_num", "steps_run", "total_batch_idx",
        "current_iter", "current_iteration", "iterations", "cur_iter", "batch",
        "num_timesteps", "batch_idx_train", "num_steps", "it",
    ),
}  # fmt: skip

# Dicts below the top in which trainers keep counters: mmengine's meta, ignite's trainer, …
HOLDERS = frozenset({
    "meta", "trainer", "engine", "state", "extra_state", "train_state", "training_state",
    "trainer_state", "train_iterator", "timestamp", "progress", "run_state", "counters",
    "trainer_state.json", "train_state.json", "training_state.json", "brain.ckpt", "data",
    "pytorch_model",
})  # fmt: skip
HOLDERS_DEPTH = 3  # Composer: state/timestamp/Timestamp

# Keys of patience with a run that no longer improves.
PATIENCE = frozenset({
    "epochs_without_improvement", "epochs_no_improve", "wait", "wait_count", "num_bad_epochs",
    "patience", "patience_counter", "stopped_epoch", "bad_epochs", "counter",
})  # fmt: skip
BEGIN_PATIENCE = ("no_improve", "early_stop")
# Keys beside the results in a log that state the progress of the run.
PROGRESS = frozenset({
    "epoch", "step", "global_step", "iter", "iteration", "lr", "learning_rate", "time", "total_flos"
})  # fmt: skip
# Keys of settings, which are not searched for results.
CONFIG = whole(
    "hyper_parameter", "hyperparameter", "hparam", "config", "configuration", "cfg", "arg",
    "argument", "kwarg", "setting", "option", "scheduler", "sched", "lrscheduler", "optim",
    "optimizer", "optimiser",
)  # fmt: skip

MAX_DEPTH = 3  # levels from the top at which results and patience are looked for


class TrainingState(NamedTuple):
    """Training state of a checkpoint; every value is as the file gives it."""

    facts: Mapping[str, Any]  # epoch, global_step
    best: Mapping[str, Any]  # address -> value
    early_stopping: Mapping[str, Any]  # address -> value
    metrics: Mapping[str, Any]  # address -> value
    better: Mapping[str, Direction]  # address of a result -> better direction, where it is known
    rng: Mapping[str, tuple[str, ...]]  # torch, cuda, numpy, python -> addresses


def read_training_state(tree: Tree, reader: TensorReader) -> TrainingState:
    """Return the training state in ``tree``; scalar tensors are read from the file."""
    best: dict[str, Any] = {}
    patience: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    for address, value, is_result in _scalars(tree):
        kind = _kind(address, is_result=is_result) if _is_number(value) else None
        if kind is not None:
            place = {"best": best, "patience": patience, "metric": metrics}[kind]
            place[format_address(address)] = scalar_value(reader, value)
    better = Monitors(tree).directions((*best, *metrics)) if best or metrics else {}
    return TrainingState(_facts(tree, reader), best, patience, metrics, better, _rng_states(tree))


def _kind(address: Address, *, is_result: bool) -> str | None:
    """Return the kind of a number: best (result so far), patience, metric, or None."""
    if type(address[-1]) is int:  # a place in a list has no words, and a log may have a million
        return "metric" if is_result else None
    key = str(address[-1])
    if is_best(key, among_results=is_result):
        return "best"
    lower = key.lower()
    is_word = lower.replace("_", "").isalnum()  # early_stop/val_loss is a metric of a log
    if lower in PATIENCE or (is_word and lower.startswith(BEGIN_PATIENCE)):
        return "patience"
    is_metric_by_name = len(address) == 1 and is_metric(key)
    return "metric" if is_metric_by_name or (is_result and lower not in PROGRESS) else None


def _facts(tree: Tree, reader: TensorReader) -> dict[str, Any]:
    found = {}
    places = [fields for _, fields in _holders(tree)]
    for fact, names in FACTS.items():
        values = (scalar_value(reader, each.get(name)) for name in names for each in places)
        number = next((v for v in values if is_real(v)), None)
        if number is not None:
            found[fact] = number
    return found


class StepCounter(NamedTuple):
    """A number that counts the steps of the run, in any unit."""

    name: str
    value: float


def step_counters(tree: Tree, reader: TensorReader) -> list[StepCounter]:
    """Return every number in the dicts of counters that has the name of a step counter."""
    return [
        StepCounter(name, value)
        for _, fields in _holders(tree)
        for name in FACTS["global_step"]
        if is_real(value := scalar_value(reader, fields.get(name)))
    ]


def steps_in_running_mean(tree: Tree, reader: TensorReader) -> int | None:
    """Return the number of steps that icefall's ``model_avg`` is the mean of; None: it has none.

    ``update_averaged_model`` takes every ``average_period``-th step into a mean of the whole run.
    https://github.com/k2-fsa/icefall/blob/master/icefall/checkpoint.py
    """
    if not isinstance(tree, dict):
        return None
    steps, period = (
        scalar_value(reader, tree.get(name)) for name in ("batch_idx_train", "average_period")
    )
    if not (isinstance(steps, int) and isinstance(period, int) and 0 < period <= steps < 1 << 53):
        return None
    return steps // period * period


def _holders(tree: Tree) -> list[tuple[Address, dict[Any, Any]]]:
    """Return the top of the tree, then the dicts in which trainers keep their counters."""
    found: list[tuple[Address, dict[Any, Any]]] = []
    walk = ByLevel[tuple[Address, Tree]](HOLDERS_DEPTH + 1, ((), tree))
    for address, node in walk:
        if isinstance(node, dict) and not is_optimizer(node):
            found.append((address, node))
            is_timestamp = address and str(address[-1]).lower() == "timestamp"
            for name in (*sorted(HOLDERS), *(("Timestamp",) if is_timestamp else ())):
                if node.get(name) is not None:
                    walk.enter((*address, name), node[name])
    return found


def _is_number(value: Any) -> bool:
    return value.numel == 1 if isinstance(value, TensorRef) else is_real(value)


def _scalars(tree: Tree) -> list[tuple[Address, Any, bool]]:
    """Return scalars down to ``MAX_DEPTH``, and whether they stand among results.

    Optimizers and configurations are not entered.
    """
    found: list[tuple[Address, Any, bool]] = []
    walk = ByLevel[tuple[Address, Tree, bool]](MAX_DEPTH, ((), tree, False))
    for address, node, among in walk:
        is_weights = is_state_dict(node) and not (among and _are_numbers(node))
        is_split_up = bool(address) and is_metric(str(address[-1]))
        for key, value in scalars_in(node, tensors=not is_weights).items():
            found.append(((*address, key), value, among or (is_split_up and is_split(key))))
        for key, child in _enterable(node):
            walk.enter((*address, key), child, among or holds_results(key))
    return found


def _are_numbers(node: Tree) -> bool:
    """Return whether all tensors of a dict have one element, as results kept as tensors do."""
    return all(child.numel == 1 for _, child in children(node) if isinstance(child, TensorRef))


def _enterable(node: Tree) -> list[tuple[str, Tree]]:
    if not isinstance(node, dict) or is_state_dict(node):
        return []
    return [
        (str(key), child)
        for key, child in node.items()
        if isinstance(child, dict) and not is_optimizer(child) and not says(str(key), CONFIG)
    ]


# ------------------------------------------------------------------------------- random generators

# Words in a key path that name the generator of a state.
RANDOM = whole("rng", "random", "seed")
RANDOM_OF_TORCH = whole("rng", "random")
ON_GPU = whole("cuda", "gpu")
RNG_WORDS = (RANDOM, RANDOM_OF_TORCH, ON_GPU)
LOADERS = whole("generator", "sampler", "loader", "dataloader")  # have generators of their own
MAX_STATES = 1 << 16  # parts of a container that is searched; no run has more ranks
RNG_DEPTH = 4  # levels: Megatron's are in a list of dicts


def _rng_states(tree: Tree) -> dict[str, tuple[str, ...]]:
    """Return random states by generator, found by form; the key separates torch from CUDA."""
    found: dict[str, list[str]] = {}
    walk = ByLevel[tuple[Address, Tree, tuple[bool, ...]]](RNG_DEPTH, ((), tree, ()))
    for address, node, _ in walk:
        for key, child in _rng_children(node):
            if not isinstance(child, (TensorRef, dict, list, tuple)):
                continue  # no state has another form; a pickle may hold a million objects
            path = "/".join(map(str, (*address, key)))
            parts = tokens(path)
            told = tuple(holds(parts, words) for words in RNG_WORDS)
            is_empty = isinstance(child, (dict, list, tuple)) and not child
            forms = () if is_empty else _RNG_FORMS
            kind = next((kind for kind, test in forms if test(path, child)), None)
            if kind:
                found.setdefault(kind, []).append(format_address((*address, key)))
            elif _may_hold_states(child, told):
                walk.enter((*address, key), child, told)
    return {kind: tuple(places) for kind, places in found.items()}


def _may_hold_states(node: Tree, told: tuple[bool, ...]) -> bool:
    """Return whether to search a node: a dict, or a list (by rank, generator) under an RNG path."""
    if isinstance(node, (list, tuple)):
        return any(told)
    return isinstance(node, dict) and not is_optimizer(node)


def _rng_children(node: Tree) -> list[tuple[Any, Tree]]:
    if not isinstance(node, (dict, Opaque, list, tuple)):
        return []
    if not isinstance(node, Opaque) and len(node) > MAX_STATES:
        return []
    holds_weights = is_state_dict(node) and any(
        isinstance(child, TensorRef) and child.dtype.is_floating for _, child in children(node)
    )
    return [] if holds_weights else children(node)


def _is_python_rng(_key: str, node: Tree) -> bool:
    """Return whether it is ``random.getstate()``: (3, 625 integers, None)."""
    return (
        isinstance(node, (tuple, list))
        and len(node) == 3
        and isinstance(node[0], int)
        and isinstance(node[1], (tuple, list))
        and len(node[1]) == MT19937_WORDS + 1
    )


def _is_numpy_rng(_key: str, node: Tree) -> bool:
    """Return whether it is numpy's: ('MT19937', 624 words, …), or a bit generator's dict."""
    if isinstance(node, (tuple, list)) and len(node) >= 3 and isinstance(node[0], str):
        return isinstance(node[1], (ArrayRef, TensorRef, list, tuple)) and "MT19937" in node[0]
    return isinstance(node, dict) and "bit_generator" in node


def _is_cuda_rng(key: str, node: Tree) -> bool:
    """Return whether it has the size of a GPU's state, or a key with words for GPU and random."""
    if not says(key, ON_GPU):
        return says(key, RANDOM_OF_TORCH) and _has_size(node, DEVICE_BYTES)
    parts = node if isinstance(node, (list, tuple)) else [node]
    if parts and all(_has_size(part, DEVICE_BYTES) for part in parts):
        return True
    if not says(key, RANDOM):
        return False
    # Without a GPU, torch.cuda.get_rng_state_all() gives an empty list: no state.
    return isinstance(node, TensorRef) or (isinstance(node, (list, tuple, dict)) and bool(node))


def _is_torch_rng(key: str, node: Tree) -> bool:
    """Return whether it is ``torch.get_rng_state()``: 5056 bytes in a ByteTensor."""
    if not is_row_of_bytes(node):
        return False
    return says(key, RANDOM_OF_TORCH) or (
        _has_size(node, frozenset({CPU_BYTES})) and not says(key, LOADERS)
    )


def _has_size(node: Tree, sizes: frozenset[int]) -> bool:
    return is_row_of_bytes(node) and node.shape[0] in sizes


_RNG_FORMS = (
    ("python", _is_python_rng),
    ("numpy", _is_numpy_rng),
    ("cuda", _is_cuda_rng),
    ("torch", _is_torch_rng),
)
