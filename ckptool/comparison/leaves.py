"""A tree as a flat table: address -> tensor or plain value, in the order of the tree.

The one idea: after this, formats no longer matter. A numpy array and a storage become tensors, an
object becomes its class name beside the parts that it holds, a long list of numbers (Python's
random state has 625) is one value instead of hundreds. Two tables with the same addresses are two
checkpoints with the same structure, whoever wrote them.

A container that is reachable in two ways appears at both addresses, since the other checkpoint may
hold a copy there; one that contains itself is named as such and not entered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

from ckptool.dtypes import BY_NAME
from ckptool.errors import DamagedError
from ckptool.formats.base import TensorReader
from ckptool.tree import (
    MAX_DEPTH,
    Address,
    ArrayRef,
    BytesRef,
    Chunk,
    CompositeTensor,
    GlobalRef,
    Key,
    Opaque,
    StorageRef,
    TensorRef,
    Tree,
    children,
    contiguous_strides,
    format_address,
)

SERIES = 16  # plain items from which a list is one value
MAX_REPEATED = 300_000  # nodes met again below shared containers, which can unfold without end
READ = 1 << 20  # bytes of a long bytes object read at a time
SPELLED_DEPTH = 4

# numpy's type strings without the byte order, and what torch calls them.
NUMPY_TYPES = {
    "f8": "float64", "f4": "float32", "f2": "float16", "i8": "int64", "i4": "int32", "i2": "int16",
    "i1": "int8", "u8": "uint64", "u4": "uint32", "u2": "uint16", "u1": "uint8", "b1": "bool",
    "c8": "complex64", "c16": "complex128",
}  # fmt: skip


class Held(NamedTuple):
    """A tensor, with the reader of its file."""

    ref: TensorRef
    reader: TensorReader


class Digest(NamedTuple):
    """A tensor of which only the digest is known."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    sha256: str


class Series(NamedTuple):
    """A list, a set or a dict of many plain items."""

    kind: str
    items: tuple[Any, ...]

    def __str__(self) -> str:
        return f"<{self.kind} of {len(self.items)} items>"


class Raw(NamedTuple):
    """A bytes object."""

    nbytes: int
    sha256: str

    def __str__(self) -> str:
        return f"<{self.nbytes} bytes, sha256 {self.sha256[:12]}>"


class Named(NamedTuple):
    """A class, a function, an object apart from its parts, or an empty or special container."""

    text: str

    def __str__(self) -> str:
        return self.text


Leaf = Any  # Held | Digest | Series | Raw | Named | scalar
Leaves = Mapping[str, Leaf]


def is_tensor(leaf: Leaf) -> bool:
    """Whether it is a tensor, read or known by its digest."""
    return isinstance(leaf, (Held, Digest))


def flatten(tree: Tree, reader: TensorReader) -> dict[str, Leaf]:
    """Every tensor and value under ``tree`` by its written address.

    Raises:
        DamagedError: nested too deep, or shared so often that it unfolds without end.
    """
    found: dict[str, Leaf] = {}
    for address, leaf in _leaves(tree, reader):
        name = format_address(address)
        while name in found:  # the keys 1 and "1" are written alike, and are two
            name += "'"
        found[name] = leaf
    return found


def _leaves(tree: Tree, reader: TensorReader) -> Iterator[tuple[Address, Leaf]]:
    stack: list[tuple[Address, Tree, tuple[int, ...], bool]] = [((), tree, (), False)]
    entered: set[int] = set()
    repeated = 0
    while stack:
        address, node, around, again = stack.pop()
        repeated += again
        if len(address) > MAX_DEPTH:
            raise DamagedError(f"nested deeper than {MAX_DEPTH} levels")
        if repeated > MAX_REPEATED:
            raise DamagedError("its containers are shared so often that they unfold without end")
        if id(node) in around:
            yield address, Named("<contains itself>")
            continue
        leaf, parts = _opened(node, reader)
        if leaf is not _NOTHING:
            yield address, leaf
        if parts:
            inside, again = (*around, id(node)), again or id(node) in entered
            entered.add(id(node))
            stack.extend(((*address, key), part, inside, again) for key, part in reversed(parts))


_NOTHING = object()  # a container that says nothing beyond its parts


def _opened(node: Tree, reader: TensorReader) -> tuple[Leaf, list[tuple[Key, Tree]]]:
    """(what stands at the node itself, its parts)."""
    if isinstance(node, (TensorRef, ArrayRef, StorageRef)):
        return _tensor(node, reader)
    if isinstance(node, CompositeTensor):
        return Named(f"<{node.layout} {node.dtype} {list(node.shape)}>"), children(node)
    if isinstance(node, Opaque):
        return Named(_object_text(node)), _object_parts(node)
    if isinstance(node, (dict, list, tuple)):
        return _container(node)
    return _value(node, reader), []


def _container(node: Any) -> tuple[Leaf, list[tuple[Key, Tree]]]:
    kind = "dict" if isinstance(node, dict) else "sequence"  # JSON and pickles mix up the others
    if not node:
        return Named(f"<empty {kind}>"), []
    if kind == "sequence" and len(node) > SERIES and all(map(_is_plain, node)):
        return Series(kind, tuple(node)), []
    parts = children(node)
    return (_NOTHING, parts) if parts else (_long_table(node), [])


def _long_table(node: dict[Any, Any]) -> Series:
    """A dict of so many plain values that nobody gives each an address: keys and values in turn."""
    rows = sorted(((_key_text(key), value) for key, value in node.items()), key=lambda row: row[0])
    return Series("dict", tuple(item for row in rows for item in row))


def _key_text(key: Any) -> str:
    return key if isinstance(key, str) else _spelled(key)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, complex, str))


def _value(node: Any, reader: TensorReader) -> Leaf:
    """What has no parts, in a form that can be compared and shown."""
    if _is_plain(node):
        return node
    if isinstance(node, GlobalRef):
        return Named(node.qualname)
    if isinstance(node, BytesRef):
        return _raw(reader, node)
    if isinstance(node, (bytes, bytearray)):
        return Raw(len(node), sha256(node).hexdigest())
    if isinstance(node, (set, frozenset)):
        return Series("set", tuple(sorted(map(_spelled, node))))
    return Named(_spelled(node))


def _raw(reader: TensorReader, ref: BytesRef) -> Raw:
    digest = sha256()
    for start in range(0, len(ref), READ):
        digest.update(reader.read(ref.span, start, READ))
    return Raw(len(ref), digest.hexdigest())


def _spelled(value: Any, depth: int = 0) -> str:
    """Any value as text of bounded depth; not by ``repr``, which can be made endless."""
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value) if value.bit_length() > 64 else str(value)
    if _is_plain(value):
        return repr(value)
    if isinstance(value, (bytes, bytearray)):
        return f"bytes {sha256(value).hexdigest()}"
    if isinstance(value, (Opaque, GlobalRef)):
        return f"<{value.qualname}>"
    if isinstance(value, (tuple, list, frozenset, set)) and depth < SPELLED_DEPTH:
        inner = [_spelled(part, depth + 1) for part in value]
        return f"({', '.join(sorted(inner) if isinstance(value, (set, frozenset)) else inner)})"
    return f"<{type(value).__name__}>"


# ------------------------------------------------------------------------------------------ objects


def _object_text(node: Opaque) -> str:
    """The class, and what it was made from as far as that is plain."""
    args = [_spelled(arg) for arg in node.args if _is_plain(arg) or isinstance(arg, bytes)]
    state = [_spelled(node.state)] if node.state is not None and _is_plain(node.state) else []
    return f"{node.qualname}({', '.join(args + state)})"


def _object_parts(node: Opaque) -> list[tuple[Key, Tree]]:
    named = dict(children(node))
    if node.is_module:
        named.update(_settings(node))
    for i, arg in enumerate(node.args):
        if isinstance(arg, (ArrayRef, BytesRef, StorageRef, GlobalRef, set, frozenset)):
            named.setdefault(f"args{i}", arg)
    named.update((str(key), value) for key, value in node.kwargs.items())
    return list(named.items())


_INNER = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})


def _settings(module: Opaque) -> Iterator[tuple[Key, Tree]]:
    """A module's settings and those of the modules in it: ``dropout.p``, ``training``."""
    stack: list[tuple[str, Opaque, int]] = [("", module, 0)]
    seen: set[int] = set()
    while stack:
        prefix, node, depth = stack.pop()
        if id(node) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(node))
        for key, value in node.attributes.items():
            if key not in _INNER and _is_setting(value):
                yield f"{prefix}{key}", value
        inner = node.attributes.get("_modules")
        for name, child in reversed(inner.items() if isinstance(inner, dict) else ()):
            if isinstance(child, Opaque):
                yield f"{prefix}{name}", GlobalRef(*_split(child.qualname))
                stack.append((f"{prefix}{name}.", child, depth + 1))


def _is_setting(value: Any) -> bool:
    """A plain value, a class or a function, a few plain values together (``padding``)."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_is_plain, value))
    return _is_plain(value) or isinstance(value, GlobalRef)


def _split(qualname: str) -> tuple[str, str]:
    module, _, name = qualname.rpartition(".")
    return module, name


# ------------------------------------------------------------------------------- arrays as tensors


def _tensor(
    node: TensorRef | ArrayRef | StorageRef, reader: TensorReader
) -> tuple[Leaf, list[tuple[Key, Tree]]]:
    if isinstance(node, ArrayRef):
        return _array(node, reader)
    return Held(node if isinstance(node, TensorRef) else _storage(node), reader), []


def _array(node: ArrayRef, reader: TensorReader) -> tuple[Leaf, list[tuple[Key, Tree]]]:
    name = NUMPY_TYPES.get(node.dtype.lstrip("<>|="))
    if node.span is None:
        return Named(f"<array of objects {list(node.shape)}>"), list(enumerate(node.objects or ()))
    if name is None:
        raw = _raw(reader, BytesRef(node.span))
        return Named(f"<array {node.dtype} {list(node.shape)}, sha256 {raw.sha256[:12]}>"), []
    strides = contiguous_strides(node.shape)
    if node.fortran_order:
        strides = contiguous_strides(node.shape[::-1])[::-1]
    chunk = Chunk(node.span, (0,) * len(node.shape), node.shape, strides)
    order = "big" if node.dtype.startswith(">") else "little"
    return Held(TensorRef(BY_NAME[name], node.shape, (chunk,), byteorder=order), reader), []


def _storage(node: StorageRef) -> TensorRef:
    shape = (node.nbytes // node.dtype.itemsize,)
    chunks = (Chunk(node.span, (0,), shape, (1,)),) if node.span else ()
    return TensorRef(node.dtype, shape, chunks, byteorder=node.byteorder)
