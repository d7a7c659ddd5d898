"""Uses of bytes that a promotion changes, in all that a loader makes of a file's pickles.

The walk of a tree gives key paths. This search gives certainty: it follows a :class:`Trace`, which
has every value that went into another, and so finds the uses that have no key path. A tensor can be
a key of a dict, an element of a set, an attribute of a dict or an argument of a call.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from ckptool.errors import DamagedError
from ckptool.formats.pickles.trace import Trace
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan
from ckptool.tree.addresses import format_address
from ckptool.tree.describing import as_key
from ckptool.tree.geometry import joined_runs
from ckptool.tree.modules import module_entries
from ckptool.tree.nodes import (
    PLAIN,
    Address,
    ArrayRef,
    BytesRef,
    CompositeTensor,
    Key,
    Opaque,
    SpannedBytes,
    StorageRef,
    TensorRef,
    Tree,
)

MAX_VALUES = 1 << 24  # that are looked at; no training state has so many containers and tensors

Place = tuple[int, Any]  # identity of a container, and a key or position in it


class Use(NamedTuple):
    """A value that views bytes that change."""

    value: Any
    at: Address  # the key path of the last container around it that has one
    how: str  # its place there, if it has no key path itself

    def __str__(self) -> str:
        how = self.how or _KINDS.get(type(self.value), "")
        return f"{format_address(self.at)} ({how})".strip() if how else format_address(self.at)


_KINDS = {
    StorageRef: "a storage",
    ArrayRef: "a numpy array",
    BytesRef: "bytes",
    SpannedBytes: "bytes",
}


class Runs:
    """Runs of bytes of one source."""

    def __init__(self, spans: Iterable[ByteSpan]) -> None:
        spans = [span for span in spans if span.nbytes]
        self._sources = {span.source for span in spans}
        self._runs = joined_runs((span.offset, span.offset + span.nbytes) for span in spans)

    def overlap(self, span: ByteSpan | None) -> bool:
        """Return whether a span has bytes of a run."""
        if span is None or not span.nbytes or span.source not in self._sources:
            return False
        at = bisect_left(self._runs, (span.offset + span.nbytes, 0)) - 1
        return at >= 0 and self._runs[at][1] > span.offset

    def viewed_by(self, value: Any) -> bool:
        """Return whether a value of a tree itself views bytes of a run."""
        return any(self.overlap(span) for span in _spans(value))


def find_uses(
    tree: Tree, trace: Trace, runs: Runs, slot: Tree, names: Collection[str]
) -> Iterator[Use]:
    """Yield each value that uses the runs' bytes once, but for the tensors of a state dict.

    Args:
        tree: the values with key paths.
        trace: the other values in them.
        runs: the bytes.
        slot: the container of the state dict, in the tree.
        names: the keys of its tensors that may use the bytes.

    Raises:
        DamagedError: there are more values than any training state has.
    """
    if trace.has_equal_keys:
        yield Use(None, (), "keys that view the same bytes")
    own = set(_places(slot, names))
    told = {id(slot)}
    calls = [_Part(call, how=f"an argument of {call.qualname}") for call in trace.given]
    for holder, at, part in _reached([_Part(tree)], calls, trace):
        value = part.value
        if runs.viewed_by(value) and (id(holder), part.place) not in own and id(value) not in told:
            told.add(id(value))
            yield Use(value, at if part.step is None else (*at, part.step), part.how)


def find_call(
    trace: Trace, calls: Iterable[Opaque], values: Collection[int], runs: Runs
) -> str | None:
    """Return the name of the first of the calls that is given one of the values, or their bytes.

    A value that another one holds counts too. None: there is no such call.

    Args:
        trace: the values that others hold and do not show; it may be empty.
        calls: the calls that are looked into.
        values: identities of the values.
        runs: the bytes that they view.
    """
    given = [_Part(call, how=call.qualname) for call in calls]
    for _, _, part in _reached(given, [], trace):
        if id(part.value) in values or runs.viewed_by(part.value):
            return part.how
    return None


class _Part(NamedTuple):
    """A value in another one."""

    value: Any
    place: Any = None  # the key or position in its holder
    step: Key | None = None  # the same, in a key path
    how: str = ""  # its place, if it has no key path


def _reached(
    first: list[_Part], then: list[_Part], trace: Trace
) -> Iterator[tuple[Any, Address, _Part]]:
    """Yield the parts and what they hold, each with its holder and the key path of that one."""
    waiting: list[tuple[Any, Address, list[_Part]]] = [(None, (), then), (None, (), first)]
    seen: set[int] = set()
    while waiting:
        holder, at, parts = waiting.pop()
        inside = []
        for part in parts:
            yield holder, at, part
            value, _, step, how = part
            if id(value) in seen or (type(value) is TensorRef and id(value) not in trace.inputs):
                continue
            seen.add(id(value))
            if len(seen) > MAX_VALUES:
                raise DamagedError("too many values to look for uses of the same bytes in them")
            below = [*_contents(value), *_given(value, trace)]
            if how:
                below = [part._replace(step=None, how=how) for part in below]
            inside.append((value, at if step is None else (*at, step), below))
        waiting += reversed(inside)


def _given(value: Any, trace: Trace) -> Iterator[_Part]:
    """Yield what went into a value and is not shown by it."""
    shown: set[int] = set()
    if isinstance(value, Opaque):
        shown = {id(part) for part in (*value.args, *_fields(value))}
    how = f"in its {'attributes' if isinstance(value, _WITH_ATTRIBUTES) else 'arguments'}"
    for given in trace.inputs_of(value):
        if id(given) not in shown:
            yield _Part(given, how=how)


def _contents(value: Any) -> Iterator[_Part]:
    """Yield the parts that the node itself has."""
    if isinstance(value, dict):
        yield from (_Part(key, how="as a key") for key in value if type(key) not in _WITHOUT_PARTS)
        yield from (_Part(part, key, as_key(key)) for key, part in _with_parts(value.items()))
    elif isinstance(value, (list, tuple)):
        yield from (_Part(part, i, i) for i, part in _with_parts(enumerate(value)))
    elif isinstance(value, (set, frozenset)):
        yield from (_Part(part, how="in a set") for part in value)
    elif isinstance(value, Opaque):
        yield _Part(value.args, how="in its arguments")
        yield _Part(value.kwargs, how="in its arguments")
        yield from (_Part(part) for part in _fields(value)[1:])
    elif isinstance(value, CompositeTensor):
        yield _Part(value.wrapper)
        yield _Part(value.parts)
    elif isinstance(value, ArrayRef):
        yield _Part(value.objects, how="in a numpy array")


def _with_parts(items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    return (item for item in items if type(item[1]) not in _WITHOUT_PARTS)


def _fields(value: Opaque) -> tuple[Any, ...]:
    return value.kwargs, value.state, value.items, value.elements


_WITHOUT_PARTS = PLAIN | {bytes}
_WITH_ATTRIBUTES = (dict, list, TensorRef, CompositeTensor)


def _places(slot: Tree, names: Collection[str]) -> Iterator[Place]:
    """Yield the places of a state dict's tensors."""
    if isinstance(slot, Opaque) and slot.is_module:
        last = {entry.name: entry for entry in module_entries(slot)}
        yield from ((id(e.holder), e.key) for e in last.values() if e.name in names)
        return
    holders = [slot]
    if isinstance(slot, Opaque):
        states = slot.state if isinstance(slot.state, tuple) else (slot.state,)
        holders = [slot.items, slot.elements, *states]
        yield from ((id(slot.args), i) for i in range(len(slot.args)) if f"args{i or ''}" in names)
    for holder in holders:
        if isinstance(holder, dict):
            yield from ((id(holder), key) for key in holder if str(as_key(key)) in names)
        elif isinstance(holder, (list, tuple)):
            yield from ((id(holder), i) for i in range(len(holder)) if str(i) in names)


def _spans(value: Any) -> Iterator[ByteSpan | None]:
    if isinstance(value, TensorRef):
        yield from (chunk.span for chunk in value.chunks)
    elif isinstance(value, (StorageRef, ArrayRef, BytesRef, SpannedBytes)):
        yield value.span
