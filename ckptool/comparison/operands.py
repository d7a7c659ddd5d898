"""Operands of a comparison: ``PATH[#ADDRESS]``, opened and flattened.

An address is the key path of any node of the tree; ``a/prefix.*`` selects the entries that begin
so. Two roles stand for weights that the locator finds. ``@model`` is the model's own weights.
``@ema`` is the EMA weights under the model's names, exactly as ``extract-ema`` would write them.
A document of ``inspect --digests --json`` is an operand too: its tensors are known only by digest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ckptool.comparison.leaves import Digest, Leaf, TensorLeaf, flatten
from ckptool.contents.given import refuse_any_given
from ckptool.contents.optimizers import owners
from ckptool.contents.sections import sections
from ckptool.contents.selection import MODEL_ROLE, entries_at, parse_operand
from ckptool.ema.layouts import Layouts
from ckptool.ema.locate import locate_ema
from ckptool.errors import CkptError, DamagedError, about
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.formats.texts import load_json
from ckptool.plans.weights import select_part
from ckptool.sources.base import Closing
from ckptool.sources.places import open_file
from ckptool.sources.urls import RemotePath
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import Address, Tree
from ckptool.tree.walking import tensors

MAX_MANIFEST = 1 << 30  # bytes
MANIFEST = "ckptool/inspect/1"
METADATA = "__metadata__"  # key of the metadata of a container


class Side(Closing):
    """One open side of a comparison. A context manager."""

    def __init__(
        self,
        text: str,
        layouts: Layouts = (),
        beside: Side | None = None,
        *,
        strict: bool = False,
    ) -> None:
        """Open the operand and flatten it; ``strict`` includes data that only its format has.

        If it is another part of the file that is open ``beside`` it, the file is not opened again.

        Raises:
            CkptError: the operand cannot be read, or has no such key path.
        """
        self.text, self.operand, self._strict = text, parse_operand(text), strict
        self.checkpoint: Checkpoint | None = None
        self.tree: Tree = None
        self.roles: dict[str, str] = {}  # by top-level key, of a whole checkpoint
        # The model's parameter by the key path of its state in an optimizer.
        self.parameters: dict[str, str] = {}
        self.leaves: dict[str, Leaf]
        try:
            with about(self.operand.path):
                self._open(layouts, beside)
        except BaseException:
            self.close()
            raise

    def _open(self, layouts: Layouts, beside: Side | None) -> None:
        path, address = self.operand
        manifest = read_manifest(path)
        if manifest is not None:
            self.format_name = "digests"
            self.leaves = manifest if address is None else entries_at(manifest, address)
            return
        opened = beside.checkpoint if beside and beside.operand.path == path else None
        self.checkpoint = opened or open_checkpoint(path)
        self.format_name = self.checkpoint.format_name
        self.tree = self.checkpoint.tree
        if address is not None:
            self.tree = select_part(self.checkpoint, address, layouts)
        else:
            found = locate_ema(self.checkpoint, layouts=layouts)
            self.roles = {each.address: each.role for each in sections(self.tree, found.roles)}
            of_states = owners(found.inventory, found.weights)
            self.parameters = {format_address(at): name for at, name in of_states.items()}
        refuse_any_given(self.checkpoint, self.tree)
        self.leaves = flatten(self.tree, self.checkpoint.reader, strict=self._strict)
        if self._strict and address is None:
            said = flatten({METADATA: self.checkpoint.metadata}, self.checkpoint.reader)
            self.leaves |= said if self.checkpoint.metadata else {}

    @property
    def is_folder(self) -> bool:
        """True if it is a whole checkpoint in a directory."""
        return self.operand.address is None and os.path.isdir(self.operand.path)  # noqa: PTH112

    def take_weights(self, layouts: Layouts) -> bool:
        """Keep the model's weights alone, as ``#@model``; return whether there are such weights."""
        if self.checkpoint is None:
            return False
        try:
            self.tree = select_part(self.checkpoint, MODEL_ROLE, layouts)
        except CkptError:
            return False
        self.roles, self.leaves = {"": "model"}, flatten(self.tree, self.checkpoint.reader)
        return True

    def leave_out(self, places: Iterable[Address]) -> int:
        """Leave out all below the key paths; return the number of leaves."""
        below = tuple(format_address(address) for address in places)
        kept = {name: leaf for name, leaf in self.leaves.items() if not _is_below(name, below)}
        left_out, self.leaves = len(self.leaves) - len(kept), kept
        return left_out

    def tensors_once(self) -> dict[str, Leaf]:
        """Return the tensors alone, each container once, as a document of digests lists them."""
        if self.checkpoint is None:
            return self.leaves
        reader = self.checkpoint.reader
        return {format_address(at): TensorLeaf(ref, reader) for at, ref in tensors(self.tree)}

    @property
    def is_manifest(self) -> bool:
        """True if only digests are known."""
        return self.checkpoint is None

    def refuse_changed(self) -> None:
        """Check that the files were not written to meanwhile.

        Raises:
            DamagedError: a file was written to.
        """
        if self.checkpoint is not None:
            self.checkpoint.reader.refuse_changed()

    def close(self) -> None:
        """Close the files."""
        if self.checkpoint is not None:
            self.checkpoint.close()


def _is_below(name: str, places: Sequence[str]) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in places)


# ---------------------------------------------------------------------------------------- manifests


def read_manifest(path: Path) -> dict[str, Leaf] | None:
    """Return the tensors in a document of ``inspect --digests --json``; None for other files.

    Behind a URL its name has to end in .json: other files are opened once, as checkpoints.

    Raises:
        DamagedError: the document is too large, of another form, or without digests.
    """
    is_far = isinstance(path, RemotePath) and path.suffix == ".json"
    if not is_far and not os.path.isfile(path):  # noqa: PTH113 - unlike Path.is_file, never raises
        return None
    with open_file(path) as file:
        if not file.head(64).lstrip().startswith(b"{") or MANIFEST.encode() not in file.head(128):
            return None
        if file.size > MAX_MANIFEST:
            raise DamagedError("larger than a document of digests can be")
        file.lift()
        text = file.read(0, file.size)
    try:
        entries = load_json(text)["entries"]
        return {str(entry["address"]): _digest(entry) for entry in entries}
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise DamagedError(
            "a document of ckptool inspect without digests",
            hint="make it with: ckptool inspect PATH --digests --json",
        ) from error


def _digest(entry: dict[str, Any]) -> Digest:
    shape = tuple(int(size) for size in entry["shape"])
    return Digest(str(entry["dtype"]), shape, int(entry["bytes"]), str(entry["sha256"]))
