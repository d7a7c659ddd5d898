"""The headline of ``ckptool inspect``: what people came for, in a few lines.

Which kind of file it is, and how large the model; which weights are raw, and where the EMA is; how
far the training was, whether it can go on, and whether torch's safe loader takes the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ckptool.formats.provenance import DONE
from ckptool.render import text as words
from ckptool.render.facts import file_kind, is_mean, place, short
from ckptool.render.page import Line, Piece, line
from ckptool.reports.base import DECAYS, UPDATES, EmaStatus, MainSlot
from ckptool.reports.inspect import CandidateReport, InspectReport, Load, SafeLoadReport

RESULTS = 2  # that the headline names
MEAN = "mean of several checkpoints"
DECIDES = "verify --require resume decides"
SAFE_LOAD = "torch.load(weights_only=True), the default,"


def headline(report: InspectReport) -> Iterator[Line]:
    """Yield the lines of the headline."""
    yield _file(report)
    is_part = report.address is not None
    if report.ema.candidates or (report.model and report.model.parameters and not is_part):
        yield line("  ", *_weights(report))
    if not is_part or report.optimizers or report.training:
        yield line("  ", *_run(report))
    if not is_part:
        yield line("  ", *_loading(report))
    if report.provenance:
        yield line((f"  {_origin(report.provenance)}", "quiet"))


def _file(report: InspectReport) -> Line:
    part = "" if report.address is None else f"#{report.address}"
    facts = [file_kind(report.format), words.size(report.size_bytes)]
    if report.model and report.model.parameters:
        several = " and others" if len(report.model.dtypes) > 1 else ""
        facts.append(f"{words.count(report.model.parameters)} parameters")
        facts.append(f"{report.model.dtypes[0]}{several}")
    title = words.printable(Path(report.path).name + part)
    return line((title, "title"), f"  {', '.join(facts)}")


def _weights(report: InspectReport) -> Iterator[Piece | str]:
    """Yield where the raw weights are, and where the EMA is."""
    ema, model = report.ema, report.model
    at: Piece = (place(model.address) if model else "", "name")
    chosen = next((c for c in ema.candidates if c.address == ema.selected), None)
    is_own = chosen and model and chosen.address == model.address and not chosen.file
    if ema.main_slot is MainSlot.AVERAGED or is_own:
        raw = next((c for c in ema.candidates if c.kind == "raw"), None)
        yield from (f"{_kind(report, chosen)} in ", at, _ages(chosen))
        yield from (
            (", raw weights in ", (place(raw.address), "name"))
            if raw
            else ("; the raw weights are not in this file",)
        )
        return
    if chosen is None:
        kind = _raw(report) if ema.main_slot is MainSlot.RAW else "weights"
        yield from (f"{kind} in ", at, ", ") if model else ()
        yield from _undecided(report)
        return
    if ema.main_slot is MainSlot.UNKNOWN and model:
        yield from ("weights in ", at, f", {_kind(report, chosen)} in ")
        yield from (*_where(chosen), _ages(chosen))
        yield "; the two are equal" if chosen.distance == 0 else ""
        return
    yield from (f"{_raw(report)} in ", at, ", ") if model else ()
    yield from (f"{_kind(report, chosen)} in ", *_where(chosen), _ages(chosen))


def _kind(report: InspectReport, candidate: CandidateReport | None) -> str:
    """Return the name of averaged weights: the EMA, SWA weights, or the mean of checkpoints."""
    if candidate is None or candidate.kind != "swa":
        return "EMA"
    return MEAN if is_mean(report.provenance) else "SWA"


def _raw(report: InspectReport) -> str:
    """Return the name of what the model's own state dict holds beside the averaged weights."""
    return MEAN if is_mean(report.provenance) else "raw weights"


def _undecided(report: InspectReport) -> Iterator[Piece | str]:
    candidates = report.ema.candidates
    if report.ema.status is EmaStatus.AMBIGUOUS:
        yield (
            f"{words.plural(len(candidates), 'EMA candidate')}; choose one with extract-ema --ema",
            "warning",
        )
    elif candidates:
        kinds = ", ".join(dict.fromkeys(short(each.kind) for each in candidates))
        yield f"no EMA that is taken unasked ({kinds})"
    else:
        yield "no EMA in this file; these may be raw or averaged weights"


def _where(candidate: CandidateReport) -> tuple[Piece | str, ...]:
    at: Piece = (place(candidate.address), "name")
    return (at, " of ", (short(candidate.file), "name")) if candidate.file else (at,)


def _ages(candidate: CandidateReport | None) -> str:
    """Return ``(120 updates, decay 0.99 from args/ema_decay)``, as far as the file tells."""
    if candidate is None:
        return ""
    meta, told = candidate.meta, []
    updates = next((key for key in UPDATES if key in meta), None)
    decay = next((key for key in DECAYS if key in meta), None)
    if updates is not None:
        told.append(f"{words.value(meta[updates])} updates")
    if decay is not None:
        source = candidate.meta_at.get(decay)
        told.append(
            f"decay {words.value(meta[decay])}" + (f" from {short(source)}" if source else "")
        )
    return f" ({', '.join(told)})" if told else ""


def _origin(origin: Mapping[str, Any]) -> str:
    """Return the source that ckptool recorded in the file; a claim like any other in a file."""
    done = DONE.get(origin["command"], "written")
    said = f" by ckptool {short(origin['version'])} from {short(origin['source'])}"
    at = f", {short(origin['ema'])}" if origin["ema"] else ""
    return f"{done}{said}{at}, {short(origin['time'])}"


def _run(report: InspectReport) -> Iterator[Piece | str]:
    """Yield the progress of the run, and whether it can be resumed."""
    training = report.training
    names = (("epoch", "epoch"), ("global_step", "step"))
    told = [f"{word} {words.value(training[name])}" for name, word in names if name in training]
    results = {**training.get("metrics", {}), **training.get("best", {})}
    told += [f"{name} {words.value(value)}" for name, value in _named(results)]
    yield f"{', '.join(told)}. " if told else ""
    yield _resumable(report)


def _named(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the first results by the last keys of their key paths, whole ones where these repeat.

    Lightning keeps results below callbacks, whose names are sentences.
    """
    shown = list(results.items())[:RESULTS]
    ends = [at.rpartition("/")[2] for at, _ in shown]
    for (at, value), end in zip(shown, ends, strict=True):
        yield short(end if ends.count(end) == 1 else at), value


def _resumable(report: InspectReport) -> str:
    """Return which parts of a resume are there, in the words of the certificate, which decides."""
    if not report.optimizers:
        return "Resume: no, there is no optimizer state."
    if not any(each.states or each.stateless for each in report.optimizers):
        return f"Resume: the optimizer has no state yet ({DECIDES})."
    is_raw_gone = report.ema.main_slot is MainSlot.AVERAGED and not any(
        each.kind == "raw" for each in report.ema.candidates
    )
    if is_raw_gone or is_mean(report.provenance):
        return f"Resume: the raw weights are gone ({DECIDES})."
    if not report.training.keys() & {"epoch", "global_step"}:
        return f"Resume: optimizer state, but no epoch or step ({DECIDES})."
    rng = "" if "rng" in report.training else ", RNG states are not"
    return f"Resume: optimizer state and progress are there{rng} ({DECIDES})."


def _loading(report: InspectReport) -> Iterator[Piece | str]:
    """Yield what a loader of the file would meet: its pickles, and torch's safe loader."""
    trusts = [entry.trust for entry in report.pickle.get("globals", ())]
    if count := trusts.count("dangerous"):
        yield (f"DANGEROUS: loading runs {words.plural(count, 'function')}. ", "error")
    elif count := trusts.count("unknown"):
        yield (f"{words.plural(count, 'unknown name')} in its pickles. ", "warning")
    if report.weights_only is not None:
        yield _safe_load(report.weights_only)
    elif trusts.count("known") == len(trusts):
        yield ("Only known names in its pickles." if trusts else "Plain data, no pickle.", "good")


def _safe_load(answer: SafeLoadReport) -> Piece:
    """Return what torch.load does with the file, if nobody sets ``weights_only``."""
    if answer.load is Load.TAKEN:
        return (f"{SAFE_LOAD} takes it.", "good")
    if answer.load is Load.UNKNOWN:
        return (
            f"Whether {SAFE_LOAD} takes it: verify --rules CK202 reads {short(answer.why)}.",
            "",
        )
    names = f": {words.some(answer.names, 2)}" if answer.names else ""
    return (f"{SAFE_LOAD} {words.printable(answer.why, 200)}{names}.", "warning")
