"""What every format turns its bytes into: a plain tree whose leaves may be tensor references.

The one idea: **a tensor is a slice of a file**. A :class:`TensorRef` says what a tensor is (dtype,
shape) and where its bytes lie (path, offset, strides); the values stay on disk until somebody
asks. Two tied weights are two addresses with the same span, and nothing else needs to record the
tie.

A tree is made of ``dict``, ``list``, ``tuple``, ``set``, scalars and

* :class:`TensorRef`, a tensor; :class:`CompositeTensor`, one made of several (sparse, nested);
* :class:`ArrayRef`, a numpy array; :class:`BytesRef`, a long run of bytes left in the file;
* :class:`Opaque`, an object whose class we leave alone, with its arguments, state and items as
  data;
* :class:`GlobalRef`, the bare name of a class or function.

Pickles hold cycles, sharing that unfolds exponentially and nesting beyond Python's recursion
limit, so :func:`walk` goes by identity with a stack of its own: a container that is reachable in
two ways is walked once, and the second way is reported as an alias of the first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from ckptool.dtypes import DType
from ckptool.errors import DamagedError

Key = str | int
Step = TypeVar("Step", bound=tuple[Any, ...])
Address = tuple[Key, ...]
Tree = Any  # dict | list | tuple | set | TensorRef | CompositeTensor | ArrayRef | Opaque | scalar


@dataclass(frozen=True, slots=True, eq=False)
class Blob:
    """Bytes that a file holds only encoded (protocol 2 pickles them as text), kept decoded."""

    data: bytes

    def __str__(self) -> str:
        return f"<{len(self.data)} bytes inside the pickle>"


class ByteSpan(NamedTuple):
    """A run of bytes in a file or a :class:`Blob`. A named tuple: every tensor has one."""

    source: Path | Blob
    offset: int  # bytes from the start of the source
    nbytes: int


class Chunk(NamedTuple):
    """One stored block of a tensor; most tensors have one, sharded ones several."""

    span: ByteSpan  # from the first element used to the last
    offsets: tuple[int, ...]  # where the block begins inside the tensor, in elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    @property
    def is_contiguous(self) -> bool:
        """Whether the span is the block in C order, byte for byte."""
        return self.strides == contiguous_strides(self.shape) or _same_order(self)


class Quantizer(NamedTuple):
    """How stored integers become real values: ``(value - zero_point) * scale``."""

    scheme: str  # per_tensor_affine, per_channel_affine, per_channel_affine_float_qparams
    scale: float | TensorRef
    zero_point: int | TensorRef
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class TensorRef:
    """What a tensor is and where its values lie."""

    dtype: DType
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]  # empty: the values are not stored (meta tensors)
    device: str = "cpu"  # as the file says: cuda:0, mps, meta
    requires_grad: bool = False
    byteorder: str = "little"  # of the stored values: little or big
    lazy: tuple[str, ...] = ()  # operations torch applies on read: "conj", "neg"
    quantizer: Quantizer | None = None
    subclass: str | None = None  # qualified name, for subclasses of torch.Tensor
    state: Any = field(default=None, compare=False)  # its attributes, as an object's state

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values when contiguous."""
        return stored_nbytes(self.dtype, self.shape)

    @property
    def is_stored_plainly(self) -> bool:
        """Whether the stored bytes are the values, little-endian and in C order: ready to copy."""
        return (
            len(self.chunks) == 1
            and not self.lazy
            and (self.byteorder == "little" or self.dtype.itemsize == 1)
            and self.chunks[0].is_contiguous
        )


@dataclass(frozen=True, slots=True, eq=False)
class CompositeTensor:
    """A tensor stored as several: sparse (indices, values) or nested."""

    layout: str  # sparse_coo, sparse_csr, …, nested
    dtype: DType
    shape: tuple[int, ...]
    parts: Mapping[str, TensorRef]


@dataclass(frozen=True, slots=True, eq=False)
class ArrayRef:
    """A numpy array."""

    dtype: str  # numpy's type string: "<f4"
    shape: tuple[int, ...]
    fortran_order: bool
    span: ByteSpan | None  # None: an array of objects
    objects: list[Any] | None = None  # the elements of an array of objects
    fields: Any = None  # of a structured type: its names, their types and places, as pickled

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.span.nbytes if self.span else 0


@dataclass(frozen=True, slots=True)
class BytesRef:
    """A bytes object too long to be worth holding."""

    span: ByteSpan

    def __len__(self) -> int:
        return self.span.nbytes


class SpannedBytes(bytes):
    """A bytes object that knows where it lies."""

    span: ByteSpan

    @classmethod
    def at(cls, data: bytes, span: ByteSpan) -> SpannedBytes:
        """``data``, which was read from ``span``."""
        spanned = cls(data)
        spanned.span = span
        return spanned


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A run of elements that tensors are views of, as torch pickles it."""

    dtype: DType
    span: ByteSpan | None  # None: not stored (meta)
    device: str = "cpu"
    byteorder: str = "little"

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""
        return self.span.nbytes if self.span else 0


@dataclass(frozen=True, slots=True)
class GlobalRef:
    """The name of a class or function that a pickle mentions. Never looked up."""

    module: str
    name: str

    @property
    def qualname(self) -> str:
        """``module.name``; a name without a module is one that the pickle computed."""
        return f"{self.module}.{self.name}" if self.module else self.name


@dataclass(slots=True, eq=False)
class Opaque:
    """An object of a class that we leave alone, as the data it was pickled from.

    Hashable by identity, since pickles use objects as dict keys.
    """

    qualname: str
    args: tuple[Any, ...] = ()
    kwargs: dict[Any, Any] = field(default_factory=dict)
    state: Any = None
    items: dict[Any, Any] | None = None  # set by pickles of dict subclasses
    elements: list[Any] | None = None  # set by pickles of list subclasses
    called: bool = False  # the pickle would call it as a function, not build it as an object

    @property
    def attributes(self) -> dict[Any, Any]:
        """The instance's attributes: its ``__dict__`` and ``__slots__`` state."""
        if isinstance(self.state, dict):
            return self.state
        if isinstance(self.state, tuple) and len(self.state) == 2:
            return {k: v for part in self.state if isinstance(part, dict) for k, v in part.items()}
        return {}

    @property
    def is_module(self) -> bool:
        """Whether it was an ``nn.Module``, whatever its class: every one has these dicts."""
        state = self.state
        return isinstance(state, dict) and "_parameters" in state and "_modules" in state


class NotedDict(dict[Any, Any]):
    """A dict of a class that holds more than its items: ``OrderedDict``, ``defaultdict``."""

    made_with: Mapping[str, Any] = MappingProxyType({})  # arguments of the class
    state: Any = None  # its attributes, as an object's state


class NotedList(list[Any]):
    """A list that stands for a class which holds more than its elements: ``deque``."""

    made_with: Mapping[str, Any] = MappingProxyType({})
    state: Any = None


class Visit(NamedTuple):
    """A container met by :func:`walk`, with its named parts."""

    address: Address
    node: Tree
    children: list[tuple[Key, Tree]]
    alias_of: Address | None = None  # set when the same container was met before, at that address


# ---------------------------------------------------------------------------------------- walking


def children(node: Tree) -> list[tuple[Key, Tree]]:
    """The named parts of a node, in the file's order; empty for a leaf.

    A long container of nothing but plain values counts as a leaf: nobody asks for one of its
    millions of numbers, and their addresses would take far more room than they.

    Raises:
        DamagedError: more parts than memory has room for.
    """
    if isinstance(node, dict):
        if len(node) > LONG and _is_leaf(node.values()):
            return []
        return [(k if type(k) is str else as_key(k), v) for k, v in node.items()]
    if isinstance(node, (list, tuple)):
        return [] if len(node) > LONG and _is_leaf(node) else list(enumerate(node))
    if isinstance(node, Opaque):
        return _children_of_object(node)
    if isinstance(node, CompositeTensor):
        return list(node.parts.items())
    return []


def _is_leaf(values: Collection[Tree]) -> bool:
    """Whether the many values of a container are all plain."""
    if set(map(type, values)) <= PLAIN:
        return True
    if len(values) > MAX_PARTS:
        raise DamagedError(f"a container of {len(values)} values of all kinds")
    return False


def _children_of_object(node: Opaque) -> list[tuple[Key, Tree]]:
    if node.is_module:
        return list(module_state_dict(node).items())
    named: dict[Key, Tree] = {}
    if node.items:
        named.update((as_key(key), value) for key, value in node.items.items())
    attributes = node.attributes if node.state is not None else {}
    for key, value in attributes.items():
        named.setdefault(as_key(key), value)
    if node.elements:
        named.update(enumerate(node.elements))
    for i, arg in enumerate(node.args):
        if isinstance(arg, _DEEP) and arg != ():
            named["args" if i == 0 else f"args{i}"] = arg
    if not attributes and is_container(node.state):
        named.setdefault("state", node.state)
    return list(named.items())


LONG = 1 << 17  # values in a container
MAX_DIGITS = 20  # of an index
MAX_PARTS = 1 << 23  # values that are given addresses, of all containers together
PLAIN = frozenset({type(None), bool, int, float, complex, str})
MAX_CONTAINERS = 1 << 20  # a hundred thousand tensors with an optimizer are 100,000 dicts
MAX_DEPTH = 1_000  # levels; no training state nests so far, and addresses cost their length
MAX_ADDRESS_PARTS = 50_000_000  # keys in all addresses together


def walk(tree: Tree, at: Address = ()) -> Iterator[Visit]:
    """Every container once, parents before children, in the file's order; leaves come as children.

    A container met again is yielded with ``alias_of`` set to its first address, and not entered.

    Raises:
        DamagedError: nested deeper than ``MAX_DEPTH``, or too much of it for the memory.
    """
    seen: dict[int, Address] = {}
    parts = named = 0
    stack: list[Iterator[tuple[Address, Tree]]] = [iter([(at, tree)] if is_container(tree) else [])]
    while stack:
        for address, node in stack[-1]:
            first = seen.setdefault(id(node), address)
            kids = children(node)
            named += len(kids)
            parts += len(address) * len(kids)
            if parts > MAX_ADDRESS_PARTS or named > MAX_PARTS or len(seen) > MAX_CONTAINERS:
                raise DamagedError("too many values to give them all addresses")
            yield Visit(address, node, kids, None if first is address else first)
            if first is address and any(isinstance(child, _CONTAINERS) for _, child in kids):
                if len(address) == MAX_DEPTH:
                    raise DamagedError(f"nested deeper than {MAX_DEPTH} levels")
                stack.append(_inside(address, kids))
                break
        else:
            stack.pop()


def unseen(level: Iterable[Step], seen: set[Hashable]) -> Iterator[Step]:
    """The steps of a walk by levels, (address, node, …), that do not lead where one has led.

    A hostile file can hold one container under a million keys.
    """
    for step in level:
        _address, node, *found = step
        place = (id(node), *found)
        if place not in seen:
            seen.add(place)
            yield step


def _inside(address: Address, kids: list[tuple[Key, Tree]]) -> Iterator[tuple[Address, Tree]]:
    return (((*address, key), child) for key, child in kids if is_container(child))


def tensors(tree: Tree) -> Iterator[tuple[Address, TensorRef]]:
    """Every tensor under ``tree`` with its address; parts of composite tensors one by one."""
    if isinstance(tree, TensorRef):
        yield (), tree
    for visit in walk(tree):
        if visit.alias_of is None:
            for key, child in visit.children:
                if isinstance(child, TensorRef):
                    yield (*visit.address, key), child


def leaves(tree: Tree) -> Iterator[TensorRef]:
    """Every tensor under ``tree``, once for each place of each container, without addresses."""
    seen: set[int] = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, TensorRef):
            yield node
        elif isinstance(node, _CONTAINERS) and id(node) not in seen:
            seen.add(id(node))
            if len(seen) > MAX_CONTAINERS:
                raise DamagedError("too many values to count them all")
            waiting += [child for _, child in children(node) if isinstance(child, _DEEP)]


_CONTAINERS = (dict, list, tuple, Opaque, CompositeTensor)
_TENSORS = (TensorRef, CompositeTensor)
_DEEP = (*_CONTAINERS, TensorRef)


def is_container(node: Tree) -> bool:
    """Whether the node may have parts; the empty tuple, of which there is one only, has none."""
    return isinstance(node, _CONTAINERS) and node != ()


def as_key(key: Any) -> Key:
    """A dict key as a part of an address: strings and integers as they are, the rest by name."""
    if isinstance(key, str):
        return key
    if isinstance(key, int) and not isinstance(key, bool) and key.bit_length() <= MAX_KEY_BITS:
        return key
    if isinstance(key, bytes):
        return key.decode("utf-8", "backslashreplace")
    return describe(key)


MAX_DESCRIBED = 120  # characters of a text
_BRACKETS: dict[type, tuple[str, str]] = {
    tuple: ("(", ")"), list: ("[", "]"), dict: ("{", "}"), set: ("{", "}"), frozenset: ("{", "}"),
    NotedDict: ("{", "}"), NotedList: ("[", "]"),
}  # fmt: skip


def describe(value: Any, depth: int = 0) -> str:
    """A value as short text; not by ``repr``, which a hostile pickle can make endless."""
    if isinstance(value, int) and value.bit_length() > MAX_KEY_BITS:
        return f"<integer of {value.bit_length()} bits>"
    if isinstance(value, (str, bytes)):
        return repr(value[:MAX_DESCRIBED]) + ("…" if len(value) > MAX_DESCRIBED else "")
    if value is None or isinstance(value, (bool, int, float, complex)):
        return repr(value)
    if isinstance(value, (Opaque, GlobalRef)):
        return f"<{value.qualname}>"
    if depth < 4 and type(value) in _BRACKETS:
        return _enclosed(_described(value, depth + 1), _BRACKETS[type(value)])
    return f"<{type(value).__name__}>"


def _described(value: Any, depth: int) -> list[str]:
    if isinstance(value, dict):
        pairs = islice(value.items(), 9)
        return [f"{describe(key, 4)}: {describe(part, depth)}" for key, part in pairs]
    return [describe(part, depth) for part in islice(value, 9)]


def _enclosed(parts: list[str], brackets: tuple[str, str]) -> str:
    more = ", …" if len(parts) > 8 else ""
    return f"{brackets[0]}{', '.join(parts[:8])}{more}{brackets[1]}"


MAX_KEY_BITS = 1 << 10  # Python refuses to write out integers of 4300 digits
MAX_STATE_DICT = 10_000_000  # names; modules that share modules can unfold without end


def module_state_dict(module: Opaque) -> dict[str, TensorRef | CompositeTensor]:
    """What ``module.state_dict()`` would give: names with dots, non-persistent buffers left out.

    Source: torch 2.13 ``torch/nn/modules/module.py``, ``_save_to_state_dict``. Extra state is
    computed by code in the module's class, so it is not there.

    Raises:
        DamagedError: the modules contain themselves, or unfold beyond any real model.
    """
    entries: dict[str, TensorRef | CompositeTensor] = {}
    stack: list[tuple[str, Opaque, int]] = [("", module, 0)]
    steps = 0
    while stack:
        prefix, node, depth = stack.pop()
        steps += 1
        if depth > MAX_DEPTH or steps > MAX_STATE_DICT or len(entries) > MAX_STATE_DICT:
            raise DamagedError(f"the modules of {module.qualname} contain themselves")
        for name, value in _own_tensors(node.attributes):
            entries[prefix + name] = value
        stack.extend(
            (f"{prefix}{name}.", child, depth + 1)
            for name, child in reversed(_dict(node.attributes.get("_modules")).items())
            if isinstance(child, Opaque)
        )
    return entries


def _own_tensors(state: dict[Any, Any]) -> Iterator[tuple[str, TensorRef | CompositeTensor]]:
    left_out = _names(state.get("_non_persistent_buffers_set"))
    for name, value in _dict(state.get("_parameters")).items():
        if isinstance(value, _TENSORS):
            yield str(name), value
    for name, value in _dict(state.get("_buffers")).items():
        if isinstance(value, _TENSORS) and name not in left_out:
            yield str(name), value


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _names(value: Any) -> frozenset[str]:
    is_group = isinstance(value, (set, frozenset, list, tuple))
    return frozenset(name for name in value if isinstance(name, str)) if is_group else frozenset()


# -------------------------------------------------------------------------------------- addresses

_ESCAPES = {"~": "~0", "/": "~1", "*": "~2"}
_UNESCAPES = {escaped: char for char, escaped in _ESCAPES.items()}


def format_address(address: Address) -> str:
    """``("callbacks", "EMA", 0)`` as ``callbacks/EMA/0``, with JSON Pointer escaping."""
    return "/".join(
        re.sub(r"[~/*]", lambda m: _ESCAPES[m.group()], key) if isinstance(key, str) else str(key)
        for key in address
    )


def parse_address(text: str) -> tuple[tuple[str, ...], bool]:
    """The keys of an address as text, and whether the last one is a prefix (a trailing ``*``)."""
    is_prefix = text.endswith("*")
    keys = text.removesuffix("*").split("/") if text else []
    return tuple(re.sub("~[012]", lambda m: _UNESCAPES[m.group()], key) for key in keys), is_prefix


def resolve(tree: Tree, keys: tuple[str, ...]) -> tuple[Address, Tree]:
    """The node at ``keys``, with the address as the tree spells it (integers as integers).

    Raises:
        KeyError: naming the first key that is not there.
    """
    address: Address = ()
    for key in keys:
        name, tree = _step(tree, key)
        address = (*address, name)
    return address, tree


def node_at(tree: Tree, address: Address) -> Tree:
    """The node at an address of :func:`walk`, in which ``1`` and ``"1"`` are two keys."""
    for node in nodes_on(tree, address):
        tree = node
    return tree


def nodes_on(tree: Tree, address: Address) -> Iterator[Tree]:
    """The nodes on the way to an address of :func:`walk`, from the one under the first key on."""
    for key in address:
        tree = _exactly(tree, key)
        yield tree


def _exactly(tree: Tree, key: Key) -> Tree:
    """The part under a key as ``children`` gives it."""
    if isinstance(tree, dict) and isinstance(key, str) and key in tree:
        return tree[key]
    if isinstance(tree, (list, tuple)) and isinstance(key, int):
        return tree[key]
    return next(part for name, part in children(tree) if name == key)


def _step(tree: Tree, key: str) -> tuple[Key, Tree]:
    """The part that is called ``key``: of several, the first."""
    if isinstance(tree, dict) and len(tree) <= LONG:  # most steps: without a list of all parts
        for name, child in tree.items():
            spelled = name if type(name) is str else as_key(name)
            if spelled == key or (type(spelled) is int and str(spelled) == key):
                return spelled, child
        raise KeyError(key)
    if isinstance(tree, (list, tuple)) and len(tree) <= LONG:
        index = int(key) if key.isascii() and key.isdigit() and len(key) < MAX_DIGITS else -1
        if str(index) != key or not 0 <= index < len(tree):
            raise KeyError(key)
        return index, tree[index]
    match = {str(name): (name, child) for name, child in reversed(children(tree))}.get(key)
    if match is None:
        raise KeyError(key)
    return match


# --------------------------------------------------------------------------------------- geometry


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a C-ordered block, in elements, as in torch (empty dimensions count as 1)."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _same_order(chunk: Chunk) -> bool:
    """C order apart from dimensions of size 1, whose stride means nothing."""
    if 0 in chunk.shape:
        return True
    sizes = zip(chunk.shape, chunk.strides, contiguous_strides(chunk.shape), strict=True)
    return all(stride == wanted for size, stride, wanted in sizes if size != 1)


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last that a strided view touches."""
    if 0 in shape:
        return 0
    last = 0
    for size, stride in zip(shape, strides, strict=True):
        last += (size - 1) * stride
    return last + 1


def longest_axis(chunk: Chunk) -> int:
    """The dimension along which a strided block reaches furthest from one index to the next."""
    dims = range(len(chunk.shape))
    return max(dims, key=lambda i: chunk.strides[i] if chunk.shape[i] > 1 else -1)


def narrowed(chunk: Chunk, axis: int, part: range, itemsize: int) -> Chunk:
    """The part of a strided block along one axis."""
    shape = (*chunk.shape[:axis], len(part), *chunk.shape[axis + 1 :])
    at = chunk.span.offset + part.start * chunk.strides[axis] * itemsize
    span = ByteSpan(chunk.span.source, at, extent(shape, chunk.strides) * itemsize)
    return Chunk(span, chunk.offsets, shape, chunk.strides)


def stored_nbytes(dtype: DType, shape: tuple[int, ...]) -> int:
    """Bytes of a contiguous block; sub-byte quantized types fill each row up to whole bytes."""
    if dtype.kind == "quantized" and dtype.packed > 1 and shape:
        return prod(shape[:-1]) * -(-shape[-1] // dtype.packed)
    return prod(shape) * dtype.itemsize


def stored_bytes(refs: list[TensorRef]) -> int:
    """Bytes of the file that these tensors occupy together, shared ones counted once."""
    runs: dict[Path | Blob, list[tuple[int, int]]] = {}
    for ref in refs:
        for chunk in ref.chunks:
            span = chunk.span
            runs.setdefault(span.source, []).append((span.offset, span.offset + span.nbytes))
    return sum(end - start for spans in runs.values() for start, end in joined_runs(spans))


def joined_runs(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same places (from, to) in order, as runs of which none reaches into another."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(runs):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined
