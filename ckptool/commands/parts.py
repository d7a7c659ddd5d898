"""Conversion of a whole checkpoint without some of its parts: all else stays as it was."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from ckptool.commands.origin import converted_from
from ckptool.contents.sections import sections
from ckptool.contents.training import read_training_state
from ckptool.ema.candidates import EmaLocation
from ckptool.errors import UsageError
from ckptool.formats.base import Checkpoint
from ckptool.formats.provenance import as_text
from ckptool.formats.torch_zip import TorchZip
from ckptool.plans.validation import names_to_note
from ckptool.process.progress import Progress
from ckptool.reports.write import ConvertReport
from ckptool.tree.addresses import parse_address
from ckptool.tree.nodes import Tree
from ckptool.tree.walking import tensors
from ckptool.writers.files.destination import check_output, in_folder
from ckptool.writers.files.whole_file import whole_file
from ckptool.writers.stripped_zip import Stripped, check_stripped, plan_stripped, write_stripped

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
                raise UsageError(
                    f"the checkpoint has no part {word!r}", hint=f"parts: {', '.join(known[:20])}"
                )
        return set().union(*map(self.named, words))


def read_parts(checkpoint: Checkpoint, location: EmaLocation) -> Parts:
    """Return the parts of a checkpoint whose top is a dict; a state dict alone has none."""
    tree: Tree = checkpoint.tree
    if not isinstance(tree, dict):
        return Parts((), {})
    training = read_training_state(tree, checkpoint.reader)
    found = sections(tree, location.roles, training.rng)
    roles = {parse_address(each.address)[0][0]: each.role for each in found if each.address}
    if not roles:
        return Parts((), {})
    return Parts(tuple(key for key in tree if isinstance(key, str)), roles)


def drop_parts(
    checkpoint: Checkpoint,
    output: str | Path,
    dropped: Collection[str],
    progress: Progress,
    *,
    force: bool,
    dry_run: bool,
    made_at: float | None,
) -> ConvertReport:
    """Write the checkpoint without its items at these top-level keys.

    Raises:
        UnsupportedError: the container or its pickle cannot be cut.
        UsageError: the suffix of the output is not one of a torch file.
        DamagedError: a record does not fit its checksum.
        OutputError: the output exists or cannot be written.
    """
    path = checkpoint.path
    plan = plan_stripped(checkpoint, [(key,) for key in sorted(dropped)])
    named = _torch_file(in_folder(output, path.name))
    target = check_output(named, checkpoint.files, force=force)
    note = as_text(converted_from(path, "", WHOLE, made_at))
    if not dry_run:
        with whole_file(target, force=force) as file:
            write_stripped(plan, file, checkpoint, note, progress, force=force)
            check_stripped(plan, file.path)
            checkpoint.reader.refuse_changed()
    return _report(checkpoint, named, plan, dropped, is_written=not dry_run)


def _torch_file(output: Path) -> Path:
    """Return the output, if its suffix is one of a torch file.

    Raises:
        UsageError: it is not.
    """
    if output.suffix.lower() in TorchZip.suffixes:
        return output
    raise UsageError(
        "only a torch file holds a whole checkpoint",
        path=output,
        hint=f"-o {output.stem}.pt; or write the weights alone: --only model",
    )


def _report(
    checkpoint: Checkpoint,
    named: Path,
    plan: Stripped,
    dropped: Collection[str],
    *,
    is_written: bool,
) -> ConvertReport:
    held = [ref for _, ref in tensors(plan.tree)]
    return ConvertReport(
        path=str(checkpoint.path),
        output=str(named),
        format=TorchZip.name,
        written=is_written,
        address="",
        kind=WHOLE,
        tensors=len(held),
        bytes=sum(ref.nbytes for ref in held),
        tied={},
        ties="shared",
        beside=tuple(key for key in map(str, checkpoint.tree) if key in dropped),
        findings=tuple(names_to_note(checkpoint)),
    )
