"""Whether a checkpoint is what a job or a release needs it to be: rules with three states.

A file that is damaged is an answer (a failing finding of CK1), not an error: it was looked at. An
error is what could not be looked at: a path that does not exist, no permission, an element type
that cannot be represented.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from ckptool.checks.base import NotChecked, Subject
from ckptool.checks.container import damage
from ckptool.checks.registry import CHECKS
from ckptool.checks.running import REQUIREMENTS, Selection, Verdict, judge, run_checks, select
from ckptool.checks.sources import Source, read_source
from ckptool.commands.inspect import checkpoint_files, is_run
from ckptool.errors import CkptError, DamagedError, UnknownFormatError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.inventory import Leaf
from ckptool.layouts import Layouts
from ckptool.numerics import Progress, no_progress
from ckptool.ranks import Ranks
from ckptool.rules import RULES, is_rule
from ckptool.selection import parse_operand
from ckptool.trust_findings import met_before_failing
from ckptool.verify_reports import VerifyReport


class Request(NamedTuple):
    """What ``verify`` is asked to do with each file."""

    chosen: Selection = select()
    required: tuple[str, ...] = ()  # as asked, for the report
    like: Mapping[str, Leaf] | None = None  # the names and shapes of a model
    against: str | None = None  # PATH[#ADDRESS] of what the weights are made from
    layouts: Layouts = ()
    progress: Progress = no_progress
    ranks: Ranks = Ranks()  # the processes that share what is read in full


def chosen_rules(
    options: Mapping[str, Any], *, like: bool = False, against: bool = False
) -> Selection:
    """What is asked for; ``options`` are those of the configuration, by their names.

    What a file is compared with is meant to be like it: ``--like`` requires that it loads.

    Raises:
        UsageError: a name that nothing is called.
    """
    require = [*options.get("require", ())]
    require += [name for name, is_given in (("loads", like), ("provenance", against)) if is_given]
    for name in require:
        if name not in REQUIREMENTS:
            known = ", ".join(REQUIREMENTS)
            raise UsageError(f"nothing to require is called {name!r}", hint=f"one of: {known}")
    for text in (*options.get("select", ()), *options.get("ignore", ())):
        if not is_rule(text):
            raise UsageError(f"there is no rule {text!r}", hint="ckptool rule lists them")
    return select(
        require=require,
        selected=options.get("select", ()),
        ignored=options.get("ignore", ()),
        strict=options.get("strict", False),
        bytes_=options.get("bytes"),
        values=options.get("values"),
    )


def verify_file(path: Path, request: Request) -> VerifyReport:
    """The verdict on one file.

    Raises:
        CkptError: it, or a file it is compared with, could not be looked at.
    """
    with ExitStack() as opened:
        try:
            checkpoint = opened.enter_context(open_checkpoint(path))
        except (DamagedError, UnknownFormatError) as error:
            return _unopened(path, error, request)
        verdict = run_checks(CHECKS, _subject(checkpoint, request, opened), request.chosen)
        size = checkpoint.size_bytes
        return _report(path, verdict, request, checkpoint.format_name, size)


def _subject(checkpoint: Checkpoint, request: Request, opened: ExitStack) -> Subject:
    return Subject(
        checkpoint,
        layouts=request.layouts,
        like=request.like,
        against=_source(request.against, request.layouts, opened) if request.against else None,
        reads=request.chosen.reads,
        progress=request.progress,
        ranks=request.ranks,
    )


def _source(operand: str, layouts: Layouts, opened: ExitStack) -> Source:
    path, address = parse_operand(operand)
    checkpoint = opened.enter_context(open_checkpoint(path))
    try:
        return read_source(checkpoint, address, layouts)
    except CkptError as error:
        raise error.at(path) from error.__cause__


def _unopened(path: Path, error: CkptError, request: Request) -> VerifyReport:
    """What is wrong is known; everything else was not looked at."""
    findings = (*damage(path, error), *met_before_failing(error.dangers))
    said = {found.rule for found in findings}
    chosen = request.chosen._replace(  # it counts, whatever was selected
        active=request.chosen.active | said,
        listed=tuple(r.id for r in RULES if r.id in said or r.id in request.chosen.listed),
    )
    skipped = {rule: NotChecked(rule, "the file cannot be opened") for rule in chosen.listed}
    verdict = judge(findings, skipped, chosen)
    size = path.stat().st_size if path.is_file() else 0
    return _report(path, verdict, request, None, size)


def _report(
    path: Path, verdict: Verdict, request: Request, format_name: str | None, size: int
) -> VerifyReport:
    return VerifyReport(
        path=str(path),
        ok=verdict.ok,
        format=format_name,
        size_bytes=size,
        findings=verdict.findings,
        checks=verdict.checks,
        required=request.required,
        strict=request.chosen.strict,
    )


def expanded(paths: Iterable[Path]) -> Iterator[Path]:
    """Folders that hold a run become the checkpoints in them.

    Raises:
        UnreadableError: one cannot be listed, or there are none in it.
    """
    for path in paths:
        yield from checkpoint_files(path) if is_run(path) else (path,)
