"""The nodes of a tree: references to tensors and arrays, and objects whose class is left alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from math import prod
from operator import add, attrgetter, le
from types import MappingProxyType
from typing import Any

from ckptool.dtypes import DType
from ckptool.records import NamedTuple, field, names_of, record
from ckptool.sources.base import ByteSpan, Source
from ckptool.tree.geometry import contiguous_strides, extent, joined_length, stored_nbytes

Key = str | int
Address = tuple[Key, ...]
Tree = Any  # dict | list | tuple | set | TensorRef | CompositeTensor | ArrayRef | Opaque | scalar


class Chunk(NamedTuple):
    """One stored block of a tensor; most tensors have one, sharded ones several."""

    span: ByteSpan  # from the first element used to the last
    offsets: tuple[int, ...]  # where the block begins inside the tensor, in elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    @property
    def is_contiguous(self) -> bool:
        """True if the span is the block in C order, byte for byte."""
        return self.strides == contiguous_strides(self.shape) or _same_order(self)


class Quantizer(NamedTuple):
    """The rule by which stored integers become real: ``(value - zero_point) * scale``."""

    scheme: str  # per_tensor_affine, per_channel_affine, per_channel_affine_float_qparams
    scale: float | TensorRef
    zero_point: int | TensorRef
    axis: int | None = None


@record(slots=True)
class TensorRef:
    """A tensor: its dtype, its shape, and the place of its values."""

    dtype: DType
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]  # empty: the values are not stored (meta tensors)
    device: str = "cpu"  # as the file states it: cuda:0, mps, meta
    requires_grad: bool = False
    byteorder: str = "little"  # of the stored values: little or big
    lazy: tuple[str, ...] = ()  # operations torch applies on read: "conj", "neg"
    quantizer: Quantizer | None = None
    subclass: str | None = None  # qualified name, for subclasses of torch.Tensor
    state: Any = field(default=None, compare=False)  # its attributes, as an object's state

    @property
    def numel(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of the values when contiguous."""
        return stored_nbytes(self.dtype, self.shape)

    @property
    def is_stored_plainly(self) -> bool:
        """True if the stored bytes can be copied: the values, little-endian and in C order."""
        return (
            len(self.chunks) == 1
            and not self.lazy
            and (self.byteorder == "little" or self.dtype.itemsize == 1)
            and self.chunks[0].is_contiguous
        )


@record(slots=True, eq=False)
class CompositeTensor:
    """A tensor that is not one block of values: sparse, nested, quantized by a library, sharded."""

    layout: str  # sparse_coo, sparse_csr, …, nested; for a subclass its qualified name
    dtype: DType
    shape: tuple[int, ...]  # of the whole tensor, also where the file holds only a part of it
    parts: Mapping[str, TensorRef]
    wrapper: Opaque | None = None  # of a subclass: the object as it was pickled


@record(slots=True, eq=False)
class ArrayRef:
    """A numpy array."""

    dtype: str  # numpy's type string, such as "<f4"
    shape: tuple[int, ...]
    fortran_order: bool
    span: ByteSpan | None  # None: an array of objects
    objects: list[Any] | None = None  # the elements of an array of objects
    fields: Any = None  # of a structured type, as pickled: the names, types and offsets

    @property
    def nbytes(self) -> int:
        """The bytes of the values."""
        return self.span.nbytes if self.span else 0


@record(slots=True)
class BytesRef:
    """A bytes object that is left in the file, since it is long."""

    span: ByteSpan

    def __len__(self) -> int:
        return self.span.nbytes


class SpannedBytes(bytes):
    """A bytes object with its place in the file."""

    span: ByteSpan

    @classmethod
    def at(cls, data: bytes, span: ByteSpan) -> SpannedBytes:
        """Return ``data``, which was read from ``span``, with that place."""
        spanned = cls(data)
        spanned.span = span
        return spanned


class PathText(str):
    """A ``pathlib`` path as text. As a key it equals paths alone, as in Python."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._compared() == other._compared()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((type(self), self._compared()))

    def _compared(self) -> str:
        return str(self)


class WindowsPathText(PathText):
    """A path of Windows, whose letters are equal in both cases."""

    __slots__ = ()

    def _compared(self) -> str:
        return str(self).lower()


@record(slots=True)
class StorageRef:
    """A run of elements that tensors are views of, as torch pickles it."""

    dtype: DType
    span: ByteSpan | None  # None: not stored (meta)
    device: str = "cpu"
    byteorder: str = "little"

    @property
    def nbytes(self) -> int:
        """The bytes of the storage."""
        return self.span.nbytes if self.span else 0


@record(slots=True)
class GlobalRef:
    """The name of a class or function that a pickle mentions; it is never looked up."""

    module: str
    name: str

    @property
    def qualname(self) -> str:
        """The name ``module.name``; a name that the pickle computed has no module."""
        return f"{self.module}.{self.name}" if self.module else self.name


@record(frozen=False, slots=True, eq=False)
class Opaque:
    """An object as the data that it was pickled from; its class is never loaded.

    Hashable by identity, since pickles use objects as dict keys.
    """

    qualname: str
    args: tuple[Any, ...] = ()
    kwargs: dict[Any, Any] = field(default_factory=dict)
    state: Any = None
    items: dict[Any, Any] | None = None  # set by pickles of dict subclasses
    elements: list[Any] | None = None  # set by pickles of list subclasses
    called: bool = False  # the pickle would call it as a function, not build it as an object

    def __init__(  # pickles make many of them: this takes a fifth of the time of a record's own
        self,
        qualname: str,
        args: tuple[Any, ...] = (),
        kwargs: dict[Any, Any] | None = None,
        state: Any = None,
        items: dict[Any, Any] | None = None,
        elements: list[Any] | None = None,
        *,
        called: bool = False,
    ) -> None:
        self.qualname, self.args, self.kwargs = qualname, args, {} if kwargs is None else kwargs
        self.state, self.items, self.elements, self.called = state, items, elements, called

    @property
    def attributes(self) -> dict[Any, Any]:
        """The attributes of the instance: its ``__dict__`` and ``__slots__`` state."""
        if isinstance(self.state, dict):
            return self.state
        if isinstance(self.state, tuple) and len(self.state) == 2:
            return {k: v for part in self.state if isinstance(part, dict) for k, v in part.items()}
        return {}

    @property
    def is_module(self) -> bool:
        """True if it was an ``nn.Module`` of any class: all of them have these dicts."""
        state = self.state
        return isinstance(state, dict) and "_parameters" in state and "_modules" in state


# A frozen object gets each attribute by a call, which takes long: a checkpoint of 100,000 tensors
# makes as many of both kinds. So they are made as objects of a class with the same slots that is
# not frozen, and then get their own class.
class _TensorParts:
    __slots__ = names_of(TensorRef)


class _StorageParts:
    __slots__ = names_of(StorageRef)


_new_tuple = tuple.__new__


def plain_tensor(
    dtype: DType,
    span: ByteSpan,
    zeros: tuple[int, ...],
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    device: str,
    byteorder: str,
    requires_grad: bool,  # noqa: FBT001 - a third of the call's time goes into names
) -> TensorRef:
    """Return a tensor that is stored as one block, in a quarter of the time of ``TensorRef(…)``."""
    ref: Any = _TensorParts()
    ref.dtype, ref.shape, ref.device, ref.byteorder = dtype, shape, device, byteorder
    ref.chunks = (_new_tuple(Chunk, (span, zeros, shape, strides)),)
    ref.requires_grad = requires_grad
    ref.lazy = ()
    ref.quantizer = ref.subclass = ref.state = None
    ref.__class__ = TensorRef
    made: TensorRef = ref
    return made


def plain_storage(dtype: DType, span: ByteSpan | None, device: str, byteorder: str) -> StorageRef:
    """Return a storage, in a quarter of the time of ``StorageRef(…)``."""
    ref: Any = _StorageParts()
    ref.dtype, ref.span, ref.device, ref.byteorder = dtype, span, device, byteorder
    ref.__class__ = StorageRef
    made: StorageRef = ref
    return made


class NotedDict(dict[Any, Any]):
    """A dict of a class that holds more than its items: ``OrderedDict``, ``defaultdict``."""

    made_with: Mapping[str, Any] = MappingProxyType({})  # arguments of the class
    state: Any = None  # its attributes, as an object's state


class NotedList(list[Any]):
    """A list of a class that holds more than its elements: ``deque``."""

    made_with: Mapping[str, Any] = MappingProxyType({})
    state: Any = None


MAX_DIGITS = 20  # of an index


PLAIN = frozenset({type(None), bool, int, float, complex, str, PathText, WindowsPathText})


MAX_DEPTH = 1_000  # levels; no training state nests deeper, and long key paths take memory


CONTAINERS = (dict, list, tuple, Opaque, CompositeTensor)


TENSORS = (TensorRef, CompositeTensor)


def is_container(node: Tree) -> bool:
    """Return whether the node may have parts; the empty tuple, a single object, has none."""
    return isinstance(node, CONTAINERS) and node != ()


def fields_of(node: Tree) -> dict[Any, Any]:
    """Return the items of a dict or the attributes of an object; nothing for any other node."""
    fields = node.attributes if isinstance(node, Opaque) else node
    return fields if isinstance(fields, dict) else {}


def is_plain(value: Any) -> bool:
    """Return whether a value is a scalar of Python."""
    return value is None or isinstance(value, (bool, int, float, complex, str))


def is_real(value: Any) -> bool:
    """Return whether a value is an integer or a float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same_order(chunk: Chunk) -> bool:
    """Return whether a block is in C order; the stride of a dimension of size 1 means nothing."""
    if 0 in chunk.shape:
        return True
    sizes = zip(chunk.shape, chunk.strides, contiguous_strides(chunk.shape), strict=True)
    return all(stride == wanted for size, stride, wanted in sizes if size != 1)


def longest_axis(chunk: Chunk) -> int:
    """Return the dimension of more than one index that has the largest stride."""
    dims = range(len(chunk.shape))
    return max(dims, key=lambda i: chunk.strides[i] if chunk.shape[i] > 1 else -1)


def narrowed(chunk: Chunk, axis: int, part: range, itemsize: int) -> Chunk:
    """Return a part of a strided block along one axis."""
    shape = (*chunk.shape[:axis], len(part), *chunk.shape[axis + 1 :])
    at = chunk.span.offset + part.start * chunk.strides[axis] * itemsize
    span = ByteSpan(chunk.span.source, at, extent(shape, chunk.strides) * itemsize)
    return Chunk(span, chunk.offsets, shape, chunk.strides)


def stored_bytes(refs: Iterable[TensorRef]) -> int:
    """Return the bytes of the file that the tensors occupy, with shared bytes counted once."""
    spans = [chunk.span for ref in refs for chunk in ref.chunks]
    sources, starts, sizes = zip(*spans, strict=True) if spans else ((), (), ())
    ends = list(map(add, starts, sizes))
    if len(set(sources)) == 1 and all(map(le, ends, starts[1:])):  # as mostly
        return sum(sizes)
    runs: defaultdict[Source, list[tuple[int, int]]] = defaultdict(list)
    for source, at, nbytes in spans:
        runs[source].append((at, at + nbytes))
    return sum(map(joined_length, runs.values()))


Form = tuple[DType, tuple[int, ...]]  # dtype and shape
_form = attrgetter("dtype", "shape")


class Forms(NamedTuple):
    """Totals over tensors by what they have in common: most have the form of many others."""

    counts: Mapping[Form, int]  # in the order of the first of each form

    @classmethod
    def of(cls, refs: Iterable[TensorRef]) -> Forms:
        """Count the tensors of each form."""
        return cls(Counter(map(_form, refs)))

    @property
    def tensors(self) -> int:
        """The number of tensors."""
        return sum(self.counts.values())

    @property
    def elements(self) -> int:
        """The number of elements."""
        return sum(count * prod(shape) for (_, shape), count in self.counts.items())

    @property
    def nbytes(self) -> int:
        """The bytes of the values when contiguous."""
        return sum(count * stored_nbytes(*form) for form, count in self.counts.items())

    def by_dtype(self) -> dict[DType, Forms]:
        """Return the totals of each dtype, in the order of their first tensors."""
        parts: dict[DType, dict[Form, int]] = {}
        for form, count in self.counts.items():
            parts.setdefault(form[0], {})[form] = count
        return {dtype: Forms(counts) for dtype, counts in parts.items()}
