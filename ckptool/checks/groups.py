"""CK527-CK529: checks that a scheduler and the names of parameters fit the optimizer and the run.

torch compares neither when it loads: a scheduler sets as many rates as it has, an optimizer takes
its states by position whatever the parameters are called.
"""

from __future__ import annotations

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts, an_optimizer
from ckptool.checks.optimizers import accumulates
from ckptool.checks.parts import number, optimizers_of, schedulers_of
from ckptool.checks.settings import settings_in
from ckptool.contents.alignment import unwrapped
from ckptool.reports.rules import finding
from ckptool.tree.addresses import format_address
from ckptool.tree.describing import named

# Settings with the number of steps that a run makes.
LENGTHS = frozenset({
    "max_steps", "total_steps", "max_iters", "max_iter", "num_training_steps", "max_train_steps",
    "total_iters", "train_steps", "num_steps",
})  # fmt: skip


def _groups(subject: Subject) -> Verdicts:
    """Report a scheduler with more rates than any optimizer has groups.

    It may have fewer: a group that was added later keeps its rate.
    """
    optimizers = [o for o in optimizers_of(subject) if o.groups and not o.is_flat]
    stated = [
        (address, len(rates))
        for address, fields in schedulers_of(subject.checkpoint.tree)
        if isinstance(rates := fields.get("base_lrs"), (list, tuple))
    ]
    if not stated or not optimizers:
        yield NotChecked("CK527", "no scheduler that states its base rates", is_absent=True)
        return
    most = max(len(optimizer.groups) for optimizer in optimizers)
    for address, count in stated:
        if count > most:
            message = f"it has rates for {count} groups of parameters, the optimizer has {most}"
            yield finding("CK527", format_address(address), message)


def _length(subject: Subject) -> Verdicts:
    """Report a scheduler of a fixed length that is over before the run."""
    lengths = [
        (address, fields, total)
        for address, fields in schedulers_of(subject.checkpoint.tree)
        if (total := number(fields.get("total_steps"))) is not None and total > 0
    ]
    if not lengths:
        yield NotChecked("CK528", "no scheduler that states its length", is_absent=True)
    runs = _run_lengths(subject)
    for address, fields, total in lengths:
        made = number(fields.get("last_epoch")) or 0
        where = format_address(address)
        if made > total:
            yield finding("CK528", where, f"it has made {made:g} steps of {total:g}")
        elif runs and not accumulates(subject) and total < min(runs.values()):
            place, length = min(runs.items(), key=lambda item: item[1])
            message = f"it ends after {total:g} steps, but the run after {length:g} ({place})"
            yield finding("CK528", where, message)


def _run_lengths(subject: Subject) -> dict[str, float]:
    """Return the lengths of the run in steps, by the key paths of the settings."""
    return {
        f"{where}/{key}" if where else key: length
        for where, fields in settings_in(subject.checkpoint.tree)
        for key, value in fields.items()
        if key in LENGTHS and (length := number(value)) is not None and length > 0
    }


def _names(subject: Subject) -> Verdicts:
    """Report parameters that were renamed after the optimizer took their names.

    An optimizer all of whose names are unknown has the names of an inner module.
    """
    known = {unwrapped(name) for table in subject.inventory.weights for name in table.entries}
    looked = False
    for optimizer in optimizers_of(subject):
        names = list(dict.fromkeys(optimizer.names.values()))
        lost = [name for name in names if unwrapped(name) not in known]
        looked = looked or bool(names)
        if 0 < len(lost) < len(names):
            message = f"{len(lost)} of {len(names)} parameters have names that no weight has"
            yield finding("CK529", format_address(optimizer.address), f"{message}: {named(lost)}")
    if not looked:
        yield NotChecked("CK529", "the optimizer keeps no names of parameters", is_absent=True)


CHECKS = (
    Check(("CK527",), _groups, (an_optimizer,)),
    Check(("CK528",), _length),
    Check(("CK529",), _names, (an_optimizer,)),
)
