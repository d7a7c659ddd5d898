"""Folding of a model's repeated layers, so that a thousand tensors fit on a screen.

Key paths are cut at their slashes and names at their dots into a tree. Neighbouring children whose
names are numbers become one line if they hold the same names, dtypes and shapes:
``blocks.0…11  ×12``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ckptool.records import NamedTuple
from ckptool.reports.inspect import TensorEntry

MAX_PARTS = 24  # components of a name that become levels; the rest stays together


@dataclass(slots=True)
class Node:
    """A component of names, with its tensor and its children."""

    entry: TensorEntry | None = None
    children: dict[str, Node] = field(default_factory=dict)
    signature: int = 0


class Row(NamedTuple):
    """A line to show: a component, folded where ``times`` is above 1."""

    depth: int
    label: str
    entry: TensorEntry | None
    times: int  # number of equal layers that share this line, not multiplied by folds around it
    # Of an optimizer's states, which share a line whatever their shapes.
    slots: tuple[str, ...] = ()
    bytes: int = 0  # of all these states


def fold(entries: Iterable[TensorEntry]) -> Iterator[Row]:
    """Yield the rows of a folded tree of the entries."""
    root = Node()
    for entry in entries:
        _insert(root, entry)
    _sign(root)
    yield from _rows(root, 0)


def _insert(root: Node, entry: TensorEntry) -> None:
    sections = entry.address.split("/", MAX_PARTS)
    parts = [*(f"{part}/" for part in sections[:-1]), *sections[-1].split(".", MAX_PARTS)]
    node = root
    for part in parts:
        node = node.children.setdefault(part, Node())
    node.entry = entry


def _sign(node: Node) -> int:
    entry = node.entry
    own: tuple[object, ...] | None = (entry.dtype, entry.shape, entry.kind) if entry else None
    if entry and (entry.stats or entry.sha256):
        own = (entry.address,)  # it has numbers of its own, so it is never folded
    below = tuple((name, _sign(child)) for name, child in node.children.items())
    node.signature = hash((own, below))
    return node.signature


def _rows(node: Node, depth: int) -> Iterator[Row]:
    if states := _states(node):
        yield states._replace(depth=depth)
        return
    for names, child in _runs(node.children):
        label, child, times = _joined(names, child)  # noqa: PLW2901
        yield Row(depth, label, child.entry, times)
        yield from _rows(child, depth + 1)


FEW = 4  # states of an optimizer that are listed one by one


def _states(node: Node) -> Row | None:
    """Return one line for the states of an optimizer: numbered parts with the same moments."""
    parts = node.children
    if len(parts) <= FEW or not all(name.rstrip("/").isdigit() for name in parts):
        return None
    slots = tuple(next(iter(parts.values())).children)
    leaves = [leaf.entry for part in parts.values() for leaf in part.children.values()]
    is_alike = all(tuple(part.children) == slots for part in parts.values())
    found = [entry for entry in leaves if entry is not None and entry.parameter is not None]
    if not (slots and is_alike and len(found) == len(leaves)):
        return None
    if any(entry.stats or entry.sha256 for entry in found):
        return None
    first, *_, last = (name.rstrip("/") for name in parts)
    return Row(0, f"{first}…{last}", None, len(parts), slots, sum(e.bytes for e in found))


def _joined(names: list[str], child: Node) -> tuple[str, Node, int]:
    """Return label, node and length of a run; single children join it: ``attn.qkv.weight``."""
    label = names[0] if len(names) == 1 else f"{names[0]}…{names[-1]}"
    while child.entry is None and len(child.children) == 1:
        ((name, only),) = child.children.items()
        label, child = f"{label}{'' if label.endswith('/') else '.'}{name}", only
    return label, child, len(names)


def _runs(children: dict[str, Node]) -> Iterator[tuple[list[str], Node]]:
    run: list[str] = []
    first: Node | None = None
    for name, child in children.items():
        same = first is not None and child.signature == first.signature
        if same and name.isdigit() and run[-1].isdigit():
            run.append(name)
            continue
        if first is not None:
            yield run, first
        run, first = [name], child
    if first is not None:
        yield run, first
