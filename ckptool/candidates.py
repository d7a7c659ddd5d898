"""What a search for averaged weights finds: candidates, and the location that was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ckptool.alignment import Alignment
from ckptool.evidence import Agreement, Evidence
from ckptool.inventory import Inventory, Table
from ckptool.layouts import EmaLayout
from ckptool.markers import AVERAGES
from ckptool.tree import Address, TensorRef, format_address

CHOSEN = "chosen"  # the kind of what the user names
RAW_KIND = "raw"  # the kind of what is called ema and holds the raw weights
AVERAGED_MODEL = "n_averaged"  # the counter that torch's AveragedModel keeps among its weights


class Equality(NamedTuple):
    """Two tables that agree in a sample of their values; to be proven before writing."""

    what: str  # the other table, for messages
    pairs: tuple[
        tuple[TensorRef, TensorRef], ...
    ]  # (the model's, the average's) or of two averages
    cast: bool = False  # the second is compared in the type of the first


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place that may hold averaged weights."""

    table: Table
    kind: str  # ema, swa, teacher, momentum-encoder, target-network, chosen (by the user)
    why: str
    alignment: Alignment | None  # None: there is no model to align with
    layout: EmaLayout | None
    meta: Mapping[str, Any]  # what the file says; nothing is made up
    evidence: Evidence | None  # what values say; read when asked
    aliases: tuple[Address, ...] = ()
    believed: tuple[Equality, ...] = ()  # what only a sample of values says
    file: Path | None = None  # the neighbour that holds it, if it is another file

    @property
    def address(self) -> str:
        """Of the table, written; with the prefix form where it is part of a container."""
        return table_address(self.table)

    @property
    def agreement(self) -> Agreement | None:
        """How its values compare with the model's; reads a sample on first use."""
        return self.evidence.agreement if self.evidence else None

    @property
    def is_unrelated(self) -> bool:
        """Whether its values have nothing to do with the model's."""
        return bool(self.agreement and self.agreement.unrelated)

    @property
    def is_average(self) -> bool:
        """Whether it is of a kind that is taken unasked."""
        return self.kind in AVERAGES or self.kind == CHOSEN

    @property
    def is_implied(self) -> bool:
        """Whether it stands in an optimizer's state: reported, and never taken."""
        return not self.table.entries

    @property
    def is_raw(self) -> bool:
        """Whether its writer is known to keep the raw weights there."""
        return self.layout is not None and self.layout.swapped

    @property
    def is_unstarted(self) -> bool:
        """Whether it says that nothing has been averaged yet."""
        return self.kind == "swa" and self.meta.get(AVERAGED_MODEL) == 0

    @property
    def doubt(self) -> str | None:
        """Why it must not be taken although it is the only one; None: it may be."""
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


@dataclass(frozen=True, slots=True)
class EmaLocation:
    """The answer of :func:`locate_ema`."""

    status: str  # found | none | ambiguous
    main_slot: str  # raw | averaged | unknown: what the model's own slot holds
    model: Table | None
    candidates: tuple[Candidate, ...]
    selected: Candidate | None
    inventory: Inventory  # of the whole tree, taken once
    given_up: bool = False  # too many candidates to compare: the first are listed, unexamined

    @property
    def identical(self) -> bool:
        """Whether the selected average, in the model's types, has the values in its slot.

        As far as they were compared; promotion would change nothing then.
        """
        chosen = self.selected
        return bool(chosen and chosen.agreement and chosen.agreement.identical)


def table_address(table: Table) -> str:
    """``a/b``, or ``a/b/prefix.*`` for the part of a container under a prefix."""
    address = format_address(table.address)
    if not table.prefix:
        return address
    prefix = format_address((table.prefix,)) + "*"
    return f"{address}/{prefix}" if address else prefix
