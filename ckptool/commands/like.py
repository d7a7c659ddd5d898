"""The names and shapes of a model, for ``verify --like``: from a checkpoint, or from a document.

The document is that of ``ckptool inspect --tensors --json``: a model's description in a few
kilobytes, which a repository can hold. An operand may name a place, as for ``ckptool diff``:
``PATH#ADDRESS``, ``PATH#@ema`` or ``PATH#@model``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptool.comparison.operands import ROLES
from ckptool.dtypes import BY_NAME
from ckptool.ema import locate_ema
from ckptool.errors import CkptError, UnknownFormatError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import SourceFile
from ckptool.inventory import Leaf, take_inventory
from ckptool.layouts import Layouts
from ckptool.selection import parse_operand, select_table
from ckptool.tree import TensorRef, parse_address

MAX_DOCUMENT = 1 << 28  # bytes; of 100,000 tensors it has about twenty million


def read_like(operand: str, layouts: Layouts = ()) -> Mapping[str, Leaf]:
    """The state dict that a model would take, without values.

    Raises:
        CkptError: neither a checkpoint nor such a document, or it holds no weights.
    """
    path, address = parse_operand(operand)
    try:
        with open_checkpoint(path) as checkpoint:
            role = ROLES.get(address or "")
            if role is not None:
                return dict(role(checkpoint, layouts))
            if address is not None:
                return select_table(take_inventory(checkpoint.tree), address).entries
            location = locate_ema(checkpoint, layouts=layouts)
            tables = location.inventory.weights
            table = location.model or max(tables, key=lambda t: len(t.entries), default=None)
    except UnknownFormatError as error:
        return _from_document(path, address, error)
    if table is None:
        raise UsageError("the operand of --like holds no weights", hint=f"ckptool inspect {path}")
    return table.entries


def _from_document(path: Path, address: str | None, error: CkptError) -> Mapping[str, Leaf]:
    """The entries of the section that the address names, or of the model's."""
    document = _document(path, error)
    entries = document.get("entries")
    if not isinstance(entries, list):
        hint = "ckptool inspect --tensors --json > model.json"
        raise UsageError("the document of --like lists no tensors", hint=hint)
    tables: dict[str, dict[str, Leaf]] = {}
    try:
        for entry in entries:
            container, _, name = entry["address"].rpartition("/")
            tables.setdefault(container, {})[parse_address(name)[0][0]] = _leaf(entry)
    except (KeyError, TypeError, AttributeError, IndexError) as fault:
        raise UsageError(f"the document of --like has an entry that is none: {fault}") from fault
    wanted = _main_section(document) if address is None else address
    if wanted not in tables:
        raise UsageError(f"the document of --like has no tensors at {wanted or 'the top'}")
    return tables[wanted]


def _document(path: Path, error: CkptError) -> dict[str, Any]:
    with SourceFile(path) as file:
        if file.size > MAX_DOCUMENT:
            raise error
        try:
            document = json.loads(file.read(0, file.size))
        except (ValueError, RecursionError):
            raise error from None
    if not isinstance(document, dict) or document.get("schema") != "ckptool/inspect/1":
        raise error
    return document


def _main_section(document: dict[str, Any]) -> str:
    """Where the model was found, as the document says it."""
    for section in document.get("sections") or ():
        if isinstance(section, dict) and section.get("role") == "model":
            return str(section.get("address"))
    return ""


def _leaf(entry: dict[str, Any]) -> Leaf:
    shape = tuple(entry["shape"])
    if not all(type(size) is int for size in shape):
        raise TypeError("a shape is a list of integers")
    return TensorRef(BY_NAME[entry["dtype"]], shape, ())
