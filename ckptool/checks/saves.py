"""CK525, CK526, CK530: checks that the files of a directory are of one save, and all of it.

A trainer writes the parts of a save one by one. A job that is killed leaves the first of them, or,
where a directory is written again, some parts of the new save beside parts of the old one. The save
before it in the same run shows which parts there are.

Parts that hold nothing but values, of the shapes that every save has, do not tell of which save
they are. Then the times at which they were written are all there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TypeGuard

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts
from ckptool.checks.optimizers import scheduler_steps
from ckptool.checks.parts import (
    facts_of,
    is_scaler,
    number,
    optimizers_of,
    parts,
    schedulers_of,
    steps_of,
    trainer,
)
from ckptool.contents.inventory import Table
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.reports.rules import finding
from ckptool.sources.base import Source
from ckptool.sources.places import entries
from ckptool.tensors.sample import scalar_value
from ckptool.tree.describing import named
from ckptool.tree.nodes import TensorRef, Tree

# Files with a part of the training state; the weights may be in another form at each save.
STATE = regex(
    r"(custom_checkpoint_\d+|(dl_state_dict|optimizer|random_states|rng_state|sampler|scaler"
    r"|scheduler)(_\d+)?)\.(bin|pkl|pt|pth)|.+\.ckpt"
)
OF_A_RANK = regex(r"^(random_states|rng_state)_\d+")  # their number is that of processes
SAVE = regex(r"(?P<name>.*?)(?P<number>\d+)")
MAX_FILES = 10_000
SHOWN = 4  # files in a message
PAUSE = 600  # seconds between the ends of two files of one save,
RATE = 1e6  # bytes a second: and as long as a slow disk takes for the later one


def _complete(subject: Subject) -> Verdicts:
    before = _save_before(subject.path) if subject.checkpoint.is_local else None
    if before is None:
        yield NotChecked("CK525", "there is no earlier save beside it", is_absent=True)
        return
    missing = sorted(_states_in(before).keys() - _states_in(subject.path).keys())
    if missing:
        names = named([_states_in(before)[key] for key in missing])
        yield finding("CK525", "", f"{before.name} beside it has {names}; this save lacks them")


def _save_before(folder: Path) -> Path | None:
    """Return the directory with the same name but the next lower number that holds such files."""
    match = SAVE.fullmatch(folder.resolve().name)
    if match is None or not folder.is_dir():
        return None
    earlier = {
        int(other["number"]): path
        for path in entries(folder.resolve().parent)[:MAX_FILES]
        if (other := SAVE.fullmatch(path.name)) and other["name"] == match["name"]
        if int(other["number"]) < int(match["number"]) and path.is_dir()
    }
    return next((earlier[n] for n in sorted(earlier, reverse=True) if _states_in(earlier[n])), None)


def _states_in(folder: Path) -> dict[str, str]:
    """Return the names of the files with states, by what they are for each save."""
    names = [path.name for path in entries(folder)[:MAX_FILES] if STATE.fullmatch(path.name)]
    return {OF_A_RANK.sub(r"\1", name): name for name in names}


def _of_one_step(subject: Subject) -> Verdicts:
    """Compare the counts of optimizer, scheduler and run in trainers that keep them equal."""
    by_file = _steps_by_file(subject)
    if len(by_file) > 1 and len({*by_file.values()}) > 1:
        told = ", ".join(f"{name} {step:g}" for name, step in [*by_file.items()][:SHOWN])
        yield finding("CK526", "", f"the files count different steps of the optimizer: {told}")
        return
    row = trainer(subject)
    if not row.in_step:
        reason = "the counts of optimizer, scheduler and run need not be equal"
        yield NotChecked("CK526", reason, is_absent=True)
        return
    counts = dict(_counts(subject))
    if len(counts) < 2:
        yield NotChecked("CK526", "the file does not state two counts", is_absent=True)
        return
    run = counts.get("the run")
    if any(is_scaler(node) for _, node in parts(subject.checkpoint.tree)) and run is not None:
        counts = {what: count for what, count in counts.items() if count > run + 1}  # skipped steps
    if counts and max(counts.values()) - min(counts.values()) > 1:
        made = ", ".join(f"{what} {count:g}" for what, count in counts.items())
        yield finding("CK526", "", f"the files count different steps: {made}")


def _steps_by_file(subject: Subject) -> dict[str, float]:
    """Return the step that the optimizer's states in each file have; none if one has several.

    Parameters that began to train later have other steps, but in any of the files.
    """
    found: dict[str, set[float]] = {}
    for optimizer in optimizers_of(subject):
        for state in optimizer.states.values():
            step = state.get("step")
            path = step.chunks[0].span.source.path if _is_stored(step) else None
            count = number(scalar_value(subject.checkpoint.reader, step)) if path else None
            if path and count is not None:
                found.setdefault(path.name, set()).add(count)
    if any(len(steps) > 1 for steps in found.values()):
        return {}
    return {name: steps.pop() for name, steps in found.items()}


def _is_stored(step: Tree) -> TypeGuard[TensorRef]:
    return isinstance(step, TensorRef) and len(step.chunks) == 1


def _counts(subject: Subject) -> Iterator[tuple[str, float]]:
    """Yield the steps by who counted them; a scheduler of results does not count steps."""
    facts = facts_of(subject)
    if "global_step" in facts:
        yield "the run", facts["global_step"]
    made = [n for o in optimizers_of(subject) for n in steps_of(subject, o)]
    if made:
        yield "the optimizer", max(made)
    by_step = [a for a, fields in schedulers_of(subject.checkpoint.tree) if "lr_lambdas" in fields]
    yield from (("the scheduler", n) for at, n in scheduler_steps(subject) if at in by_step[:1])


class File(NamedTuple):
    """A file with a part of a state dict."""

    written: float  # seconds since 1970
    nbytes: int
    name: str


def _of_one_time(subject: Subject) -> Verdicts:
    """Compare the times at which the files of each state dict were written."""
    sets = dict.fromkeys(_sources(table) for table in subject.inventory.weights)
    several = [sources for sources in sets if len(sources) > 1]
    if not several:
        yield NotChecked("CK530", "each state dict lies in one file", is_absent=True)
    for sources in several:
        files = [
            File(source.changed_at, source.size, source.path.name)
            for source in sources
            if source.path is not None and source.changed_at is not None
        ]
        if len(files) < len(sources):
            yield NotChecked("CK530", "it is not known when the files were written")
        elif len(early_and_late := _apart(files)) > 1:
            early, late = early_and_late
            hours = (late[0].written - early[-1].written) / 3600
            few, when = (early, "before") if len(early) <= len(late) else (late, "after")
            names, rest = named([file.name for file in few], SHOWN), len(files) - len(few)
            be = "were" if len(few) > 1 else "was"
            others = f"the other {rest:,} files" if rest > 1 else "the other file"
            yield finding("CK530", "", f"{names} {be} written {hours:,.1f} hours {when} {others}")


def _sources(table: Table) -> frozenset[Source]:
    return frozenset(chunk.span.source for ref in table.tensors.values() for chunk in ref.chunks)


def _apart(files: Iterable[File]) -> list[list[File]]:
    """Return the files in order of time, divided at the pause that is too long by most."""
    ordered = sorted(files)
    beyond = [
        after.written - before.written - (PAUSE + after.nbytes / RATE)
        for before, after in pairwise(ordered)
    ]
    longest = max(range(len(beyond)), key=beyond.__getitem__) + 1
    return [ordered[:longest], ordered[longest:]] if beyond[longest - 1] > 0 else [ordered]


CHECKS = (
    Check(("CK525",), _complete),
    Check(("CK526",), _of_one_step),
    Check(("CK530",), _of_one_time),
)
