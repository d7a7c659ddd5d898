"""The text of ``ckptool inspect``: one checkpoint in full, or a line for each of a run.

The answer comes first, then the evidence for it. Every name from a file goes through
:func:`~ckptool.render.text.printable`; pages hold text, never markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from ckptool.render import text as words
from ckptool.render.facts import MAIN_SLOT, TOP, Fact, facts, finding_row, place, short
from ckptool.render.page import Grid, Line, Page, line, one_by_one
from ckptool.reports.base import DECAYS, UPDATES, EmaStatus, MainSlot, Section
from ckptool.reports.inspect import CandidateReport, InspectReport, TensorEntry

if TYPE_CHECKING:
    from ckptool.reports.run import RunEntry, RunReport

_TRUST_STYLE = {"known": "quiet", "unknown": "warning", "dangerous": "error"}
_ROLE_STYLE = {"ema": "good", "model": "title", "raw weights": "warning"}


@one_by_one
def show_inspect(report: InspectReport) -> Page:
    """Yield the header, sections, EMA, training, pickle, metadata, findings and tensors, if any."""
    yield _header(report)
    if report.provenance:
        yield _origin(report.provenance)
    if report.sections:
        yield _sections(report)
    yield facts("EMA", _ema_lines(report))
    blocks = (
        ("Training", _training_lines(report)),
        ("Pickle", _pickle_lines(report)),
        ("Metadata", ((short(k), line(words.value(v))) for k, v in report.metadata.items())),
        ("Findings", map(finding_row, report.findings)),
    )
    for title, lines in blocks:
        rows = list(lines)
        if rows:
            yield facts(title, rows)
    if report.entries is not None:
        yield _tensor_tree(report.entries)


def _header(report: InspectReport) -> Line:
    totals = report.tensors
    part = "" if report.address is None else f"#{report.address}"
    dtypes = ", ".join(
        f"{name} {words.size(amount.bytes)}"
        for name, amount in sorted(totals.dtypes.items(), key=lambda kv: -kv[1].bytes)[:5]
    )
    shared = totals.stored_bytes < totals.bytes
    stored = f" ({words.size(totals.stored_bytes)} stored, the rest shared)" if shared else ""
    return line(
        (words.printable(Path(report.path).name + part), "title"),
        f"  {report.format}, {words.size(report.size_bytes)}\n",
        f"{words.plural(totals.count, 'tensor')}, {words.count(totals.elements)} "
        f"value{'' if totals.elements == 1 else 's'}",
        f": {dtypes}" if dtypes else "",
        (stored, "quiet"),
        _slices(report),
    )


MUCH_UNUSED = 1 << 16  # bytes of storages that no tensor views


def _slices(report: InspectReport) -> str:
    """Return a warning that a file holds the whole storages of slices; empty for other files."""
    whole, used = report.tensors.storage_bytes or 0, report.tensors.stored_bytes
    if whole - used < max(MUCH_UNUSED, used // 10):
        return ""
    return (
        f"\nthese are slices: they show {words.size(used)} of {words.size(whole)} of storages, "
        "which torch.save writes whole; clone() each before saving"
    )


_MADE_BY = {"promote-ema": "promoted", "extract-ema": "extracted"}


def _origin(origin: Mapping[str, Any]) -> Line:
    """Return the source that ckptool recorded in the file; a claim like any other in a file."""
    done = _MADE_BY.get(origin["command"], "written")
    said = f" by ckptool {short(origin['version'])} from {short(origin['source'])}"
    place = f", {short(origin['ema'])}" if origin["ema"] else ""
    return line((f"{done}{said}{place}, {short(origin['time'])}", "quiet"))


def _sections(report: InspectReport) -> Grid:
    grid = Grid("left", "left", "right", "right")
    grid.add_row(line(("\nSections", "title")))
    for section in report.sections:
        grid.add_row(
            line("  ", (words.printable(section.address, 60) or TOP, "name")),
            line(
                (section.role, _ROLE_STYLE.get(section.role, "")),
                f", a whole {_whole_object(section)}" if section.object else "",
            ),
            words.plural(section.tensors, "tensor") if section.tensors else "",
            words.size(section.bytes) if section.tensors else "",
        )
    return grid


def _whole_object(section: Section) -> str:
    """Return ``nn.Module (Sequential)``: the class without its package."""
    kind = "optimizer" if section.role == "optimizer" else "nn.Module"
    name = (section.object or "").rpartition(".")[2]
    return f"{kind} ({words.printable(name, 40)})"


def _ema_lines(report: InspectReport) -> Iterator[Fact]:
    ema = report.ema
    if not ema.candidates:
        yield "", line("none stored beside the weights")
        yield "", line((MAIN_SLOT[ema.main_slot], "quiet"))
        return
    in_slot = {c.address for c in ema.candidates if c.address == c.model}
    if any(found.rule == "CK417" and found.address in in_slot for found in report.findings):
        slot = "the model's state dict holds the weights from before the averaging began"
    else:
        slot = MAIN_SLOT[ema.main_slot]
    if ema.status is EmaStatus.AMBIGUOUS:
        yield "", line(("not decided", "warning"))
    for candidate in ema.candidates:
        yield from _candidate_lines(candidate)
        if ema.selected is None and candidate.tensors and report.address is None:
            where = f"{quote(report.path)} --ema {quote(candidate.address)}"
            yield "take it with", line(words.printable(f"ckptool extract-ema {where}"))
    yield "main slot", line(slot)


def _candidate_lines(candidate: CandidateReport) -> Iterator[Fact]:
    where = place(candidate.address)
    yield "at", line((where, "name"), f"  {candidate.kind}, {words.size(candidate.bytes)}")
    if candidate.file:
        yield "in file", line((words.printable(candidate.file), "name"))
    if candidate.layout:
        yield "layout", line(f"{candidate.layout} ({candidate.library})")
    yield "why", line(words.printable(candidate.why))
    if candidate.model is not None:
        yield "covers", _coverage(candidate)
    if candidate.distance is not None and candidate.model is not None:
        yield "distance", line(f"{candidate.distance:.3g} of the model's values, in a sample")
    if candidate.unexpected:
        extra = words.some(candidate.unexpected)
        yield "unpaired", line(f"{len(candidate.unexpected)} of its names: {extra}")
    if candidate.aliases:
        same = ", ".join(map(words.printable, candidate.aliases))
        yield "same storage", line((same, "name"))
    yield "says", line(_meta(candidate))


def _coverage(candidate: CandidateReport) -> Line:
    total = candidate.matched + len(candidate.missing)
    slot = place(candidate.model)
    how = "" if candidate.naming in {"same", None} else f" (names {candidate.naming})"
    lacks = f"; not {words.some(candidate.missing)}" if candidate.missing else ""
    return line(f"{candidate.matched} of the {total} tensors of ", (slot, "name"), how + lacks)


_META_FIRST = frozenset({*DECAYS, *UPDATES})


def _meta(candidate: CandidateReport) -> str:
    ordered = sorted(candidate.meta.items(), key=lambda kv: kv[0] not in _META_FIRST)
    places = {key: f" ({short(place)})" for key, place in candidate.meta_at.items()}
    said = [f"{short(key)} {words.value(val)}{places.get(key, '')}" for key, val in ordered]
    if candidate.meta.keys().isdisjoint(DECAYS):
        said.append("decay not stored")
    return ", ".join(said)


def _training_lines(report: InspectReport) -> Iterator[Fact]:
    training = report.training
    facts = [
        f"{name.replace('_', ' ')} {words.value(training[name])}"
        for name in ("epoch", "global_step")
        if name in training
    ]
    if facts:
        yield "at", line(", ".join(facts))
    labels = (("best", "best"), ("metrics", "metrics"), ("early_stopping", "early stopping"))
    for key, label in labels:
        if key in training:
            yield label, line(_pairs(training[key]))
    if "rng" in training:
        yield "random states", line(", ".join(training["rng"]))


def _pairs(values: dict[str, Any]) -> str:
    limit = len(values) if words.is_whole() else 8
    shown = [f"{short(name)} {words.value(val)}" for name, val in list(values.items())[:limit]]
    rest = len(values) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def _pickle_lines(report: InspectReport) -> Iterator[Fact]:
    entries = report.pickle.get("globals", ())
    for trust in ("dangerous", "unknown", "known"):
        names = [entry.name for entry in entries if entry.trust == trust]
        if names:
            limit = 3 if trust == "known" else 12
            yield trust, line((words.some(names, limit), _TRUST_STYLE[trust]))


def _tensor_tree(entries: tuple[TensorEntry, ...]) -> Grid:
    """Return all tensors: as a tree of folded layers on a terminal, a line each in a pipe."""
    grid = Grid("left", "left", "left", "right", "right", "left")
    grid.add_row(line(("\nTensors", "title")))
    if words.is_whole():
        for entry in entries:
            grid.add_row(line((f"  {place(entry.address)}", "name")), *_tensor_cells(entry, 1))
        return grid
    from ckptool.render.folding import fold  # noqa: PLC0415 - only with --tensors

    for row in fold(entries):
        label = "  " * (row.depth + 1) + words.printable(row.label, 80)
        if row.entry is None:
            times = f"×{row.times}" if row.times > 1 else ""
            grid.add_row(line((label, "name")), "", "", times)
        else:
            grid.add_row(line((label, "name")), *_tensor_cells(row.entry, row.times))
    return grid


def _tensor_cells(entry: TensorEntry, times: int) -> tuple[str, ...]:
    shape = f"[{', '.join(map(str, entry.shape))}]"
    folded = f"×{times}" if times > 1 else ""
    numbers = "  ".join(part for part in (_range(entry), entry.sha256) if part)
    return entry.dtype, shape, folded, words.size(entry.bytes * times), numbers


def _range(entry: TensorEntry) -> str:
    stats = entry.stats
    if stats is None:
        return words.printable(entry.kind, 80) if entry.kind else ""
    if stats.min is None:
        return f"nothing finite, {stats.nonfinite} not" if stats.nonfinite else "empty"
    numbers = (
        f"{stats.min:.4g} … {stats.max:.4g}  mean {stats.mean:.4g}  std {stats.std:.4g}"
        f"  norm {stats.norm:.4g}"
    )
    return numbers + (f"  {stats.nonfinite} NOT FINITE" if stats.nonfinite else "")


# ---------------------------------------------------------------------------------------------- run


@one_by_one
def show_run(report: RunReport) -> Page:
    """Yield a line for each checkpoint, and the best checkpoint by each metric."""
    found = words.plural(len(report.checkpoints), "checkpoint")
    where = words.printable(report.path)
    yield line((where, "title"), f"  {found}") if where else line((found, "title"))
    metrics = list(dict.fromkeys(name for e in report.checkpoints for name in e.metrics))
    numbers = range(3, 3 + len(metrics))
    grid = Grid("left", "right", "right", *("right" for _ in numbers), "right", "left",
                optional=numbers)  # fmt: skip
    heads = ("file", "epoch", "step", *metrics, "size", "EMA")
    grid.add_row(*(line((short(head), "label")) for head in heads))
    for entry in report.checkpoints:
        name = Path(entry.path).name if where else entry.path
        grid.add_row(*_run_cells(name, entry, metrics))
    yield grid
    for metric, best in report.best_by.items():
        name = Path(best.path).name if where else best.path
        yield line(
            f"best {short(metric)}: {words.value(best.value)} in ",
            (words.printable(name), "good"),
            (f"  ({best.better} is better, by {short(best.because)})", "quiet"),
        )
    if report.unrated:
        names = ", ".join(map(short, report.unrated))
        ask = f"ckptool verify --best {short(report.unrated[0])}:max, or :min, takes your word"
        unknown = f"no best by {names}: it is not known whether lower or higher is better"
        yield line((unknown, "quiet"))
        yield line(("hint: ", "info"), ask, wraps=False)


def _run_cells(file: str, entry: RunEntry, metrics: list[str]) -> list[Line]:
    name = line((words.printable(file), "name"))
    if entry.error:
        return [name, *([line("")] * (len(metrics) + 3)), line((short(entry.error), "error"))]
    numbers = (entry.epoch, entry.global_step, *(entry.metrics.get(m) for m in metrics))
    cells = [line("" if n is None else words.value(n)) for n in numbers]
    return [
        name,
        *cells,
        line(words.size(entry.size_bytes)),
        line(_ema_cell(entry)),
    ]


def _ema_cell(entry: RunEntry) -> str:
    """Return where the EMA weights are, or that the model's state dict holds them."""
    if entry.main_slot is MainSlot.AVERAGED:
        return "is EMA, promoted" if entry.made_by == "promote-ema" else "is EMA"
    return short(entry.ema or TOP)
