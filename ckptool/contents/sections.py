"""The top-level parts of a checkpoint and the role of each.

The role of a part follows from its form where it has one (optimizers, random states), or from the
result of the EMA search, and else from its key, by the table ``ROLES``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from ckptool.contents.inventory import Inventory, is_optimizer, is_state_dict
from ckptool.names import says, whole
from ckptool.records import NamedTuple
from ckptool.reports.base import Amount, Section, TensorTotals
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import (
    Address,
    ArrayRef,
    Forms,
    Key,
    Opaque,
    TensorRef,
    Tree,
    is_container,
    stored_bytes,
)
from ckptool.tree.walking import children, leaves

# The first row with a word that stands in a key decides.
WORDS: tuple[tuple[str, str], ...] = (
    ("rng random_state rand_state randstate seed", "rng"),
    ("sched scheduler lrscheduler lrsched", "scheduler"),
    ("scaler gradscaler grad_scale amp", "scaler"),
    ("optim optimizer optimiser opt", "optimizer"),
    ("callback", "callbacks"),
    ("loop$ trainer_state train_state training_state", "progress"),
    ("stat metric best loss losses score history message_hub result", "metrics"),
    ("arg kwarg hparam hyper_parameter hyperparameter config configuration cfg", "config"),
    ("option setting meta metadata version", "config"),
    ("teacher momentum_encoder target", "teacher"),
    ("ema shadow swa averaged", "ema"),
    ("state_dict statedict model net network unet nnet resnet backbone module", "model"),
    ("weight param parameter encoder decoder autoencoder student transformer", "model"),
    ("discriminator actor critic policy", "model"),
)
WEIGHTS = frozenset({"teacher", "ema", "model"})  # roles of state dicts
ROLES = tuple((whole(*words.split()), role) for words, role in WORDS)


def totals(inventory: Inventory) -> TensorTotals:
    """Return counts and bytes of all tensors, together and by dtype."""
    forms = Forms.of(inventory.leaves)
    return TensorTotals(
        count=forms.tensors,
        elements=forms.elements,
        bytes=forms.nbytes,
        stored_bytes=stored_bytes(inventory.leaves),
        dtypes={
            dtype.name: Amount(part.tensors, part.nbytes)
            for dtype, part in forms.by_dtype().items()
        },
    )


def sections(
    tree: Tree, roles: Mapping[str, str], rng: Mapping[str, Collection[str]] = MappingProxyType({})
) -> tuple[Section, ...]:
    """Return the parts that hold tensors or structure; plain numbers at the top are no sections.

    ``roles`` has the known roles of top-level keys, by key path ("" for the whole tree), and
    ``rng`` has the key paths of the states of random generators.
    """
    whole = next((role for role, is_one in WHOLE_PARTS if is_one(tree)), None)
    if whole is not None:
        return (_section((), tree, _contents(tree, {}), whole),)
    if is_state_dict(tree):
        return (_section((), tree, _contents(tree, {}), roles.get("", "model")),)
    parts = children(tree)
    if not isinstance(tree, (dict, Opaque)):
        return (_section((), tree, _contents(tree, {}), "other"),) if parts else ()
    located = dict.fromkeys((key for found in rng.values() for key in found), "rng")
    located |= roles
    counted: dict[int, _Contents] = {}  # a node under many keys is counted once
    return tuple(
        _section((key,), node, _contents(node, counted), located.get(format_address((key,))))
        for key, node in parts
        if is_container(node) or isinstance(node, (TensorRef, ArrayRef))
    )


class _Contents(NamedTuple):
    """Counts and form of the tensors in a node."""

    tensors: int
    elements: int
    bytes: int
    holds_optimizer: bool
    is_weights: bool  # a state dict or a module: several tensors, one of them a matrix


def _contents(node: Tree, counted: dict[int, _Contents]) -> _Contents:
    found = counted.get(id(node))
    if found is None:
        forms = Forms.of(leaves(node))
        found = counted[id(node)] = _Contents(
            tensors=forms.tensors,
            elements=forms.elements,
            bytes=forms.nbytes,
            # Optimizers come alone, in a list or by name.
            holds_optimizer=is_optimizer(node) or any(map(is_optimizer, _parts(node))),
            is_weights=_is_weights(node),
        )
    return found


def _section(address: Address, node: Tree, contents: _Contents, role: str | None) -> Section:
    role = role or _role(address[-1], contents)
    is_object = isinstance(node, Opaque) and (node.is_module or is_optimizer(node))
    return Section(
        format_address(address),
        role,
        contents.tensors,
        contents.elements,
        contents.bytes,
        node.qualname if isinstance(node, Opaque) and is_object else None,
    )


def _is_scheduler(tree: Tree) -> bool:
    """Return whether the whole file is a ``scheduler.state_dict()``."""
    return isinstance(tree, dict) and "last_epoch" in tree and "_step_count" in tree


# Parts that may be the whole of a file, by their form.
WHOLE_PARTS = (("optimizer", is_optimizer), ("scheduler", _is_scheduler))


def _role(key: Key, contents: _Contents) -> str:
    if contents.holds_optimizer:
        return "optimizer"
    role = next((role for words, role in ROLES if says(str(key), words)), "other")
    if role in {"model", "ema", "teacher"} and not contents.tensors:
        return "other"
    if role == "metrics" and contents.is_weights:  # best_model: the word model comes later
        return next(
            (role for words, role in ROLES if role in WEIGHTS and says(str(key), words)), "other"
        )
    return role


def _is_weights(node: Tree) -> bool:
    """Return whether a node has the form of a state dict of layers, which is no metric."""
    parts = [part for _, part in children(node) if isinstance(part, TensorRef)]
    return len(parts) > 1 and is_state_dict(node) and any(len(ref.shape) > 1 for ref in parts)


def _parts(node: Tree) -> Iterable[Tree]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, (list, tuple)) else ()
