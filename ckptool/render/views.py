"""What is shown of each report: the answer first, then the evidence.

Every name from a file goes through :func:`~ckptool.render.text.printable`; pages hold text, never
markup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from ckptool.render import text as words
from ckptool.render.page import Grid, Line, Page
from ckptool.render.page import line as _text
from ckptool.reports import (
    CandidateReport,
    CastReport,
    ErrorReport,
    ExtractReport,
    Finding,
    InspectReport,
    LayoutsReport,
    PromoteReport,
    RunEntry,
    RunReport,
    TensorEntry,
)

_SEVERITY_STYLE = {"error": "error", "warning": "warning", "info": "info"}
_TRUST_STYLE = {"known": "quiet", "unknown": "warning", "dangerous": "error"}
_ROLE_STYLE = {"ema": "good", "model": "title", "raw weights": "warning"}


# ------------------------------------------------------------------------------------------ inspect


def show_inspect(report: InspectReport) -> Page:
    """The header, then sections, EMA, training, pickle, findings; only what there is."""
    yield _header(report)
    if report.provenance:
        yield _origin(report.provenance)
    if report.sections:
        yield _sections(report)
    yield _facts("EMA", _ema_lines(report))
    blocks = (
        ("Training", _training_lines(report)),
        ("Pickle", _pickle_lines(report)),
        ("Metadata", ((_plain(k), _text(words.value(v))) for k, v in report.metadata.items())),
        ("Findings", map(_finding, report.findings)),
    )
    for title, lines in blocks:
        rows = list(lines)
        if rows:
            yield _facts(title, rows)
    if report.entries is not None:
        yield _tensor_tree(report.entries)


def _plain(name: object) -> str:
    return words.printable(name, 60)


def _header(report: InspectReport) -> Line:
    totals = report.tensors
    dtypes = ", ".join(
        f"{name} {words.size(amount.bytes)}"
        for name, amount in sorted(totals.dtypes.items(), key=lambda kv: -kv[1].bytes)[:5]
    )
    shared = totals.stored_bytes < totals.bytes
    stored = f" ({words.size(totals.stored_bytes)} stored, the rest shared)" if shared else ""
    return _text(
        (words.printable(Path(report.path).name), "title"),
        f"  {report.format}, {words.size(report.size_bytes)}\n",
        f"{words.plural(totals.count, 'tensor')}, {words.count(totals.elements)} "
        f"value{'' if totals.elements == 1 else 's'}",
        f": {dtypes}" if dtypes else "",
        (stored, "quiet"),
    )


_MADE_BY = {"promote-ema": "promoted", "extract-ema": "extracted"}


def _origin(origin: Mapping[str, Any]) -> Line:
    """Where ckptool says that it made the file from; a claim like any other in a file."""
    done = _MADE_BY.get(origin["command"], "written")
    said = f" by ckptool {_plain(origin['version'])} from {_plain(origin['source'])}"
    place = f", {_plain(origin['ema'])}" if origin["ema"] else ""
    return _text((f"{done}{said}{place}, {_plain(origin['time'])}", "quiet"))


def _sections(report: InspectReport) -> Grid:
    grid = Grid("left", "left", "right", "right")
    grid.add_row(_text(("\nSections", "title")))
    for section in report.sections:
        grid.add_row(
            _text("  ", (words.printable(section.address, 60) or "(the top)", "name")),
            _text((section.role, _ROLE_STYLE.get(section.role, ""))),
            words.plural(section.tensors, "tensor") if section.tensors else "",
            words.size(section.bytes) if section.tensors else "",
        )
    return grid


Fact = tuple[str | Line, str | Line]


def _facts(title: str, lines: Iterable[Fact]) -> Grid:
    """A titled block of label and value."""
    grid = Grid("left", "left")
    grid.add_row(_text((f"\n{title}", "title")), "")
    for label, content in lines:
        grid.add_row(_text((f"  {label}", "label")) if isinstance(label, str) else label, content)
    return grid


_MAIN_SLOT = {
    "raw": "the model's own slot holds the raw weights",
    "averaged": "the model's own slot already holds the averaged weights",
    "unknown": "whether the model's own slot is averaged cannot be told from this file",
}


def _ema_lines(report: InspectReport) -> Iterator[Fact]:
    ema = report.ema
    if not ema.candidates:
        yield "", _text("none stored beside the weights")
        yield "", _text((_MAIN_SLOT["unknown"], "quiet"))
        return
    if ema.status == "ambiguous":
        yield "", _text(("not decided", "warning"))
    for candidate in ema.candidates:
        yield from _candidate_lines(candidate)
        if ema.selected is None and candidate.tensors:
            where = f"{quote(report.path)} --ema {quote(candidate.address)}"
            yield "take it with", _text(words.printable(f"ckptool extract-ema {where}"))
    yield "main slot", _text(_MAIN_SLOT[ema.main_slot])


def _candidate_lines(candidate: CandidateReport) -> Iterator[Fact]:
    where = words.printable(candidate.address) or "(the top)"
    yield "at", _text((where, "name"), f"  {candidate.kind}, {words.size(candidate.bytes)}")
    if candidate.file:
        yield "in file", _text((words.printable(candidate.file), "name"))
    if candidate.layout:
        yield "layout", _text(f"{candidate.layout} ({candidate.library})")
    yield "why", _text(words.printable(candidate.why))
    if candidate.model is not None:
        yield "covers", _coverage(candidate)
    if candidate.distance is not None and candidate.model is not None:
        yield "distance", _text(f"{candidate.distance:.3g} of the model's values, in a sample")
    if candidate.unexpected:
        extra = words.some(candidate.unexpected)
        yield "unpaired", _text(f"{len(candidate.unexpected)} of its names: {extra}")
    if candidate.aliases:
        same = ", ".join(map(words.printable, candidate.aliases))
        yield "same storage", _text((same, "name"))
    yield "says", _text(_meta(candidate))


def _coverage(candidate: CandidateReport) -> Line:
    total = candidate.matched + len(candidate.missing)
    slot = words.printable(candidate.model) or "(the top)"
    how = "" if candidate.naming in {"same", None} else f" (names {candidate.naming})"
    lacks = f"; not {words.some(candidate.missing)}" if candidate.missing else ""
    return _text(f"{candidate.matched} of the {total} tensors of ", (slot, "name"), how + lacks)


_META_FIRST = frozenset({"decay", "ema_decay", "num_updates", "updates", "n_averaged"})


def _meta(candidate: CandidateReport) -> str:
    ordered = sorted(candidate.meta.items(), key=lambda kv: kv[0] not in _META_FIRST)
    said = [f"{_plain(key)} {words.value(val)}" for key, val in ordered]
    if "decay" not in candidate.meta:
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
        yield "at", _text(", ".join(facts))
    labels = (("best", "best"), ("metrics", "metrics"), ("early_stopping", "early stopping"))
    for key, label in labels:
        if key in training:
            yield label, _text(_pairs(training[key]))
    if "rng" in training:
        yield "random states", _text(", ".join(training["rng"]))


def _pairs(values: dict[str, Any], limit: int = 8) -> str:
    shown = [f"{_plain(name)} {words.value(val)}" for name, val in list(values.items())[:limit]]
    rest = len(values) - limit
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def _pickle_lines(report: InspectReport) -> Iterator[Fact]:
    entries = report.pickle.get("globals", ())
    for trust in ("dangerous", "unknown", "known"):
        names = [entry.name for entry in entries if entry.trust == trust]
        if names:
            limit = 3 if trust == "known" else 12
            yield trust, _text((words.some(names, limit), _TRUST_STYLE[trust]))


def _finding(finding: Finding) -> Fact:
    style = _SEVERITY_STYLE.get(finding.severity, "")
    where = words.printable(finding.address)
    label = _text("  ", (finding.rule, style))
    message = words.printable(finding.message, 400)
    return label, _text((f"{finding.severity}: ", style), f"{where}: " if where else "", message)


def _tensor_tree(entries: tuple[TensorEntry, ...]) -> Grid:
    grid = Grid("left", "left", "left", "right", "right", "left")
    grid.add_row(_text(("\nTensors", "title")))
    if not entries:
        grid.add_row(_text(("  no address fits", "quiet")))
    from ckptool.render.folding import fold  # noqa: PLC0415 - only with --tensors

    for row in fold(entries):
        label = "  " * (row.depth + 1) + words.printable(row.label, 80)
        times = f"×{row.times}" if row.times > 1 else ""
        if row.entry is None:
            grid.add_row(_text((label, "name")), "", "", times)
            continue
        entry = row.entry
        shape = f"[{', '.join(map(str, entry.shape))}]"
        nbytes = words.size(entry.bytes * row.times)
        grid.add_row(_text((label, "name")), entry.dtype, shape, times, nbytes, _stats(entry))
    return grid


def _stats(entry: TensorEntry) -> str:
    stats = entry.stats
    if stats is None:
        return entry.sha256 or ""
    if stats.min is None:
        return f"nothing finite, {stats.nonfinite} not" if stats.nonfinite else "empty"
    numbers = (
        f"{stats.min:.4g} … {stats.max:.4g}  mean {stats.mean:.4g}  std {stats.std:.4g}"
        f"  norm {stats.norm:.4g}"
    )
    return numbers + (f"  {stats.nonfinite} NOT FINITE" if stats.nonfinite else "")


# ---------------------------------------------------------------------------------------------- run


def show_run(report: RunReport) -> Page:
    """One line a checkpoint, and which is best by what."""
    found = words.plural(len(report.checkpoints), "checkpoint")
    yield _text((words.printable(report.path), "title"), f"  {found}")
    metrics = _shown_metrics(report.checkpoints)
    grid = Grid("left", "right", "right", *(["right"] * len(metrics)), "right", "left")
    heads = ("file", "epoch", "step", *metrics, "size", "EMA")
    grid.add_row(*(_text((_plain(head), "label")) for head in heads))
    for entry in report.checkpoints:
        grid.add_row(*_run_cells(entry, metrics))
    yield grid
    for metric, path in report.best.items():
        yield _text(f"best {_plain(metric)}: ", (words.printable(Path(path).name), "good"))


def _shown_metrics(entries: tuple[RunEntry, ...], limit: int = 3) -> list[str]:
    names = dict.fromkeys(name for entry in entries for name in entry.metrics)
    return list(names)[:limit]


def _run_cells(entry: RunEntry, metrics: list[str]) -> list[Line]:
    name = _text((words.printable(Path(entry.path).name), "name"))
    if entry.error:
        return [name, *([_text("")] * (len(metrics) + 3)), _text((_plain(entry.error), "error"))]
    numbers = (entry.epoch, entry.global_step, *(entry.metrics.get(m) for m in metrics))
    cells = [_text("" if n is None else words.value(n)) for n in numbers]
    return [
        name,
        *cells,
        _text(words.size(entry.size_bytes)),
        _text(_plain(entry.ema or "(the top)")),
    ]


# ------------------------------------------------------------------------------ extract and promote


def show_extract(report: ExtractReport) -> Page:
    """What was written, from where, and what the average lacked."""
    done = "wrote" if report.written else "would write"
    yield _text(f"{done} ", (words.printable(report.output), "title"), f"  {report.format}")
    yield _facts("From", _extract_lines(report))
    yield from _findings(report.findings)


_NAMES = {
    "model": "names as in the model",
    "bare": "names without wrappers",
    "ema": "names as in the average",
}


def _extract_lines(report: ExtractReport) -> Iterator[Fact]:
    tensors = words.plural(report.tensors, "tensor")
    noted = len(report.tied) if report.ties == "once" else 0
    named = f" with {report.tensors + noted:,} names" if noted else ""
    how = "names as stored" if report.kind == "table" else _NAMES[report.names]
    yield "tensors", _text(f"{tensors}{named}, {words.size(report.bytes)}, {how}")
    where = (words.printable(report.ema) or "(the top)", "name")
    if report.kind == "table":
        yield "taken", _text(where, " as it stands")
    else:
        yield "averaged", _text(f"{report.averaged} from ", where)
    if report.file:
        yield "in file", _text((words.printable(report.file), "name"))
    if report.from_model:
        kept = words.some(report.from_model)
        yield "from model", _text(f"{len(report.from_model)} that the average lacks: {kept}")
    if report.tied:
        ties = ", ".join(f"{_plain(a)} = {_plain(b)}" for a, b in list(report.tied.items())[:3])
        yield "tied", _text(ties, (_TIES[report.ties], "quiet"))
    if report.dropped:
        yield "left out", _text(f"{len(report.dropped)}: {words.some(report.dropped)}")
    if report.casts:
        yield "cast", _cast(report.casts)
    yield from _shard_lines(report)
    if report.main_slot == "averaged":
        yield "main slot", _text(_MAIN_SLOT["averaged"])


def _shard_lines(report: ExtractReport) -> Iterator[Fact]:
    if report.shards:
        yield "shards", _text(words.plural(len(report.shards), "file"))
    for shard in report.shards:
        size = f"{words.plural(shard.tensors, 'tensor')}, {words.size(shard.bytes)}"
        yield "", _text((_plain(shard.file), "name"), f"  {size}")
    if report.removed:
        shards = f"{words.plural(len(report.removed), 'shard')} of the set that is replaced"
        yield "removed", _text(f"{shards}: {words.some(report.removed)}")


_TIES = {
    "shared": "",
    "once": "; written once, noted for load_model (--ties each: both names)",
    "each": "; written under each name",
}


def _cast(casts: CastReport) -> Line:
    """To which type, and at what cost."""
    lost = (
        (casts.overflowed, "overflow", "warning"),
        (casts.vanished, "became 0", "warning"),
    )
    pieces = [(f"; {words.plural(n, 'value')} {what}", style) for n, what, style in lost if n]
    return _text(f"{words.plural(casts.tensors, 'tensor')} to {casts.dtype}", *pieces)


def show_promote(report: PromoteReport) -> Page:
    """What was replaced by what, and what stays."""
    yield _text(
        f"{_done(report)} ", (words.printable(report.output), "title"), f"  {report.format}"
    )
    yield _facts("Promoted", _promote_lines(report))
    yield from _findings(report.findings)


_ONE_IN_MEMORY = "the averages are the very tensors of the model's slot, not copies"


def _done(report: PromoteReport) -> str:
    if report.in_place and not report.bytes:
        return "left"
    verbs = ("replaced", "would replace") if report.in_place else ("wrote", "would write")
    return verbs[0] if report.written else verbs[1]


def _promote_lines(report: PromoteReport) -> Iterator[Fact]:
    if not report.bytes:
        why = _MAIN_SLOT["averaged"] if report.main_slot == "averaged" else _ONE_IN_MEMORY
        left = "it stays as it is" if report.in_place else "the output is an unchanged copy"
        yield "nothing", _text(f"{why}: {left}")
        return
    replaced = f"{words.plural(report.tensors, 'tensor')}, {words.size(report.bytes)}"
    yield (
        "replaced",
        _text(replaced, " at ", (words.printable(report.model) or "(the top)", "name")),
    )
    yield "with", _text((words.printable(report.ema) or "(the top)", "name"))
    if report.file:
        yield "in file", _text((words.printable(report.file), "name"))
    if report.kept:
        kept = words.some(report.kept)
        yield "kept", _text(f"{len(report.kept)} that the average lacks: {kept}")
    if report.dropped:
        yield "left out", _text(f"{len(report.dropped)}: {words.some(report.dropped)}")
    for cast, tensors in report.casts.items():
        yield "cast", _text(f"{words.plural(tensors, 'tensor')} from {_plain(cast)}")
    if report.shared:
        seen = words.some(report.shared)
        yield "shared", _text((f"{len(report.shared)} elsewhere change too: {seen}", "warning"))
    if report.optimizers:
        where = words.some(report.optimizers)
        yield (
            "optimizer",
            _text(f"{where} still fits the raw weights: resume from the original"),
        )
    if report.backup:
        yield "backup", _text((words.printable(report.backup), "name"))


SHOWN_OF_A_RULE = 5


def _findings(findings: tuple[Finding, ...]) -> Page:
    """The first of each rule, and how many more: a rule may speak of every tensor."""
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    rows = [_finding(finding) for same in by_rule.values() for finding in _shown(same)]
    if rows:
        yield _facts("Findings", rows)


def _shown(same: list[Finding]) -> Iterator[Finding]:
    """All of a few; of many the first, and a count of the others."""
    limit = SHOWN_OF_A_RULE if len(same) > SHOWN_OF_A_RULE + 1 else len(same)
    yield from same[:limit]
    if same[limit:]:
        yield same[0]._replace(address="", message=f"and {len(same) - limit:,} more tensors")


# ------------------------------------------------------------------------------------------ layouts


def show_layouts(report: LayoutsReport) -> Page:
    """One line a layout: its name, where the averages are, who writes it."""
    grid = Grid("left", "left", "left")
    grid.add_row(*(_text((head, "label")) for head in ("layout", "averages at", "written by")))
    for row in report.layouts:
        where = f"{row.ema_at} (holds the raw weights)" if row.swapped else row.ema_at
        grid.add_row(
            _text((_plain(row.name), "name")),
            _text(words.printable(where)),
            _text(_plain(row.library)),
        )
    yield grid


# ------------------------------------------------------------------------------------------- errors


def show_error(report: ErrorReport) -> Page:
    """One ``error:`` line and one ``hint:`` line."""
    error = report.error
    where = [words.printable(error[key], 300) for key in ("path", "address") if error.get(key)]
    message = ": ".join([*where, words.printable(error["message"], 1000)])
    yield _text(("error: ", "error"), message, wraps=False)
    if error.get("hint"):
        yield _text(("hint: ", "info"), words.printable(error["hint"], 600), wraps=False)


VIEWS: Mapping[str, Callable[[Any], Page]] = {
    "InspectReport": show_inspect,
    "RunReport": show_run,
    "ExtractReport": show_extract,
    "PromoteReport": show_promote,
    "LayoutsReport": show_layouts,
    "ErrorReport": show_error,
}
