"""A house style, from ``ckptool.toml`` or ``[tool.ckptool]`` in ``pyproject.toml``.

The nearest of the two, from the working directory upwards, is read; nothing in a checkpoint's own
folder is, unless one works there. A layout row has the fields of ``EmaLayout``::

    [[layouts]]                      # [[tool.ckptool.layouts]] in pyproject.toml
    name = "ours"
    library = "our trainer"
    ema_at = "trainer/ema_weights"
    model_at = "trainer/weights"
    meta_at = ["trainer/ema_settings"]

and the options of ``ckptool verify``, which the command line overrides, have their names::

    [verify]                         # [tool.ckptool.verify]
    require = ["ema", "resume"]
    ignore = ["CK511"]
    strict = true
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ckptool.errors import CkptError
from ckptool.layouts import EmaLayout, Layouts

FILES = {
    "ckptool.toml": (),
    "pyproject.toml": ("tool", "ckptool"),
}  # name -> where the table stands
MAX_SIZE = 1 << 20  # bytes


Form = Callable[[Any], bool]


ROW_HINT = "README.md shows a layout row; --ema and --model work without one"


class ConfigError(CkptError):
    """A configuration file says something that ckptool does not understand."""

    code = "config"
    default_hint = "README.md shows what a configuration holds"


def read_layouts(start: Path) -> Layouts:
    """The layout rows of the nearest configuration at or above ``start``.

    Raises:
        ConfigError: not TOML, or a row with missing or unknown fields.
    """
    path, table = _nearest(start)
    return tuple(_row(entry, path) for entry in _rows(table, path))


def read_settings(start: Path, command: str, forms: Mapping[str, Form]) -> Mapping[str, Any]:
    """The table of a command, ``[diff]``, in the nearest configuration at or above ``start``.

    ``forms`` says for each option whether a value is of its kind.

    Raises:
        ConfigError: not TOML, or an option that does not exist, or with a value of another kind.
    """
    path, table = _nearest(start)
    given = table.get(command, {})
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


def _nearest(start: Path) -> tuple[Path, Mapping[str, Any]]:
    """The nearest configuration, with its path; an empty one where there is none."""
    for folder in (start, *start.parents):
        for name, keys in FILES.items():
            path = folder / name
            table = _table(path, keys) if path.is_file() else None
            if table is not None:
                return path, table
    return start, {}


def _table(path: Path, keys: tuple[str, ...]) -> Mapping[str, Any] | None:
    """The table of ckptool in a file; None when the file has none."""
    try:
        if path.stat().st_size > MAX_SIZE:
            raise ConfigError("larger than a configuration can be", path=path)
        text = path.read_text("utf-8")
        if keys and keys[-1] not in text:  # other people's pyproject.toml is none of our business
            return None
        import tomllib  # noqa: PLC0415 - 3 ms, only where there is something to read

        table: Any = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read as TOML: {error}", path=path) from error
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else None


def _rows(table: Mapping[str, Any], path: Path) -> list[Any]:
    rows = table.get("layouts", [])
    if not isinstance(rows, list):
        raise ConfigError("layouts is a list of tables: [[layouts]]", path=path)
    return rows


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
    return isinstance(value, tuple) and all(map(_is_text, value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


VERIFY_OPTIONS: Mapping[str, Callable[[Any], bool]] = {
    "require": _is_names,
    "select": _is_names,
    "ignore": _is_names,
    "strict": _is_flag,
    "bytes": _is_flag,
    "values": _is_flag,
}

# What a field must be, where it is not a text.
FORMS: Mapping[str, Callable[[Any], bool]] = {
    "beside": _is_list_of_texts,
    "meta_at": _is_list_of_texts,
    "when": lambda value: isinstance(value, tuple) and len(value) == 2 and _is_text(value[0]),
    "swapped": lambda value: isinstance(value, bool),
}
