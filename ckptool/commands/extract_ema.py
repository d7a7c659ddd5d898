"""The averaged weights as a state dict of their own: safetensors, or a torch file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ckptool.candidates import CHOSEN, EmaLocation, table_address
from ckptool.casting import ALSO, CASTABLE, Casting, Losses
from ckptool.dtypes import DType
from ckptool.ema import locate_ema
from ckptool.errors import UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.layouts import Layouts
from ckptool.numerics import Progress, no_progress
from ckptool.origin import origin
from ckptool.plans import Extraction, plan_extraction
from ckptool.provenance import as_text
from ckptool.refusals import require_ema
from ckptool.renaming import only_matching, strip_prefix
from ckptool.reports import CastReport, ExtractReport, Finding, ShardReport
from ckptool.scan import Scan, completed
from ckptool.soundness import (
    look,
    meanwhile,
    prove_equalities,
    refuse_lossy,
    refuse_unsound,
    warnings,
)
from ckptool.writers.base import check_output
from ckptool.writers.destination import format_of, output_path
from ckptool.writers.shards import (
    FOLDER_NAME,
    index_path,
    parse_size,
    refuse_other_form,
    tidy,
    whole_files,
)
from ckptool.writers.state_dict import StateDict, plan_state_dict, survey, write
from ckptool.writers.transfer import Account, passed


def extract_ema(
    path: Path,
    output: str | Path | None = None,
    *,
    ema: str | None = None,
    model: str | None = None,
    names: str = "model",
    strip: str | None = None,
    match: Sequence[str] = (),
    dtype: str | None = None,
    ties: str = "once",
    wrap: str | None = None,
    max_shard_size: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
    layouts: Layouts = (),
    made_at: float | None = None,
) -> ExtractReport:
    """Write the averaged weights of ``path`` to ``output``.

    Args:
        path: the checkpoint.
        output: its suffix chooses the format; a folder takes the default name; by default
            ``path`` with ``.ema.safetensors``, for a folder beside it.
        ema: address of the averaged weights, instead of searching; any other table is taken as it
            stands, ``@model`` the model's own.
        model: address of the weights that they average, instead of searching.
        names: ``model``: exactly the names of the model's slot; ``bare``: those without wrappers;
            ``ema``: the names as stored.
        strip: a prefix to take off these names.
        match: patterns of which one must fit the name that results; by default all are written.
        dtype: the type for floating tensors; integers, booleans and scales stay as they are.
        ties: in safetensors, ``once``: of tensors that are one, the first name is written and
            the others are noted, as ``safetensors.torch.save_model`` does it, for
            ``load_model``, transformers and everything else that ties by itself; ``each``: all
            names are written, for ``load_state_dict(load_file(…))``. The file cannot serve both:
            a strict ``load_model`` refuses names that are too many, a strict
            ``load_state_dict`` those that are missing. torch files keep ties as they are.
        wrap: put the state dict under this key (torch files only).
        max_shard_size: like ``5GB``; what is larger becomes several files and an index, as
            Hugging Face's loaders want them (safetensors only).
        force: replace existing files; write values that are not finite or overflow the type.
        dry_run: only say what would be written.
        progress: called with the bytes written.
        layouts: rows of a house style, tried before the known ones.
        made_at: seconds since 1970 that the record of provenance tells; by default now.

    Raises:
        EmaNotFoundError, EmaAmbiguousError, EmaRefusedError: see ``refusals.require_ema``.
        UsageError: options that do not go together, or fit nothing.
        UnsupportedError: the format cannot hold a tensor.
        OutputError: the output exists or cannot be written.
    """
    limit = None if max_shard_size is None else parse_size(max_shard_size)
    output = output_path(path, output, FOLDER_NAME if limit else None)
    kind = format_of(output)
    _refuse_misfits(kind, output, wrap, limit)
    casting = Casting(_dtype(dtype))
    with open_checkpoint(path) as checkpoint:
        location = locate_ema(checkpoint, ema=ema, model=model, layouts=layouts)
        plan = _plan(checkpoint, location, names, strip, match)
        prove_equalities(checkpoint, location.selected)
        noted = plan.tied if kind == "safetensors" and ties == "once" else {}
        state_dict = plan_state_dict(
            output, kind, plan.tensors, casting,
            noted=noted, wrap=wrap, max_shard=limit, damaged=force,
        )  # fmt: skip
        if not dry_run:
            tidy(index_path(output), state_dict.paths, checkpoint.reader.opened)
        targets = _targets(checkpoint, state_dict, force=force)
        gone = state_dict.left_over
        account = Account()
        on_the_way = passed(ref for _, ref in (state_dict.cast if dry_run else state_dict.values))
        with meanwhile(partial(look, checkpoint, plan.tensors, on_the_way)) as seen:
            judge = partial(_judge, checkpoint, plan, account, seen, force=force)
            if dry_run:
                survey(state_dict, checkpoint.reader, account, progress)
                found = judge()
            else:
                note = as_text(origin("extract-ema", path, location, location.selected, made_at))
                with whole_files(targets, force=force, gone=gone) as files:
                    write(state_dict, files, checkpoint.reader, account, note, progress)
                    found = judge()  # a refusal discards the files
                    checkpoint.reader.refuse_changed()
            found = (*found, *warnings(checkpoint, location))
        report = _report(
            path, location, plan, state_dict, account, names, ties, found, written=not dry_run
        )
        return report._replace(removed=tuple(old.name for old in gone))


def _refuse_misfits(kind: str, output: Path, wrap: str | None, limit: int | None) -> None:
    """Options that the chosen format has no place for.

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
    """Where the files go, if they may, and what would be in the way may go."""
    inputs = [checkpoint.path, *(file.path for file in checkpoint.reader.opened)]
    refuse_other_form(state_dict.output, sharded=state_dict.index_file is not None)
    for path in state_dict.left_over:
        check_output(path, inputs, force=force)
    return [check_output(path, inputs, force=force) for path in state_dict.paths]


def _judge(
    checkpoint: Checkpoint,
    plan: Extraction,
    account: Account,
    seen: Callable[[], Scan],
    *,
    force: bool,
) -> tuple[Finding, ...]:
    """What was read, beside the writing and for it, and what the casts have cost."""
    everything = completed(seen(), account.seen)
    hint = "bfloat16 has the range of float32; --force casts all the same"
    return (
        *refuse_unsound(checkpoint, everything, plan.averaged, force=force),
        *refuse_lossy(checkpoint, account.losses, force=force, hint=hint),
    )


def _plan(
    checkpoint: Checkpoint,
    location: EmaLocation,
    names: str,
    strip: str | None,
    match: Sequence[str],
) -> Extraction:
    averaged = location.main_slot == "averaged"
    candidate = None if averaged else require_ema(location, checkpoint)
    plan = plan_extraction(location, candidate, names)
    plan = plan if strip is None else strip_prefix(plan, strip)
    return only_matching(plan, match) if match else plan


def _report(
    path: Path,
    location: EmaLocation,
    plan: Extraction,
    state_dict: StateDict,
    account: Account,
    names: str,
    ties: str,
    findings: tuple[Finding, ...],
    *,
    written: bool,
) -> ExtractReport:
    chosen, model = location.selected, location.model
    from_slot = location.main_slot == "averaged" and model is not None
    source = table_address(model) if from_slot and model else chosen.address if chosen else ""
    return ExtractReport(
        path=str(path),
        output=str(state_dict.index_file or state_dict.output),
        format=state_dict.kind,
        written=written,
        ema=source,
        model=table_address(model) if model else None,
        names=names,
        main_slot=location.main_slot,
        tensors=sum(len(shard.tensors) for shard in state_dict.shards),
        bytes=state_dict.nbytes,
        averaged=len(plan.averaged),
        from_model=plan.from_model,
        tied=plan.tied,
        dropped=plan.dropped,
        findings=findings,
        file=str(chosen.file) if chosen and chosen.file else None,
        kind=_kind(location),
        ties="shared" if state_dict.kind == "torch-zip" else ties,
        casts=_casts(state_dict, account),
        shards=_shards(state_dict),
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


def _kind(location: EmaLocation) -> str:
    """What is taken: a kind of average, or a table of which nobody says that it is one."""
    chosen = location.selected
    if chosen is not None and chosen.kind == CHOSEN and chosen.alignment is None:
        return "table"
    return chosen.kind if chosen is not None else "ema"
