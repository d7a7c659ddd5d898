"""Explanations of tensors by the tensors of another checkpoint, by content.

Each tensor of the result is looked for in the source: as a copy, a cast, a transpose, a slice, a
concatenation, or a stack of these. Values count, to the last bit, and names only choose among equal
ones. Each tensor of the source is used once, as in a conversion that loses and doubles nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ckptool.comparison.rows import Row, Rows, can_become
from ckptool.comparison.tilings import Large, Named, Tiling, likeness, tiled
from ckptool.dtypes import DType
from ckptool.formats.base import TensorReader
from ckptool.records import NamedTuple
from ckptool.tree.nodes import TensorRef
from ckptool.tree.reshaping import lowered, sliced

MAX_STACKED = 1 << 12  # tensors in one


class Side(NamedTuple):
    """A state dict and the reader of its values."""

    tensors: Mapping[str, TensorRef]
    reader: TensorReader


class Same(NamedTuple):
    """A whole tensor of the source."""

    source: Named
    is_turned: bool = False


class Cut(NamedTuple):
    """A part of a tensor of the source, or of one index of it, along a dimension."""

    source: Named
    number: int | None  # index of the first dimension, which is removed; None: the tensor itself
    tiling: Tiling | None  # None: the index itself
    place: int  # of the piece in the tiling
    is_turned: bool


class Joined(NamedTuple):
    """Tensors of the source one after the other."""

    tiling: Tiling


class Stacked(NamedTuple):
    """Tensors of the source, or joins of them, along a new first dimension."""

    entries: tuple[Same | Joined, ...]


Found = Same | Cut | Joined | Stacked


@dataclass(slots=True)
class Explanations:
    """The tensors of the result with their explanations, and what is left."""

    found: dict[str, Found] = field(default_factory=dict)
    doubled: dict[str, Same] = field(default_factory=dict)  # of a tensor that is used already
    unexplained: dict[str, str] = field(default_factory=dict)  # name -> what is known of it
    unused: list[str] = field(default_factory=list)  # names of the source


def explain(source: Side, result: Side) -> Explanations:
    """Return the explanation of each tensor of ``result`` by tensors of ``source``."""
    search = _Search(source, result)
    search.find_names()
    for sure in (True, False):  # first what leaves no choice, so that constants wait
        search.find_whole(sure=sure)
        search.find_cuts()
        search.find_joins()
        search.find_stacks()
        search.find_unstacked(has_gaps=not sure)
    search.find_slices()
    return search.conclude()


class _Search:
    def __init__(self, source: Side, result: Side) -> None:
        self._source_rows, self._result_rows = Rows(source.reader), Rows(result.reader)
        plain = {name: ref for name, ref in source.tensors.items() if _is_plain(ref)}
        self._all = [Named(name, ref) for name, ref in source.tensors.items()]
        self._unused = {name: Named(name, ref) for name, ref in plain.items()}
        self._waiting = {
            name: Named(name, ref) for name, ref in result.tensors.items() if _is_plain(ref)
        }
        self._odd = [name for name, ref in result.tensors.items() if not _is_plain(ref)]
        self._made = Explanations()

    def _take(self, target: Named, found: Found, *sources: Named) -> None:
        self._made.found[target.name] = found
        del self._waiting[target.name]
        for source in sources:
            self._unused.pop(source.name, None)

    # ---------------------------------------------------------------------------- whole tensors

    def find_names(self) -> None:
        """Find tensors that are the same under the same name."""
        for target in list(self._waiting.values()):
            source = self._unused.get(target.name)
            if source and _kind(source) == _kind(target) and self._is_same(source, target):
                self._take(target, Same(source), source)

    def find_whole(self, *, sure: bool) -> None:
        """Find copies, casts and transposes; with ``sure``, only where there is one for each."""
        self._find_equal(turned=False, cast=False, sure=sure)
        self._find_equal(turned=False, cast=True, sure=sure)
        self._find_equal(turned=True, cast=True, sure=sure)

    def _is_same(self, source: Named, target: Named) -> bool:
        dtype = target.ref.dtype
        ours = self._result_rows.whole(target.ref, dtype)
        return self._source_rows.whole(source.ref, dtype) == ours

    def _find_equal(self, *, turned: bool, cast: bool, sure: bool) -> None:
        known: dict[tuple[tuple[int, ...], DType], dict[Row, list[Named]]] = {}
        alike = Counter(map(self._content, self._waiting.values())) if sure else Counter[object]()
        for target in list(self._waiting.values()):
            ref = target.ref
            shape = _swapped(ref.shape) if turned else ref.shape
            if turned and len(shape) < 2:
                continue
            place = (shape, ref.dtype)
            if place not in known:
                known[place] = self._by_digest(shape, ref.dtype, turned=turned, cast=cast)
            same = known[place].get(self._result_rows.whole(ref, ref.dtype), [])
            same = [source for source in same if source.name in self._unused]
            if same and alike[self._content(target)] <= len(same):
                best = max(same, key=lambda source: likeness(source.name, target.name))
                alike[self._content(target)] -= 1
                self._take(target, Same(best, turned), best)

    def _content(self, target: Named) -> object:
        digest = self._result_rows.whole(target.ref, target.ref.dtype)
        return (*_kind(target), digest)

    def _by_digest(
        self, shape: tuple[int, ...], dtype: DType, *, turned: bool, cast: bool
    ) -> dict[Row, list[Named]]:
        """Return the unused tensors of a shape by the digests that they have in a dtype."""
        found: dict[Row, list[Named]] = {}
        for source in self._unused.values():
            if source.ref.shape == shape and can_become(source.ref, dtype):
                if not cast and source.ref.dtype is not dtype:
                    continue
                digest = self._source_rows.turned if turned else self._source_rows.whole
                found.setdefault(digest(source.ref, dtype), []).append(source)
        return found

    # ---------------------------------------------------------------------------- cuts and joins

    def find_cuts(self) -> None:
        """Find tensors of the source that are cut into tensors of the result."""
        for source in list(self._unused.values()):
            self._cut(source, None, has_gaps=False)

    def find_slices(self) -> None:
        """Find tensors of the result that are parts of tensors of the source."""
        for source in list(self._unused.values()):
            self._cut(source, None, has_gaps=True)

    def _cut(self, source: Named, tiling: Tiling | None, *, has_gaps: bool) -> None:
        tiling = tiling or self._tiled_source(source, has_gaps=has_gaps)
        if tiling is None:
            return
        for place, piece in enumerate(tiling.pieces):
            found = Cut(source, None, tiling, place, piece.is_turned)
            self._take(piece.tensor, found, source)

    def _tiled_source(self, source: Named, *, has_gaps: bool = False) -> Tiling | None:
        large = Large(source, self._source_rows, lambda small: small.dtype)
        return tiled(large, self._waiting.values(), self._result_rows, has_gaps=has_gaps)

    def _tiled_target(self, target: Named, taken: set[str]) -> Tiling | None:
        large = Large(target, self._result_rows, lambda _small: target.ref.dtype)
        free = (source for source in self._unused.values() if source.name not in taken)
        return tiled(large, free, self._source_rows)

    def find_joins(self) -> None:
        """Find tensors of the result that are joined of tensors of the source."""
        for target in list(self._waiting.values()):
            tiling = self._tiled_target(target, set())
            if tiling is not None:
                self._take(target, Joined(tiling), *(piece.tensor for piece in tiling.pieces))

    # -------------------------------------------------------------------------------------- stacks

    def find_stacks(self) -> None:
        """Find tensors of the result that are stacks of tensors of the source, or of joins."""
        for target in list(self._waiting.values()):
            entries = self._entries(target)
            if entries:
                self._take(target, Stacked(tuple(entries)), *_sources(entries))

    def _entries(self, target: Named) -> list[Same | Joined]:
        """Return what each index of a tensor is; nothing if one of them is not found."""
        shape, entries, taken = target.ref.shape, list[Same | Joined](), set[str]()
        if not _may_be_stack(target.ref, self._unused):
            return []
        known = {turned: self._by_digest(_turn(shape[1:], turned), target.ref.dtype, turned=turned,
                                         cast=True) for turned in _ways(shape[1:])}  # fmt: skip
        for index in _indices(target):
            found = self._entry(index, known, taken)
            if found is None:
                return []
            entries.append(found)
            taken |= {source.name for source in _sources([found])}
        return entries

    def _entry(
        self, index: Named, known: Mapping[bool, Mapping[Row, list[Named]]], taken: set[str]
    ) -> Same | Joined | None:
        digest = self._result_rows.whole(index.ref, index.ref.dtype)
        for is_turned, by_digest in known.items():
            same = [each for each in by_digest.get(digest, ()) if each.name not in taken]
            if same:
                best = max(same, key=lambda source: likeness(source.name, index.name))
                return Same(best, is_turned)
        tiling = self._tiled_target(index, taken)
        return None if tiling is None else Joined(tiling)

    def find_unstacked(self, *, has_gaps: bool) -> None:
        """Find tensors of the source of which each index is, or is cut into, tensors.

        With ``has_gaps``, some may be nothing of the result.
        """
        for source in list(self._unused.values()):
            if not _may_be_stack(source.ref, self._waiting):
                continue
            rows = self._parts(source, has_gaps=has_gaps)
            for target, found in rows:
                self._take(target, found, source)

    def _parts(self, source: Named, *, has_gaps: bool) -> list[tuple[Named, Cut]]:
        """Return the tensors that the indices are; without gaps, nothing if one is not found."""
        rows: list[tuple[Named, Cut]] = []
        taken: set[str] = set()
        for number, index in enumerate(_indices(source)):
            free = [each for each in self._waiting.values() if each.name not in taken]
            found = self._part(source, number, index, free, has_gaps=has_gaps)
            if not found and not has_gaps:
                return []
            rows += found
            taken |= {target.name for target, _ in found}
        return rows

    def _part(
        self, source: Named, number: int, index: Named, free: list[Named], *, has_gaps: bool
    ) -> list[tuple[Named, Cut]]:
        for is_turned in _ways(index.ref.shape):
            for target in sorted(free, key=lambda t: likeness(t.name, index.name), reverse=True):
                dtype, shape = target.ref.dtype, _turn(target.ref.shape, is_turned)
                if shape == index.ref.shape and can_become(source.ref, dtype):
                    rows = self._result_rows
                    digest = (rows.turned if is_turned else rows.whole)(target.ref, dtype)
                    if self._source_rows.whole(index.ref, dtype) == digest:
                        return [(target, Cut(source, number, None, 0, is_turned))]
        large = Large(index, self._source_rows, lambda small: small.dtype)
        tiling = tiled(large, free, self._result_rows, has_gaps=has_gaps)
        pieces = enumerate(tiling.pieces) if tiling else ()
        return [(p.tensor, Cut(source, number, tiling, at, p.is_turned)) for at, p in pieces]

    # --------------------------------------------------------------------------------- conclusion

    def conclude(self) -> Explanations:
        """Return the explanations, with what can be told of the tensors that have none."""
        made = self._made
        made.unexplained |= dict.fromkeys(self._odd, "it is quantized, packed or not stored")
        for target in self._waiting.values():
            again = self._again(target)
            if again is not None:
                made.doubled[target.name] = again
            else:
                made.unexplained[target.name] = self._known_of(target)
        made.unused = list(self._unused)
        return made

    def _again(self, target: Named) -> Same | None:
        """Return a tensor that is used already, of which this one is another copy."""
        dtype, shape = target.ref.dtype, target.ref.shape
        fitting = (each for each in self._all if each.ref.shape == shape and _is_plain(each.ref))
        same = (
            each for each in fitting if can_become(each.ref, dtype) and self._is_same(each, target)
        )
        return next(map(Same, same), None)

    def _known_of(self, target: Named) -> str:
        """Return what the source has of a tensor that has no explanation."""
        dtype, shape = target.ref.dtype, target.ref.shape
        for axis, word in ((0, "rows"), (1, "columns")):
            for source in self._all if len(shape) > axis and len(shape) > 1 else ():
                if source.ref.shape == shape and can_become(source.ref, dtype):
                    old = self._source_rows.along(source.ref, axis, dtype)
                    new = self._result_rows.along(target.ref, axis, dtype)
                    if sorted(old) == sorted(new):
                        return f"it has the {word} of {source.name} in another order"
        return "no tensor has its values"


def sources_of(found: Found) -> tuple[str, ...]:
    """Return the names of the tensors that an explanation is of."""
    if isinstance(found, (Same, Cut)):
        return (found.source.name,)
    if isinstance(found, Joined):
        return tuple(piece.tensor.name for piece in found.tiling.pieces)
    return tuple(name for entry in found.entries for name in sources_of(entry))


def _is_plain(ref: TensorRef) -> bool:
    return ref.quantizer is None and ref.dtype.packed == 1 and bool(ref.chunks)


def _kind(tensor: Named) -> tuple[DType, tuple[int, ...]]:
    return tensor.ref.dtype, tensor.ref.shape


def _swapped(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], *reversed(shape[-2:]))


def _turn(shape: tuple[int, ...], is_turned: bool) -> tuple[int, ...]:  # noqa: FBT001
    return _swapped(shape) if is_turned else shape


def _ways(shape: tuple[int, ...]) -> tuple[bool, ...]:
    return (False, True) if len(shape) > 1 else (False,)


def _may_be_stack(ref: TensorRef, others: Mapping[str, Named]) -> bool:
    """Return whether a tensor can be as many others; each has one dimension less."""
    if len(ref.shape) < 2 or not 2 <= ref.shape[0] <= MAX_STACKED or not ref.numel:
        return False
    lower = sum(len(other.ref.shape) == len(ref.shape) - 1 for other in others.values())
    return lower * 2 >= ref.shape[0]  # some may be missing


def _indices(tensor: Named) -> Iterator[Named]:
    """Yield what each index of the first dimension selects."""
    for at in range(tensor.ref.shape[0]):
        yield Named(f"{tensor.name}.{at}", lowered(sliced(tensor.ref, 0, at, at + 1), 0))


def _sources(entries: list[Same | Joined]) -> Iterator[Named]:
    for entry in entries:
        if isinstance(entry, Same):
            yield entry.source
        else:
            yield from (piece.tensor for piece in entry.tiling.pieces)
