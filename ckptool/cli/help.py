"""The help of the program and of its commands, from what they declare; typer is not asked."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import dedent

from ckptool.cli.catalogue import COMMANDS, command_of
from ckptool.cli.parameters import REQUIRED, Option, Parameter, parameters_of
from ckptool.reports.help import Entry, HelpReport

OPTIONS = "Options"  # panel of those that name none
HELP = Entry("-h, --help", "", "Show this help and exit.")
Panels = dict[str, list[Entry]]

# What typer adds to every program.
OF_THE_PROGRAM = (
    Entry("-V, --version", "", "Show the version of ckptool."),
    Entry("--install-completion", "", "Install completion for the current shell."),
    Entry(
        "--show-completion", "",
        "Show completion for the current shell, to copy it or customize the installation.",
    ),
    HELP,
)  # fmt: skip


def help_of_program() -> HelpReport:
    """Return the help of ``ckptool``."""
    panels: Panels = {OPTIONS: [*OF_THE_PROGRAM]}
    for name, row in COMMANDS.items():
        panels.setdefault(row.panel, []).append(Entry(name, "", row.help))
    return HelpReport(
        "ckptool [OPTIONS] COMMAND [ARGS]...",
        (
            "Look into training checkpoints, find the EMA weights, get them out.",
            "ckptool FILE is short for ckptool inspect FILE.",
        ),
        _frozen(panels),
        "ckptool last.ckpt",
    )


def help_of_command(name: str) -> HelpReport:
    """Return the help of a command."""
    command = command_of(name)
    parameters = parameters_of(command)
    operands = [one for one in parameters if not isinstance(one.declared, Option)]
    panels: Panels = {"Arguments": [*map(_entry, operands)], OPTIONS: []}
    for one in parameters:
        settings = one.declared.settings
        if isinstance(one.declared, Option) and not settings.get("hidden"):
            panels.setdefault(settings["rich_help_panel"] or OPTIONS, []).append(_entry(one))
    panels[OPTIONS].append(HELP)
    usage = [f"ckptool {name} [OPTIONS]", *(one.declared.settings["metavar"] for one in operands)]
    first, _, rest = (command.__doc__ or "").partition("\n")
    about = [first, *dedent(rest).strip("\n").split("\n\n")] if rest.strip() else [first]
    return HelpReport(
        " ".join(usage), (*map(_paragraph, about),), _frozen(panels), COMMANDS[name].example
    )


def _frozen(panels: Panels) -> tuple[tuple[str, tuple[Entry, ...]], ...]:
    return tuple((title, (*entries,)) for title, entries in panels.items() if entries)


def _paragraph(text: str) -> str:
    """Return a paragraph in one line, which the page wraps; what is indented stays so."""
    indent = text[: len(text) - len(text.lstrip())]
    return indent + " ".join(text.split())


def _entry(one: Parameter) -> Entry:
    settings = one.declared.settings
    text = " ".join([settings["help"], *_limits(one)])
    if not isinstance(one.declared, Option):
        return Entry(settings["metavar"], "", text)
    yes = sorted((name for name, is_yes in one.spellings if is_yes), key=len)
    no = [name for name, is_yes in one.spellings if not is_yes]
    return Entry("/".join([", ".join(yes), *no]), settings.get("metavar") or "", text)


def _limits(one: Parameter) -> Iterator[str]:
    """Yield what typer says of a value, beside the help."""
    if "min" in one.declared.settings:
        yield f"[at least {one.declared.settings['min']}]"
    if one.default is REQUIRED:
        yield "[required]"
    elif one.default:
        yield f"[default: {one.default}]"
