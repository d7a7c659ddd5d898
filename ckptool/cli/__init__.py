"""The command line: the only package that knows the terminal, the environment and exit codes.

One module a command, which holds its options and one call into ``commands``; only the module of
the command that runs is imported. Whatever the input, there is no traceback: :func:`main` turns
every refusal into an ``error:`` line, a ``hint:`` line and exit code 2.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import typer

from ckptool import __version__
from ckptool.cli.output import used_color
from ckptool.cli.torchrun import own_place
from ckptool.errors import CkptError, UsageError
from ckptool.interrupts import INTERRUPTED, end_cleanly
from ckptool.reports import ErrorReport

DONE, NO, CANNOT = 0, 1, 2

ClickError: type[Exception] = typer.BadParameter.__mro__[2]  # click's own base, wherever it lives

Command = Callable[..., None]


def _inspect() -> Command:
    from ckptool.cli.inspect import command

    return command


def _extract_ema() -> Command:
    from ckptool.cli.extract_ema import command

    return command


def _promote_ema() -> Command:
    from ckptool.cli.promote_ema import command

    return command


def _verify() -> Command:
    from ckptool.cli.verify import command

    return command


def _diff() -> Command:
    from ckptool.cli.diff import command

    return command


def _rule() -> Command:
    from ckptool.cli.rule import command

    return command


def _textconv() -> Command:
    from ckptool.cli.textconv import command

    return command


def _layouts() -> Command:
    from ckptool.cli.layouts import command

    return command


# In the order of the help. Each is imported when it is run, or when the help lists them all.
COMMANDS: dict[str, Callable[[], Command]] = {
    "inspect": _inspect,
    "extract-ema": _extract_ema,
    "promote-ema": _promote_ema,
    "verify": _verify,
    "diff": _diff,
    "rule": _rule,
    "layouts": _layouts,
    "textconv": _textconv,
}


def _app(names: Iterable[str]) -> typer.Typer:
    app = typer.Typer(
        name="ckptool",
        help="Look into training checkpoints, find the averaged weights, get them out.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for name in names:
        app.command(name)(COMMANDS[name]())
    return app


def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"ckptool {__version__}\n")


# ------------------------------------------------------------------------------------------- errors


def main(args: Sequence[str]) -> int:
    """Run one command and return its exit code; every error becomes text or a document."""
    app = _app(args[:1] if args and args[0] in COMMANDS else COMMANDS)
    try:
        # A command that answers returns nothing, one that says no exits with a code.
        code = app(args=list(args) or ["--help"], standalone_mode=False, prog_name="ckptool")
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # typer exits when a pipe breaks
        _close_stdout()
    except tuple(TRANSLATIONS) as error:
        return _refuse(_translated(error), args)
    else:
        return code if isinstance(code, int) else DONE
    return DONE


def _translated(error: Exception) -> CkptError:
    return next(make(error) for kind, make in TRANSLATIONS.items() if isinstance(error, kind))


def _usage_error(error: Any) -> CkptError:
    message = getattr(error, "format_message", lambda: str(error))().rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "ckptool"
    return UsageError(message, hint=f"{command} --help")


def _system_error(error: Any) -> CkptError:
    return CkptError(error.strerror or str(error), path=error.filename)


def _bug(error: Any) -> CkptError:
    """A mistake of ours: still one line, and a way to see more."""
    if os.environ.get("CKPTOOL_DEBUG"):
        raise error
    return CkptError(
        f"a bug in ckptool: {type(error).__name__}: {error}",
        hint="CKPTOOL_DEBUG=1 shows where; please report it with the format of the file",
    )


# What can go wrong, and how it is said.
TRANSLATIONS: dict[type[Exception], Callable[[Any], CkptError]] = {
    CkptError: lambda error: error,
    ClickError: _usage_error,
    RecursionError: lambda _: CkptError("nested too deep to be read"),
    MemoryError: lambda _: CkptError("not enough memory"),
    OSError: _system_error,
    Exception: _bug,
}


def _refuse(error: CkptError, args: Sequence[str]) -> int:
    report = ErrorReport(
        error={
            "code": error.code,
            "message": error.message,
            "path": None if error.path is None else str(error.path),
            "address": error.address,
            "hint": error.hint or "ckptool --help",
        }
    )
    with contextlib.suppress(OSError, AttributeError):  # nobody can be told: the code still says it
        name = "json" if "--json" in args else _asked(args, "--format", "text")
        name = name if own_place().speaks else "text"  # one document for all processes
        if name in {"json", "github"}:
            from ckptool.render.formats import rendered

            sys.stdout.write(rendered([report], name) + "\n")
        if name != "json":
            from ckptool.render.terminal import show

            show(report, sys.stderr, used_color(_asked(args, "--color", "auto")))
    return CANNOT


def _asked(args: Sequence[str], option: str, default: str) -> str:
    """An option's value, also when the rest of the command line cannot be understood."""
    for i, arg in enumerate(args):
        if arg.startswith(f"{option}="):
            return arg.partition("=")[2]
        if arg == option and i + 1 < len(args):
            return args[i + 1]
    return default


def _close_stdout() -> None:
    """The reader went away (``| head``): nothing is wrong, and nothing more may be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run() -> None:
    """A process of its own, from the command line's arguments to its exit code."""
    end_cleanly()
    # numpy's BLAS starts a thread for each processor, which waits by spinning: 0.08 s of a core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        _close_stdout()
    except (OSError, AttributeError):  # a full disk behind the pipe, or no output at all
        code = CANNOT
    # Every file is closed and in place; taking a tree of 100,000 tensors apart would cost 0.3 s.
    os._exit(code)
