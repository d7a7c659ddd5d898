"""Trees as flat tables: key path -> tensor or plain value, in the order of the tree.

After this, formats no longer matter. A numpy array and a storage become tensors. An object becomes
its class name beside the parts that it holds. A long list of numbers (Python's random state has
625) is one value instead of hundreds. Two tables with the same key paths are two checkpoints with
the same structure, whatever program wrote them.

A container that is reachable in two ways appears at both key paths, since the other checkpoint may
hold a copy there. One that contains itself is named as such and not entered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from struct import Struct
from typing import Any

from ckptool.comparison.objects import key_parts, keyed_by, object_parts, object_text, state_parts
from ckptool.comparison.spelling import Speller, span_digest
from ckptool.dtypes import BY_NAME, BY_NUMPY_CODE
from ckptool.errors import DamagedError
from ckptool.formats.base import TensorReader
from ckptool.records import NamedTuple
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tree.addresses import format_key
from ckptool.tree.geometry import contiguous_strides
from ckptool.tree.nodes import (
    MAX_DEPTH,
    PLAIN,
    ArrayRef,
    BytesRef,
    Chunk,
    CompositeTensor,
    GlobalRef,
    Key,
    NotedDict,
    NotedList,
    Opaque,
    PathText,
    StorageRef,
    TensorRef,
    Tree,
    WindowsPathText,
    is_plain,
)
from ckptool.tree.walking import children

SERIES = 16  # plain items; a longer list is one value
MAX_REPEATED = 300_000  # nodes visited again below shared containers, which can unfold without end


class TensorLeaf(NamedTuple):
    """A tensor, with the reader of its file."""

    ref: TensorRef
    reader: TensorReader


class Digest(NamedTuple):
    """A tensor of which only the digest is known."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    sha256: str


class ListLeaf(NamedTuple):
    """A list, a set or a dict of many plain items."""

    kind: str
    items: tuple[Any, ...]

    def __str__(self) -> str:
        return f"<{self.kind} of {len(self.items)} items>"


class BytesLeaf(NamedTuple):
    """A bytes object."""

    nbytes: int
    sha256: str

    def __str__(self) -> str:
        return f"<{self.nbytes} bytes, sha256 {self.sha256[:12]}>"


class ObjectLeaf(NamedTuple):
    """A class, a function, an object apart from its parts, or an empty or special container."""

    text: str

    def __str__(self) -> str:
        return self.text


Leaf = Any  # TensorLeaf | Digest | ListLeaf | BytesLeaf | ObjectLeaf | scalar
Leaves = Mapping[str, Leaf]


ABSENT = object()  # the leaf of a side that has none


def form_of(leaf: Leaf) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of a tensor."""
    if isinstance(leaf, Digest):
        return leaf.dtype, leaf.shape
    return leaf.ref.dtype.name, leaf.ref.shape


def is_tensor(leaf: Leaf) -> bool:
    """Return whether the leaf is a tensor, read or known by its digest."""
    return isinstance(leaf, (TensorLeaf, Digest))


def is_number(leaf: Leaf) -> bool:
    """Return whether the leaf is a number of Python, bools included."""
    return isinstance(leaf, (bool, int, float, complex))


def numbers_as_tensors(leaves: Leaves, others: Leaves) -> dict[str, Leaf]:
    """Return the leaves; a number becomes a tensor where the other side has a 0-d tensor.

    torch has written the step of an optimizer as either.
    """
    return {name: _beside(leaf, others.get(name)) for name, leaf in leaves.items()}


def _beside(leaf: Leaf, other: Leaf) -> Leaf:
    if not (is_number(leaf) and isinstance(other, TensorLeaf) and other.ref.shape == ()):
        return leaf
    dtype, form = _SCALARS[type(leaf)]
    parts = (leaf.real, leaf.imag) if isinstance(leaf, complex) else (leaf,)
    if isinstance(leaf, int) and not -(1 << 63) <= leaf < 1 << 63:
        return leaf
    data = Struct(form).pack(*parts)
    span = ByteSpan(Memory(data), 0, len(data))
    return TensorLeaf(TensorRef(BY_NAME[dtype], (), (Chunk(span, (), (), ()),)), other.reader)


MAX_LENGTH = 1 << 28  # characters of all key paths together
MAX_LEAVES = 3 << 18  # 100,000 tensors with EMA weights and an optimizer are 600,000

_SCALARS = {
    bool: ("bool", "<?"), int: ("int64", "<q"), float: ("float64", "<d"),
    complex: ("complex128", "<2d"),
}  # fmt: skip


def flatten(tree: Tree, reader: TensorReader, *, strict: bool = False) -> dict[str, Leaf]:
    """Return every tensor and value under ``tree`` by its written key path.

    ``strict`` includes the attributes of plain containers: the ``_metadata`` of a state dict,
    which only torch's format has.

    Raises:
        DamagedError: the tree is nested too deep, has too many values, or shares containers so
            often that it unfolds without end.
    """
    found: dict[str, Leaf] = {}
    times: dict[str, int] = {}
    length = 0
    for written, leaf in _leaves(tree, Speller(reader), strict=strict):
        name = written
        length += len(name)
        if length > MAX_LENGTH:
            raise DamagedError("its key paths are so long that they do not fit into the memory")
        if len(found) >= MAX_LEAVES:
            raise DamagedError(f"more than {MAX_LEAVES} values to compare one by one")
        while name in found:  # the keys 1 and "1" are written alike, but are two
            times[written] = times.get(written, 0) + 1
            name = f"{written}'{times[written]}"
        found[name] = leaf
    return found


class _Frame(NamedTuple):
    """A container whose parts are visited."""

    prefix: str  # of the key paths of its parts
    parts: Iterator[tuple[Key, Tree]]
    around: tuple[int, ...]  # the containers around the parts, by their ids
    again: bool  # it is below a container that was entered before


def _leaves(tree: Tree, speller: Speller, *, strict: bool) -> Iterator[tuple[str, Leaf]]:
    stack = [_Frame("", iter([("", tree)]), (), again=False)]
    entered: set[int] = set()
    repeated = 0
    while stack:
        prefix, parts, around, again = stack[-1]
        for key, node in parts:
            repeated += again
            if repeated > MAX_REPEATED:
                raise DamagedError(
                    "its containers are shared so often that they unfold without end"
                )
            at = prefix + format_key(key)
            if type(node) in _AS_THEY_ARE:
                yield at, node
                continue
            if id(node) in around:
                above = len(around) - around.index(id(node))
                yield at, ObjectLeaf(f"<contains itself, {above} levels up>")
                continue
            leaf, inner = _opened(node, speller)
            if strict and isinstance(node, (NotedDict, NotedList)):
                inner = inner + state_parts(node.state)
            if leaf is not _NOTHING:
                yield at, leaf
            if inner:
                if len(stack) > MAX_DEPTH:
                    raise DamagedError(f"nested deeper than {MAX_DEPTH} levels")
                below = f"{at}/" if len(stack) > 1 else ""  # the top has no key
                is_again = again or id(node) in entered
                stack.append(_Frame(below, iter(inner), (*around, id(node)), is_again))
                entered.add(id(node))
                break
        else:
            stack.pop()


_AS_THEY_ARE = PLAIN - {PathText, WindowsPathText}  # types of leaves
_NOTHING = object()  # no leaf: the parts of the container are all that it holds


def _opened(node: Tree, speller: Speller) -> tuple[Leaf, list[tuple[Key, Tree]]]:
    """Return (the leaf of the node itself, its parts)."""
    if isinstance(node, (TensorRef, ArrayRef, StorageRef)):
        return _tensor(node, speller)
    if isinstance(node, CompositeTensor) and node.wrapper is not None:
        return ObjectLeaf(object_text(node.wrapper, speller)), object_parts(node.wrapper)
    if isinstance(node, CompositeTensor):
        return ObjectLeaf(f"<{node.layout} {node.dtype} {list(node.shape)}>"), children(node)
    if isinstance(node, Opaque):
        return ObjectLeaf(object_text(node, speller)), object_parts(node)
    if isinstance(node, (dict, list, tuple)):
        return _container(node, speller)
    return _value(node, speller), []


def _container(node: Any, speller: Speller) -> tuple[Leaf, list[tuple[Key, Tree]]]:
    kind = "dict" if isinstance(node, dict) else "sequence"  # JSON and pickles mix up the others
    noted = isinstance(node, (NotedDict, NotedList))  # maxlen, default_factory
    more: list[tuple[Key, Tree]] = list(node.made_with.items()) if noted else []
    if not node:
        return ObjectLeaf(f"<empty {kind}>"), more
    if kind == "sequence" and len(node) > SERIES and all(map(is_plain, node)):
        return ListLeaf(kind, tuple(node)), more
    parts = children(node)
    if not parts:
        return _long_table(node, speller), more
    if kind == "sequence":
        return _NOTHING, parts + more
    text = keyed_by(node, speller)  # empty where key paths are unambiguous
    keys = ObjectLeaf(f"<dict keyed by {text}>") if text else _NOTHING
    return keys, [*parts, *key_parts(node), *more]


def _long_table(node: dict[Any, Any], speller: Speller) -> ListLeaf:
    """Return a dict of too many plain values for key paths as one leaf: keys and values in turn."""
    named = ((speller.spell(key), value) for key, value in node.items())
    rows = sorted(named, key=lambda row: row[0])  # the values may have no order
    return ListLeaf("dict", tuple(item for row in rows for item in row))


def _value(node: Any, speller: Speller) -> Leaf:
    """Return a node without parts in a form that can be compared and shown."""
    if is_plain(node):
        return str(node) if isinstance(node, PathText) else node
    if isinstance(node, GlobalRef):
        return ObjectLeaf(node.qualname)
    if isinstance(node, BytesRef):
        return BytesLeaf(len(node), span_digest(speller.reader, node))
    if isinstance(node, (bytes, bytearray)):
        return BytesLeaf(len(node), sha256(node).hexdigest())
    if isinstance(node, (set, frozenset)):
        return ListLeaf("set", tuple(sorted(speller.spell(part) for part in node)))
    return ObjectLeaf(speller.spell(node))


# ------------------------------------------------------------------------------- arrays as tensors


def _tensor(
    node: TensorRef | ArrayRef | StorageRef, speller: Speller
) -> tuple[Leaf, list[tuple[Key, Tree]]]:
    if isinstance(node, ArrayRef):
        return _array(node, speller)
    if isinstance(node, StorageRef):
        shape = (node.nbytes // node.dtype.itemsize,)
        chunks = (Chunk(node.span, (0,), shape, (1,)),) if node.span else ()
        ref = TensorRef(node.dtype, shape, chunks, byteorder=node.byteorder)
        return TensorLeaf(ref, speller.reader), []
    return TensorLeaf(node, speller.reader), state_parts(node.state)


def _array(node: ArrayRef, speller: Speller) -> tuple[Leaf, list[tuple[Key, Tree]]]:
    dtype = BY_NUMPY_CODE.get(node.dtype.lstrip("<>|="))
    if node.span is None:
        return ObjectLeaf(f"<array of objects {list(node.shape)}>"), list(
            enumerate(node.objects or ())
        )
    if dtype is None:
        kind = node.dtype + (f" {speller.spell(node.fields)}" if node.fields else "")
        digest = span_digest(speller.reader, node)
        return ObjectLeaf(f"<array {kind} {list(node.shape)}, sha256 {digest[:12]}>"), []
    strides = contiguous_strides(node.shape)
    if node.fortran_order:
        strides = contiguous_strides(node.shape[::-1])[::-1]
    chunk = Chunk(node.span, (0,) * len(node.shape), node.shape, strides)
    order = "big" if node.dtype.startswith(">") else "little"
    return TensorLeaf(TensorRef(dtype, node.shape, (chunk,), byteorder=order), speller.reader), []
