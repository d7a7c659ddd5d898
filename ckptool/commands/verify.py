"""Verdict on whether a checkpoint serves a job or a release, by rules with three states.

A damaged file is an answer (a failing finding of CK1), not an error: it was checked. A path that
could not be checked is an error: it does not exist, may not be read, or has a dtype that cannot be
represented. An error of one path leaves the others their verdicts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from ckptool.checks.base import NotChecked, Subject
from ckptool.checks.certificate import certify, refused
from ckptool.checks.container import beside, damage
from ckptool.checks.provenance import RULES as PROVENANCE
from ckptool.checks.provenance import proof
from ckptool.checks.registry import CHECKS
from ckptool.checks.running import (
    Selection,
    Verdict,
    judge,
    rules_asked_for,
    run_checks,
    select,
    spare,
)
from ckptool.checks.sources import Original, read_original
from ckptool.commands.operands import (
    as_operand,
    checkpoint_files,
    is_run,
    open_part,
    size_of_unread,
)
from ckptool.contents.dangers import met_before_failing
from ckptool.contents.inventory import Leaf
from ckptool.contents.selection import Operand, parse_operand
from ckptool.ema.layouts import Layouts
from ckptool.errors import (
    AddressError,
    CkptError,
    DamagedError,
    UnknownFormatError,
    UsageError,
    about,
    as_ckpt_error,
)
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.formats.provenance import read_provenance
from ckptool.formats.unopened import files_below
from ckptool.process.progress import Progress, no_progress, parts
from ckptool.process.ranks import Ranks
from ckptool.records import NamedTuple
from ckptool.reports.base import Finding, Severity
from ckptool.reports.requirements import REQUIREMENTS
from ckptool.reports.rules import RULES, finding, is_rule
from ckptool.reports.verify import State, VerifyReport
from ckptool.tree.walking import leaves

RESUME = "resume"  # the requirement for which a report has a certificate


class Looked(NamedTuple):
    """The verdict on a path, and the error where it could not be read."""

    report: VerifyReport
    error: CkptError | None = None


class Request(NamedTuple):
    """Options of ``verify`` for each file."""

    chosen: Selection = select()
    required: tuple[str, ...] = ()  # as ``required`` returns it, for the report
    like: Mapping[str, Leaf] | None = None  # the names and shapes of a model
    against: str | None = None  # PATH[#ADDRESS] of the weights that these were made from
    layouts: Layouts = ()
    progress: Progress = no_progress
    ranks: Ranks = Ranks()  # the processes that share what is read in full


def requirement_names() -> tuple[str, ...]:
    """Return the names that can be required."""
    return tuple(REQUIREMENTS)


def chosen_rules(
    options: Mapping[str, Any], *, like: bool = False, against: bool = False
) -> Selection:
    """Return the rules asked for; ``options`` are those of the configuration, by their names.

    A file must match the one that it is compared with: ``like`` requires that it loads, and
    ``against`` requires its provenance.

    Raises:
        UsageError: no rule or requirement has such a name.
    """
    options = with_new_names(options)
    require = [*options.get("require", ()), *_compared(like=like, against=against)]
    for name in require:
        if name not in REQUIREMENTS:
            known = ", ".join(REQUIREMENTS)
            raise UsageError(f"nothing to require is called {name!r}", hint=f"one of: {known}")
    for text in (*options.get("rules", ()), *options.get("ignore_rules", ())):
        if not is_rule(text):
            raise UsageError(f"there is no rule {text!r}", hint="ckptool rule lists them")
    return select(
        require=require,
        selected=options.get("rules", ()),
        ignored=options.get("ignore_rules", ()),
        strict=options.get("strict", False),
        bytes_=options.get("bytes"),
        values=options.get("values"),
    )


def combined(
    configured: Mapping[str, Any], typed: Mapping[str, Any], *, like: bool, against: bool
) -> dict[str, Any]:
    """Return the options of a configuration with those typed, which win.

    A configuration ignores no rule that was typed: neither one of ``--rules`` nor one that
    ``--require``, ``--like`` or ``--against`` needs.
    """
    configured, typed = with_new_names(configured), with_new_names(typed)
    require = [*typed.get("require", ()), *_compared(like=like, against=against)]
    asked = rules_asked_for(require, typed.get("rules", ()))
    spared = {"ignore_rules": spare(configured.get("ignore_rules", ()), asked)}
    return {**configured, **spared, **typed}


def required(options: Mapping[str, Any], *, like: bool, against: bool) -> tuple[str, ...]:
    """Return what is required, as asked for and by the files to compare with."""
    asked = (*options.get("require", ()), *_compared(like=like, against=against))
    return tuple(dict.fromkeys(asked))


def _compared(*, like: bool, against: bool) -> list[str]:
    """Return what a file to compare with requires."""
    return [name for name, is_given in (("loads", like), ("provenance", against)) if is_given]


OLD_NAMES = {"select": "rules", "ignore": "ignore_rules"}  # of options


def with_new_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under their new names; rules under an old and a new name go together."""
    named = {name: value for name, value in options.items() if name not in OLD_NAMES}
    for old, new in OLD_NAMES.items():
        if old in options:
            named[new] = [*options[old], *named.get(new, ())]
    return named


def verify_file(operand: Path | Operand, request: Request) -> VerifyReport:
    """Return the verdict on one file, or on the part of it that an operand names.

    Raises:
        CkptError: it, or a file that it is compared with, could not be read.
    """
    operand = as_operand(operand)
    with ExitStack() as opened:
        try:
            checkpoint = opened.enter_context(open_part(operand, request.layouts))
        except (DamagedError, UnknownFormatError) as error:
            return _unopened(operand, error, request)
        if checkpoint.is_part and next(leaves(checkpoint.tree), None) is None:
            raise AddressError(
                "this part holds no tensors to verify", path=operand.path, address=operand.address
            )
        subject = _subject(checkpoint, operand.address, request, opened)
        verdict = run_checks(CHECKS, subject, request.chosen)
        report = _report(operand, verdict, request, checkpoint.format_name, checkpoint.size_bytes)
        if RESUME in request.required and not checkpoint.is_part:
            report = replace(report, resume=certify(subject, verdict.findings))
        if request.against is not None and _have_passed(PROVENANCE, verdict):
            source = str(parse_operand(request.against).path)
            report = replace(report, proof=proof(subject, source))
        return report


def verify_all(operands: Iterable[Path | Operand], request: Request) -> list[Looked]:
    """Return the verdict on every file; a path that cannot be read has a verdict of its own.

    Raises:
        CkptError: the file of ``--against``, which the others are compared with, could not be read.
    """
    looked: list[Looked] = []
    listed = [(operand, *_listed(operand)) for operand in map(as_operand, operands)]
    following = parts(request.progress, [each for _, each_of, _ in listed for each in each_of])
    for operand, found, error in listed:
        if error is not None:
            looked.append(Looked(_unread(operand, error, request), error))
        looked += [_look(each, request) for each in islice(following, len(found))]
        if found and found != [operand]:
            looked += _rest(operand.path, [each.path for each in found], request)
    return looked


def _listed(operand: Operand) -> tuple[list[Operand], CkptError | None]:
    """Return the checkpoints of a run, or the operand itself; and why a run cannot be listed."""
    if operand.address is not None or not is_run(operand.path):
        return [operand], None
    try:
        return [*map(Operand, checkpoint_files(operand.path))], None
    except CkptError as error:
        return [], error


def _rest(folder: Path, files: Sequence[Path], request: Request) -> Iterator[Looked]:
    """Yield the verdict on everything else in a run's directory, if there is anything."""
    inside = {file for file in files if file.is_dir()}  # directories with verdicts of their own
    unopened = [
        file for file in files_below(folder, set(files)) if inside.isdisjoint(file.path.parents)
    ]
    if unopened:
        reason = "the checkpoints in the directory have verdicts of their own"
        report = _only(beside(unopened), Operand(folder), request, reason)
        yield Looked(replace(report, format="run"))


def _look(operand: Operand, request: Request) -> Looked:
    path = operand.path
    try:
        return Looked(verify_file(operand, request))
    except (CkptError, OSError, MemoryError, RecursionError) as error:
        told = as_ckpt_error(error)
        if request.against is not None and told.path == parse_operand(request.against)[0] != path:
            raise told from error
        return Looked(_unread(operand, told.at(path), request), told)


def _have_passed(rules: Iterable[str], verdict: Verdict) -> bool:
    passed = {check.rule for check in verdict.checks if check.state is State.PASSED}
    return passed.issuperset(rules)


def _unread(operand: Operand, error: CkptError, request: Request) -> VerifyReport:
    """Return the report on a path of which nothing is known but that it could not be read."""
    shown = f": {error.path}" if error.path not in {None, operand.path} else ""
    found = finding("CK120", error.address or "", f"{error.message}{shown}", error.hint)
    report = _only([found], operand, request, "the path cannot be read", error)
    return replace(report, error=error.document)


def _subject(
    checkpoint: Checkpoint, part: str | None, request: Request, opened: ExitStack
) -> Subject:
    return Subject(
        checkpoint,
        layouts=request.layouts,
        like=request.like,
        against=_source(request.against, request.layouts, opened, checkpoint)
        if request.against
        else None,
        reads=request.chosen.reads,
        progress=request.progress,
        ranks=request.ranks,
        part=part,
    )


def _source(operand: str, layouts: Layouts, opened: ExitStack, made: Checkpoint) -> Original:
    """Return the weights that a checkpoint was made from; of an average, the mean, made again."""
    path, address = parse_operand(operand)
    note = read_provenance(made.metadata)
    if note is not None and note.average is not None and address is None and is_run(path):
        from ckptool.commands.sources import averaged_again  # noqa: PLC0415 - for averages only

        return averaged_again(opened, path, note.average, layouts)
    checkpoint = opened.enter_context(open_checkpoint(path))
    with about(path):
        return read_original(checkpoint, address, layouts)


def _unopened(operand: Operand, error: CkptError, request: Request) -> VerifyReport:
    """Return the report on a file that cannot be opened: its damage; the rest is not checked."""
    findings = (*damage(operand.path, error), *met_before_failing(error.dangers))
    return _only(findings, operand, request, "the file cannot be opened", error)


def _only(
    findings: Iterable[Finding],
    operand: Operand,
    request: Request,
    reason: str,
    error: CkptError | None = None,
) -> VerifyReport:
    """Return a report of these findings; everything else is not checked, for the reason given."""
    findings = tuple(findings)
    said = {found.rule for found in findings}
    chosen = request.chosen._replace(  # a finding counts even if its rule is not selected
        active=request.chosen.active | said,
        listed=tuple(r.id for r in RULES if r.id in said or r.id in request.chosen.listed),
    )
    is_told = any(f.severity is Severity.ERROR or f.rule in chosen.required for f in findings)
    skipped = {rule: NotChecked(rule, reason, is_told=is_told) for rule in chosen.listed}
    verdict = judge(findings, skipped, chosen)
    path = operand.path
    report = _report(operand, verdict, request, None, size_of_unread(path, error))
    if RESUME in request.required and not os.path.isdir(path):  # noqa: PTH112 - never raises
        report = replace(report, resume=refused(verdict.findings))
    return report


def _report(
    operand: Operand, verdict: Verdict, request: Request, format_name: str | None, size: int
) -> VerifyReport:
    return VerifyReport(
        path=str(operand.path),
        address=operand.address,
        ok=verdict.ok,
        format=format_name,
        size_bytes=size,
        findings=verdict.findings,
        checks=verdict.checks,
        required=request.required,
        strict=request.chosen.strict,
    )
