"""Results of the search for EMA weights: the candidates, and the location that was decided."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptool.contents.alignment import Alignment
from ckptool.contents.inventory import Inventory, Table
from ckptool.ema.evidence import Agreement, Evidence
from ckptool.ema.layouts import EmaLayout
from ckptool.names import AVERAGES
from ckptool.records import NamedTuple, field, record
from ckptool.reports.base import EmaStatus, MainSlot
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import Address, TensorRef

CHOSEN = "chosen"  # the kind of weights that the user names
RAW_KIND = "raw"  # the kind of raw weights outside the model's own state dict
POSTHOC = "posthoc-ema"  # ema-pytorch's PostHocEMA: the EMA is made from all tracks later
AVERAGED_MODEL = "n_averaged"  # the counter that torch's AveragedModel keeps among its weights


class AssumedEqual(NamedTuple):
    """Two state dicts whose values match in a sample; compared in full before writing."""

    what: str  # the other state dict, for messages
    pairs: tuple[tuple[TensorRef, TensorRef], ...]  # (the model's, the EMA's), or of two EMAs
    cast: bool = False  # the second is compared in the dtype of the first


@record(slots=True)
class Candidate:
    """A state dict that may hold EMA weights."""

    table: Table
    kind: str  # ema, swa, teacher, momentum-encoder, target-network, chosen (by the user)
    why: str
    alignment: Alignment | None  # None: there is no model to align with
    layout: EmaLayout | None
    meta: Mapping[str, Any]  # metadata that the file states; nothing is made up
    evidence: Evidence | None  # the sampled comparison; read when asked for
    aliases: tuple[Address, ...] = ()
    assumed_equal: tuple[AssumedEqual, ...] = ()  # after a sampled comparison
    file: Path | None = None  # the sidecar file that holds it, if any
    meta_at: Mapping[str, str] = field(default_factory=dict)  # key paths of run settings in meta
    is_noted: bool = False  # taken for an EMA only because ckptool's note in the file says so

    @property
    def address(self) -> str:
        """The key path, in text; with the prefix where it is a part of a container."""
        return table_address(self.table)

    @property
    def agreement(self) -> Agreement | None:
        """The comparison of its values with the model's; reads a sample on first use."""
        return self.evidence.agreement if self.evidence else None

    @property
    def is_unrelated(self) -> bool:
        """Return whether its values have nothing to do with the model's."""
        return bool(self.agreement and self.agreement.unrelated)

    @property
    def is_same_as_model(self) -> bool:
        """Return whether it has the values of the model's own state dict, in a sample."""
        return bool(self.agreement and self.agreement.identical)

    @property
    def is_left_out(self) -> bool:
        """Return whether its values could not be compared, since they are too far away."""
        return bool(self.agreement and self.agreement.left_out)

    @property
    def is_average(self) -> bool:
        """Return whether it is of an averaging kind, or named by the user."""
        return self.kind in AVERAGES or self.kind == CHOSEN

    @property
    def is_implied(self) -> bool:
        """Return whether an optimizer's state holds or implies it: reported, never taken."""
        return not self.table.entries

    @property
    def is_raw(self) -> bool:
        """Return whether its writer is known to keep the raw weights there."""
        return self.layout is not None and self.layout.swapped

    @property
    def is_unstarted(self) -> bool:
        """Return whether its counter states that nothing has been averaged yet."""
        return self.kind in AVERAGES and self.meta.get(AVERAGED_MODEL) == 0

    @property
    def doubt(self) -> str | None:
        """The reason for ambiguity although it is the only candidate; None: it may be taken."""
        if self.is_unstarted:
            return "n_averaged is 0: it is the copy from which averaging will start"
        if self.layout is not None and self.layout.doubt and self.kind != CHOSEN:
            return self.layout.doubt
        return _doubt(self.alignment) if self.alignment else None


def _doubt(alignment: Alignment) -> str | None:
    if alignment.colliding:
        names = ", ".join(alignment.colliding[:4])
        return f"its names cannot tell {len(alignment.colliding)} tensors apart: {names}"
    if alignment.rivals:
        others = ", ".join(repr(prefix) for prefix in alignment.rivals[:3])
        return f"its names pair with the model's in several ways, also under {others}"
    if alignment.mismatched:
        names = ", ".join(alignment.mismatched[:4])
        return f"it is of another model: {names} have other shapes or types"
    if alignment.unplaced:
        names = ", ".join(alignment.unplaced[:4])
        return f"it has other names for some of the model's tensors: {names} pair with nothing"
    if alignment.naming == "positional" and not alignment.pairs:
        return "it is a list without names, and neither shapes nor values decide its order"
    return None


@record(slots=True)
class EmaLocation:
    """The answer of :func:`locate_ema`."""

    status: EmaStatus
    main_slot: MainSlot
    model: Table | None
    candidates: tuple[Candidate, ...]
    selected: Candidate | None
    inventory: Inventory  # of the whole tree, taken once
    given_up: bool = False  # too many candidates to compare; the first are listed, unexamined
    beside: tuple[Candidate, ...] = ()  # the candidates found, where raw weights were asked for
    unread: tuple[str, ...] = ()  # sidecar files that were not read, each with the reason
    without_raw: bool = False  # the raw weights were asked for; the file holds only EMA weights

    @classmethod
    def nothing(cls, inventory: Inventory) -> EmaLocation:
        """Return the location in which nothing is found."""
        return cls(EmaStatus.NONE, MainSlot.UNKNOWN, None, (), None, inventory)

    @property
    def weights(self) -> Table | None:
        """The state dict that a loader would take: the model's, or else the largest."""
        largest = max(self.inventory.weights, key=lambda t: len(t.entries), default=None)
        return self.model or largest

    @property
    def raw(self) -> Candidate | None:
        """The raw weights, where they lie outside the model's own state dict."""
        return next((c for c in self.candidates if c.kind == RAW_KIND), None)

    @property
    def roles(self) -> dict[str, str]:
        """Roles of the top-level keys that hold weights, by key path; "" is the whole tree."""
        roles: dict[str, str] = {}
        if self.model is not None and self.model.address:
            roles[format_address(self.model.address[:1])] = "model"
        for candidate in self.candidates:
            if candidate.file is None and candidate.table.address and not candidate.table.prefix:
                is_raw = candidate.kind == RAW_KIND
                role = "raw weights" if is_raw else candidate.kind.replace(CHOSEN, "ema")
                roles.setdefault(format_address(candidate.table.address[:1]), role)
        chosen = self.selected
        if self.model is None and chosen and not chosen.address and chosen.file is None:
            roles[""] = "ema"
        return roles

    @property
    def told_slot(self) -> MainSlot:
        """The ``main_slot`` for reports: unknown where EMA weights equal the model.

        Reads a sample of the values. It is unknown, too, where a file behind a URL admits none.
        """
        averages = [c for c in self.candidates if c.is_average]
        is_open = any(c.is_same_as_model or c.is_left_out for c in averages)
        return MainSlot.UNKNOWN if self.main_slot is MainSlot.RAW and is_open else self.main_slot

    @property
    def identical(self) -> bool:
        """Return whether the selected EMA weights, cast to the model's dtypes, equal the model.

        Only a sample is compared. If they are equal, ``promote-ema`` would change nothing.
        """
        return bool(self.selected and self.selected.is_same_as_model)


def table_address(table: Table) -> str:
    """Return the key path of a state dict in text.

    It is ``a/b``, ``a/b/prefix.*`` for a part of a container, or ``a/*/c`` for what its parts hold.
    """
    address = format_address(table.address)
    if not (table.prefix or table.suffix or table.inside):
        return address
    prefix = format_address((table.prefix,)) + "*" + format_address((table.suffix,))
    prefix = "/".join([prefix, *([format_address(table.inside)] if table.inside else [])])
    return f"{address}/{prefix}" if address else prefix
