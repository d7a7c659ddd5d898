"""The resume certificate: whether a run goes on from a checkpoint, and what is lost by it.

The rules decide whether it goes on at all. The certificate states for each part of a run where it
is, or who makes it again, or what its absence means: a row of ``PLACES`` finds a part in the
checkpoint, a row of ``contents/trainers.py`` knows what its trainer never stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from ckptool.checks.base import Subject
from ckptool.checks.generators import (
    NAMES,
    missing_beside_torch,
    unstored_by_choice,
    were_on_cuda,
)
from ckptool.checks.optimizers import stored_schedulers, was_scheduled
from ckptool.checks.parts import excused, facts_of, is_scaler, number, parts, trainer
from ckptool.checks.settings import SETTINGS, float16_setting, has_scaler
from ckptool.contents.inventory import is_optimizer, is_state_dict
from ckptool.contents.trainers import PARTS, PLAIN, SEEDED, Trainer, count_of, is_there
from ckptool.contents.walks import ByLevel
from ckptool.names import Words, says, whole
from ckptool.regex import regex
from ckptool.reports.base import Finding, Severity
from ckptool.reports.requirements import REQUIREMENTS
from ckptool.reports.verify import PartState, ResumePart, ResumeReport, ResumeVerdict
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import Address, Tree, fields_of, is_plain

DATA = whole(
    "sampler", "dataloader", "data_loader", "dl_state_dict", "dataset_state", "data_sampler",
    "train_iterator", "loader",
)  # fmt: skip
CALLBACKS = whole("callback", "early_stopping", "stopper", "hook")
OF_A_RANK = regex(r"(random_states|rng_state)_(\d+)\.(pkl|pth)")
MAX_DEPTH = 2  # levels below the top at which the state of a loader or a callback is
MAX_CHILDREN = 1_000
MAX_SHOWN = 8  # key paths of a part


def certify(subject: Subject, findings: Iterable[Finding]) -> ResumeReport:
    """Return the certificate of an open checkpoint on which the rules have decided."""
    row, findings = trainer(subject), tuple(findings)
    told = tuple(_part(subject, row, part) for part in PARTS)
    because = refusals(findings)
    lost = tuple(part.note for part in told if part.state == PartState.LOST)
    without = _without(because, told)
    processes = _processes(subject.checkpoint.tree)
    return ResumeReport(
        verdict=_verdict(because, lost),
        trainer=row.name,
        processes=processes,
        parts=told,
        lost=lost,
        provided=(*_conditions(subject, told, processes), *_unstarted(findings)),
        because=tuple(map(_told, because)),
        goes_on=len(without) == len(because),
        without=tuple(dict.fromkeys(without)),
    )


def refused(findings: Iterable[Finding]) -> ResumeReport:
    """Return the certificate of a checkpoint that could not be opened."""
    because = tuple(map(_told, refusals(findings)))
    return ResumeReport(ResumeVerdict.NO, None, None, (), (), (), because)


def refusals(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the errors for which a resume is refused; what is only unsafe does not stop it."""
    return tuple(
        found
        for found in findings
        if found.severity == Severity.ERROR
        and (found.rule.startswith(("CK1", "CK5")) or found.rule in REQUIREMENTS["resume"].rules)
    )


def _told(found: Finding) -> str:
    return f"{found.address}: {found.message}" if found.address else found.message


# Rules that miss a part without which a run goes on, though not as it would have; and the part.
GOES_ON_WITHOUT: Mapping[str, str] = {
    "CK507": "scheduler",
    "CK510": "rng",
    "CK511": "rng",
    "CK513": "progress",
    "CK524": "scaler",
}


def _without(because: Iterable[Finding], told: Iterable[ResumePart]) -> list[str]:
    """Return the rules of those refusals that only tell of a part that is lost."""
    lost = {part.part for part in told if part.state == PartState.LOST}
    return [found.rule for found in because if GOES_ON_WITHOUT.get(found.rule) in lost]


def _verdict(because: tuple[Finding, ...], lost: tuple[str, ...]) -> ResumeVerdict:
    if because:
        return ResumeVerdict.NO
    return ResumeVerdict.WITH_LOSSES if lost else ResumeVerdict.TO_THE_BIT


def _conditions(
    subject: Subject, told: tuple[ResumePart, ...], processes: int | None
) -> Iterator[str]:
    row = trainer(subject)
    if row is PLAIN and any(p.part == "data" and p.state == PartState.UNUSED for p in told):
        yield "it was saved between two epochs: no position in the data is stored"
    unstored = unstored_by_choice(subject)
    if unstored is not None and not excused(subject, "rng", "CK531"):
        yield f"nothing in the run draws from {NAMES[unstored]}'s random generator"
    if row.registered:
        count = count_of(subject.checkpoint.tree, row.registered)
        yield f"the script registers objects for checkpointing: {count}, as many as are stored"
    if processes and processes > 1:
        yield f"it goes on with {processes} processes, as it was saved"


def _unstarted(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield the condition under which a parameter without a state of the optimizer lost nothing."""
    for found in findings:
        if found.rule == "CK503":
            yield f"in {found.address}, the parameters without a state never had a gradient"


# --------------------------------------------------------------------------------- part by part


def _part(subject: Subject, row: Trainer, part: str) -> ResumePart:
    own = row.own.get(part)
    is_own = own is not None and is_there(subject.checkpoint.tree, own)
    places = (own,) if own and is_own else tuple(PLACES[part](subject)[:MAX_SHOWN])
    lacking = LACKING[part](subject) if part in LACKING else ""
    if places and not lacking:
        return ResumePart(part, PartState.STORED, tuple(filter(None, places)))
    if part in row.remade:
        return ResumePart(part, PartState.REMADE, note=row.remade[part])
    if part in row.never and not places:
        return ResumePart(part, PartState.LOST, note=row.never[part])
    note = lacking or ("" if places else NEEDED.get(part, ""))
    return ResumePart(part, PartState.LOST if note else PartState.UNUSED, places, note)


# The parts that every run has, with what it means if one is not there.
NEEDED: Mapping[str, str] = {
    "weights": "the weights start anew",
    "optimizer": "the optimizer starts without its moments and its count of steps",
    "progress": "the count of epochs and steps starts again at 0",
    "rng": SEEDED,
}


def _lacking_generators(subject: Subject) -> str:
    rng = subject.training.rng
    missing = [] if "torch" in rng or not rng else ["torch"]
    missing += ["CUDA"] if rng and "cuda" not in rng and were_on_cuda(subject) else []
    if rng and unstored_by_choice(subject) is None:  # else it is a condition, and no loss
        missing += missing_beside_torch(subject)
    within = trainer(subject).within
    if within and not missing and _is_within_an_epoch(subject.checkpoint.tree):
        return within
    return f"the random state of {' and '.join(missing)} starts again" if missing else ""


def _is_within_an_epoch(tree: Tree) -> bool:
    """Return whether an engine has counted iterations that make no whole number of epochs."""
    for fields in map(fields_of, fields_of(tree).values()):
        made, length = number(fields.get("iteration")), number(fields.get("epoch_length"))
        if made and length and made % length:
            return True
    return False


def _lacking_scheduler(subject: Subject) -> str:
    is_lost = was_scheduled(subject) and not stored_schedulers(subject)
    return "the learning rate starts again" if is_lost else ""


def _lacking_scaler(subject: Subject) -> str:
    is_lost = not has_scaler(subject) and float16_setting(subject)
    return "the scale of the gradients starts again, and steps are skipped" if is_lost else ""


# Parts of which a run may have had more than is there, with what is lost then; "" for nothing.
LACKING: Mapping[str, Callable[[Subject], str]] = {
    "rng": _lacking_generators,
    "scheduler": _lacking_scheduler,
    "scaler": _lacking_scaler,
}


def _scaler(subject: Subject) -> list[str]:
    """Return the key paths of scalers; an empty one for a scaler in a form or file of its own."""
    found = (at for at, node in parts(subject.checkpoint.tree) if is_scaler(node))
    return [format_address(at) for at in found] or ([""] if has_scaler(subject) else [])


PLACES: Mapping[str, Callable[[Subject], list[str]]] = {
    "weights": lambda s: [format_address(s.location.model.address)] if s.location.model else [],
    "optimizer": lambda s: [*map(format_address, s.inventory.optimizers)],
    "scheduler": lambda s: [*map(format_address, stored_schedulers(s))],
    "scaler": _scaler,
    "progress": lambda s: [*facts_of(s)],
    "rng": lambda s: [place for places in s.training.rng.values() for place in places],
    "data": lambda s: [format_address(at) for at, _ in _called(s.checkpoint.tree, DATA)],
    "callbacks": lambda s: [format_address(at) for at, _ in _called(s.checkpoint.tree, CALLBACKS)],
}


def _called(tree: Tree, words: Words) -> Iterator[tuple[Address, Tree]]:
    """Yield the parts near the top whose keys have such words, and which are not empty."""
    walk = ByLevel[tuple[Address, Tree]](MAX_DEPTH, ((), tree))
    for address, node in walk:
        fields = {} if is_optimizer(node) or is_state_dict(node) else fields_of(node)
        for key, child in list(fields.items())[:MAX_CHILDREN]:
            if says(str(key), words):
                if not (is_plain(child) or child in ({}, [], ())):
                    yield (*address, key), child
            elif isinstance(child, dict) and not SETTINGS.search(str(key)):
                walk.enter((*address, key), child)


# ------------------------------------------------------------------------------------- processes


def _processes(tree: Tree) -> int | None:
    """Return the number of processes that the checkpoint states; None if it does not."""
    fields = fields_of(tree)
    stated = number(fields.get("dp_world_size"))
    if stated is not None:
        return int(stated)
    ranks = [match for key in fields if (match := OF_A_RANK.fullmatch(str(key)))]
    if ranks:
        return len(ranks)
    return 1 if "rng_state.pth" in fields else None
