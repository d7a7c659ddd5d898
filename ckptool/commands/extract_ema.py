"""Extraction of the EMA weights as a state dict of their own: safetensors, or a torch file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptool.commands.origin import kind_taken, origin
from ckptool.commands.writing import WriteOptions, choose_form, write_output
from ckptool.ema.candidates import table_address
from ckptool.ema.layouts import Layouts
from ckptool.ema.sameness import Sameness, sameness
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.formats.provenance import as_text
from ckptool.plans.extraction import Extraction, complete, plan_extraction
from ckptool.plans.renaming import only_matching, strip_prefix
from ckptool.plans.validation import warnings
from ckptool.plans.weights import Weights, take_weights
from ckptool.process.progress import Progress, no_progress
from ckptool.records import replace
from ckptool.reports.base import SameReport
from ckptool.reports.write import ExtractReport, WeightsReport


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions(WriteOptions):
    """Options of ``extract-ema``: which weights it takes, and how it names and writes them."""

    ema: str | None = None  # key path of the EMA weights, instead of searching; any other state
    # dict is taken as it stands; ``@model``: the non-EMA weights
    model: str | None = None  # key path of the weights that they average, instead of searching
    names: str = "model"  # exactly the model's; ``bare``: without wrappers; ``ema``: as stored
    strip: str | None = None  # a prefix to take off these names
    match: Sequence[str] = ()  # globs; one must match the name that results
    buffers: str = "ema"  # ``model``: take integers, flags, batch statistics, and everything that
    # the EMA still holds at its initial value from the model instead


def extract_ema(
    path: Path,
    output: str | Path | None = None,
    options: ExtractOptions = ExtractOptions(),
    *,
    progress: Progress = no_progress,
    layouts: Layouts = (),
    made_at: float | None = None,
) -> ExtractReport:
    """Write the EMA weights of ``path`` to ``output``.

    In safetensors, ``ties="once"`` writes shared tensors under the first of their names. It records
    the other names in the metadata, as ``safetensors.torch.save_model`` does, for ``load_model``,
    transformers and everything else that ties by itself. ``each`` writes all names, for
    ``load_state_dict(load_file(…))``. The file cannot serve both: a strict ``load_model`` refuses
    extra names, and a strict ``load_state_dict`` refuses missing ones. torch files keep shared
    tensors as they are.

    Args:
        path: the checkpoint.
        output: its suffix chooses the format; a directory takes the default name; by default
            ``path`` with ``.ema.safetensors``, for a directory beside it.
        options: the weights to take, and how to write them.
        progress: called with the bytes written.
        layouts: custom layouts of the configuration, tried before the known ones.
        made_at: seconds since 1970 for the record of provenance; by default now.

    Raises:
        EmaNotFoundError, EmaAmbiguousError, EmaRefusedError: see ``refusals.require_ema``.
        UsageError: options exclude each other, or match nothing.
        UnsupportedError: the format cannot hold a tensor, or a part of what is taken cannot be
            written as plain tensors.
        OutputError: the output exists or cannot be written.
    """
    form = choose_form(path, output, options)
    with open_checkpoint(path) as checkpoint:
        weights = take_weights(
            checkpoint,
            ema=options.ema,
            model=options.model,
            buffers=options.buffers,
            layouts=layouts,
        )
        plan, location = _plan(checkpoint, weights, options), weights.location
        note = as_text(origin("extract-ema", path, location, location.selected, made_at))
        made = write_output(checkpoint, plan, form, options, note, progress, finite=plan.averaged)
        made = replace(made, findings=(*made.findings, *warnings(checkpoint, location)))
        same = _same(plan, sameness(checkpoint, location, location.selected))
        return _report(path, weights, plan, made, options, same)


def _plan(checkpoint: Checkpoint, weights: Weights, options: ExtractOptions) -> Extraction:
    plan = plan_extraction(*weights, options.names)
    plan = plan if options.strip is None else strip_prefix(plan, options.strip)
    plan = only_matching(plan, options.match, options.strip) if options.match else plan
    return complete(plan, checkpoint.path)


def _same(plan: Extraction, seen: Sameness | None) -> SameReport | None:
    """Return those of the EMA weights in the plan that are the same as the raw weights."""
    if seen is None:
        return None
    places = {id(ref) for ref in seen.same.values()}
    names = [n for n, ref in plan.tensors.items() if n in plan.averaged and id(ref) in places]
    return SameReport(len(plan.averaged), len(names), tuple(names))


def _report(
    path: Path,
    weights: Weights,
    plan: Extraction,
    made: WeightsReport,
    options: ExtractOptions,
    same: SameReport | None,
) -> ExtractReport:
    location, chosen = weights.location, weights.location.selected
    model = table_address(location.model) if location.model else None
    return ExtractReport(
        path=str(path),
        ema=(weights.candidate.address if weights.candidate else model) or "",
        model=model,
        names=options.names,
        main_slot=location.told_slot,
        averaged=len(plan.averaged),
        from_model=plan.from_model,
        dropped=plan.dropped,
        file=str(chosen.file) if chosen and chosen.file else None,
        kind=kind_taken(location),
        buffers=options.buffers,
        same=same,
        **vars(made),
    )
