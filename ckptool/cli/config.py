r"""The configuration, from ``ckptool.toml`` or ``[tool.ckptool]`` in ``pyproject.toml``.

The nearest of the two files, from the working directory upwards, is read, or the file of
``--config``. A layout row has the fields of ``EmaLayout``::

    [[layouts]]                      # [[tool.ckptool.layouts]] in pyproject.toml
    name = "ours"
    library = "our trainer"
    ema_at = "trainer/ema_weights"
    model_at = "trainer/weights"
    meta_at = ["trainer/ema_settings"]

The options of ``verify`` and ``diff`` have their own names; the command line overrides them::

    [verify]                         # [tool.ckptool.verify]
    require = ["ema", "resume"]
    ignore_rules = ["CK511"]
    strict = true
    [diff]
    atol = 1e-12
    ignore = ["*wall_time*"]
    map = ['^module\.=']
    [diff.tolerance]
    "*.delta_*" = 1e-8               # atol
    "outputs/*" = [1e-6, 1e-5]       # atol, rtol

A file beside the checkpoint may come from the people who made the checkpoint, so it must not decide
what is right. A configuration is *foreign* to an operand whose directory holds it, at any depth.
Only settings that make checks stricter are taken from it (``STRICTER``); the others are ignored and
reported, and the search goes on upwards. ``--config`` makes any file the user's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ckptool.contents.selection import parse_operand
from ckptool.ema.layouts import EmaLayout, Layouts
from ckptool.errors import CkptError
from ckptool.records import NamedTuple
from ckptool.reports.base import ConfigUse
from ckptool.sources.urls import RemotePath
from ckptool.toml import load_toml

# Name of the file -> keys that lead to our table.
FILES: Mapping[str, tuple[str, ...]] = {"ckptool.toml": (), "pyproject.toml": ("tool", "ckptool")}
MAX_SIZE = 1 << 20  # bytes

Form = Callable[[Any], bool]

ROW_HINT = "docs/configuration.md shows a layout row; --ema and --model work without one"


class ConfigError(CkptError):
    """An error in a configuration file: something that ckptool does not understand."""

    code = "config"
    default_hint = "docs/configuration.md shows what a configuration holds"


class Settings(NamedTuple):
    """The configuration of one command."""

    options: Mapping[str, Any] = {}
    layouts: Layouts = ()
    foreign: tuple[ConfigUse, ...] = ()  # files in directories of operands
    own: tuple[ConfigUse, ...] = ()  # other files, from which everything is taken
    loose: tuple[ConfigUse, ...] = ()  # settings that were only found, and let it refuse less


class _Found(NamedTuple):
    """A configuration file, and whether it lies in the directory of an operand."""

    path: Path
    table: Mapping[str, Any]
    is_foreign: bool = False


def read_layouts(start: Path | None = None) -> Layouts:
    """Return the layout rows of the nearest configuration, upwards from ``start``.

    Raises:
        ConfigError: the file is not TOML, or a row has missing, unknown or malformed fields.
    """
    nearest = next(_upwards(start or Path.cwd()), None)
    return _layouts(nearest) if nearest else ()


def read_settings(
    command: str, operands: Iterable[str | None], config: Path | None = None
) -> Settings:
    """Return the settings of a command from ``config``, or from the nearest configuration.

    Args:
        command: the name of the command, which is that of its table: ``diff``.
        operands: the operands as typed; a configuration in their directories is foreign.
        config: the file of ``--config``.

    Raises:
        ConfigError: it is not TOML, or an option does not exist or has a value of another kind.
    """
    if config is not None:
        return _combined(command, [_given(config)])._replace(loose=())
    homes = {home for text in operands if text is not None for home in _homes(text)}
    found: list[_Found] = []
    for each in _upwards(Path.cwd()):
        folder = each.path.parent
        found.append(each._replace(is_foreign=any(folder.is_relative_to(home) for home in homes)))
        if not found[-1].is_foreign:
            break
    return _combined(command, found)


def _homes(operand: str) -> Iterator[Path]:
    """Yield the directories that an operand lies in, or is: with links followed, and without."""
    named = parse_operand(operand).path
    if isinstance(named, RemotePath):
        return  # no directory of this machine belongs to a URL
    path = os.path.join(Path.cwd(), named)  # noqa: PTH118 - no loops
    for each in (os.path.normpath(path), os.path.realpath(path)):
        yield Path(each) if os.path.isdir(each) else Path(each).parent  # noqa: PTH112 - no raise


def _given(path: Path) -> _Found:
    """Return the file of ``--config``; one without a table for ckptool is an error."""
    table = _table(path, FILES.get(path.name, ()))
    if table is None:
        raise ConfigError("holds no [tool.ckptool]", path=path)
    return _Found(path, table)


def _upwards(start: Path) -> Iterator[_Found]:
    """Yield the configurations from a directory upwards, at most one for each directory."""
    for folder in (start, *start.parents):
        for name, keys in FILES.items():
            path = folder / name
            table = _table(path, keys) if path.is_file() else None
            if table is not None:
                yield _Found(path, table)
                break


def _combined(command: str, found: Iterable[_Found]) -> Settings:
    """Return the settings of several files: foreign ones add what is stricter to the user's own."""
    options: dict[str, Any] = {}
    layouts: Layouts = ()
    foreign: list[ConfigUse] = []
    own: list[ConfigUse] = []
    loose: list[ConfigUse] = []
    for each in found:
        given = _options(command, each)
        rows = _layouts(each)
        strict = {name: given[name] for name in given if _is_stricter(command, name, given[name])}
        others = (
            *(f"{command}.{name}" for name in given if name not in strict),
            *(("layouts",) if rows else ()),
        )
        taken = strict if each.is_foreign else given
        lists = {n: [*options.get(n, ()), *v] for n, v in taken.items() if isinstance(v, list)}
        options = {**taken, **options, **lists}
        layouts = layouts if each.is_foreign else rows
        if each.is_foreign:
            foreign.append(
                ConfigUse(str(each.path), tuple(f"{command}.{name}" for name in strict), others)
            )
            continue
        used = (*(f"{command}.{name}" for name in strict), *others)
        own += [ConfigUse(str(each.path), used, ())] if used else []
        loose += [ConfigUse(str(each.path), others, ())] if others else []
    return Settings(options, layouts, tuple(foreign), tuple(own), tuple(loose))


def _is_stricter(command: str, name: str, value: Any) -> bool:
    """Return whether a setting can only make a command refuse more than without it."""
    return name in STRICTER.get(command, ()) and value is not False


def _layouts(found: _Found) -> Layouts:
    rows = found.table.get("layouts", [])
    if not isinstance(rows, list):
        raise ConfigError("layouts is a list of tables: [[layouts]]", path=found.path)
    return tuple(_row(entry, found.path) for entry in rows)


def _options(command: str, found: _Found) -> Mapping[str, Any]:
    """Return the table of a command, each option checked."""
    path, forms = found.path, OPTIONS.get(command, {})
    given = found.table.get(command, {}) if forms else {}
    if not isinstance(given, dict):
        raise ConfigError(f"{command} is a table: [{command}]", path=path)
    for name, value in given.items():
        if name not in forms:
            known = ", ".join(forms)
            raise ConfigError(
                f"{command} has no option {name!r:.60}", path=path, hint=f"known: {known}"
            )
        if not forms[name](value):
            raise ConfigError(
                f"the option {name} of {command} has a value of another kind",
                path=path,
                hint=f"ckptool {command} --help tells what it takes; names are a list: "
                f'{name} = ["…"]; flags are true or false',
            )
    return given


def _table(path: Path, keys: tuple[str, ...]) -> Mapping[str, Any] | None:
    """Return ckptool's table in a file; None when the file has none."""
    try:
        if path.stat().st_size > MAX_SIZE:
            raise ConfigError("larger than a configuration can be", path=path)
        text = path.read_text("utf-8")
        if keys and keys[-1] not in text:  # errors in a file without our table are not ours
            return None
        table: Any = load_toml(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read as TOML: {error}", path=path) from error
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else None


def _row(entry: Any, path: Path) -> EmaLayout:
    given = {"written_by": str(path), **entry} if isinstance(entry, dict) else {}
    unknown = [name for name in given if name not in EmaLayout._fields]
    needed = [name for name in EmaLayout._fields if name not in EmaLayout._field_defaults]
    missing = [name for name in needed if name not in given]
    if unknown or missing:
        wrong = f"unknown fields {unknown}" if unknown else f"missing fields {missing}"
        raise ConfigError(f"a layout row has {wrong}", path=path, hint=ROW_HINT)
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    strange = [name for name, value in plain.items() if not FORMS.get(name, _is_text)(value)]
    if strange:
        raise ConfigError(
            f"a layout row has fields of another form: {strange}", path=path, hint=ROW_HINT
        )
    return EmaLayout(**plain)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_text, value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


# Command -> its options, with functions that tell whether a value is of their kind.
OPTIONS: Mapping[str, Mapping[str, Form]] = {
    "verify": {
        "require": _is_list_of_texts,
        "rules": _is_list_of_texts,
        "ignore_rules": _is_list_of_texts,
        "select": _is_list_of_texts,  # old name of rules
        "ignore": _is_list_of_texts,  # old name of ignore_rules
        "strict": _is_flag,
        "bytes": _is_flag,
        "values": _is_flag,
    },
    "diff": {
        "atol": _is_number,
        "rtol": _is_number,
        "ulp": lambda value: isinstance(value, int) and _is_number(value),
        "strict": _is_flag,
        "any_dtype": _is_flag,
        "match": _is_list_of_texts,
        "ignore": _is_list_of_texts,
        "map": _is_list_of_texts,
        "tolerance": lambda value: isinstance(value, dict),
    },
}

# Command -> options that, given or true, can only make it refuse more.
STRICTER: Mapping[str, frozenset[str]] = {
    "verify": frozenset({"require", "strict", "bytes", "values"}),
    "diff": frozenset({"strict"}),
}

# Field of a layout that is no text -> function that tells whether a value is of its kind.
FORMS: Mapping[str, Form] = {
    "beside": _is_list_of_texts,
    "meta_at": _is_list_of_texts,
    "when": lambda value: isinstance(value, tuple) and len(value) == 2 and _is_text(value[0]),
    "swapped": _is_flag,
    "decay_varies": _is_flag,
}
