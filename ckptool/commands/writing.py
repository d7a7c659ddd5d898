"""The output of commands that write state dicts: its form, its plan, its files, its report."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from ckptool.errors import UsageError
from ckptool.formats.base import Checkpoint
from ckptool.formats.safetensors_file import NO_TIES
from ckptool.plans.casts import plan_casting
from ckptool.plans.extraction import Extraction
from ckptool.plans.validation import Inputs, validation
from ckptool.process.progress import Progress
from ckptool.records import NamedTuple, replace
from ckptool.reports.write import CastReport, ShardReport, WeightsReport
from ckptool.tensors.casting import Losses
from ckptool.writers.files.destination import check_folder, check_output, format_of, output_path
from ckptool.writers.files.whole_file import folder_for
from ckptool.writers.shards import (
    FOLDER_NAME,
    index_path,
    parse_size,
    refuse_other_form,
    tidy,
    whole_files,
)
from ckptool.writers.state_dict import StateDict, count_losses, plan_state_dict, write
from ckptool.writers.transfer import Transfer, passed
from ckptool.writers.values import Account


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """Options of the output."""

    dtype: Sequence[str] = ()  # of floating tensors: see :func:`~ckptool.plans.casts.plan_casting`
    ties: str = "once"  # ``once`` or ``each``: see ``extract_ema``
    wrap: str | None = None  # put the state dict under this key (not in safetensors)
    max_shard_size: str | None = None  # like ``5GB``: several files and an index (safetensors only)
    force: bool = False  # replace files; write values that are damaged or overflow the dtype
    dry_run: bool = False  # only report what would be written


class Form(NamedTuple):
    """The output that is asked for."""

    output: Path
    kind: str  # safetensors | torch-zip | dcp
    limit: int | None  # bytes of a shard


def _ties_in(kind: str, asked: str) -> str:
    """Return how shared tensors are written in a format: ``asked`` is for safetensors."""
    return {"torch-zip": "shared", "dcp": "each"}.get(kind, asked)


def choose_form(
    path: Path, output: str | Path | None, options: WriteOptions, name: str | None = None
) -> Form:
    """Return the file to write for a checkpoint at ``path``, and its form.

    ``name`` is that of the file if ``output`` is a directory, by default ``path``'s with
    ``.ema.safetensors``. Shards in a directory have the name that loaders look for.

    Raises:
        UsageError: the suffix chooses no form, or an option does not fit it.
    """
    limit = None if options.max_shard_size is None else parse_size(options.max_shard_size)
    named = output_path(path, output, FOLDER_NAME if limit else name)
    form = Form(named, format_of(named), limit)
    if options.wrap is not None and form.kind == "safetensors":
        raise UsageError(
            "a safetensors file holds tensors by name alone: there is nothing to --wrap",
            path=named,
            hint="write a torch file instead: -o NAME.pt",
        )
    if limit is not None and form.kind != "safetensors":
        raise UsageError(
            "shards with an index are safetensors files",
            path=named,
            hint="-o NAME.safetensors, or leave out --max-shard-size",
        )
    return form


def write_output(
    checkpoint: Checkpoint,
    plan: Extraction,
    form: Form,
    options: WriteOptions,
    note: str,
    progress: Progress,
    *,
    finite: Collection[str] = (),
    inputs: Inputs = (),
) -> WeightsReport:
    """Write the files and validate the values, or only validate them in a dry run.

    Returns what the reports of all such commands have.

    Args:
        checkpoint: the file that holds the values.
        plan: the state dict to write.
        form: the file to write it to.
        options: how to write it.
        note: the record of provenance.
        progress: called with the bytes written.
        finite: names of tensors whose values must be finite.
        inputs: tensors of which those of the plan are made.

    Raises:
        CkptError: see ``extract_ema``.
    """
    noted = {}
    if _ties_in(form.kind, options.ties) == "once":
        noted = {name: kept for name, kept in plan.tied.items() if name not in NO_TIES}
    state_dict = plan_state_dict(
        form.output,
        form.kind,
        plan.tensors,
        plan_casting(plan.tensors, options.dtype),
        noted=noted,
        wrap=options.wrap,
        max_shard=form.limit,
        damaged=options.force,
    )
    account = Account()
    how = Transfer(checkpoint.reader, state_dict.casting, account, progress)
    if not options.dry_run:
        tidy(state_dict.index_file or index_path(form.output), state_dict.paths, checkpoint.files)
    targets = _targets(checkpoint, state_dict, force=options.force)
    facts = _facts(state_dict, options, plan)
    moved = state_dict.cast if options.dry_run else state_dict.values
    with validation(
        checkpoint,
        plan.tensors,
        finite,
        account.losses,
        read_by_block=passed(ref for _, ref in moved),
        seen=account.seen,
        inputs=inputs,
        force=options.force,
        hint="bfloat16 has the range of float32; --force casts all the same",
    ) as judge:
        if options.dry_run:
            count_losses(state_dict, how)
            found = judge()
        else:
            with (
                folder_for(form.output) if state_dict.is_folder else nullcontext(),
                whole_files(targets, force=options.force, gone=state_dict.left_over) as files,
            ):
                write(state_dict, files, how, note)
                found = judge()  # a refusal discards the files
                checkpoint.reader.refuse_changed()
    return replace(facts, casts=_casts(state_dict, account.losses), findings=found)


def _targets(checkpoint: Checkpoint, state_dict: StateDict, *, force: bool) -> list[Path]:
    """Return the paths of the files; check that they may replace existing ones."""
    inputs = checkpoint.files
    if not state_dict.is_folder:
        refuse_other_form(state_dict.output, sharded=state_dict.index_file is not None)
    elif not check_folder(state_dict.output):
        return list(state_dict.paths)  # nothing can be there
    for path in state_dict.left_over:
        check_output(path, inputs, force=force)
    return [check_output(path, inputs, force=force) for path in state_dict.paths]


def _facts(state_dict: StateDict, options: WriteOptions, plan: Extraction) -> WeightsReport:
    """Return the report of the files, before anything is written."""
    is_set = state_dict.index_file is not None and not state_dict.is_folder
    ties = _ties_in(state_dict.kind, options.ties)
    return WeightsReport(
        # The path to name to a loader: the index if there are shards.
        output=str(state_dict.index_file if is_set else state_dict.output),
        format=state_dict.kind,
        written=not options.dry_run,
        tensors=sum(len(shard.tensors) for shard in state_dict.shards),
        bytes=state_dict.nbytes,
        tied=dict(state_dict.noted) if ties == "once" else plan.tied,
        ties=ties,
        left_out=plan.left_out,
        shards=tuple(_shards(state_dict)) if is_set else (),
        removed=tuple(path.name for path in state_dict.left_over),
        wrap=options.wrap,
    )


def _casts(state_dict: StateDict, losses: Mapping[str, Losses]) -> CastReport | None:
    """Return the effect of ``--dtype``; None if it was not given."""
    casting = state_dict.casting
    if not casting.dtypes:
        return None
    total = sum(losses.values(), Losses())
    cast = [
        casting.dtype_of(ref)
        for shard in state_dict.shards
        for ref in shard.tensors.values()
        if casting.is_cast(ref)
    ]
    return CastReport(
        dtype=", ".join(dict.fromkeys(dtype.name for dtype in cast or casting.dtypes)),
        tensors=len(cast),
        overflowed=total.overflowed,
        vanished=total.vanished,
        losses={
            name: {"overflowed": lost.overflowed, "vanished": lost.vanished}
            for name, lost in losses.items()
        },
    )


def _shards(state_dict: StateDict) -> Iterator[ShardReport]:
    for shard in state_dict.shards:
        nbytes = sum(map(state_dict.casting.nbytes_of, shard.tensors.values()))
        yield ShardReport(shard.path.name, len(shard.tensors), nbytes)
