"""Finds the averaged weights in a checkpoint, and says why it thinks so.

The rules, in order; frameworks' names appear only in ``layouts.py``:

1. Tables (``inventory.py``) outside optimizers are weights. The **model** is the table whose
   address a naive loader would read, without a marker in it.
2. A **marker** is a whole word in a table's address: ``ema``, ``shadow``, ``swa``, ``averaged``;
   split at anything that is no letter and at camel case, so that ``semantic`` or ``schema`` mark
   nothing. ``teacher``, ``momentum`` and ``target`` mark other kinds, which are reported and never
   taken unasked.
3. A marker counts only with **alignment** (``alignment.py``): names and shapes must pair with the
   model's.
4. The same container under several addresses, or the same bytes, is one candidate with aliases.
5. One candidate of an averaging kind is *found*; several that differ are *ambiguous*.
6. A few values are compared: an average identical to the model was never updated, or the model's
   slot holds it already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptool.alignment import Alignment, align_names
from ckptool.errors import AddressError, EmaAmbiguousError, EmaNotFoundError
from ckptool.evidence import Agreement, sample_agreement, scalar_value
from ckptool.formats.base import Checkpoint
from ckptool.inventory import Inventory, Table, scalars_in, take_inventory
from ckptool.layouts import EmaLayout, match_layout, nodes_at
from ckptool.tree import (
    Address,
    TensorRef,
    format_address,
    parse_address,
    resolve,
)

# What a word in an address marks; the averaging kinds are taken, the others only reported.
MARKERS: Mapping[str, str] = {
    "ema": "ema",
    "shadow": "ema",
    "avg": "ema",
    "average": "ema",
    "averaged": "ema",
    "polyak": "ema",
    "swa": "swa",
    "teacher": "teacher",
    "momentum": "momentum-encoder",
    "target": "target-network",
}
AVERAGES = frozenset({"ema", "swa"})
ASIDE = frozenset(
    {"collected", "backup", "stored"}
)  # words for raw weights put aside during evaluation

# Keys under which loaders look for the model, the usual ones first.
MODEL_KEYS = (
    "state_dict", "model_state_dict", "model", "net", "module", "params", "student", "encoder",
    "generator", "G", "g", "unet", "network_weights", "network", "weights",
)  # fmt: skip

# Scalars beside averaged weights that describe them.
META_KEYS = frozenset({
    "decay", "num_updates", "updates", "n_averaged", "update_every", "update_start_step",
    "update_after_step", "optimization_step", "cur_step", "current_step", "step", "initted",
    "last_global_step", "store_on_cpu", "use_buffers", "min_decay", "inv_gamma", "power",
    "every_n_steps", "using_ema", "has_ema", "ema_decay", "count",
})  # fmt: skip
ROOT_META_KEYS = frozenset({"using_ema", "has_ema", "ema_decay"})  # clear without a neighbour

MIN_SHARE = 0.3  # of a candidate's tensors that must pair with the model's


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place that may hold averaged weights."""

    table: Table
    kind: str  # ema, swa, teacher, momentum-encoder, target-network, chosen (by the user)
    why: str
    alignment: Alignment | None  # None: there is no model to align with
    layout: EmaLayout | None
    meta: Mapping[str, Any]  # what the file says; nothing is made up
    agreement: Agreement | None  # with the model, by value
    aliases: tuple[Address, ...]

    @property
    def address(self) -> str:
        """Of the table, written; with the prefix form where it is part of a container."""
        return table_address(self.table)


@dataclass(frozen=True, slots=True)
class EmaLocation:
    """The answer of :func:`locate_ema`."""

    status: str  # found | none | ambiguous
    main_slot: str  # raw | averaged | unknown: what the model's own slot holds
    model: Table | None
    candidates: tuple[Candidate, ...]
    selected: Candidate | None

    @property
    def identical(self) -> bool:
        """Whether the selected average has the model's values, as far as they were compared."""
        chosen = self.selected
        return bool(chosen and chosen.agreement and chosen.agreement.identical)


def table_address(table: Table) -> str:
    """``a/b``, or ``a/b/prefix.*`` for the part of a container under a prefix."""
    address = format_address(table.address)
    if not table.prefix:
        return address
    prefix = format_address((table.prefix,)) + "*"
    return f"{address}/{prefix}" if address else prefix


# ----------------------------------------------------------------------------------------- locating


def locate_ema(
    checkpoint: Checkpoint, *, ema: str | None = None, model: str | None = None
) -> EmaLocation:
    """Where the averaged weights are; ``ema`` and ``model`` are addresses that override the search.

    Raises:
        AddressError: one of the addresses names nothing, or no weights.
    """
    inventory = take_inventory(checkpoint.tree)
    main = select_table(inventory, model) if model else find_model(inventory)
    if ema:
        chosen = select_table(inventory, ema)
        candidate = _examine(checkpoint, chosen, main, "chosen", "named on the command line")
        return _decide(checkpoint, main, (candidate,))
    examined = [
        _examine(checkpoint, table, main, kind, f"the address says {word!r}")
        for table in inventory.weights
        if table is not main and not table.is_list
        for word, kind in [marker(table.address)]
        if kind
    ]
    return _decide(checkpoint, main, tuple(c for c in _merged(examined) if _is_credible(c)))


def find_model(inventory: Inventory) -> Table | None:
    """The table that a naive loader would take for the model's weights, or None."""
    unmarked = [
        table for table in inventory.weights if not marker(table.address)[1] and _is_named(table)
    ]
    for key in MODEL_KEYS:
        for table in unmarked:
            if table.address == (key,):
                return table
    named = [t for t in unmarked if t.address and str(t.address[-1]) in MODEL_KEYS]
    return max(named or [t for t in unmarked if len(t.address) <= 1], key=_size, default=None)


def _is_named(table: Table) -> bool:
    return not table.is_list and any(not name.isdigit() for name in table.entries)


def _size(table: Table) -> int:
    return sum(ref.nbytes for ref in table.tensors.values())


def marker(address: Address) -> tuple[str, str | None]:
    """The first word of an address that marks averaged weights, and the kind it marks."""
    words = [word for key in address if isinstance(key, str) for word in _words(key)]
    if any(word in ASIDE for word in words):
        return "", None
    return next(((word, MARKERS[word]) for word in words if word in MARKERS), ("", None))


def _words(text: str) -> list[str]:
    """``EMACallback`` -> ema, callback; ``state_dict_ema`` -> state, dict, ema."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)]


def _examine(
    checkpoint: Checkpoint, table: Table, main: Table | None, kind: str, why: str
) -> Candidate:
    addresses = sorted((table.address, *table.aliases), key=len)
    primary = replace(table, address=addresses[0])
    alignment = align_names(main.entries, table.entries) if main else None
    layout = match_layout(checkpoint.tree, addresses)
    agreement = _agreement(checkpoint, main, table, alignment) if main and alignment else None
    return Candidate(
        table=primary,
        kind=kind,
        why=f"{why}; {_coverage_text(alignment, table)}",
        alignment=alignment,
        layout=layout,
        meta=_metadata(checkpoint, addresses, layout),
        agreement=agreement,
        aliases=tuple(addresses[1:]),
    )


def _agreement(
    checkpoint: Checkpoint, main: Table, table: Table, alignment: Alignment
) -> Agreement:
    pairs = [
        (ours, theirs)
        for name, other in alignment.pairs.items()
        if isinstance(ours := main.entries[name], TensorRef)
        and isinstance(theirs := table.entries[other], TensorRef)
    ]
    return sample_agreement(checkpoint.reader, pairs)


def _coverage_text(alignment: Alignment | None, table: Table) -> str:
    if alignment is None:
        return "the file holds no model to compare it with"
    total = len(alignment.pairs) + len(alignment.missing_keys)
    return (
        f"names and shapes pair with {len(alignment.pairs)} of the model's {total} tensors"
        if alignment.pairs
        else f"none of its {len(table.entries)} names pairs with the model's"
    )


def _is_credible(candidate: Candidate) -> bool:
    """Rule 3: a marker counts only with alignment, if there is a model to align with."""
    if candidate.alignment is None:
        return True
    matched = len(candidate.alignment.pairs) - len(candidate.alignment.tied)
    return matched > 0 and matched >= MIN_SHARE * len(candidate.table.entries)


def _merged(candidates: list[Candidate]) -> list[Candidate]:
    """Rule 4: tables of the same bytes are one candidate; the shortest address stands for it."""
    merged: dict[Any, Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: len(c.table.address)):
        key = (
            tuple((name, ref.chunks) for name, ref in candidate.table.tensors.items())
            or candidate.table.address
        )
        first = merged.get(key)
        if first is None:
            merged[key] = candidate
        else:
            more = (*first.aliases, candidate.table.address, *candidate.aliases)
            merged[key] = replace(first, aliases=more)
    return list(merged.values())


def _decide(
    checkpoint: Checkpoint, main: Table | None, candidates: tuple[Candidate, ...]
) -> EmaLocation:
    if swapped := [c for c in candidates if c.layout and c.layout.holds == "raw"]:
        return EmaLocation("found", "averaged", main, tuple(swapped), None)
    averages = [c for c in candidates if c.kind in AVERAGES or c.kind == "chosen"]
    selected = averages[0] if len(averages) == 1 and not _rivals(averages[0]) else None
    status = "found" if selected else ("ambiguous" if candidates else "none")
    location = EmaLocation(status, "unknown", main, candidates, selected)
    return replace(location, main_slot=_main_slot(checkpoint, location))


def _rivals(candidate: Candidate) -> tuple[str, ...]:
    return candidate.alignment.rivals if candidate.alignment else ()


def _main_slot(checkpoint: Checkpoint, location: EmaLocation) -> str:
    """What the model's own slot holds, as far as the file tells."""
    chosen = location.selected
    if location.model is None or chosen is None:
        return "unknown"
    flag = chosen.layout.promoted_flag if chosen.layout else None
    if location.identical and flag and _flag(checkpoint, flag):
        return "averaged"
    return "raw"


def _flag(checkpoint: Checkpoint, key: str) -> bool:
    return bool(scalars_in(checkpoint.tree).get(key))


def _metadata(
    checkpoint: Checkpoint, addresses: list[Address], layout: EmaLayout | None
) -> dict[str, Any]:
    """Decay, updates and the like, from the dicts around the table and those its layout names."""
    found: dict[str, Any] = {}
    root = scalars_in(checkpoint.tree)
    found.update({key: root[key] for key in root if key in ROOT_META_KEYS})
    places = [resolve(checkpoint.tree, tuple(map(str, a[:-1])))[1] for a in addresses if a[:-1]]
    for pattern in layout.meta_at if layout else ():
        places += nodes_at(checkpoint.tree, pattern)
    for place in reversed(places):
        values = scalars_in(place)
        found.update({key: values[key] for key in values if key in META_KEYS})
    return {key: scalar_value(checkpoint.reader, value) for key, value in found.items()}


# ---------------------------------------------------------------------------------------- selecting


def select_table(inventory: Inventory, text: str) -> Table:
    """The table at a written address, ``a/b`` or ``a/b/prefix.*``.

    Raises:
        AddressError: nothing there, or no tensors.
    """
    keys, is_prefix = parse_address(text)
    container, prefix = (keys[:-1], keys[-1]) if is_prefix else (keys, "")
    try:
        address, node = resolve(inventory.tree, container)
    except KeyError as error:
        raise AddressError(f"no such place: there is no {error.args[0]!r}", address=text) from None
    table = next((t for t in inventory.tables if t.node is node), None)
    if table is None:
        raise AddressError(
            "this place holds no tensors", address=text, hint=_places_hint(inventory, address)
        )
    if not is_prefix:
        return replace(table, address=address)
    entries = {n[len(prefix) :]: ref for n, ref in table.entries.items() if n.startswith(prefix)}
    if not entries:
        raise AddressError(f"no name there begins with {prefix!r}", address=text)
    return replace(table, address=address, entries=entries, prefix=prefix, aliases=())


def _places_hint(inventory: Inventory, address: Address) -> str:
    inside = [t for t in inventory.tables if t.address[: len(address)] == address]
    listed = inside or list(inventory.weights)
    places = ", ".join(format_address(t.address) or "(the top)" for t in listed[:5])
    return f"tensors are at: {places}" if places else "the file holds no tensors"


def require_ema(location: EmaLocation, checkpoint: Checkpoint) -> Candidate:
    """The one candidate to take.

    Raises:
        EmaNotFoundError: none.
        EmaAmbiguousError: several, or only kinds that must be asked for.
    """
    if location.selected is not None:
        return location.selected
    path = checkpoint.path
    if not location.candidates:
        raise EmaNotFoundError(
            "no averaged weights are stored beside the model's; whether these weights are "
            "themselves averaged cannot be told from this file" + _declared(checkpoint),
            path=path,
            hint="if you know where they are: --ema ADDRESS; ckptool inspect lists the addresses",
        )
    listed = ", ".join(f"{c.address or '(the top)'} ({c.kind})" for c in location.candidates)
    only = location.candidates[0]
    if rivals := _rivals(only):
        message = (
            f"the names at {only.address} pair with the model's in {len(rivals) + 1} ways: "
            + ", ".join(repr(prefix) for prefix in rivals)
        )
        hint = f"name the part that is meant: --ema '{only.address}/PREFIX*'"
        raise EmaAmbiguousError(message, path=path, hint=hint)
    if len(location.candidates) == 1:
        message = f"{only.address} is a {only.kind}, which is not taken unless it is named"
    else:
        message = f"{len(location.candidates)} places could be meant: {listed}"
    raise EmaAmbiguousError(message, path=path, hint=f"name one: --ema {only.address}")


def _declared(checkpoint: Checkpoint) -> str:
    """What the file itself says about having no EMA."""
    values = scalars_in(checkpoint.tree)
    said = [f"{k} is {values[k]}" for k in ("has_ema", "ema_state_dict") if k in values]
    return f" ({', '.join(said)})" if said else ""
