"""Conversion of a whole checkpoint: without some parts, into a newer container, to plain data."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ckptool.commands.origin import converted_from
from ckptool.commands.state_dicts import state_dicts
from ckptool.contents.given import refuse_any_given
from ckptool.contents.sections import sections
from ckptool.contents.training import read_training_state
from ckptool.ema.candidates import EmaLocation
from ckptool.ema.locate import locate_ema
from ckptool.errors import CkptError, UnsupportedError, UsageError, about
from ckptool.formats.base import Checkpoint
from ckptool.formats.pickles.literal import Made
from ckptool.formats.provenance import as_text
from ckptool.formats.torch_zip import TorchZip
from ckptool.plans.plain_data import as_plain_data
from ckptool.plans.validation import names_to_note
from ckptool.process.progress import Progress
from ckptool.records import NamedTuple
from ckptool.reports.base import Finding, Severity
from ckptool.reports.rules import finding
from ckptool.reports.write import ConvertReport, PlainReport
from ckptool.tree.addresses import parse_address
from ckptool.tree.nodes import Address, Tree, fields_of, is_container
from ckptool.tree.walking import tensors
from ckptool.writers.archive_copy import ArchiveCopy, check_copy, write_copy
from ckptool.writers.files.destination import check_output, in_folder
from ckptool.writers.files.whole_file import whole_file
from ckptool.writers.rewritten_zip import plan_rewritten, refuse_unsafe
from ckptool.writers.stripped_zip import plan_stripped

WHOLE = "checkpoint"  # the kind of what is written


class Parts(NamedTuple):
    """The top-level keys of a checkpoint, by what names them."""

    keys: tuple[str, ...]
    roles: dict[str, str]  # of the keys that have one

    def named(self, word: str) -> set[str]:
        """Return the keys that a word means: those of a role, or those that a glob matches."""
        of_role = {key for key, role in self.roles.items() if role == word}
        return of_role | {key for key in self.keys if fnmatchcase(key, word)}

    def all_named(self, words: Sequence[str]) -> set[str]:
        """Return the keys that the words mean.

        Raises:
            UsageError: a word means none.
        """
        for word in words:
            if not self.named(word):
                known = sorted({*self.roles.values(), *self.keys})
                hint = f"parts: {', '.join(known[:20])}" if known else "it is one state dict"
                raise UsageError(f"the checkpoint has no part {word!r}", hint=hint)
        return set().union(*map(self.named, words))


def read_parts(checkpoint: Checkpoint, location: EmaLocation) -> Parts:
    """Return the parts of a checkpoint whose top is a dict; a state dict alone has none."""
    tree: Tree = checkpoint.tree
    if not isinstance(tree, dict):
        return Parts((), {})
    training = read_training_state(tree, checkpoint.reader)
    found = sections(tree, location.roles, training.rng)
    if len(state_dicts(location)) > 1 or location.inventory.optimizers:
        # The tensors of the model may be loose at the top, beside other things.
        others = {key: value for key, value in tree.items() if is_container(value)}
        found = (*found, *sections(others, location.roles, training.rng))
    roles = {parse_address(each.address)[0][0]: each.role for each in found if each.address}
    if not roles:
        return Parts((), {})
    return Parts(tuple(key for key in tree if isinstance(key, str)), roles)


def write_whole(
    checkpoint: Checkpoint,
    location: EmaLocation,
    output: str | Path,
    dropped: Collection[str],
    progress: Progress,
    *,
    safe: bool,
    force: bool,
    dry_run: bool,
    made_at: float | None,
) -> ConvertReport:
    """Write the checkpoint as a torch zip, without its items at these top-level keys.

    With ``safe``, values that ``torch.load(weights_only=True)`` refuses become plain data.

    Raises:
        UnsupportedError: the container or its pickle cannot be written again, or values are no
            plain data.
        UsageError: the suffix of the output is not one of a torch file.
        DamagedError: a record does not fit its checksum.
        OutputError: the output exists or cannot be written.
    """
    path = checkpoint.path
    gone: list[Address] = [(key,) for key in sorted(dropped)]
    with about(path):
        if isinstance(checkpoint.format, TorchZip) and not safe:
            made = PlanOfWhole(plan_stripped(checkpoint, gone))
        else:
            refuse_any_given(checkpoint, checkpoint.tree)  # a new pickle may lack such calls
            made = _anew(checkpoint, gone, safe)
    plan = made.copy
    named = _torch_file(in_folder(output, path.stem + TorchZip.suffixes[0] if safe else path.name))
    target = check_output(named, checkpoint.files, force=force)
    note = as_text(converted_from(path, "", WHOLE, made_at))
    nonfinite = _nonfinite(checkpoint, dropped)
    if not dry_run:
        with whole_file(target, force=force) as file:
            write_copy(plan, file, checkpoint, note, progress, force=force)
            check_copy(plan, file.path)
            checkpoint.reader.refuse_changed()
    held = [ref for _, ref in tensors(plan.tree)]
    return ConvertReport(
        path=str(path),
        output=str(named),
        format=TorchZip.name,
        written=not dry_run,
        address="",
        kind=WHOLE,
        tensors=len(held),
        bytes=sum(ref.nbytes for ref in held),
        beside=tuple(key for key in map(str, fields_of(checkpoint.tree)) if key in dropped),
        plain=made.plain,
        findings=(
            *_lost_ema(checkpoint, location, plan.tree, dropped),
            *nonfinite,
            *(() if safe else names_to_note(checkpoint)),
        ),
    )


def _lost_ema(
    checkpoint: Checkpoint, location: EmaLocation, new: Tree, dropped: Collection[str]
) -> Iterator[Finding]:
    """Yield a warning if the EMA stays, and is not known as one without what is dropped.

    A list of tensors without names, for example, is known by the model that it pairs with.
    """
    ema = location.selected
    keys = parse_address(ema.address)[0] if ema and not ema.file else ()
    if ema is None or not dropped or not keys or keys[0] in dropped:
        return
    if locate_ema(replace(checkpoint, tree=new)).selected is None:
        message = (
            "without the model nothing shows that these are EMA weights: "
            "extract-ema will not find them in the output"
        )
        remedy = "keep the model, or extract the EMA first: ckptool extract-ema"
        yield replace(finding("CK401", ema.address, message, remedy), severity=Severity.WARNING)


def _nonfinite(checkpoint: Checkpoint, dropped: Collection[str]) -> list[Finding]:
    """Return a warning for each kept tensor with NaN or infinities in a sample of the values.

    Records are copied whatever they hold, so all values would have to be read by themselves. A
    sample that cannot be read is no reason to refuse: the copy compares each record.
    """
    from ckptool.checks.base import Subject  # noqa: PLC0415 - for whole checkpoints only
    from ckptool.checks.values import sampled  # noqa: PLC0415

    with suppress(CkptError):
        return [
            replace(found, severity=Severity.WARNING)
            for found in sampled(Subject(checkpoint))
            if isinstance(found, Finding)
            if not {*parse_address(found.address)[0][:1]} & {*dropped}
        ]
    return []


class PlanOfWhole(NamedTuple):
    """The plan of the output, and the values that became plain data."""

    copy: ArchiveCopy
    plain: tuple[PlainReport, ...] = ()


def _anew(checkpoint: Checkpoint, dropped: list[Address], safe: bool) -> PlanOfWhole:  # noqa: FBT001
    """Return the plan of a new pickle of the object without some of its items."""
    literal = checkpoint.format.literal(checkpoint.source)
    items = literal.tree.items if isinstance(literal.tree, Made) else literal.tree
    for (key,) in dropped:
        del items[key]
    if not safe:
        return PlanOfWhole(plan_rewritten(checkpoint, literal, literal.tree, {}, dropped))
    data = as_plain_data(literal.tree, literal.storages)
    if data.storages and literal.byteorder != "little":
        raise UnsupportedError("numpy arrays in a file with big-endian tensors")
    plan = plan_rewritten(checkpoint, literal, data.tree, data.storages, dropped)
    refuse_unsafe(plan.pickle)
    return PlanOfWhole(plan, tuple(data.replaced))


def _torch_file(output: Path) -> Path:
    """Return the output, if its suffix is one of a torch file."""
    if output.suffix.lower() in TorchZip.suffixes:
        return output
    raise UsageError(
        "only a torch file holds a whole checkpoint",
        path=output,
        hint=f"-o {output.stem}.pt; or write the weights alone: --only model",
    )
