"""The parameters of commands: their declarations, and the reader of plain command lines.

The signature of a command declares them: ``strict: Annotated[bool, Option("--strict", help="…")]``.
``help.py`` shows them; ``program.py`` makes a program of typer from them, which takes longer to
import than most commands take to answer. So :func:`plain_call` reads the command lines that need no
knowledge of typer, and leaves all others to it: ``-vq``, ``--``, a value that begins with a dash,
and every mistake.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ckptool.records import NamedTuple

HELP = frozenset({"-h", "--help"})


class Argument:
    """The name of an operand and its help, by the names that typer has for them."""

    names: tuple[str, ...] = ()

    def __init__(self, **settings: Any) -> None:
        self.settings = settings


class Option(Argument):
    """The names of an option and its help; without names it is that of the parameter."""

    def __init__(self, *names: str, panel: str | None = None, **settings: Any) -> None:
        super().__init__(rich_help_panel=panel, **settings)
        self.names = names


REQUIRED: Any = object()  # the default of a parameter that has none


class Parameter(NamedTuple):
    """A parameter of a command."""

    name: str
    declared: Argument
    kind: Any  # of one value: str, bool, int, float, Path, or the choices of a Literal
    is_list: bool  # of the values of an option that is given several times, or of all operands
    default: Any

    @property
    def spellings(self) -> Iterator[tuple[str, bool]]:
        """The names of an option, each with the value to which it sets a flag."""
        for name in self.declared.names or (f"--{self.name.replace('_', '-')}",):
            yes, _, no = name.partition("/")
            yield yes, True
            if no:
                yield no, False


@cache
def parameters_of(command: Callable[..., None]) -> tuple[Parameter, ...]:
    """Return the parameters of a command in the order of its signature."""
    return (*_declared(command),)


def _declared(command: Callable[..., None]) -> Iterator[Parameter]:
    hints = get_type_hints(command, include_extras=True)
    names = command.__code__.co_varnames[: command.__code__.co_argcount]
    defaults = command.__defaults__ or ()
    required = (REQUIRED,) * (len(names) - len(defaults))
    for name, default in zip(names, (*required, *defaults), strict=True):
        hint, declared = hints[name].__origin__, hints[name].__metadata__[0]
        if get_origin(hint) in {Union, UnionType}:
            (hint,) = (one for one in get_args(hint) if one is not NoneType)
        is_list = get_origin(hint) is list
        (kind,) = get_args(hint) if is_list else (hint,)
        if get_origin(kind) is Literal:
            kind = get_args(kind)
        yield Parameter(name, declared, kind, is_list, default)


# ------------------------------------------------------------------------------------------ reading


def plain_call(command: Callable[..., None], words: Sequence[str]) -> dict[str, Any] | None:
    """Return the arguments with which typer would call a command; None: ask typer."""
    try:
        return _read(parameters_of(command), words)
    except (ValueError, KeyError, StopIteration):  # a value, an option, or the end was unexpected
        return None


def asks_for_help(command: Callable[..., None], words: Sequence[str]) -> bool:
    """Return whether help is asked for; behind an option, the same words are its value."""
    words = [*takewhile(lambda word: word != "--", words)]
    if HELP.isdisjoint(words):
        return False
    takes_value = {
        name
        for one in parameters_of(command)
        if isinstance(one.declared, Option) and one.kind is not bool
        for name, _ in one.spellings
    }
    return any(
        word in HELP and before not in takes_value for before, word in pairwise(("", *words))
    )


def _read(parameters: Sequence[Parameter], words: Sequence[str]) -> dict[str, Any]:
    options = {
        name: (one, is_yes)
        for one in parameters
        if isinstance(one.declared, Option)
        for name, is_yes in one.spellings
    }
    given: dict[str, Any] = {}
    operands = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            operands.append(word)
            continue
        name, is_joined, text = word.partition("=") if word.startswith("--") else (word, "", "")
        one, is_yes = options[name]
        if one.kind is not bool:
            value = _value(one, text if is_joined else next(rest))
            given[one.name] = [*given.get(one.name, ()), value] if one.is_list else value
        elif is_joined:
            raise ValueError(word)  # a flag takes no value
        else:
            given[one.name] = is_yes
    given |= _operands([p for p in parameters if not isinstance(p.declared, Option)], operands)
    values = {one.name: given.get(one.name, one.default) for one in parameters}
    if REQUIRED in values.values():
        raise ValueError
    return values


def _operands(parameters: Sequence[Parameter], words: Sequence[str]) -> dict[str, Any]:
    if words and parameters and parameters[0].is_list:
        return {parameters[0].name: [*words]}
    if len(words) > len(parameters):
        raise ValueError(words)
    return {one.name: word for one, word in zip(parameters, words, strict=False)}


def _value(one: Parameter, text: str) -> Any:
    """Return the value of an option.

    Raises:
        ValueError: it is none, or typer has something to say about it.
    """
    if text.startswith("-"):
        raise ValueError(text)
    if isinstance(one.kind, tuple):
        return one.kind[one.kind.index(text)]
    if one.kind is Path and not os.access(text, os.R_OK):
        raise ValueError(text)
    value = one.kind(text)
    least = one.declared.settings.get("min")
    if least is not None and value < least:
        raise ValueError(text)
    return value
