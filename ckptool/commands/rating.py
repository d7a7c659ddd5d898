"""Rating of the checkpoints of a run by a metric, the best first."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from ckptool.checks.parts import number
from ckptool.contents.metrics import is_of_training
from ckptool.contents.monitors import Monitors, numbers_called
from ckptool.errors import UsageError
from ckptool.formats import open_checkpoint
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.reports.run import RunEntry
from ckptool.sources.places import as_path
from ckptool.tensors.sample import scalar_value

Entries = Sequence[RunEntry]


def rank(metric: str, entries: Entries) -> tuple[str, list[RunEntry]]:
    """Return the name of a metric, and the checkpoints that have it, the best first.

    ``metric`` is the key path of any number in the files (``val_stats/loss``), or the end of one.
    An added ``:min`` or ``:max`` states the direction that is better.

    Raises:
        UsageError: no checkpoint has it, several key paths end so, in one file or in different
            ones, or neither the files nor its name state the direction that is better.
    """
    name, sign = _parsed(metric)
    rated = [row for entry in entries if (row := _rated(entry, name)) is not None]
    if not rated:
        hint = (None if sign else direction_meant(metric)) or _known(entries, name)
        raise UsageError(f"no checkpoint has the metric {name!r}", hint=hint)
    _refuse_other_metrics(name, rated)
    direction = sign or _direction(name, rated)
    rated.sort(key=lambda row: row.value * direction, reverse=True)
    return name, [row.entry for row in rated]


SIGNS = {"min": -1, "max": 1}
SHOWN = 8  # metrics in a hint


def _parsed(metric: str) -> tuple[str, int]:
    """Split ``val_loss:min`` into name and sign; 0 where no direction is typed."""
    name, _, direction = metric.rpartition(":")
    return (name, SIGNS[direction]) if name and direction in SIGNS else (metric, 0)


def direction_meant(metric: str, end: str = "") -> str | None:
    """Return a hint at what was probably meant by ``loss:mim``; None if it is no mistyped word."""
    from difflib import get_close_matches  # noqa: PLC0415 - 3 ms, for a refusal only

    name, _, typed = metric.rpartition(":")
    found = get_close_matches(typed.lower(), SIGNS, 1, 0.6) if name else []
    return f"did you mean {name}:{found[0]}{end}?" if found else None


def _known(entries: Entries, name: str) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - 3 ms, for a refusal only

    known = sorted({metric for entry in entries for metric in entry.metrics})
    near = get_close_matches(name, known, SHOWN, 0.6)
    shown = list(dict.fromkeys([*near, *known]))[:SHOWN]
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    if not known:
        return "none of them stores a metric: --latest-valid chooses by age"
    return f"there are: {', '.join(shown)}{more}"


class _Rated(NamedTuple):
    """A checkpoint that has the metric."""

    at: str  # key path of the metric
    value: float
    entry: RunEntry
    better: str | None  # lower or higher, as its file or the metric's name states


# The place of the last entry of a log, which grows: trainer_state.json/log_history/12/eval_loss.
ENTRY = regex(r"(?<=history/)\d+(?=/)")


def _refuse_other_metrics(name: str, rated: Sequence[_Rated]) -> None:
    """Refuse to compare different metrics whose names end alike: ``val/loss``, ``train/loss``.

    Raises:
        UsageError: the metric has not one and the same key path in all files.
    """
    first = {ENTRY.sub("*", row.at): row.entry.path for row in reversed(rated)}
    if len(first) > 1:
        places = ", ".join(f"{at} (in {first[at]})" for at in sorted(first))
        raise UsageError(
            f"{name!r} has different key paths in the checkpoints: {places}",
            hint=f"name one: {', '.join(sorted(first))}",
        )


def _direction(name: str, rated: Sequence[_Rated]) -> int:
    """Return -1 where lower is better, 1 where higher is.

    Raises:
        UsageError: nothing states it, or files contradict each other.
    """
    told = {row.better for row in rated} - {None}
    if len(told) == 1:
        return -1 if told == {"lower"} else 1
    why = "the files contradict each other" if told else "neither the files nor its name say it"
    raise UsageError(
        f"it is not known whether a lower or a higher {name!r} is better: {why}",
        hint=f"say it: --best {quote(name)}:min or --best {quote(name)}:max",
    )


def _rated(entry: RunEntry, metric: str) -> _Rated | None:
    """Return the value at the key path, or at the only one that ends so.

    Values of the training set count only where there are no others. Results are searched first,
    then every other number of the file.

    Raises:
        UsageError: several key paths end so.
    """
    values: Mapping[str, Any] = entry.metrics
    better = {name: told["is"] for name, told in entry.better.items()}
    found = _called(values, metric)
    if not found and entry.error is None:
        values, better = _any_numbers(as_path(entry.path), metric)
        gc.collect(0)
        found = _called(values, metric) or list(values)
    if len(found) > 1:
        places = ", ".join(found)
        message = f"{metric!r} has {len(found)} values, at different key paths"
        raise UsageError(message, hint=f"name one: {places}")
    stated = number(values[found[0]]) if found else None
    if stated is None or math.isnan(stated):
        return None
    return _Rated(found[0], float(stated), entry, better.get(found[0]))


def _called(values: Mapping[str, Any], metric: str) -> list[str]:
    names = [name for name in values if name == metric or name.endswith(f"/{metric}")]
    held_out = [name for name in names if not is_of_training(name)]
    return [metric] if metric in values else held_out or names


def _any_numbers(path: Path, metric: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the numbers at such key paths, and the better direction of each where it is known."""
    with open_checkpoint(path) as checkpoint:
        tree, reader = checkpoint.tree, checkpoint.reader
        values = {at: scalar_value(reader, v) for at, v in numbers_called(tree, metric).items()}
        told = Monitors(tree).directions(values) if values else {}
    return values, {at: direction.word for at, direction in told.items()}
