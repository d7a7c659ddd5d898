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
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from ckptool import __version__
from ckptool.cli.catalogue import COMMANDS, spelled_out
from ckptool.cli.output import ExitCode, own_place, used_color
from ckptool.errors import CkptError, UsageError, as_ckpt_error
from ckptool.process.signals import INTERRUPTED, end_cleanly
from ckptool.render.outputs import EXACT, holds_errors, rendered
from ckptool.reports.base import ErrorReport

ClickError: type[Exception] = typer.BadParameter.__mro__[2]  # click's own, in whichever package

COMPLETES = "_CKPTOOL_COMPLETE"  # set by the shell that asks for completions
WORDS = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")  # what was typed, as the shells pass it


def _app(loaded: Iterable[str]) -> typer.Typer:
    """Return the program; of the other commands only the name and the help."""
    app = typer.Typer(
        name="ckptool",
        help="Look into training checkpoints, find the EMA weights, get them out.",
        epilog="ckptool FILE is short for ckptool inspect FILE. Example: ckptool last.ckpt",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for name, row in COMMANDS.items():
        module, _, function = row.at.partition(".")
        command: Callable[..., None] = _unloaded
        if name in loaded:
            command = getattr(import_module(f"ckptool.cli.{module}"), function)
        help_text = None if name in loaded else row.help
        epilog = f"Example: {row.example}"
        app.command(name, help=help_text, epilog=epilog, rich_help_panel=row.panel)(command)
    return app


def _unloaded() -> None:
    """Stand for a command that is only listed."""


def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version of ckptool.")
    ] = False,
) -> None:
    if version:
        sys.stdout.write(f"ckptool {__version__}\n")


# ------------------------------------------------------------------------------------------- errors


def main(args: Sequence[str]) -> int:
    """Run one command and return its exit code; turn every error into text or a document."""
    if COMPLETES in os.environ:
        return _complete()
    if not os.environ.get("FORCE_COLOR"):  # typer colours help in the logs of GitHub's jobs
        os.environ.setdefault("_TYPER_FORCE_DISABLE_TERMINAL", _is_plain())
    args = spelled_out(args)
    app = _app(args[:1])
    try:
        _refuse_empty(args)
        # A command returns None when it succeeds, and exits with a code when the answer is no.
        code = app(args=args, standalone_mode=False, prog_name="ckptool")
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # typer exits when a pipe breaks
        _close_stdout()
    except tuple(TRANSLATIONS) as error:
        made = (make(error) for kind, make in TRANSLATIONS.items() if isinstance(error, kind))
        return _refuse(next(made), args)
    else:
        return code if isinstance(code, int) else ExitCode.DONE
    return ExitCode.DONE


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
                f"{where} is empty, as of a variable that is not set",
                hint="name a file or a value; the working directory is .",
            )


def _is_plain() -> str:
    """Return "1" if stdout is no terminal; the empty text is no setting."""
    return "" if sys.stdout is not None and sys.stdout.isatty() else "1"


def _complete() -> int:
    """Print the words that may come next, for a shell; typer reads what was typed."""
    typed = " ".join(os.environ.get(name, "") for name in WORDS).split()
    with contextlib.suppress(SystemExit):
        _app(typed)(args=[], prog_name="ckptool")
    return ExitCode.DONE


def _usage_error(error: Any) -> CkptError:
    message = getattr(error, "format_message", lambda: str(error))().rstrip(".")
    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help" if context is not None else None
    return UsageError(message, hint=hint)  # without one, that of the command that was typed


def _bug(error: Any) -> CkptError:
    """Return a bug as an error of one line with a hint; with CKPTOOL_DEBUG raise it as it is."""
    if os.environ.get("CKPTOOL_DEBUG"):
        raise error
    return CkptError(
        f"a bug in ckptool: {type(error).__name__}: {error}",
        hint="CKPTOOL_DEBUG=1 shows where; please report it with the format of the file",
    )


# Class of an exception -> function that turns it into an error of ckptool; the first match counts.
TRANSLATIONS: dict[type[Exception], Callable[[Any], CkptError]] = {
    CkptError: lambda error: error,
    ClickError: _usage_error,
    RecursionError: as_ckpt_error,
    MemoryError: as_ckpt_error,
    OSError: as_ckpt_error,
    Exception: _bug,
}


def _refuse(error: CkptError, args: Sequence[str]) -> int:
    report = ErrorReport(error.document | {"hint": error.hint or _help_of(args)})
    with contextlib.suppress(OSError, AttributeError):  # without output the exit code reports it
        name = "json" if "--json" in args else _asked(args, "--format", "text")
        name = name if own_place().speaks else "text"  # one document for all processes
        if holds_errors(name):
            sys.stdout.write(rendered([report], name) + "\n")
        if name not in EXACT:
            from ckptool.render.terminal import show

            show([report], sys.stderr, used_color(_asked(args, "--color", "auto")))
    return ExitCode.CANNOT


def _help_of(args: Sequence[str]) -> str:
    """Return what to type for the help of the command."""
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
    end_cleanly()
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
