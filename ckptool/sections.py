"""The top-level parts of a checkpoint and the role of each.

A role is read off a part's form where it has one (optimizers, random states), off what the EMA
locator found, and else off its key, by the table ``ROLES``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ckptool.candidates import RAW_KIND, EmaLocation
from ckptool.inventory import Inventory, is_optimizer, is_state_dict
from ckptool.reports import Amount, Section, TensorTotals
from ckptool.tree import (
    Address,
    ArrayRef,
    Key,
    Opaque,
    TensorRef,
    Tree,
    children,
    format_address,
    is_container,
    leaves,
    stored_bytes,
)

# The first pattern found in a key decides.
ROLES: tuple[tuple[str, str], ...] = (
    (r"rng|random_state|seed", "rng"),
    (r"sched", "scheduler"),
    (r"scaler|grad_scal|amp", "scaler"),
    (r"optim|\bopt\b|^opt_|opt$", "optimizer"),
    (r"callback", "callbacks"),
    (r"loops?$|trainer_state", "progress"),
    (r"stats|metric|best|loss|score|history|message_hub|result", "metrics"),
    (r"args|hparam|hyper_parameter|config|cfg|options|settings|meta|version", "config"),
    (r"teacher|momentum_encoder|target", "teacher"),
    (r"ema|shadow|swa|averaged", "ema"),
    (r"state_dict|model|net|module|weights|params|encoder|decoder|student", "model"),
)


def totals(inventory: Inventory) -> TensorTotals:
    """Counts and bytes of all tensors, by element type."""
    refs = inventory.leaves
    by_dtype: dict[str, list[int]] = {}
    elements = nbytes = 0
    for ref in refs:
        numel, size = ref.numel, ref.nbytes
        elements, nbytes = elements + numel, nbytes + size
        amount = by_dtype.setdefault(ref.dtype.name, [0, 0])
        amount[0] += 1
        amount[1] += size
    return TensorTotals(
        count=len(refs),
        elements=elements,
        bytes=nbytes,
        stored_bytes=stored_bytes(refs),
        dtypes={name: Amount(*amount) for name, amount in by_dtype.items()},
    )


def sections(tree: Tree, location: EmaLocation) -> tuple[Section, ...]:
    """The parts that hold tensors or structure; plain numbers at the top are no sections."""
    if is_state_dict(tree):
        chosen = location.selected
        is_average = chosen is not None and not chosen.address and chosen.file is None
        role = "ema" if is_average and location.model is None else "model"
        return (_section((), _contents(tree, {}), role),)
    parts = children(tree)
    if not isinstance(tree, (dict, Opaque)):
        return (_section((), _contents(tree, {}), "other"),) if parts else ()
    located = _located(location)
    counted: dict[int, _Contents] = {}  # a node under many keys is counted once
    return tuple(
        _section((key,), _contents(node, counted), located.get(key))
        for key, node in parts
        if is_container(node) or isinstance(node, (TensorRef, ArrayRef))
    )


class _Contents(NamedTuple):
    """What there is in a node."""

    tensors: int
    elements: int
    bytes: int
    holds_optimizer: bool


def _contents(node: Tree, counted: dict[int, _Contents]) -> _Contents:
    found = counted.get(id(node))
    if found is None:
        refs = list(leaves(node))
        found = counted[id(node)] = _Contents(
            tensors=len(refs),
            elements=sum(ref.numel for ref in refs),
            bytes=sum(ref.nbytes for ref in refs),
            holds_optimizer=any(map(is_optimizer, _self_and_parts(node))),
        )
    return found


def _section(address: Address, contents: _Contents, role: str | None) -> Section:
    role = role or _role(address[-1], contents)
    return Section(
        format_address(address), role, contents.tensors, contents.elements, contents.bytes
    )


def _located(location: EmaLocation) -> dict[Key, str]:
    """The roles of the keys at the top that hold what the locator found."""
    roles: dict[Key, str] = {}
    if location.model is not None and location.model.address:
        roles[location.model.address[0]] = "model"
    for candidate in location.candidates:
        if candidate.file is None and candidate.table.address and not candidate.table.prefix:
            is_raw = candidate.kind == RAW_KIND
            role = "raw weights" if is_raw else candidate.kind.replace("chosen", "ema")
            roles.setdefault(candidate.table.address[0], role)
    return roles


def _role(key: Key, contents: _Contents) -> str:
    if contents.holds_optimizer:
        return "optimizer"
    name = str(key).lower()
    role = next((role for pattern, role in ROLES if re.search(pattern, name)), "other")
    if role in {"model", "ema", "teacher"} and not contents.tensors:
        return "other"
    return role


def _self_and_parts(node: Tree) -> Iterator[Tree]:
    """A node and what is directly in it: optimizers come alone, in a list or by name."""
    yield node
    if isinstance(node, (list, tuple)):
        yield from node
    elif isinstance(node, dict):
        yield from node.values()
