"""What is compared: ``PATH[#ADDRESS]``, opened and flattened.

An address names any place in the tree, ``a/prefix.*`` the entries that begin so. Two roles stand
for what the locator finds: ``@model``, the model's own weights, and ``@ema``, the averaged ones
under the model's names, exactly as ``extract-ema`` would write them. A document of
``inspect --digests --json`` is an operand too: its tensors are known by their digests only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckptool.comparison.leaves import Digest, Held, Leaf, flatten
from ckptool.ema import locate_ema
from ckptool.errors import AddressError, CkptError, DamagedError, EmaNotFoundError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint, SourceFile
from ckptool.layouts import Layouts
from ckptool.plans import plan_extraction, plan_model
from ckptool.refusals import require_ema
from ckptool.sections import sections
from ckptool.selection import EMA_ROLE, MODEL_ROLE, parse_operand, resolve_place
from ckptool.soundness import prove_equalities
from ckptool.tree import (
    TensorRef,
    Tree,
    children,
    format_address,
    parse_address,
    tensors,
)

MAX_MANIFEST = 1 << 30  # bytes
MANIFEST = "ckptool/inspect/1"
METADATA = "__metadata__"  # what a container says of itself


class Side:
    """One side of a comparison, open. A context manager."""

    def __init__(self, text: str, layouts: Layouts = (), *, strict: bool = False) -> None:
        """Open the operand and flatten it; ``strict`` takes what only its format has along.

        Raises:
            CkptError: it cannot be read, or has no such place.
        """
        self.text, self.operand, self._strict = text, parse_operand(text), strict
        self.checkpoint: Checkpoint | None = None
        self.tree: Tree = None
        self.roles: dict[str, str] = {}  # of the parts at the top of a whole checkpoint
        self.leaves: dict[str, Leaf]
        try:
            self._open(layouts)
        except CkptError as error:
            self.close()
            raise error.at(self.operand.path) from error.__cause__
        except BaseException:
            self.close()
            raise

    def _open(self, layouts: Layouts) -> None:
        path, address = self.operand
        manifest = read_manifest(path)
        if manifest is not None:
            self.format_name, self.leaves = "digests", _below(manifest, address)
            return
        self.checkpoint = open_checkpoint(path)
        self.format_name = self.checkpoint.format_name
        self.tree = self._selected(address, layouts)
        self.leaves = flatten(self.tree, self.checkpoint.reader, strict=self._strict)
        if self._strict and address is None:
            said = flatten({METADATA: self.checkpoint.metadata}, self.checkpoint.reader)
            self.leaves |= said if self.checkpoint.metadata else {}

    def _selected(self, address: str | None, layouts: Layouts) -> Tree:
        assert self.checkpoint is not None
        tree = self.checkpoint.tree
        if address is None:
            located = sections(tree, locate_ema(self.checkpoint, layouts=layouts))
            self.roles = {section.address: section.role for section in located}
            return tree
        role = ROLES.get(address)
        return role(self.checkpoint, layouts) if role else select(tree, address)

    def tensors_once(self) -> dict[str, Leaf]:
        """The tensors alone, each container once, as a document of digests lists them."""
        if self.checkpoint is None:
            return self.leaves
        reader = self.checkpoint.reader
        return {format_address(at): Held(ref, reader) for at, ref in tensors(self.tree)}

    @property
    def is_manifest(self) -> bool:
        """Whether only digests are known."""
        return self.checkpoint is None

    def refuse_changed(self) -> None:
        """Make sure that nobody wrote to the files meanwhile.

        Raises:
            DamagedError: somebody did.
        """
        if self.checkpoint is not None:
            self.checkpoint.reader.refuse_changed()

    def close(self) -> None:
        """Close the files."""
        if self.checkpoint is not None:
            self.checkpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


# ------------------------------------------------------------------------------------------- places


def select(tree: Tree, text: str) -> Tree:
    """The node at a written address; for ``a/prefix.*`` a dict of what begins so, without it.

    Raises:
        AddressError: there is nothing.
    """
    keys, is_prefix = parse_address(text)
    container, prefix = (keys[:-1], keys[-1]) if is_prefix and keys else (keys, "")
    _, node = resolve_place(tree, container, text)
    if not is_prefix:
        return node
    parts = [(str(key), part) for key, part in children(node)]
    begun = {key.removeprefix(prefix): part for key, part in parts if key.startswith(prefix)}
    if not begun:
        raise AddressError(f"no name there begins with {prefix!r}", address=text)
    return begun


def _ema(checkpoint: Checkpoint, layouts: Layouts) -> dict[str, TensorRef]:
    location = locate_ema(checkpoint, layouts=layouts)
    averaged = location.main_slot == "averaged"
    chosen = None if averaged else require_ema(location, checkpoint, None)
    prove_equalities(checkpoint, location.selected)
    return dict(plan_extraction(location, chosen, "model").tensors)


def _model(checkpoint: Checkpoint, layouts: Layouts) -> dict[str, TensorRef]:
    model = locate_ema(checkpoint, layouts=layouts).model
    if model is None:
        raise EmaNotFoundError(
            "no weights were found at the places where models are kept",
            path=checkpoint.path,
            hint="name the place: PATH#ADDRESS; ckptool inspect --tensors lists the addresses",
        )
    return dict(plan_model(model, "model").tensors)


Role = Callable[[Checkpoint, Layouts], dict[str, TensorRef]]
ROLES: dict[str, Role] = {EMA_ROLE: _ema, MODEL_ROLE: _model}


# ---------------------------------------------------------------------------------------- manifests


def read_manifest(path: Path) -> dict[str, Leaf] | None:
    """The tensors in a document of ``inspect --digests --json``; None: the file is none.

    Raises:
        DamagedError: it is one, but of another form, or without digests.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - unlike Path.is_file, it raises nothing
        return None
    with SourceFile(path) as file:
        if not file.head(64).lstrip().startswith(b"{") or MANIFEST.encode() not in file.head(128):
            return None
        if file.size > MAX_MANIFEST:
            raise DamagedError("larger than a document of digests can be")
        text = file.read(0, file.size)
    try:
        entries = json.loads(text)["entries"]
        return {str(entry["address"]): _digest(entry) for entry in entries}
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise DamagedError(
            "a document of ckptool inspect without digests",
            hint="make it with: ckptool inspect PATH --digests --json",
        ) from error


def _digest(entry: dict[str, Any]) -> Digest:
    shape = tuple(int(size) for size in entry["shape"])
    return Digest(str(entry["dtype"]), shape, int(entry["bytes"]), str(entry["sha256"]))


def _below(entries: dict[str, Leaf], address: str | None) -> dict[str, Leaf]:
    if address is None:
        return entries
    start = address.removesuffix("*") if address.endswith("*") else f"{address}/"
    found = {at.removeprefix(start): leaf for at, leaf in entries.items() if at.startswith(start)}
    if not found:
        raise AddressError("the document lists no tensors there", address=address)
    return found
