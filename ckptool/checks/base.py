"""The type of a check, and the open checkpoint that checks are asked of.

A check decides one rule or several. It yields a finding for each fault, or a ``NotChecked`` with
the reason why a rule could not be decided. A rule without either has passed, so a check that does
not look must say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar

from ckptool.checks.sources import Original
from ckptool.contents.inventory import Inventory, Leaf
from ckptool.contents.training import TrainingState, read_training_state
from ckptool.ema.candidates import Candidate, EmaLocation
from ckptool.ema.layouts import Layouts
from ckptool.ema.locate import locate_ema
from ckptool.formats.base import Checkpoint
from ckptool.process.progress import Progress, no_progress
from ckptool.process.ranks import Ranks
from ckptool.records import NamedTuple
from ckptool.reports.base import Finding
from ckptool.tensors.scan import Scan, scan
from ckptool.tree.nodes import Address, TensorRef

Item = TypeVar("Item")


class NotChecked(NamedTuple):
    """The reason why a rule was not decided."""

    rule: str
    reason: str
    is_absent: bool = False  # the check looked: the file has nothing that the rule concerns
    is_told: bool = False  # the file fails for the reason itself, which is a finding of its own


@dataclass(eq=False, kw_only=True)
class Subject:
    """An open checkpoint, and the facts that several checks need of it, each computed once."""

    checkpoint: Checkpoint = field(kw_only=False)
    layouts: Layouts = ()
    like: Mapping[str, Leaf] | None = None  # names and shapes of the model that is to load it
    against: Original | None = None  # the claimed source of the weights
    reads: frozenset[str] = frozenset()  # the kinds of data that may be read in full: bytes, values
    progress: Progress = no_progress
    ranks: Ranks = field(default_factory=Ranks)  # the processes that share the full reads
    part: str | None = None  # key path of the part that the tree is; None: the whole checkpoint
    found: dict[object, Any] = field(default_factory=dict)  # by the functions that ``once`` wraps

    def over(
        self,
        items: Sequence[Item],
        look: Callable[[Item], Any],
        size: Callable[[Item], int] = lambda _item: 1,
    ) -> list[Any]:
        """Return ``look`` of each item; the processes share the work (``process/ranks.py``)."""
        return self.ranks.work(items, lambda own: [look(item) for item in own], size)

    @property
    def path(self) -> Path:
        """The path of the checkpoint."""
        return self.checkpoint.path

    @cached_property
    def location(self) -> EmaLocation:
        """The places of the model and of the EMA weights."""
        return locate_ema(self.checkpoint, layouts=self.layouts)

    @property
    def inventory(self) -> Inventory:
        """The state dicts and other dicts of tensors."""
        return self.location.inventory

    @cached_property
    def training(self) -> TrainingState:
        """Epoch and step, results, best metrics, early stopping and RNG states."""
        return read_training_state(self.checkpoint.tree, self.checkpoint.reader)

    @cached_property
    def averages(self) -> tuple[Candidate, ...]:
        """The candidates of a kind that averages, without raw weights."""
        return tuple(c for c in self.location.candidates if c.is_average)

    @cached_property
    def optimizer_tensors(self) -> dict[Address, TensorRef]:
        """All tensors in optimizer states."""
        weights = {id(table) for table in (*self.inventory.weights, *self.inventory.parts)}
        return {
            (*table.address, name): ref
            for table in self.inventory.tables
            if id(table) not in weights
            for name, ref in table.tensors.items()
        }

    @cached_property
    def weight_tensors(self) -> dict[Address, TensorRef]:
        """All tensors outside optimizer states."""
        return {
            (*table.address, name): ref
            for table in (*self.inventory.weights, *self.inventory.parts)
            for name, ref in table.tensors.items()
        }

    @cached_property
    def scan(self) -> Scan:
        """The results of the full read of the requested kinds (``reads``)."""
        tensors = {**self.weight_tensors, **self.optimizer_tensors}
        reader = self.checkpoint.reader
        return scan(reader, tensors, self.reads, self.progress, ranks=self.ranks)


def once(find: Callable[[Subject], Item]) -> Callable[[Subject], Item]:
    """Return ``find`` with a memory: it looks at each subject only the first time."""

    @wraps(find)
    def found(subject: Subject) -> Item:
        if find not in subject.found:
            subject.found[find] = find(subject)
        return subject.found[find]  # type: ignore[no-any-return]

    return found


Verdicts = Iterator[Finding | NotChecked]
Need = Callable[[Subject], "str | None"]  # the missing thing, as text; None: nothing is missing


class Check(NamedTuple):
    """A row: rules, the function that decides them, and the needs without which none applies."""

    rules: tuple[str, ...]
    run: Callable[[Subject], Iterable[Finding | NotChecked]]
    needs: tuple[Need, ...] = ()


def a_model(subject: Subject) -> str | None:
    """Require weights at the place where a loader looks for the model's."""
    return None if subject.location.model else "no model's weights were found"


def an_average(subject: Subject) -> str | None:
    """Require EMA weights, or candidates for them."""
    return None if subject.location.candidates else "no EMA weights were found"


def an_optimizer(subject: Subject) -> str | None:
    """Require the state of an optimizer."""
    return None if subject.inventory.optimizers else "there is no optimizer's state"
