"""What a check is, and the open checkpoint that it is asked of.

A check decides one rule or several: it yields a finding for each fault, or says why a rule could
not be decided. What it passes over in silence has passed, so it must look, or say that it did not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ckptool.candidates import Candidate, EmaLocation
from ckptool.checks.sources import Source
from ckptool.ema import locate_ema
from ckptool.formats.base import Checkpoint
from ckptool.inventory import Inventory, Leaf
from ckptool.layouts import Layouts
from ckptool.numerics import Progress, no_progress
from ckptool.ranks import Ranks
from ckptool.reports import Finding
from ckptool.scan import Scan, scan
from ckptool.training import TrainingState, read_training_state
from ckptool.tree import Address, TensorRef

Item = TypeVar("Item")


class NotChecked(NamedTuple):
    """Why a rule was not decided."""

    rule: str
    reason: str
    is_absent: bool = False  # looked, and the file has nothing that the rule could be about


class Subject:
    """An open checkpoint, and what several checks want to know of it, found out once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        layouts: Layouts = (),
        like: Mapping[str, Leaf] | None = None,
        against: Source | None = None,
        reads: frozenset[str] = frozenset(),
        progress: Progress = no_progress,
        ranks: Ranks = Ranks(),  # noqa: B008 - a tuple
    ) -> None:
        self.checkpoint, self.layouts = checkpoint, layouts
        self.like = like  # the names and shapes of the model that is to take the weights
        self.against = against  # where the weights are said to come from
        self.reads = reads  # what may be read in full: bytes, values
        self.progress = progress
        self.ranks = ranks  # the processes that share what is read in full

    def over(
        self,
        items: Sequence[Item],
        look: Callable[[Item], Any],
        size: Callable[[Item], int] = lambda _item: 1,
    ) -> list[Any]:
        """What a look at each item gives, shared among the processes (``ranks.py``)."""
        return self.ranks.work(items, lambda own: [look(item) for item in own], size)

    @property
    def path(self) -> Path:
        """Of the checkpoint."""
        return self.checkpoint.path

    @cached_property
    def location(self) -> EmaLocation:
        """Where the model and the averages are."""
        return locate_ema(self.checkpoint, layouts=self.layouts)

    @property
    def inventory(self) -> Inventory:
        """The tables of tensors."""
        return self.location.inventory

    @cached_property
    def training(self) -> TrainingState:
        """Epoch, best metrics, random states."""
        return read_training_state(self.checkpoint.tree, self.checkpoint.reader)

    @cached_property
    def averages(self) -> tuple[Candidate, ...]:
        """The candidates of a kind that averages, raw ones left out."""
        return tuple(c for c in self.location.candidates if c.is_average)

    @cached_property
    def optimizer_tensors(self) -> dict[Address, TensorRef]:
        """Every tensor in the states of optimizers."""
        weights = {id(table) for table in self.inventory.weights}
        return {
            (*table.address, name): ref
            for table in self.inventory.tables
            if id(table) not in weights
            for name, ref in table.tensors.items()
        }

    @cached_property
    def weight_tensors(self) -> dict[Address, TensorRef]:
        """Every tensor outside optimizers."""
        return {
            (*table.address, name): ref
            for table in self.inventory.weights
            for name, ref in table.tensors.items()
        }

    @cached_property
    def scan(self) -> Scan:
        """What reading all that was asked for has shown."""
        tensors = {**self.weight_tensors, **self.optimizer_tensors}
        reader = self.checkpoint.reader
        return scan(reader, tensors, self.reads, self.progress, ranks=self.ranks)


Verdicts = Iterator[Finding | NotChecked]
Need = Callable[[Subject], "str | None"]  # what the subject lacks; None: nothing


class Check(NamedTuple):
    """A row: the rules that it decides, how, and what must be there for the question to arise."""

    rules: tuple[str, ...]
    run: Callable[[Subject], Iterable[Finding | NotChecked]]
    needs: tuple[Need, ...] = ()


# ------------------------------------------------------------------------------------------- needs


def a_model(subject: Subject) -> str | None:
    """Weights at the place where a loader looks for the model's."""
    return None if subject.location.model else "no model's weights were found"


def an_average(subject: Subject) -> str | None:
    """Averaged weights, or what may be some."""
    return None if subject.location.candidates else "no averaged weights were found"


def an_optimizer(subject: Subject) -> str | None:
    """The state of an optimizer."""
    return None if subject.inventory.optimizers else "there is no optimizer's state"
