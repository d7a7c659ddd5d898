"""The commands: where each one is, what the help says of it, and an example.

The help of ``ckptool`` and completion read this table instead of the modules of the commands, which
would take longer to import than any of them takes to answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from os.path import lexists
from typing import Any

from ckptool.records import NamedTuple


class Command(NamedTuple):
    """A command of the program."""

    at: str  # module and function
    help: str  # the first line of the function's docstring
    panel: str  # under which the help lists it
    example: str


LOOK, WRITE, MORE = "Look", "Write", "More"

COMMANDS: Mapping[str, Command] = {
    "inspect": Command(
        "inspect.command", "Show what a checkpoint holds, and where its EMA is.",
        LOOK, "ckptool inspect last.ckpt --tensors",
    ),
    "verify": Command(
        "verify.command", "Check that a checkpoint is intact, safe and complete.",
        LOOK, "ckptool verify last.ckpt --require ema,resume",
    ),
    "diff": Command(
        "diff.command", "Compare two checkpoints, or two runs.",
        LOOK, "ckptool diff 'last.ckpt#@model' 'last.ckpt#@ema'",
    ),
    "extract-ema": Command(
        "extract_ema.command", "Write the EMA weights to a file of their own.",
        WRITE, "ckptool extract-ema last.ckpt -o ema.safetensors",
    ),
    "promote-ema": Command(
        "promote_ema.command", "Copy the EMA weights into the model's state dict.",
        WRITE, "ckptool promote-ema last.ckpt -o promoted.ckpt",
    ),
    "convert": Command(
        "convert.command",
        "Write a state dict in another form, or a checkpoint without some of its parts.",
        WRITE, "ckptool convert 'last.ckpt#@model' -o weights.safetensors",
    ),
    "average": Command(
        "average.command", "Write the mean of the same weights in several checkpoints.",
        WRITE, "ckptool average runs/ --only model --last 5 -o mean.safetensors",
    ),
    "rule": Command(
        "tables.rule", "Explain a rule and its remedy, or list all rules.",
        MORE, "ckptool rule CK404",
    ),
    "layouts": Command(
        "tables.layouts", "List the layouts in which frameworks store EMA weights.",
        MORE, "ckptool layouts",
    ),
    "textconv": Command(
        "tables.textconv", "Print one line for each tensor and value, for git diff.",
        MORE, "ckptool textconv last.ckpt",
    ),
}  # fmt: skip


def command_of(name: str) -> Callable[..., Any]:
    """Return the function of a command; its module is imported."""
    module, _, function = COMMANDS[name].at.partition(".")
    command: Callable[..., Any] = getattr(import_module(f"ckptool.cli.{module}"), function)
    return command


# Words that people try -> what answers them.
OTHER_NAMES: Mapping[str, str] = {
    "check": "ckptool verify FILE",
    "compare": "ckptool diff A B",
    "extract": "ckptool extract-ema FILE",
    "history": "ckptool inspect DIRECTORY shows how the numbers of a run went",
    "info": "ckptool inspect FILE",
    "loads": "ckptool verify FILE --like OTHER",
    "ls": "ckptool inspect DIRECTORY",
    "merge": "ckptool average FILE FILE -o OUT",
    "promote": "ckptool promote-ema FILE -o OUT",
    "show": "ckptool inspect 'FILE#KEY/PATH' shows values",
    "strip": "ckptool convert FILE --drop optimizer -o OUT",
}


def spelled_out(args: Sequence[str]) -> list[str]:
    """Return the arguments with the short forms written out.

    ``ckptool FILE`` is ``inspect``, ``help COMMAND`` is ``--help``, and nothing at all is, too;
    ``version`` is ``--version``. Options may stand before the command, or before the FILE.
    """
    first, *rest = args or ["help"]
    if first == "version":
        return ["--version"]
    if first == "help":
        return [*rest[:1], "--help"]
    if first.startswith("-"):
        return list(args) if first in OF_THE_PROGRAM else _with_command_first(args)
    is_path = first not in COMMANDS and _may_be_path(first)
    return ["inspect", *args] if is_path else list(args)


OF_THE_PROGRAM = {
    "-h", "--help", "-V", "--version", "--install-completion", "--show-completion",
}  # fmt: skip


def _with_command_first(args: Sequence[str]) -> list[str]:
    """Return ``--json diff A B`` as ``diff --json A B``, and ``--format json FILE`` as inspect.

    The first word that is a command and no path decides, or else one that exists or may be a path.
    The value of an option may exist too: ``-o out.pt convert a.pt``; or only look like a path, as
    ``--match 'model/*'`` does.
    """
    words = [(at, word) for at, word in enumerate(args) if not word.startswith("-")]
    commands = [(at, word) for at, word in words if word in COMMANDS]
    if commands:
        at, command = next((one for one in commands if not lexists(one[1])), commands[0])
        return [command, *args[:at], *args[at + 1 :]]
    return ["inspect", *args] if any(_may_be_path(word) for _, word in words) else list(args)


def _may_be_path(text: str) -> bool:
    """Return whether a word is a path, existing or mistyped, and no mistyped command."""
    return lexists(text) or bool(set(text) & set("/.#"))
