"""The list of tensors of ``ckptool inspect``: a tree of folded layers, or a line for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ckptool.render import text as words
from ckptool.render.facts import place
from ckptool.render.page import Grid, Line, Piece, line
from ckptool.reports.inspect import TensorEntry

STATS = ("min", "max", "mean", "std", "norm")


def tensor_list(entries: Sequence[TensorEntry]) -> Grid:
    """Return a line for each tensor, with its whole key path."""
    grid = _grid(entries, names=True)
    for entry in entries:
        grid.add_row(line((f"  {place(entry.address)}", "name")), *_cells(entry, 1))
    return grid


def tensor_tree(entries: Sequence[TensorEntry]) -> Grid:
    """Return the tensors as a tree, in which repeated layers and states share a line."""
    from ckptool.render.folding import fold  # noqa: PLC0415 - only with --tensors

    grid = _grid(entries, names=False)
    for row in fold(entries):
        indent = "  " * (row.depth + 1)
        label = line((indent + words.printable(row.label, 80), "name"))
        if row.slots:
            told = ", ".join(words.printable(slot, 40) for slot in row.slots)
            size = words.size(row.bytes)
            remark = line((f"{told}: {words.plural(row.times, 'parameter')}", "quiet"))
            grid.add_row(label, "", "", f"×{row.times}", size, *_blank(entries), remark)
        elif row.entry is None:
            grid.add_row(label, "", "", f"×{row.times}" if row.times > 1 else "")
        else:
            grid.add_row(label, *_cells(row.entry, row.times))
    return grid


def _grid(entries: Sequence[TensorEntry], *, names: bool) -> Grid:
    stats = (*STATS, "") if _has_stats(entries) else ()
    sides = ("left", "left", "left", "right", "right", *("right" for _ in stats), "text")
    has_histograms = any(entry.stats and entry.stats.histogram for entry in entries)
    last = "values, from min to max" if has_histograms else ""
    heads = ("dtype", "shape", "", "size", *stats, last) if stats else ()
    needs_last = has_histograms or any(entry.sha256 for entry in entries)
    drops = ((9, 8, 4, 1, 2, 7) if needs_last else (11, 9, 8, 4, 1, 2)) if stats else (1,)
    return Grid(*sides, title="Tensors", heads=heads, drops=drops, names=names)


def _has_stats(entries: Iterable[TensorEntry]) -> bool:
    return any(entry.stats for entry in entries)


def _blank(entries: Sequence[TensorEntry]) -> tuple[str, ...]:
    return ("",) * (len(STATS) + 1) if _has_stats(entries) else ()


def _cells(entry: TensorEntry, times: int) -> tuple[Line | str, ...]:
    shape = f"[{', '.join(map(str, entry.shape))}]"
    folded = f"×{times}" if times > 1 else ""
    told: list[Piece] = [(entry.sha256, "")] if entry.sha256 else []
    if entry.stats and entry.stats.histogram:
        told.append((_profile(entry.stats.histogram), ""))
    if entry.parameter is not None:
        told.append((f"of {words.printable(entry.parameter)}", "quiet"))
    if entry.kind:
        told.append((words.printable(entry.kind, 80), ""))
    stats = entry.stats
    numbers: list[Line | str] = []
    if stats is not None:
        found = (stats.min, stats.max, stats.mean, stats.std, stats.norm)
        numbers += ["" if number is None else f"{number:.4g}" for number in found]
        odd = f"{stats.nonfinite:,} NOT FINITE" if stats.nonfinite else ""
        numbers.append(
            line((odd or ("empty" if stats.min is None else ""), "error" if odd else "quiet"))
        )
    pieces = [(text if not i else f"  {text}", meaning) for i, (text, meaning) in enumerate(told)]
    return entry.dtype, shape, folded, words.size(entry.bytes * times), *numbers, line(*pieces)


def _profile(counts: Sequence[int]) -> str:
    """Return a bar for each count, from 0 to the largest."""
    return "".join(words.level(count, 0, max(counts)) for count in counts)
