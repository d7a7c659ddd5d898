"""What a checkpoint says of its run: how far it is, how good it was, what it takes to resume.

Facts are scalars under known keys. ``FACTS`` lists the names in the order in which they are looked
for; the first one present at the top level, or one or two levels down, is shown. Random states are
told by their form, since scripts name them as they please.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from ckptool.evidence import scalar_value
from ckptool.formats.base import TensorReader
from ckptool.inventory import is_optimizer, is_state_dict, scalars_in
from ckptool.tree import (
    Address,
    ArrayRef,
    Opaque,
    TensorRef,
    Tree,
    children,
    format_address,
    unseen,
)

FACTS: Mapping[str, tuple[str, ...]] = {
    "epoch": ("epoch", "current_epoch", "cur_epoch", "start_epoch", "epochs_done", "meta/epoch"),
    "global_step": (
        "global_step", "step", "iteration", "iter", "global_iteration", "current_step",
        "train_step", "n_iter", "meta/iter",
    ),
}  # fmt: skip

# A key that speaks of the best result so far, or of patience with a run that no longer improves.
BEST = re.compile(r"^(best(?!_model_path|_k_models)\w*|metric)$", re.IGNORECASE)
PATIENCE = re.compile(
    r"^(epochs_without_improvement|epochs_no_improve|no_improve\w*|wait(_count)?|num_bad_epochs|"
    r"patience(_counter)?|early_stop\w*|stopped_epoch|bad_epochs|counter)$",
    re.IGNORECASE,
)
METRIC = re.compile(
    r"(loss|acc(uracy)?\d?|pck|f1|auc|map|iou|dice|psnr|ssim|fid|wer|cer|bleu|perplexity|ppl|"
    r"score|rmse|mae|mse)$",
    re.IGNORECASE,
)
STATS = re.compile(r"(stats|metrics|results|scores|logs?)$", re.IGNORECASE)

# What a metric's name says about which way is better; names in neither are not judged.
LOWER = ("loss", "error", "err", "fid", "wer", "cer", "ppl", "perplexity", "rmse", "mae", "mse")
HIGHER = ("acc", "pck", "f1", "auc", "map", "iou", "dice", "psnr", "ssim", "bleu", "score")

MAX_DEPTH = 3  # levels below the top at which counters and best values are looked for
MT19937_WORDS = 624


class TrainingState(NamedTuple):
    """See the module's docstring; every value as the file gives it."""

    facts: Mapping[str, Any]  # epoch, global_step
    best: Mapping[str, Any]  # address -> value
    early_stopping: Mapping[str, Any]  # address -> value
    metrics: Mapping[str, Any]  # address -> value
    rng: Mapping[str, tuple[str, ...]]  # torch, cuda, numpy, python -> addresses


def read_training_state(tree: Tree, reader: TensorReader) -> TrainingState:
    """The training state in ``tree``; small values are read from the file."""
    best: dict[str, Any] = {}
    patience: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    for address, key, value in _scalars(tree):
        where = format_address(address)
        if BEST.match(key) and _is_number(value):
            best[where] = scalar_value(reader, value)
        elif PATIENCE.match(key) and _is_number(value):
            patience[where] = scalar_value(reader, value)
        elif METRIC.search(key) and _is_number(value) and _is_metric_place(address):
            metrics[where] = scalar_value(reader, value)
    return TrainingState(_facts(tree, reader), best, patience, metrics, _rng_states(tree))


def _facts(tree: Tree, reader: TensorReader) -> dict[str, Any]:
    found = {}
    for fact, names in FACTS.items():
        for name in names:
            value = scalar_value(reader, _at(tree, name.split("/")))
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found[fact] = value
                break
    return found


def better_direction(name: str) -> int:
    """-1: lower is better; 1: higher is; 0: the name does not say."""
    words = name.lower().replace("/", "_").split("_")
    if any(word.startswith(LOWER) for word in words):
        return -1
    return int(any(word.startswith(HIGHER) for word in words))


def _at(tree: Tree, keys: list[str]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _is_number(value: Any) -> bool:
    if isinstance(value, TensorRef):
        return value.numel == 1
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_metric_place(address: Address) -> bool:
    """At the top, or in a dict of results: not among the arguments of a loss function."""
    return len(address) == 1 or (len(address) == 2 and bool(STATS.search(str(address[0]))))


def _scalars(tree: Tree) -> list[tuple[Address, str, Any]]:
    """Scalars down to ``MAX_DEPTH``; optimizers and configurations are not entered."""
    found: list[tuple[Address, str, Any]] = []
    level: list[tuple[Address, Tree, bool]] = [((), tree, True)]  # whether metrics stand there
    seen: set[Hashable] = set()
    for _ in range(MAX_DEPTH):
        inner: list[tuple[Address, Tree, bool]] = []
        for address, node, _may_be_metrics in unseen(level, seen):
            is_weights = is_state_dict(node)
            for key, value in scalars_in(node).items():
                if not (is_weights and isinstance(value, TensorRef)):
                    found.append(((*address, key), key, value))
            places = [((*address, key), child) for key, child in _enterable(node)]
            inner += [(at, child, _is_metric_place((*at, ""))) for at, child in places]
        level = inner
    return found


def _enterable(node: Tree) -> list[tuple[str, Tree]]:
    if not isinstance(node, dict) or is_state_dict(node):
        return []
    return [
        (str(key), child)
        for key, child in node.items()
        if isinstance(child, dict) and not is_optimizer(child) and not _is_config(str(key))
    ]


def _is_config(key: str) -> bool:
    return bool(
        re.search(r"(hyper_parameters|hparams|config|cfg|args|scheduler|optim)", key.lower())
    )


# ------------------------------------------------------------------------------- random generators

RNG_WORDS = ("rng", "random", "seed", "cuda", "gpu")  # in a path, that say what a state is of


def _rng_states(tree: Tree) -> dict[str, tuple[str, ...]]:
    """Random states by generator, told by form; the key decides between torch and CUDA."""
    found: dict[str, list[str]] = {}
    level: list[tuple[Address, Tree, frozenset[str]]] = [((), tree, frozenset())]
    seen: set[Hashable] = set()
    for _ in range(MAX_DEPTH):
        inner: list[tuple[Address, Tree, frozenset[str]]] = []
        for address, node, _told in unseen(level, seen):
            for key, child in _rng_children(node):
                path = "/".join(map(str, (*address, key)))
                kind = _rng_kind(path, child)
                if kind:
                    found.setdefault(kind, []).append(format_address((*address, key)))
                elif isinstance(child, dict) and not is_optimizer(child):
                    told = frozenset(word for word in RNG_WORDS if word in path.lower())
                    inner.append(((*address, key), child, told))
        level = inner
    return {kind: tuple(places) for kind, places in found.items()}


def _rng_children(node: Tree) -> list[tuple[Any, Tree]]:
    if not isinstance(node, (dict, Opaque)):
        return []
    holds_weights = is_state_dict(node) and any(
        isinstance(child, TensorRef) and child.dtype.is_floating for _, child in children(node)
    )
    return [] if holds_weights else children(node)


def _rng_kind(key: str, node: Tree) -> str | None:
    return next((kind for kind, test in _RNG_FORMS if test(key.lower(), node)), None)


def _is_python_rng(_key: str, node: Tree) -> bool:
    """``random.getstate()``: (3, 625 integers, None)."""
    return (
        isinstance(node, (tuple, list))
        and len(node) == 3
        and isinstance(node[0], int)
        and isinstance(node[1], (tuple, list))
        and len(node[1]) == MT19937_WORDS + 1
    )


def _is_numpy_rng(_key: str, node: Tree) -> bool:
    """``numpy.random.get_state()``: ('MT19937', 624 words, …), or a bit generator's dict."""
    if isinstance(node, (tuple, list)) and len(node) >= 3 and isinstance(node[0], str):
        return isinstance(node[1], (ArrayRef, list, tuple)) and "MT19937" in node[0]
    return isinstance(node, dict) and "bit_generator" in node


def _is_cuda_rng(key: str, node: Tree) -> bool:
    if "cuda" not in key and "gpu" not in key:
        return False
    if "rng" not in key and "random" not in key and "seed" not in key:
        return False
    # An empty list is what torch.cuda.get_rng_state_all() gives without a GPU: no state.
    return isinstance(node, TensorRef) or (isinstance(node, (list, tuple, dict)) and bool(node))


def _is_torch_rng(key: str, node: Tree) -> bool:
    """``torch.get_rng_state()``: 5056 bytes in a ByteTensor."""
    named = "rng" in key or "random" in key
    return (
        named
        and isinstance(node, TensorRef)
        and node.dtype.name == "uint8"
        and len(node.shape) == 1
    )


_RNG_FORMS = (
    ("python", _is_python_rng),
    ("numpy", _is_numpy_rng),
    ("cuda", _is_cuda_rng),
    ("torch", _is_torch_rng),
)
