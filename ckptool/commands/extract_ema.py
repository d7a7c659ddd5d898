"""Extraction of the EMA weights as a state dict of their own: safetensors, or a torch file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ckptool.commands.origin import kind_taken, origin
from ckptool.dtypes import DType
from ckptool.ema.candidates import table_address
from ckptool.ema.layouts import Layouts
from ckptool.errors import UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.formats.provenance import as_text
from ckptool.plans.extraction import Extraction, complete, plan_extraction
from ckptool.plans.renaming import only_matching, strip_prefix
from ckptool.plans.validation import validation, warnings
from ckptool.plans.weights import Weights, take_weights
from ckptool.process.progress import Progress, no_progress
from ckptool.reports.base import Finding
from ckptool.reports.write import CastReport, ExtractReport, ShardReport
from ckptool.tensors.casting import ALSO, CASTABLE, Casting, Losses
from ckptool.writers.files.destination import check_output, format_of, output_path
from ckptool.writers.shards import (
    FOLDER_NAME,
    index_path,
    parse_size,
    refuse_other_form,
    tidy,
    whole_files,
)
from ckptool.writers.state_dict import StateDict, count_losses, plan_state_dict, write
from ckptool.writers.transfer import passed
from ckptool.writers.values import Account


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions:
    """Options of ``extract-ema``: which weights it takes, and how it writes them."""

    ema: str | None = None  # key path of the EMA weights, instead of searching; any other state
    # dict is taken as it stands; ``@model``: the non-EMA weights
    model: str | None = None  # key path of the weights that they average, instead of searching
    names: str = "model"  # exactly the model's; ``bare``: without wrappers; ``ema``: as stored
    strip: str | None = None  # a prefix to take off these names
    match: Sequence[str] = ()  # globs; one must match the name that results
    dtype: str | None = None  # of floating tensors; integers, flags and scales stay as they are
    ties: str = "once"  # ``once`` or ``each``: see :func:`extract_ema`
    wrap: str | None = None  # put the state dict under this key (torch files only)
    max_shard_size: str | None = None  # like ``5GB``: several files and an index (safetensors only)
    buffers: str = "ema"  # ``model``: take integers, flags, batch statistics, and everything that
    # the EMA still holds at its initial value from the model instead
    force: bool = False  # replace files; write values that are non-finite or overflow the dtype
    dry_run: bool = False  # only report what would be written


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
    limit = None if options.max_shard_size is None else parse_size(options.max_shard_size)
    output = output_path(path, output, FOLDER_NAME if limit else None)
    kind = format_of(output)
    _refuse_misfits(kind, output, options.wrap, limit)
    casting = Casting(_dtype(options.dtype))
    with open_checkpoint(path) as checkpoint:
        weights = take_weights(
            checkpoint,
            ema=options.ema,
            model=options.model,
            buffers=options.buffers,
            layouts=layouts,
        )
        plan = _plan(checkpoint, weights, options)
        state_dict = plan_state_dict(
            output,
            kind,
            plan.tensors,
            casting,
            noted=plan.tied if kind == "safetensors" and options.ties == "once" else {},
            wrap=options.wrap,
            max_shard=limit,
            damaged=options.force,
        )
        if not options.dry_run:
            tidy(index_path(output), state_dict.paths, checkpoint.files)
        location, account = weights.location, Account()
        note = as_text(origin("extract-ema", path, location, location.selected, made_at))
        removed = tuple(old.name for old in state_dict.left_over)
        found = _write(checkpoint, plan, state_dict, account, note, options, progress)
        findings = (*found, *warnings(checkpoint, location))
        report = _report(path, weights, plan, state_dict, account, options)
        return replace(report, findings=findings, removed=removed)


def _plan(checkpoint: Checkpoint, weights: Weights, options: ExtractOptions) -> Extraction:
    plan = plan_extraction(*weights, options.names)
    plan = plan if options.strip is None else strip_prefix(plan, options.strip)
    plan = only_matching(plan, options.match) if options.match else plan
    return complete(plan, checkpoint.path)


def _write(
    checkpoint: Checkpoint,
    plan: Extraction,
    state_dict: StateDict,
    account: Account,
    note: str,
    options: ExtractOptions,
    progress: Progress,
) -> tuple[Finding, ...]:
    """Write the files and validate the values, or only validate them in a dry run."""
    reader, force = checkpoint.reader, options.force
    targets = _targets(checkpoint, state_dict, force=force)
    moved = state_dict.cast if options.dry_run else state_dict.values
    with validation(
        checkpoint,
        plan.tensors,
        plan.averaged,
        account.losses,
        read_by_block=passed(ref for _, ref in moved),
        seen=account.seen,
        force=force,
        hint="bfloat16 has the range of float32; --force casts all the same",
    ) as judge:
        if options.dry_run:
            count_losses(state_dict, reader, account, progress)
            return judge()
        with whole_files(targets, force=force, gone=state_dict.left_over) as files:
            write(state_dict, files, reader, account, note, progress)
            found = judge()  # a refusal discards the files
            reader.refuse_changed()
            return found


def _refuse_misfits(kind: str, output: Path, wrap: str | None, limit: int | None) -> None:
    """Refuse options that the chosen format has no place for.

    Raises:
        UsageError: there is one.
    """
    if wrap is not None and kind == "safetensors":
        raise UsageError(
            "safetensors holds tensors by name and nothing around them, so nothing to --wrap",
            path=output,
            hint="write a torch file instead: -o NAME.pt",
        )
    if limit is not None and kind != "safetensors":
        raise UsageError(
            "shards with an index are safetensors files",
            path=output,
            hint="-o NAME.safetensors, or leave out --max-shard-size",
        )


def _dtype(name: str | None) -> DType | None:
    if name is None:
        return None
    of_torch = name.lower().removeprefix("torch.")
    found = CASTABLE.get(ALSO.get(of_torch, of_torch))
    if found is None:
        hint = f"one of: {' '.join(CASTABLE)}; or fp16, bf16 and the like"
        raise UsageError(f"{name!r} is no floating type", hint=hint)
    return found


def _targets(checkpoint: Checkpoint, state_dict: StateDict, *, force: bool) -> list[Path]:
    """Return the paths of the files; check that they may replace existing ones."""
    inputs = checkpoint.files
    refuse_other_form(state_dict.output, sharded=state_dict.index_file is not None)
    for path in state_dict.left_over:
        check_output(path, inputs, force=force)
    return [check_output(path, inputs, force=force) for path in state_dict.paths]


def _report(
    path: Path,
    weights: Weights,
    plan: Extraction,
    state_dict: StateDict,
    account: Account,
    options: ExtractOptions,
) -> ExtractReport:
    location, chosen = weights.location, weights.location.selected
    model = table_address(location.model) if location.model else None
    return ExtractReport(
        path=str(path),
        output=str(state_dict.index_file or state_dict.output),
        format=state_dict.kind,
        written=not options.dry_run,
        ema=(weights.candidate.address if weights.candidate else model) or "",
        model=model,
        names=options.names,
        main_slot=location.told_slot,
        tensors=sum(len(shard.tensors) for shard in state_dict.shards),
        bytes=state_dict.nbytes,
        averaged=len(plan.averaged),
        from_model=plan.from_model,
        tied=plan.tied,
        dropped=plan.dropped,
        file=str(chosen.file) if chosen and chosen.file else None,
        kind=kind_taken(location),
        ties="shared" if state_dict.kind == "torch-zip" else options.ties,
        casts=_casts(state_dict, account),
        shards=_shards(state_dict),
        left_out=plan.left_out,
        buffers=options.buffers,
    )


def _casts(state_dict: StateDict, account: Account) -> CastReport | None:
    casting = state_dict.casting
    if casting.wanted is None:
        return None
    total = sum(account.losses.values(), Losses())
    return CastReport(
        dtype=casting.wanted.name,
        tensors=sum(
            casting.is_cast(ref) for shard in state_dict.shards for ref in shard.tensors.values()
        ),
        overflowed=total.overflowed,
        vanished=total.vanished,
        losses={
            name: {"overflowed": lost.overflowed, "vanished": lost.vanished}
            for name, lost in account.losses.items()
        },
    )


def _shards(state_dict: StateDict) -> tuple[ShardReport, ...]:
    if state_dict.index_file is None:
        return ()
    return tuple(
        ShardReport(
            file=shard.path.name,
            tensors=len(shard.tensors),
            bytes=sum(map(state_dict.casting.nbytes_of, shard.tensors.values())),
        )
        for shard in state_dict.shards
    )
