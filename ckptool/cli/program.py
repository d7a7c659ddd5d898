"""The program in typer, made of the declarations of the commands, for completion and refusals."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Annotated, Any, get_type_hints

import typer

from ckptool import __version__
from ckptool.cli.catalogue import COMMANDS, command_of
from ckptool.cli.parameters import Argument, Option
from ckptool.errors import UsageError

ClickError: type[Exception] = typer.BadParameter.__mro__[2]  # click's own, in whichever package

WORDS = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")  # what was typed, as the shells pass it


# The end of the script for zsh. The first Tab of a shell loads the script as a function of fpath:
# typer's defines the function that completes, and offers nothing until the second Tab.
ZSH_END = """
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  %(complete_func)s "$@"
fi
"""


def complete_at_first_tab() -> None:
    """Add the end to typer's script for zsh, wherever this version of typer has it."""
    from typer import _completion_shared

    scripts = getattr(_completion_shared, "_completion_scripts", {})
    if "zsh" in scripts and not scripts["zsh"].endswith(ZSH_END):
        scripts["zsh"] += ZSH_END


def program(loaded: Iterable[str]) -> typer.Typer:
    """Return the program; of the other commands only the name and the help."""
    app = typer.Typer(
        name="ckptool",
        help="Look into training checkpoints, find the EMA weights, get them out.",
        epilog="ckptool FILE is short for ckptool inspect FILE. Example: ckptool last.ckpt",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    complete_at_first_tab()
    for name, row in COMMANDS.items():
        command = declared(command_of(name)) if name in loaded else _unloaded
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


def declared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a copy of a command whose parameters are declared in typer's words."""
    code, known = command.__code__, command.__globals__
    made = FunctionType(code, known, command.__name__, command.__defaults__)
    made.__doc__ = command.__doc__
    hints = get_type_hints(command, include_extras=True)
    made.__annotations__ = {
        name: Annotated[hints[name].__origin__, _info(hints[name].__metadata__[0])]
        for name in code.co_varnames[: code.co_argcount]
    }
    return made


def _info(declared: Argument) -> Any:
    make = typer.Option if isinstance(declared, Option) else typer.Argument
    return make(*declared.names, **declared.settings)


def run_program(args: Sequence[str]) -> Any:
    """Run a command line and return what the command returns.

    Raises:
        UsageError: typer refuses it.
    """
    try:
        return program(args[:1])(args=args, standalone_mode=False, prog_name="ckptool")
    except typer.Abort:
        raise KeyboardInterrupt from None
    except ClickError as error:
        raise _usage_error(error) from error


def complete() -> None:
    """Print the words that may come next, for a shell; typer reads what was typed."""
    lead = _join_roles()
    typed = " ".join(os.environ.get(name, "") for name in WORDS).split()
    with contextlib.redirect_stdout(io.StringIO()) as found, contextlib.suppress(SystemExit):
        program(typed)(args=[], prog_name="ckptool")
    for text in found.getvalue().splitlines(keepends=True):
        sys.stdout.write(text.removeprefix(lead))


def _join_roles() -> str:
    """Join the words at which bash cuts ``FILE#@ema``, and return what precedes the last one.

    Bash takes an @ for the beginning of a host, and replaces only the word that it begins.
    """
    words, at = os.environ.get(WORDS[0], "").split("\n"), os.environ.get("COMP_CWORD", "")
    if "@" not in words or not at.isdecimal() or int(at) >= len(words):
        return ""
    joined: list[str] = []
    lead = ""
    for word in words[: int(at) + 1]:
        if word and joined and joined[-1].endswith("#" if word == "@" else "#@"):
            lead = joined[-1].removesuffix("@")
            joined[-1] += word
        else:
            lead = ""
            joined.append(word)
    os.environ[WORDS[0]], os.environ["COMP_CWORD"] = "\n".join(joined), str(len(joined) - 1)
    return lead


def _usage_error(error: Any) -> UsageError:
    message = getattr(error, "format_message", lambda: str(error))().rstrip(".")
    context = getattr(error, "ctx", None)
    known = context is not None and context.parent is not None  # else the program itself
    hint = f"{context.command_path} --help" if context is not None and known else None
    return UsageError(message, hint=hint)  # without one, that of the command that was typed
