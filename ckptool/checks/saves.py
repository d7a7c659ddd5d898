"""CK525, CK526: checks that the files of a directory are of one save, and all of it.

A trainer writes the parts of a save one by one. A job that is killed leaves the first of them, or,
where a directory is written again, some parts of the new save beside parts of the old one. The save
before it in the same run shows which parts there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts
from ckptool.checks.optimizers import scheduler_steps
from ckptool.checks.parts import (
    facts_of,
    is_scaler,
    optimizers_of,
    parts,
    schedulers_of,
    steps_of,
    trainer,
)
from ckptool.reports.rules import finding
from ckptool.tree.describing import named

# Files with a part of the training state; the weights may be in another form at each save.
STATE = re.compile(
    r"(custom_checkpoint_\d+|(dl_state_dict|optimizer|random_states|rng_state|sampler|scaler"
    r"|scheduler)(_\d+)?)\.(bin|pkl|pt|pth)|.+\.ckpt"
)
OF_A_RANK = re.compile(r"^(random_states|rng_state)_\d+")  # their number is that of processes
SAVE = re.compile(r"(?P<name>.*?)(?P<number>\d+)")
MAX_FILES = 10_000


def _complete(subject: Subject) -> Verdicts:
    before = _save_before(subject.path) if subject.checkpoint.is_local else None
    if before is None:
        yield NotChecked("CK525", "there is no earlier save beside it", is_absent=True)
        return
    missing = sorted(_states_in(before).keys() - _states_in(subject.path).keys())
    if missing:
        names = named([_states_in(before)[key] for key in missing])
        yield finding("CK525", "", f"{before.name} beside it has {names}, and this save has not")


def _save_before(folder: Path) -> Path | None:
    """Return the directory with the same name but the next lower number that holds such files."""
    match = SAVE.fullmatch(folder.resolve().name)
    if match is None or not folder.is_dir():
        return None
    earlier = {
        int(other["number"]): path
        for path in _listed(folder.resolve().parent)
        if (other := SAVE.fullmatch(path.name)) and other["name"] == match["name"]
        if int(other["number"]) < int(match["number"]) and path.is_dir()
    }
    return next((earlier[n] for n in sorted(earlier, reverse=True) if _states_in(earlier[n])), None)


def _states_in(folder: Path) -> dict[str, str]:
    """Return the names of the files with states, by what they are for each save."""
    names = [path.name for path in _listed(folder) if STATE.fullmatch(path.name)]
    return {OF_A_RANK.sub(r"\1", name): name for name in names}


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:MAX_FILES]
    except OSError:
        return []


# -------------------------------------------------------------------------------------------- steps


def _of_one_step(subject: Subject) -> Verdicts:
    """Compare the counts of optimizer, scheduler and run in trainers that keep them equal."""
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


CHECKS = (
    Check(("CK525",), _complete),
    Check(("CK526",), _of_one_step),
)
