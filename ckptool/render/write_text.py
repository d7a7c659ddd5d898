"""The text of the commands that write weights: the output and its sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ckptool.render import text as words
from ckptool.render.facts import (
    MAIN_SLOT,
    Fact,
    facts,
    file_kind,
    finding_row,
    place,
    short,
    slot_told,
    unchanged,
)
from ckptool.render.next_step import next_step
from ckptool.render.page import Line, Page, line, one_by_one
from ckptool.reports.base import Finding, MainSlot, PosthocReport
from ckptool.reports.write import (
    AverageReport,
    CastReport,
    ConvertReport,
    ExtractReport,
    IntoReport,
    PlainReport,
    PromoteReport,
    WeightsReport,
    WriteReport,
)

_NAMES = {
    "model": "names as in the model",
    "bare": "names without wrappers",
    "ema": "names as in the EMA",
}


def _extract_lines(report: ExtractReport) -> Iterator[Fact]:
    tensors = words.plural(report.tensors, "tensor")
    noted = len(report.tied) if report.ties == "once" else 0
    named = f" with {report.tensors + noted:,} names" if noted else ""
    is_as_stored = report.kind == "table" and report.names != "bare"
    how = "names as stored" if is_as_stored else _NAMES[report.names]
    yield "tensors", line(f"{tensors}{named}, {words.size(report.bytes)}, {how}")
    where = (place(report.ema), "name")
    if report.kind == "table":
        yield "taken", line(where, " unchanged")
    else:  # buffers among them may be copies of the model's, so not all are averaged
        same = f"; {unchanged(report.same)}" if report.same and report.same.same else ""
        yield _KINDS.get(report.kind, "averaged"), line(f"{report.averaged} from ", where, same)
    if report.file:
        yield "in file", line((words.printable(report.file), "name"))
    if report.from_model:
        kept = words.some(report.from_model)
        why = "buffers, and what the EMA lacks" if report.buffers == "model" else ""
        why = why or f"that the {'raw weights lack' if report.kind == 'raw' else 'EMA lacks'}"
        yield "from model", line(f"{len(report.from_model)} {why}: {kept}")
    yield from _tie_lines(report)
    if report.dropped:
        yield "left out", line(f"{len(report.dropped)}: {words.some(report.dropped)}")
    yield from _output_lines(report)
    if report.main_slot is MainSlot.AVERAGED:
        yield "model", line(slot_told(MainSlot.AVERAGED, report.kind))


def _tie_lines(report: WeightsReport) -> Iterator[Fact]:
    if report.tied:
        ties = ", ".join(f"{short(a)} = {short(b)}" for a, b in list(report.tied.items())[:3])
        yield "tied", line(ties, (_TIES[report.ties], "quiet"))


def _output_lines(report: WeightsReport) -> Iterator[Fact]:
    if report.left_out:
        values = [f"{name} ({what})" for name, what in report.left_out.items()]
        yield "not weights", line(f"{len(values)} left out: {words.some(values)}")
    if report.casts:
        yield "cast", _cast(report.casts)
    yield from _shard_lines(report)


def _shard_lines(report: WeightsReport) -> Iterator[Fact]:
    if report.shards:
        yield "shards", line(words.plural(len(report.shards), "file"))
    for shard in report.shards:
        size = f"{words.plural(shard.tensors, 'tensor')}, {words.size(shard.bytes)}"
        yield "", line((short(shard.file), "name"), f"  {size}")
    if report.removed:
        shards = f"{words.plural(len(report.removed), 'shard')} of the set that is replaced"
        yield "removed", line(f"{shards}: {words.some(report.removed)}")


_TIES = {
    "shared": "",
    "once": "; written once, noted for load_model (--ties each: both names)",
    "each": "; written under each name",
}


def _cast(casts: CastReport) -> Line:
    """Return the dtype of a cast, and the values that it lost."""
    lost = ((casts.overflowed, "overflow", "warning"), (casts.vanished, "became 0", "warning"))
    pieces = [(f"; {words.plural(n, 'value')} {what}", style) for n, what, style in lost if n]
    return line(f"{words.plural(casts.tensors, 'tensor')} to {casts.dtype}", *pieces)


def _convert_lines(report: ConvertReport) -> Iterator[Fact]:
    tensors = f"{words.plural(report.tensors, 'tensor')}, {words.size(report.bytes)}"
    if report.kind == "checkpoint":
        yield "kept", line(tensors, ", and everything else as it was")
        yield from _plain_lines(report.plain)
        if report.beside:
            yield "dropped", line(words.some(report.beside))
        return
    kind = "" if report.kind == "table" else f", the {_KINDS.get(report.kind, report.kind)}"
    yield "tensors", line(tensors, " from ", (place(report.address), "name"), kind)
    if report.renamed:
        yield "renamed", line(words.plural(report.renamed, "tensor"))
    if report.reshaped:
        yield "reshaped", line(words.plural(report.reshaped, "tensor"))
    yield from _tie_lines(report)
    yield from _output_lines(report)
    if report.beside:
        yield "not taken", line(words.some(report.beside))


def _plain_lines(plain: Sequence[PlainReport]) -> Iterator[Fact]:
    """Yield each class whose values became plain data."""
    counts = Counter((each.was, each.became) for each in plain)
    for at, ((was, became), count) in enumerate(counts.items()):
        changed = f"{words.plural(count, 'value')} of {short(was)} to {became}"
        yield "plain" if not at else "", line(changed)


def _average_lines(report: AverageReport) -> Iterator[Fact]:
    for source in report.sources:
        counters = {"epoch": source.epoch, "step": source.step, "sigma_rel": source.sigma_rel}
        step = "".join(f"  {name} {n:g}" for name, n in counters.items() if n is not None)
        at = (f"#{words.printable(source.address)}", "quiet") if source.address else ""
        yield f"{source.weight:.6g}", line((words.printable(source.path), "name"), at, step)
    apart = [source.distance for source in report.sources if source.distance is not None]
    if apart:
        least, most = f"{100 * min(apart):.3g} %", f"{100 * max(apart):.3g} %"
        span = least if least == most else f"{least} to {most}"
        yield "apart", line(f"each is {span} from the one nearest to it (relative L2, sampled)")
    if report.posthoc is not None:
        yield from _posthoc_lines(report.posthoc)
    if report.order == "name":
        yield "order", line("by the numbers in the names: the files state no step")
    if report.intervals is not None:
        yield "intervals", line(_INTERVALS[report.intervals])
    yield from _uncounted_lines(report)
    tensors = f"{words.plural(report.averaged, 'tensor')} averaged"
    yield "tensors", line(f"{tensors}, {words.size(report.bytes)} in all")
    if report.newest:
        kept = words.some(report.newest)
        yield "newest", line(f"{len(report.newest)} taken from the newest checkpoint: {kept}")
    if report.into is not None:
        yield from _into_lines(report.into)
    if report.statistics:
        told = f"{len(report.statistics)} batch statistics averaged"
        yield "buffers", line(f"{told}: torch.optim.swa_utils.update_bn makes better ones")
    yield from _tie_lines(report)
    yield from _output_lines(report)


def _uncounted_lines(report: AverageReport) -> Iterator[Fact]:
    """Yield the files in a directory that do not count."""
    for copy, original in report.copies.items():
        same = f" holds the weights of {words.printable(original)}, which count once"
        yield "copy", line((words.printable(copy), "name"), same)
    for path, why in report.derived.items():
        yield "left out", line((words.printable(path), "name"), f": {words.printable(why)}")
    for path, why in report.skipped.items():
        told = (f": {words.printable(why, 200)}", "warning")
        yield "broken", line((words.printable(path), "name"), told)


_INTERVALS = {
    "global_step": "by the steps of the checkpoints",
    "epoch": "by the epochs of the checkpoints",
    "equal": "taken as equal: the checkpoints state neither steps nor epochs",
}


def _into_lines(into: IntoReport) -> Iterator[Fact]:
    """Yield the checkpoint that the average was put into."""
    at = (f"#{words.printable(into.model)}", "quiet") if into.model else ""
    yield "into", line("a copy of ", (words.printable(into.path), "name"), at)
    if into.kept:
        yield "kept", line(f"{len(into.kept)} of its model: {words.some(into.kept)}")
    yield from _replaced_lines(into)


def _replaced_lines(report: IntoReport | PromoteReport) -> Iterator[Fact]:
    """Yield what other weights mean to the checkpoint that they were put into."""
    for what, count in report.casts.items():
        yield "cast", line(f"{words.plural(count, 'tensor')} from {short(what)}")
    if report.optimizers:
        where = words.some(report.optimizers)
        yield "optimizer", line(f"{where} belongs to the raw weights: do not resume from this file")


def _posthoc_lines(made: PosthocReport) -> Iterator[Fact]:
    """Yield the width, how well the snapshots make it, and which others they make."""
    yield "width", line(f"sigma_rel {made.sigma_rel:g}, the EMA that the snapshots come nearest to")
    yield "residual", line(f"{100 * made.residual:.3g} % of its profile (relative L2)")
    if made.reach is not None:
        low, high = made.reach
        yield (
            "in reach",
            line(f"sigma_rel {low:.3g} to {high:.3g}, up to {100 * made.tolerance:g} % off"),
        )
    yield "noise", line(f"{made.noise:.3g} times the rounding of the snapshots")


_KINDS = {"raw": "raw weights", "ema": "EMA weights", "swa": "SWA weights"}


_ONE_IN_MEMORY = "the EMA weights are the very tensors of the model's state dict, not copies"


def _promote_lines(report: PromoteReport) -> Iterator[Fact]:
    if not report.bytes:
        is_averaged = report.main_slot is MainSlot.AVERAGED
        why = MAIN_SLOT[report.main_slot] if is_averaged else _ONE_IN_MEMORY
        left = "it stays as it is" if report.in_place else "the output is an unchanged copy"
        yield "nothing", line(f"{why}: {left}")
        return
    replaced = f"{words.plural(report.tensors, 'tensor')}, {words.size(report.bytes)}"
    yield ("replaces", line(replaced, " at ", (place(report.model), "name")))
    yield "with", line((place(report.ema), "name"))
    if report.file:
        yield "in file", line((words.printable(report.file), "name"))
    if report.kept:
        kept = words.some(report.kept)
        yield "kept", line(f"{len(report.kept)} that the EMA lacks: {kept}")
    if report.dropped:
        yield "left out", line(f"{len(report.dropped)}: {words.some(report.dropped)}")
    if report.shared:
        seen = words.some(report.shared)
        yield "shared", line((f"{len(report.shared)} elsewhere change too: {seen}", "warning"))
    yield from _replaced_lines(report)
    if report.backup:
        yield "backup", line((words.printable(report.backup), "name"))


SHOWN_OF_A_RULE = 5


def _findings(findings: tuple[Finding, ...]) -> Page:
    """Yield the first findings of each rule, and how many more: there may be one per tensor."""
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    rows = [finding_row(finding) for same in by_rule.values() for finding in _shown(same)]
    if rows:
        yield facts("Findings", rows)


def _shown(same: list[Finding]) -> Iterator[Finding]:
    """Yield all of a few findings; of many, yield the first and the number of the others."""
    limit = SHOWN_OF_A_RULE if len(same) > SHOWN_OF_A_RULE + 1 else len(same)
    yield from same[:limit]
    if same[limit:]:
        yield replace(same[0], address="", message=f"and {len(same) - limit:,} more tensors")


# -------------------------------------------------------------------------------------- the pages


def _done(report: WriteReport) -> str:
    return "wrote" if report.written else "would write"


def _promoted(report: PromoteReport) -> str:
    if not report.in_place:
        return _done(report)
    if not report.bytes:
        return "unchanged:"
    return "replaced" if report.written else "would replace"


def _page(
    title: str,
    lines: Callable[[Any], Iterator[Fact]],
    done: Callable[[Any], str] = _done,
) -> Callable[[Sequence[Any]], Page]:
    """Return the function that shows reports: ``wrote OUT``, how it came about, the findings.

    The last line is what to type next.
    """

    @one_by_one
    def show(report: WriteReport) -> Page:
        path = (words.printable(report.output), "title")
        yield line(f"{done(report)} ", path, f"  {file_kind(report.format)}")
        yield facts(title, lines(report))
        yield from _findings(report.findings)
        yield from next_step(report)

    return show


show_extract = _page("From", _extract_lines)
show_convert = _page("From", _convert_lines)
show_average = _page("From", _average_lines)
show_promote = _page("Promotion", _promote_lines, _promoted)
