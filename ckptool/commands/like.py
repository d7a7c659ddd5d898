"""Names and shapes of a model for ``verify --like``, from a checkpoint or a document.

The document is that of ``ckptool inspect --tensors --json``. It describes a model in a few
kilobytes, which a repository can hold. An operand may name a key path or a role, as for
``ckptool diff``: ``PATH#ADDRESS``, ``PATH#@ema`` or ``PATH#@model``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptool.contents.completeness import find_remainder
from ckptool.contents.inventory import Leaf, Table, take_inventory
from ckptool.contents.selection import ROLES, entries_at, parse_operand, select_table
from ckptool.contents.unplain import refuse_incomplete
from ckptool.dtypes import BY_NAME
from ckptool.ema.layouts import Layouts
from ckptool.ema.locate import locate_ema
from ckptool.errors import CkptError, UnknownFormatError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.texts import load_json
from ckptool.plans.weights import select_role
from ckptool.sources.places import open_file
from ckptool.tree.addresses import parse_address
from ckptool.tree.nodes import TensorRef

MAX_DOCUMENT = 1 << 28  # bytes; 100,000 tensors take about twenty million


def read_like(operand: str, layouts: Layouts = ()) -> Mapping[str, Leaf]:
    """Return the state dict that a model would take, without values.

    Raises:
        CkptError: it is neither a checkpoint nor such a document, or it holds no weights.
    """
    path, address = parse_operand(operand)
    try:
        with open_checkpoint(path) as checkpoint:
            if address in ROLES:
                return dict(select_role(checkpoint, address, layouts))
            if address is not None:
                return _complete(select_table(take_inventory(checkpoint.tree), address), path)
            table = locate_ema(checkpoint, layouts=layouts).weights
    except UnknownFormatError as error:
        return _from_document(path, address, error)
    if table is None:
        raise UsageError("the operand of --like holds no weights", hint=f"ckptool inspect {path}")
    return _complete(table, path)


def _complete(table: Table, path: Path) -> Mapping[str, Leaf]:
    """Return the entries, which must be all names of the model; shapes are known without values.

    Raises:
        UnsupportedError: there are tensors in other forms, whose names are not known.
    """
    refused = find_remainder((table,)).refused
    refuse_incomplete(refused, len(refused) + len(table.entries), path)
    return table.entries


def _from_document(path: Path, address: str | None, error: CkptError) -> Mapping[str, Leaf]:
    """Return the entries of the section at the address, or of the model's section."""
    document = _document(path, error)
    entries = document.get("entries")
    if not isinstance(entries, list):
        hint = "ckptool inspect --tensors --json > model.json"
        raise UsageError("the document of --like lists no tensors", hint=hint)
    try:
        leaves = {str(entry["address"]): _leaf(entry) for entry in entries}
    except (KeyError, TypeError, AttributeError) as fault:
        raise UsageError(f"an entry of the document of --like is no tensor: {fault}") from fault
    wanted = _main_section(document) if address is None else address
    found = {at: leaf for at, leaf in entries_at(leaves, wanted).items() if "/" not in at}
    if not found:
        raise UsageError(f"the document of --like has no tensors at {wanted or 'the top'}")
    return {"".join(parse_address(at)[0]): leaf for at, leaf in found.items()}


def _document(path: Path, error: CkptError) -> dict[str, Any]:
    with open_file(path) as file:
        if file.size > MAX_DOCUMENT:
            raise error
        file.lift()
        try:
            document = load_json(file.read(0, file.size))
        except ValueError:
            raise error from None
    if not isinstance(document, dict) or document.get("schema") != "ckptool/inspect/1":
        raise error
    return document


def _main_section(document: dict[str, Any]) -> str:
    """Return the key path of the model that the document states; "" if it states none."""
    for section in document.get("sections") or ():
        if isinstance(section, dict) and section.get("role") == "model":
            return str(section.get("address"))
    return ""


def _leaf(entry: dict[str, Any]) -> Leaf:
    shape = tuple(entry["shape"])
    if not all(type(size) is int for size in shape):
        raise TypeError("a shape is a list of integers")
    return TensorRef(BY_NAME[entry["dtype"]], shape, ())
