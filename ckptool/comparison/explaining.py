"""Explanations of tensors by the tensors of another checkpoint, by content.

Each tensor of the result is looked for in the source: as a copy, a cast, a transpose, a slice, a
concatenation, or a stack of these. Values count, to the last bit, and names only choose among equal
ones. Each tensor of the source is used once, as in a conversion that loses and doubles nothing.

Whole tensors are found by digests. Parts are found by looking at all that is left, one by one: so
pairs are counted, and where they are too many, the rest stays unexplained and says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from ckptool.comparison.explanations import (
    Cut,
    Explanations,
    Found,
    Joined,
    Same,
    Stacked,
)
from ckptool.comparison.rows import Row, Rows, TooManyError, can_become
from ckptool.comparison.tilings import Large, Named, Pool, Tiling, likeness, tiled
from ckptool.dtypes import DType
from ckptool.formats.base import TensorReader
from ckptool.records import NamedTuple
from ckptool.tree.nodes import TensorRef
from ckptool.tree.reshaping import lowered, sliced

MAX_STACKED = 1 << 12  # tensors in one
MAX_PAIRS = 1 << 23  # tensors that are looked at for others, all searches together
AN_INDEX = 1 << 4  # such looks take the time of one at an index of a tensor, whose values are read
MAX_ALIKE = 1 << 6  # equal tensors whose names are compared
NOT_SEARCHED = "it was not looked for in parts of tensors: too many tensors are left for that"


class Side(NamedTuple):
    """A state dict and the reader of its values."""

    tensors: Mapping[str, TensorRef]
    reader: TensorReader


def explain(source: Side, result: Side) -> Explanations:
    """Return the explanation of each tensor of ``result`` by tensors of ``source``."""
    search = _Search(source, result)
    search.find_names()
    try:
        for sure in (True, False):  # first what leaves no choice, so that constants wait
            search.find_whole(sure=sure)
            search.find_cuts()
            search.find_joins()
            search.find_stacks()
            search.find_unstacked(has_gaps=not sure)
        search.find_slices()
        search.tell_rest()
    except TooManyError:
        search.give_up()
    return search.conclude()


class _Search:
    def __init__(self, source: Side, result: Side) -> None:
        self._source_rows, self._result_rows = Rows(source.reader), Rows(result.reader)
        self._all = _plain(source)
        self._unused, self._waiting = Pool(self._all), Pool(_plain(result))
        self._odd = [name for name, ref in result.tensors.items() if not _is_plain(ref)]
        self._made = Explanations()
        self._pairs = 0  # tensors that were looked at

    def _look_at(self, count: int) -> None:
        """Count tensors before they are looked at.

        Raises:
            TooManyError: they are too many.
        """
        self._pairs += count
        if self._pairs > MAX_PAIRS:
            raise TooManyError

    def _take(self, target: Named, found: Found, *sources: Named) -> None:
        self._made.found[target.name] = found
        self._waiting.remove(target.name)
        for source in sources:
            self._unused.remove(source.name)

    # ---------------------------------------------------------------------------- whole tensors

    def find_names(self) -> None:
        """Find tensors that are the same under the same name."""
        for target in self._waiting:
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
        alike = Counter(map(self._content, self._waiting)) if sure else Counter[object]()
        for target in self._waiting:
            ref = target.ref
            shape = _swapped(ref.shape) if turned else ref.shape
            if turned and len(shape) < 2:
                continue
            place = (shape, ref.dtype)
            if place not in known:
                sources = self._unused.of_shape(shape)
                known[place] = self._by_digest(sources, ref.dtype, turned=turned, cast=cast)
            same = known[place].get(self._result_rows.whole(ref, ref.dtype), [])
            self._drop_used(same)
            if same and alike[self._content(target)] <= len(same):
                best = _most_alike(same, target)
                alike[self._content(target)] -= 1
                self._take(target, Same(best, turned), best)

    def _drop_used(self, same: list[Named]) -> None:
        """Remove used tensors from a list, until none is among the first, which are compared."""
        while any(each.name not in self._unused for each in same[:MAX_ALIKE]):
            same[:MAX_ALIKE] = [each for each in same[:MAX_ALIKE] if each.name in self._unused]

    def _content(self, target: Named) -> object:
        digest = self._result_rows.whole(target.ref, target.ref.dtype)
        return (*_kind(target), digest)

    def _by_digest(
        self, sources: Collection[Named], dtype: DType, *, turned: bool, cast: bool
    ) -> dict[Row, list[Named]]:
        """Return tensors of the source by the digests that they have in a dtype."""
        self._look_at(len(sources))
        found: dict[Row, list[Named]] = {}
        for source in sources:
            if can_become(source.ref, dtype) and (cast or source.ref.dtype is dtype):
                digest = self._source_rows.turned if turned else self._source_rows.whole
                found.setdefault(digest(source.ref, dtype), []).append(source)
        return found

    # ---------------------------------------------------------------------------- cuts and joins

    def find_cuts(self) -> None:
        """Find tensors of the source that are cut into tensors of the result."""
        for source in self._unused:
            self._cut(source, None, has_gaps=False)

    def find_slices(self) -> None:
        """Find tensors of the result that are parts of tensors of the source."""
        for source in self._unused:
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
        return tiled(large, self._waiting, self._result_rows, self._look_at, has_gaps=has_gaps)

    def _tiled_target(self, target: Named, taken: set[str]) -> Tiling | None:
        large = Large(target, self._result_rows, lambda _small: target.ref.dtype)
        return tiled(large, self._unused, self._source_rows, self._look_at, taken=taken)

    def find_joins(self) -> None:
        """Find tensors of the result that are joined of tensors of the source."""
        for target in self._waiting:
            tiling = self._tiled_target(target, set())
            if tiling is not None:
                self._take(target, Joined(tiling), *(piece.tensor for piece in tiling.pieces))

    # -------------------------------------------------------------------------------------- stacks

    def _may_be_stack(self, ref: TensorRef, others: Pool) -> bool:
        """Return whether a tensor can be as many others; each has one dimension less."""
        if len(ref.shape) < 2 or not 2 <= ref.shape[0] <= MAX_STACKED or not ref.numel:
            return False
        self._look_at(len(others.by_shape))
        lower = (s for shape, s in others.by_shape.items() if len(shape) == len(ref.shape) - 1)
        return sum(map(len, lower)) * 2 >= ref.shape[0]  # some may be missing

    def find_stacks(self) -> None:
        """Find tensors of the result that are stacks of tensors of the source, or of joins."""
        for target in self._waiting:
            entries = self._entries(target)
            if entries:
                self._take(target, Stacked(tuple(entries)), *_sources(entries))

    def _entries(self, target: Named) -> list[Same | Joined]:
        """Return what each index of a tensor is; nothing if one of them is not found."""
        shape, entries, taken = target.ref.shape, list[Same | Joined](), set[str]()
        if not self._may_be_stack(target.ref, self._unused):
            return []
        known = {
            turned: self._by_digest(
                self._unused.of_shape(_turn(shape[1:], turned)),
                target.ref.dtype,
                turned=turned,
                cast=True,
            )
            for turned in _ways(shape[1:])
        }
        for index in _indices(target):
            self._look_at(AN_INDEX)
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
            equal = by_digest.get(digest, [])
            self._look_at(len(equal))
            same = [each for each in equal if each.name not in taken]
            if same:
                return Same(_most_alike(same, index), is_turned)
        tiling = self._tiled_target(index, taken)
        return None if tiling is None else Joined(tiling)

    def find_unstacked(self, *, has_gaps: bool) -> None:
        """Find tensors of the source of which each index is, or is cut into, tensors.

        With ``has_gaps``, some may be nothing of the result.
        """
        for source in self._unused:
            if not self._may_be_stack(source.ref, self._waiting):
                continue
            rows = self._parts(source, has_gaps=has_gaps)
            for target, found in rows:
                self._take(target, found, source)

    def _parts(self, source: Named, *, has_gaps: bool) -> list[tuple[Named, Cut]]:
        """Return the tensors that the indices are; without gaps, nothing if one is not found."""
        rows: list[tuple[Named, Cut]] = []
        taken: set[str] = set()
        wholes = self._wholes_like(source.ref)
        for number, index in enumerate(_indices(source)):
            self._look_at(AN_INDEX)
            found = self._part(source, number, index, wholes, taken)
            if not found:
                large = Large(index, self._source_rows, lambda small: small.dtype)
                tiling = tiled(
                    large, self._waiting, self._result_rows, self._look_at,
                    taken=taken, has_gaps=has_gaps,
                )  # fmt: skip
                pieces = enumerate(tiling.pieces) if tiling else ()
                found = [
                    (p.tensor, Cut(source, number, tiling, at, p.is_turned)) for at, p in pieces
                ]
            if not found and not has_gaps:
                return []
            rows += found
            taken |= {target.name for target, _ in found}
        return rows

    def _wholes_like(self, ref: TensorRef) -> Wholes:
        """Return the waiting tensors that an index of a tensor may be, by their digests."""
        wholes: Wholes = {}
        for is_turned in _ways(ref.shape[1:]):
            digest = self._result_rows.turned if is_turned else self._result_rows.whole
            for target in self._waiting.of_shape(_turn(ref.shape[1:], is_turned)):
                dtype = target.ref.dtype
                self._look_at(1)
                if can_become(ref, dtype):
                    by_digest = wholes.setdefault((is_turned, dtype), {})
                    by_digest.setdefault(digest(target.ref, dtype), []).append(target)
        return wholes

    def _part(
        self, source: Named, number: int, index: Named, wholes: Wholes, taken: set[str]
    ) -> list[tuple[Named, Cut]]:
        """Return the waiting tensor that is an index of a tensor; nothing if there is none."""
        for (is_turned, dtype), by_digest in wholes.items():
            equal = by_digest.get(self._source_rows.whole(index.ref, dtype), [])
            self._look_at(len(equal))
            same = [target for target in equal if target.name not in taken]
            if same:
                return [(_most_alike(same, index), Cut(source, number, None, 0, is_turned))]
        return []

    # --------------------------------------------------------------------------------- conclusion

    def tell_rest(self) -> None:
        """Tell what is known of the tensors that have no explanation."""
        every = Pool(self._all)
        first: dict[tuple[tuple[int, ...], DType], dict[Row, list[Named]]] = {}
        for target in self._waiting:
            dtype, shape = target.ref.dtype, target.ref.shape
            if (shape, dtype) not in first:
                sources = every.of_shape(shape)
                first[shape, dtype] = self._by_digest(sources, dtype, turned=False, cast=True)
            again = first[shape, dtype].get(self._result_rows.whole(target.ref, dtype))
            if again:
                self._made.doubled[target.name] = Same(again[0])
            else:
                known = self._known_of(target, every.of_shape(shape))
                self._made.unexplained[target.name] = known

    def give_up(self) -> None:
        """Leave the tensors that wait unexplained, since the search takes too long."""
        for target in self._waiting:
            if target.name not in self._made.doubled:
                self._made.unexplained.setdefault(target.name, NOT_SEARCHED)

    def conclude(self) -> Explanations:
        """Return the explanations, and what is left."""
        self._made.unexplained |= dict.fromkeys(self._odd, "it is quantized, packed or not stored")
        self._made.unused = [each.name for each in self._unused]
        return self._made

    def _known_of(self, target: Named, sources: Collection[Named]) -> str:
        """Return what tensors of the same shape have of one that has no explanation."""
        dtype, shape = target.ref.dtype, target.ref.shape
        for axis, word in ((0, "rows"), (1, "columns")):
            for source in sources if len(shape) > 1 else ():
                self._look_at(shape[axis])
                if can_become(source.ref, dtype):
                    old = self._source_rows.along(source.ref, axis, dtype)
                    new = self._result_rows.along(target.ref, axis, dtype)
                    if sorted(old) == sorted(new):
                        return f"it has the {word} of {source.name} in another order"
        return "no tensor has its values"


Wholes = dict[tuple[bool, DType], dict[Row, list[Named]]]  # (transposed, dtype) -> by digest


def _plain(side: Side) -> list[Named]:
    return [Named(name, ref) for name, ref in side.tensors.items() if _is_plain(ref)]


def _most_alike(same: Sequence[Named], target: Named) -> Named:
    """Return the one of equal tensors whose name is most like another; of many, of the first."""
    return max(same[:MAX_ALIKE], key=lambda each: likeness(each.name, target.name))


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
