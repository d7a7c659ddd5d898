"""The command line: the only package that knows the terminal, the environment and exit codes.

Each command has a module with its options and one call into ``commands``. Only the module of the
command that runs is imported. No input leads to a traceback: :func:`main` turns every error into
an ``error:`` line, a ``hint:`` line and exit code 2.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from ckptool.cli.catalogue import COMMANDS, OTHER_NAMES, command_of, spelled_out
from ckptool.cli.output import ExitCode, own_place, tell_interrupt, used_color
from ckptool.cli.parameters import HELP, asks_for_help, plain_call
from ckptool.errors import CkptError, UsageError, as_ckpt_error
from ckptool.process.allowance import keep_within
from ckptool.process.signals import INTERRUPTED, end_cleanly
from ckptool.render.outputs import EXACT, holds_errors, rendered
from ckptool.reports.base import ErrorReport

NARROWEST = 20  # columns
COLUMNS = 80  # of help in a pipe, unless the environment says how wide lines may be
COMPLETES = "_CKPTOOL_COMPLETE"  # set by the shell that asks for completions


def main(args: Sequence[str]) -> int:
    """Run one command and return its exit code; turn every error into text or a document."""
    if COMPLETES in os.environ:
        from ckptool.cli.program import complete

        complete()
        return ExitCode.DONE
    args = spelled_out(args)
    try:
        _refuse_empty(args)
        # A command returns None when it succeeds, and an exit code when the answer is no.
        code = _run(args)
    except KeyboardInterrupt:
        tell_interrupt()
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # typer exits when a pipe breaks
        _close_stdout()
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes an answer
        return _refuse(_translated(error), args)
    else:
        return code if isinstance(code, int) else ExitCode.DONE
    return ExitCode.DONE


def _run(args: Sequence[str]) -> Any:
    """Run a command; without typer, where its words are plain."""
    name, *words = args
    if name.startswith("-") and not HELP.isdisjoint(args):
        return _tell_help(name, used_color(_asked(args, "--color", "auto")))
    if name in COMMANDS:
        command = command_of(name)
        if asks_for_help(command, words):
            return _tell_help(name, used_color(_asked(args, "--color", "auto")))
        given = plain_call(command, words)
        if given is not None:
            return command(**given)
    from ckptool.cli.program import run_program

    return run_program(args)


def _tell_help(name: str, color: str) -> None:
    from ckptool.cli.help import help_of_command, help_of_program
    from ckptool.render.terminal import show

    report = help_of_command(name) if name in COMMANDS else help_of_program()
    columns = os.environ.get("COLUMNS", "")
    width = max(int(columns), NARROWEST) if columns.isdecimal() else COLUMNS
    show([report], sys.stdout, color, width=width)


# Options whose argument may be empty: the key path of the top, and no text.
MAY_BE_EMPTY = frozenset({"--ema", "--model", "--strip-prefix"})


def _refuse_empty(args: Sequence[str]) -> None:
    """Refuse empty arguments: a check that is asked for by ``"$UNSET"`` would not be made.

    Raises:
        UsageError: there is one.
    """
    for before, arg in zip(("", *args), args, strict=False):
        option, is_set, value = arg.partition("=")
        if arg and not (arg.startswith("--") and is_set and not value):
            continue
        behind = option or before
        if behind not in MAY_BE_EMPTY:
            where = f"the argument behind {behind}" if behind.startswith("-") else "an argument"
            raise UsageError(
                f"{where} is empty; a variable in the command may not be set",
                hint="name a file or a value; the working directory is .",
            )


def _bug(error: Exception) -> CkptError:
    """Return a bug as an error of one line with a hint; with CKPTOOL_DEBUG raise it as it is."""
    if os.environ.get("CKPTOOL_DEBUG"):
        raise error
    return CkptError(
        f"a bug in ckptool: {type(error).__name__}: {error}",
        hint="CKPTOOL_DEBUG=1 shows where; please report it with the format of the file",
    )


def _translated(error: Exception) -> CkptError:
    """Return an error of any class as one of ckptool."""
    known = isinstance(error, (CkptError, RecursionError, MemoryError, OSError))
    return as_ckpt_error(error) if known else _bug(error)


def _refuse(error: CkptError, args: Sequence[str]) -> int:
    with contextlib.suppress(OSError, AttributeError):  # without output the exit code reports it
        _write_error(error, args)
    return ExitCode.CANNOT


def _write_error(error: CkptError, args: Sequence[str]) -> None:
    report = ErrorReport(error.document | {"hint": _hint(error, args)})
    name = "json" if "--json" in args else _asked(args, "--format", "text")
    name = name if own_place().speaks else "text"  # one document for all processes
    if holds_errors(name):
        sys.stdout.write(rendered([report], name) + "\n")
    if name not in EXACT:
        from ckptool.render.terminal import show

        show([report], sys.stderr, used_color(_asked(args, "--color", "auto")))


def _hint(error: CkptError, args: Sequence[str]) -> str:
    """Return the hint of an error, with the same command again where words are to be added."""
    hint = error.hint or _help_of(args)
    if not error.adding:
        return hint
    from shlex import join

    command, *rest = args
    words = [*error.adding, *rest] if "--" in rest else [*rest, *error.adding]
    return f"{hint}: {join(['ckptool', command, *words])}"


def _tell_limit(error: CkptError) -> None:
    """Say why the process ends, from within whatever it does; a shell wants no words."""
    if COMPLETES in os.environ:
        return
    try:
        _write_error(error, sys.argv[1:])
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # noqa: BLE001 - a module that is being imported cannot be used
        os.write(2, f"error: {error.message}\nhint: {error.hint}\n".encode())


def _help_of(args: Sequence[str]) -> str:
    """Return what to type instead of a word that is no command, or for the help of the command."""
    if args and args[0] in OTHER_NAMES:
        return OTHER_NAMES[args[0]]
    return f"ckptool {args[0]} --help" if args and args[0] in COMMANDS else "ckptool --help"


def _asked(args: Sequence[str], option: str, default: str) -> str:
    """Return an option's value, also when the rest of the command line cannot be parsed."""
    for i, arg in enumerate(args):
        if arg.startswith(f"{option}="):
            return arg.partition("=")[2]
        if arg == option and i + 1 < len(args):
            return args[i + 1]
    return default


def _close_stdout() -> None:
    """Discard further output: the reader has gone away (``| head``), which is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _take_every_letter() -> None:
    """Let stdout and stderr escape characters that their encoding lacks, instead of failing."""
    from ckptool.render.encodings import ERRORS

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def run() -> None:
    """Run the whole process, from the command line's arguments to its exit code."""
    end_cleanly(tell_interrupt)
    if os.environ.get("CKPTOOL_LIMITS") != "off":
        keep_within(_tell_limit)
    # numpy's BLAS starts a thread for each CPU, which waits by spinning: 0.08 s of a core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _take_every_letter()
    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        _close_stdout()
    except (OSError, AttributeError):  # a full disk behind the pipe, or no output at all
        code = ExitCode.CANNOT
    # Every file is closed and in place; to free a tree of 100,000 tensors would take 0.3 s.
    os._exit(code)
