"""The options of ``ckptool verify``."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from ckptool.cli import completion
from ckptool.cli import options as shared
from ckptool.cli.config import read_settings
from ckptool.cli.output import (
    ExitCode,
    answer,
    concluding,
    joined,
    output_for,
    own_place,
    progressing,
    report_files,
    tell_config,
    with_config,
    write_reports,
)
from ckptool.cli.parameters import Option
from ckptool.commands.like import read_like
from ckptool.commands.report_files import check_report_files
from ckptool.commands.verify import (
    Request,
    chosen_rules,
    combined,
    required,
    verify_all,
    with_new_names,
)
from ckptool.contents.selection import Operand, parse_operand
from ckptool.errors import CkptError, UsageError
from ckptool.render.outputs import outputs_of
from ckptool.reports.verify import ChoiceReport, State, VerifyReport

Names = list[str] | None
LONG = 600  # characters of a path or a reason
SHOWN = 10  # of the checkpoints that were passed over
CHECKSUMS = "CK103"  # the rule that --bytes turns on

MUST = "What must hold"  # panel of the help
READS = "What is read"  # panel of the help
CHOICE = "The best of a run"  # panel of the help


def command(
    paths: shared.Operands,
    require: Annotated[
        Names,
        Option(
            metavar="NAME,...",
            autocompletion=completion.requirements,
            panel=MUST,
            help="Require that the checkpoint is what NAME says: ema, resume, finite, safe, "
            "weights-only, intact, loads or provenance.",
        ),
    ] = None,
    rules: Annotated[
        Names,
        Option(
            metavar="RULE,...",
            autocompletion=completion.rules,
            panel=MUST,
            help="Check only these rules; CK404 is a rule, CK4 a family.",
        ),
    ] = None,
    ignore_rules: Annotated[
        Names,
        Option(
            metavar="RULE,...",
            autocompletion=completion.rules,
            panel=MUST,
            help="Leave out these rules or families of rules.",
        ),
    ] = None,
    select: Annotated[Names, Option(hidden=True)] = None,  # old name of --rules
    ignore: Annotated[Names, Option(hidden=True)] = None,  # old name of --ignore-rules
    like: Annotated[
        str | None,
        Option(
            metavar="OPERAND",
            autocompletion=completion.operands,
            panel=MUST,
            help="Check that a model with the names and shapes of OPERAND can load the weights.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        Option(
            metavar="OPERAND",
            autocompletion=completion.operands,
            panel=MUST,
            help="Check that the weights are the EMA weights of OPERAND, or those at its address.",
        ),
    ] = None,
    bytes_: Annotated[
        bool | None,
        Option(
            "--bytes/--no-bytes",
            panel=READS,
            help="Read every byte and compare the checksums.",
        ),
    ] = None,
    values: Annotated[
        bool | None,
        Option(
            "--values/--no-values",
            panel=READS,
            help="Read every value and look for NaN, infinity, constants.",
        ),
    ] = None,
    strict: Annotated[
        bool | None,
        Option("--strict/--no-strict", panel=MUST, help="Count warnings as failures."),
    ] = None,
    latest: Annotated[
        bool,
        Option(
            "--latest-valid",
            panel=CHOICE,
            help="Print the path of the newest that passes.",
        ),
    ] = False,
    best: Annotated[
        str | None,
        Option(
            metavar="METRIC[:min|max]",
            panel=CHOICE,
            help="Print the path of the checkpoint with the best METRIC that passes.",
        ),
    ] = None,
    verbose: Annotated[
        bool,
        Option(
            "--verbose",
            "-v",
            panel=shared.OUTPUT,
            help="List the checks that were not made, and why; show long remedies whole.",
        ),
    ] = False,
    quiet: Annotated[
        bool,
        Option(
            "--quiet",
            "-q",
            panel=shared.OUTPUT,
            help="Print only the files that fail, and why.",
        ),
    ] = False,
    config: shared.Config = None,
    form: shared.Format = "text",
    report: shared.Reports = None,
    force: Annotated[bool, Option("--force", help="Replace existing files of --report.")] = False,
    json: shared.Json = False,
    color: shared.Color = "auto",
) -> ExitCode:
    """Check that a checkpoint is intact, safe and complete.

    The exit code is 0 when it passes, 1 when a check fails, and 2 when a file cannot be read.
    """
    answered = "ChoiceReport" if latest or best is not None else "VerifyReport"
    files = report_files(answered, report or ())
    shown = output_for(answered, form, json=json)
    text = _text_form(shown, answered, verbose=verbose, quiet=quiet)
    asked = {
        "require": require, "rules": rules, "ignore_rules": ignore_rules, "select": select,
        "ignore": ignore,
    }  # fmt: skip
    lists = {name: _listed(texts) for name, texts in asked.items() if texts is not None}
    flags = {"strict": strict, "bytes": bytes_, "values": values}
    settings = read_settings("verify", [*paths, like, against], config)
    typed = {**lists, **{name: flag for name, flag in flags.items() if flag is not None}}
    compared = {"like": like is not None, "against": against is not None}
    given = combined(settings.options, typed, **compared)
    place = own_place()
    check_report_files([file for _, file in files], [*paths, like, against], force=force)
    if place.speaks:
        tell_config(settings)
    with joined(place) as ranks:
        with progressing("verifying", [*paths, like, against]) as progress:
            layouts = settings.layouts
            request = Request(
                chosen_rules(given, **compared),
                required(given, **compared),
                like=read_like(like, layouts) if like else None,
                against=against,
                layouts=layouts,
                progress=progress,
                ranks=ranks,
            )
            made, refused = _answers(paths, request, latest=latest, best=best)
            answers = [with_config(each, settings) for each in made]
        again = _options_again(lists, flags, like=like, against=against, config=config)
        tells_alone = len(answers) == 1 and shown in outputs_of(
            "ErrorReport"
        )  # the error has everything that the report would have
        code = _code(answers, refused)
        if place.speaks:
            write_reports(files, answers, force=force)
            if not (refused and tells_alone):
                with concluding():
                    # A script takes stdout as a path, so that stays empty where none passes.
                    aside = any(isinstance(a, ChoiceReport) and a.path is None for a in answers)
                    answer(answers, text, color=color, stream=sys.stderr if aside else None)
                if shown == "text":
                    _tell_passed_over(answers, again)
                if text == "text" and flags["bytes"]:
                    _tell_unread(answers)
    if refused and (tells_alone or shown == "text"):
        raise refused[0]
    return code


def _text_form(output: str, answered: str, *, verbose: bool, quiet: bool) -> str:
    """Return the output, for text with the part of it that ``--verbose`` or ``--quiet`` asks for.

    Raises:
        UsageError: both are asked for, or another form than the text of a verdict.
    """
    if not (verbose or quiet):
        return output
    if verbose and quiet:
        raise UsageError("--verbose and --quiet do not go together", hint="leave one out")
    option = "verbose" if verbose else "quiet"
    if output != "text" or answered != "VerifyReport":
        raise UsageError(
            f"--{option} changes the text of a verdict, and this answer is another one",
            hint=f"leave out --{option}, or --format, --json, --latest-valid and --best",
        )
    return option


def _answers(
    operands: list[str], request: Request, *, latest: bool, best: str | None
) -> tuple[list[ChoiceReport] | list[VerifyReport], list[CkptError]]:
    """Return the answers, and the errors of the paths that could not be read."""
    if latest and best is not None:
        raise UsageError("--latest-valid and --best choose by different rules", hint="give one")
    if latest or best is not None:
        from ckptool.commands.choosing import best_by, latest_valid

        paths = [_whole(parse_operand(text)) for text in operands]
        if best is not None:
            return [best_by(best, paths, request)], []
        return [latest_valid(paths, request)], []
    looked = verify_all(map(parse_operand, operands), request)
    return [each.report for each in looked], [each.error for each in looked if each.error]


def _options_again(
    lists: Mapping[str, list[str]], flags: Mapping[str, bool | None], **single: str | Path | None
) -> list[str]:
    """Return the options that decide on the verdict, as words of a command line."""
    words = [
        word
        for name, texts in with_new_names(lists).items()
        for word in (f"--{name.replace('_', '-')}", ",".join(texts))
    ]
    words += [f"--{'' if on else 'no-'}{name}" for name, on in flags.items() if on is not None]
    for name, value in single.items():
        words += [f"--{name}", str(value)] if value is not None else []
    return words


def _tell_unread(answers: Sequence[ChoiceReport | VerifyReport]) -> None:
    """Print on stderr why checksums were not compared that ``--bytes`` asks for."""
    from ckptool.render.text import plural, printable

    files: dict[str, int] = {}
    for report in answers:
        for check in report.checks if isinstance(report, VerifyReport) and report.format else ():
            if check.rule == CHECKSUMS and check.state is State.NOT_CHECKED:
                files[check.reason] = files.get(check.reason, 0) + 1
    for reason, count in files.items():
        where = f" (in {plural(count, 'file')})" if len(answers) > 1 else ""
        sys.stderr.write(f"note: --bytes: {printable(reason, LONG)}{where}\n")


def _tell_passed_over(
    answers: Sequence[ChoiceReport | VerifyReport], options: Sequence[str]
) -> None:
    """Print on stderr what was passed over, and why; stdout has the path alone, for a script."""
    from ckptool.render.text import printable

    for report in answers:
        if not isinstance(report, ChoiceReport):
            continue
        for each in report.passed_over[:SHOWN]:
            path, reason = printable(each.path, LONG), printable(each.reason, LONG)
            sys.stderr.write(f"skipped {path}: {reason}\n")
        if len(report.passed_over) > SHOWN:
            more = len(report.passed_over) - SHOWN
            sys.stderr.write(f"skipped {more:,} more: --json has them all\n")
        if report.path is None and report.reports:
            command = shlex.join(["ckptool", "verify", report.reports[0].path, *options])
            sys.stderr.write(f"hint: to see everything that is wrong: {printable(command, LONG)}\n")
            _tell_losses(report)


def _tell_losses(choice: ChoiceReport) -> None:
    """Print the option with which a checkpoint passes whose only fault is a loss."""
    from ckptool.render.states import counting
    from ckptool.render.text import printable

    for report in choice.reports:
        resume, faults = report.resume, counting(report, report.findings)
        if resume and resume.goes_on and {found.rule for found in faults} <= {*resume.without}:
            rules, path = ",".join(resume.without), printable(report.path, LONG)
            sys.stderr.write(
                f"hint: a run goes on from {path}, with a loss; to accept it, add "
                f"--ignore-rules {rules}\n"
            )
            return


def _whole(operand: Operand) -> Path:
    """Return the path of an operand without an address.

    Raises:
        UsageError: there is an address.
    """
    if operand.address is not None:
        raise UsageError(
            f"{operand.path}#{operand.address}: --latest-valid and --best choose whole checkpoints",
            hint="leave out #ADDRESS",
        )
    return operand.path


def _code(answers: Sequence[ChoiceReport | VerifyReport], refused: list[CkptError]) -> ExitCode:
    """Return the exit code; one path that cannot be read decides it."""
    if refused:
        return ExitCode.CANNOT
    passed = all(
        report.path is not None if isinstance(report, ChoiceReport) else report.ok
        for report in answers
    )
    return ExitCode.DONE if passed else ExitCode.NO


def _listed(given: list[str]) -> list[str]:
    """Return names that were given one by one, or joined by commas."""
    return [name.strip() for text in given for name in text.split(",") if name.strip()]
