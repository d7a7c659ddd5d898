"""The text of ``ckptool inspect`` for one checkpoint.

The headline answers what people came for; the blocks below it are the evidence. Every name from a
file goes through :func:`~ckptool.render.text.printable`; pages hold text, never markup.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckptool.render import text as words
from ckptool.render.facts import (
    HOLDS_MEAN,
    TOP,
    Fact,
    facts,
    finding_row,
    folder_of,
    is_mean,
    place,
    post_hoc,
    short,
    slot_told,
    unchanged,
)  # fmt: skip
from ckptool.render.headline import headline
from ckptool.render.page import Grid, Line, Page, line, one_by_one
from ckptool.reports.base import DECAYS, UPDATES, EmaStatus, SameReport, Section, TensorTotals
from ckptool.reports.inspect import CandidateReport, InspectReport, OptimizerReport

_TRUST_STYLE = {"known": "quiet", "unknown": "warning", "dangerous": "error"}
_ROLE_STYLE = {"ema": "good", "model": "title", "raw weights": "warning"}


@one_by_one
def show_inspect(report: InspectReport) -> Page:
    """Yield the header, sections, EMA, training, pickle, metadata, findings and tensors, if any."""
    yield from headline(report)
    if report.sections and report.tensors.count:
        yield _sections(report)
    if slices := _slices(report):
        yield line((slices, "warning"))
    blocks = (
        ("Files", _file_lines(report)),
        ("Values", _value_lines(report)),
        ("EMA", _ema_lines(report)),
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
        from ckptool.render.tensors_text import (  # noqa: PLC0415 - on request
            tensor_list,
            tensor_tree,
        )

        yield (tensor_list if words.is_whole() else tensor_tree)(report.entries)


@one_by_one
def show_list(report: InspectReport) -> Page:
    """Yield the file, and a line for each tensor that was asked for."""
    from ckptool.render.tensors_text import tensor_list  # noqa: PLC0415 - on request

    yield next(headline(report))
    yield tensor_list(report.entries or ())


MAX_VALUES = 200
VALUE_LIMIT = 1_000  # characters
WHY_LIMIT = 400
MUCH_UNUSED = 1 << 16  # bytes of storages that no tensor views


def _slices(report: InspectReport) -> str:
    """Return a warning that a file holds the whole storages of slices; empty for other files."""
    whole, used = report.tensors.storage_bytes or 0, report.tensors.stored_bytes
    if report.address is not None or whole - used < max(MUCH_UNUSED, used // 10):
        return ""
    return (
        f"these are slices: they show {words.size(used)} of {words.size(whole)} of storages, "
        "which torch.save writes whole; clone() each before saving"
    )


def _file_lines(report: InspectReport) -> Iterator[Fact]:
    """Yield the processes that saved a checkpoint of several files, and what its files are."""
    sharing = report.sharing
    if sharing is None:
        return
    if sharing.world_size or sharing.strategy:
        world = words.plural(sharing.world_size, "rank") if sharing.world_size else ""
        told = filter(None, (world, words.printable(sharing.strategy or "")))
        yield "saved by" if world else "shared as", line(", ".join(told))
    for kind in sharing.files:
        holds = f": {kind.holds}" if kind.holds else ""
        yield (
            words.plural(kind.count, "file"),
            line((words.printable(kind.name, 200), "name"), holds),
        )


def _sections(report: InspectReport) -> Grid:
    heads = ("", "tensors", "values", "size", "")
    grid = Grid("left", "left", "right", "right", "right", "text", title="Sections", heads=heads,
                drops=(3, 5), names=True)  # fmt: skip
    for section in report.sections:
        role = "" if section.role == section.address else section.role
        whole = f"a whole {_whole_object(section)}" if section.object else ""
        grid.add_row(
            line("  ", (words.printable(section.address, 60) or TOP, "name")),
            line(
                (role, _ROLE_STYLE.get(section.role, "")),
                f", {whole}" if role and whole else whole,
            ),
            *_amounts(section.tensors, section.elements, section.bytes),
        )
    totals = report.tensors
    amounts = _amounts(totals.count, totals.elements, totals.bytes)
    grid.add_row(line(("  in all", "quiet")), "", *amounts, line((_dtypes(totals), "quiet")))
    return grid


def _amounts(tensors: int, elements: int, nbytes: int) -> tuple[str, ...]:
    return (f"{tensors:,}", words.count(elements), words.size(nbytes)) if tensors else ("", "", "")


def _dtypes(totals: TensorTotals) -> str:
    """Return the bytes of each dtype, and of what is stored where tensors share bytes."""
    largest = sorted(totals.dtypes.items(), key=lambda kv: -kv[1].bytes)[:5]
    parts = [f"{name} {words.size(amount.bytes)}" for name, amount in largest]
    is_shared = totals.stored_bytes < totals.bytes
    stored = (
        [f"{words.size(totals.stored_bytes)} in the file, since tensors share storage"]
        if is_shared
        else []
    )
    return ", ".join([*parts, *stored])


def _whole_object(section: Section) -> str:
    """Return ``nn.Module (Sequential)``: the class without its package."""
    kind = "optimizer" if section.role == "optimizer" else "nn.Module"
    name = (section.object or "").rpartition(".")[2]
    return f"{kind} ({words.printable(name, 40)})"


def _ema_lines(report: InspectReport) -> Iterator[Fact]:
    ema = report.ema
    if ema.status is EmaStatus.AMBIGUOUS:
        several = (
            f"{words.plural(len(ema.candidates), 'candidate')}; choose one with extract-ema --ema"
        )
        yield "", line((several, "warning"))
    for candidate in ema.candidates:
        yield from _candidate_lines(candidate)
        if ema.selected is None and candidate.tensors and report.address is None:
            from shlex import quote  # noqa: PLC0415 - for few files

            where = f"{quote(report.path)} --ema {quote(candidate.address)}"
            typed = f"ckptool extract-ema {where}"
            yield "extract with", line(words.printable(typed, len(typed)))
    if report.snapshots:
        yield "post-hoc", line(post_hoc(report.snapshots, folder_of(report.path)))
    in_slot = {c.address for c in ema.candidates if c.address == c.model}
    if any(found.rule == "CK417" and found.address in in_slot for found in report.findings):
        yield "model", line("its state dict holds the weights from before the averaging began")
    elif ema.candidates:
        kind = next((c.kind for c in ema.candidates if c.address == ema.selected), None)
        told = HOLDS_MEAN if is_mean(report.provenance) else slot_told(ema.main_slot, kind)
        yield "model", line(told)


def _candidate_lines(candidate: CandidateReport) -> Iterator[Fact]:
    kind = "" if candidate.kind == "ema" else f"{candidate.kind}, "
    yield (
        "stored in",
        line((place(candidate.address), "name"), f" ({kind}{words.size(candidate.bytes)})"),
    )
    if candidate.file:
        yield "in file", line((words.printable(candidate.file), "name"))
    if candidate.layout:
        yield "layout", line(f"{candidate.layout} ({candidate.library})")
    yield "found by", line(words.printable(candidate.why, WHY_LIMIT))
    if candidate.model is not None:
        yield "covers", _coverage(candidate)
    if candidate.distance is not None and candidate.model is not None:
        share = f"{100 * candidate.distance:.3g} %"
        yield "distance", line(f"{share} from the model's weights (relative L2, sampled)")
    elif candidate.no_distance and candidate.model is not None:
        yield "distance", line(f"unknown: {candidate.no_distance}")
    if candidate.same is not None:
        yield "differs", line(_differs(candidate.same))
    if candidate.unexpected:
        extra = words.some(candidate.unexpected)
        yield "unpaired", line(f"{len(candidate.unexpected)} of its names: {extra}")
    if candidate.aliases:
        same = ", ".join(map(words.printable, candidate.aliases))
        yield "same storage", line((same, "name"))
    yield "states", line(_meta(candidate))


# How the names of EMA weights differ from the model's -> words for it.
_NAMING = {
    "prefixed": "under another prefix",
    "wrapped": "under a wrapper's prefix",
    "dots-removed": "without the dots in the names",
    "underscores": "with underscores for dots",
    "positional": "by position, without names",
    "by-table": "by a table of names",
}


def _coverage(candidate: CandidateReport) -> Line:
    total = candidate.matched + len(candidate.missing)
    naming = _NAMING.get(candidate.naming or "")
    if candidate.prefix:
        naming = f"under the prefix {short(candidate.prefix)}"
    how = f", {naming}" if naming else ""
    lacks = f"; not {words.some(candidate.missing)}" if candidate.missing else ""
    model = (place(candidate.model), "name")
    return line(f"{candidate.matched} of the {total} tensors of ", model, how + lacks)


def _differs(same: SameReport) -> str:
    """Return how many tensors differ from the raw weights: buffers may be copies of the model's."""
    if not same.same:
        return f"in all {words.plural(same.compared, 'tensor')} from the raw weights"
    differing = same.compared - same.same
    return f"in {differing:,} of {words.plural(same.compared, 'tensor')}; {unchanged(same)}"


_META_FIRST = frozenset({*DECAYS, *UPDATES})


def _meta(candidate: CandidateReport) -> str:
    ordered = sorted(candidate.meta.items(), key=lambda kv: kv[0] not in _META_FIRST)
    places = {key: f" ({short(place)})" for key, place in candidate.meta_at.items()}
    said = [f"{short(key)} {words.value(val)}{places.get(key, '')}" for key, val in ordered]
    if candidate.meta.keys().isdisjoint(DECAYS):
        said.append("decay unknown")
    return ", ".join(said)


def _value_lines(report: InspectReport) -> Iterator[Fact]:
    """Yield the values of the part that was asked for: the first ones on a terminal, else all."""
    values = list((report.values or {}).items())
    for at, found in values if words.is_whole() else values[:MAX_VALUES]:
        yield line("  ", (place(at), "name")), line(words.printable(found, VALUE_LIMIT))
    if len(values) > MAX_VALUES and not words.is_whole():
        yield "", line((f"and {len(values) - MAX_VALUES:,} more; a pipe gets all", "quiet"))


def _training_lines(report: InspectReport) -> Iterator[Fact]:
    training = report.training
    for optimizer in report.optimizers:
        yield "optimizer", _optimizer(optimizer)
    labels = (("best", "best"), ("metrics", "metrics"), ("early_stopping", "early stopping"))
    for key, label in labels:
        if key in training:
            yield label, line(_pairs(training[key]))
    if "rng" in training:
        yield "RNG", line(", ".join(training["rng"]))


def _optimizer(optimizer: OptimizerReport) -> Line:
    """Return ``AdamW, lr 0.0005, 53 parameters in 1 group``."""
    rates = ", ".join(f"{rate:.4g}" for rate in optimizer.lr[:4])
    rates += ", …" if len(optimizer.lr) > 4 else ""
    parameters = words.plural(optimizer.parameters, "parameter tensor")
    where = "" if optimizer.address == "optimizer" else f" in {place(optimizer.address)}"
    parts = [
        f"{short(optimizer.kind) if optimizer.kind else 'of unknown kind'}{where}",
        f"lr {rates}" if rates else "",
        f"{parameters} in {words.plural(optimizer.groups, 'group')}",
        "" if optimizer.states else "keeps no state" if optimizer.stateless else "no state yet",
    ]
    return line(", ".join(filter(None, parts)))


def _pairs(values: dict[str, Any]) -> str:
    limit = len(values) if words.is_whole() else 8
    shown = [f"{short(name)} {words.value(val)}" for name, val in list(values.items())[:limit]]
    rest = len(values) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def _pickle_lines(report: InspectReport) -> Iterator[Fact]:
    """Yield the names that need an eye, with the known ones; the headline sums up the others."""
    entries = report.pickle.get("globals", ())
    if all(entry.trust == "known" for entry in entries):
        return
    for trust in ("dangerous", "unknown", "known"):
        names = [entry.name for entry in entries if entry.trust == trust]
        if names:
            limit = 3 if trust == "known" else 12
            yield trust, line((words.some(names, limit), _TRUST_STYLE[trust]))
