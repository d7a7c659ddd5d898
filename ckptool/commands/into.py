"""The copy of a checkpoint with an average in its model's state dict, and all else as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from ckptool.commands.promoting import carry_out, check_place
from ckptool.contents.alignment import Alignment, align_names
from ckptool.contents.inventory import Table
from ckptool.contents.selection import parse_operand
from ckptool.ema.candidates import CHOSEN, Candidate, EmaLocation, table_address
from ckptool.ema.layouts import Layouts
from ckptool.ema.locate import locate_ema
from ckptool.errors import AddressError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.formats.pickles.trace import Trace, tracing
from ckptool.plans.averaging import Combined
from ckptool.plans.promotion import optimizers, plan_promotion, refuse_unpatchable
from ckptool.process.progress import Progress
from ckptool.records import NamedTuple
from ckptool.reports.base import Finding
from ckptool.reports.write import IntoReport
from ckptool.tensors.casting import Casting, start_of
from ckptool.tree.describing import named
from ckptool.tree.nodes import TensorRef
from ckptool.writers.files.destination import in_folder

ALONE = "leave out --into: the average is written as a file of its own"


class Slot(NamedTuple):
    """A checkpoint, and the state dict in it that is replaced."""

    checkpoint: Checkpoint
    trace: Trace
    location: EmaLocation
    model: Table
    alignment: Alignment  # of the names of the average with the model's

    def casting(self, tensors: Mapping[str, TensorRef]) -> Casting:
        """Return the casts of an average of ``tensors`` to the dtypes of the slot."""
        slots = {name: self.model.entries[ours] for ours, name in self.alignment.pairs.items()}
        return Casting(
            exceptions={start_of(ref): slots[name].dtype for name, ref in tensors.items()}
        )


def whole(text: str) -> Path:
    """Return the path that ``--into`` names.

    Raises:
        UsageError: it names a part of a checkpoint.
    """
    path, address = parse_operand(text)
    if address is None:
        return path
    raise UsageError(
        f"--into takes a whole checkpoint, and {address!r:.80} is a key path in it",
        path=path,
        hint="leave out the # and what follows; the average replaces the model's state dict",
    )


def open_slot(
    stack: ExitStack, path: Path, tensors: Mapping[str, TensorRef], layouts: Layouts
) -> Slot:
    """Open the checkpoint whose model's state dict an average of ``tensors`` replaces.

    Raises:
        AddressError: there is no such state dict.
        UsageError: it has other weights.
        UnsupportedError: the container cannot be patched.
    """
    with tracing() as trace:
        checkpoint = stack.enter_context(open_checkpoint(path))
    refuse_unpatchable(checkpoint)
    location = locate_ema(checkpoint, layouts=layouts)
    model = location.model
    if model is None:
        raise AddressError("the file has no state dict of a model", path=path)
    alignment = align_names(model.entries, tensors)
    strange = [*alignment.unexpected_keys, *alignment.mismatched, *alignment.colliding]
    if strange or alignment.rivals:
        raise UsageError(
            "the average does not fit the model's state dict, "
            f"{table_address(model) or 'at the top'}: {named(strange or alignment.rivals)}",
            path=path,
            hint="name a checkpoint of the same model for --into",
        )
    return Slot(checkpoint, trace, location, model, alignment)


def write_into(
    slot: Slot,
    combined: Combined,
    sources: Iterable[Checkpoint],
    output: Path,
    note: str,
    progress: Progress,
    *,
    force: bool,
    dry_run: bool,
) -> tuple[Path, IntoReport, tuple[Finding, ...]]:
    """Write the copy to ``output``; return its path, what was replaced, and the findings.

    Raises:
        CkptError: see ``promote_ema``.
    """
    tensors = combined.tensors
    table = Table((), dict(tensors), dict(tensors))  # of no place in the checkpoint
    average = Candidate(table, CHOSEN, "", slot.alignment, None, {}, None)
    plan = plan_promotion(
        slot.checkpoint, slot.trace, slot.location, average, allow_shared=False, shared_hint=ALONE
    )
    target = in_folder(output, slot.checkpoint.path.name)
    everything = slot.checkpoint.with_files_of(sources)
    place = check_place(everything, target, force=force)
    found = carry_out(
        everything, slot.model, plan, place, note, progress, force=force, dry_run=dry_run
    )
    report = IntoReport(
        path=str(slot.checkpoint.path),
        model=table_address(slot.model),
        replaced=plan.tensors,
        bytes=plan.nbytes,
        kept=plan.kept,
        casts=plan.casts,
        optimizers=optimizers(slot.location.inventory) if plan.patches else (),
    )
    return target, report, found
