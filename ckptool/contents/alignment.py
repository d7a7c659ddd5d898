"""The pairing of the names of EMA weights with the model's names.

Frameworks wrap and flatten. The model's names carry ``model.`` or ``module.``, and the EMA's do
not. ``_orig_mod.`` stands in the middle. Buffers cannot have dots in their names, so dots are
dropped (LitEma) or become underscores (mmcv 1), and the prefix of a wrapper is then glued to the
rest. Some frameworks keep a table of the names they made (:func:`align_by_table`). The rules here
know no framework. They look for the pair of prefixes, and if need be the flattening, by which most
names *and shapes* match. Wrapper components that torch itself puts in (``WRAPPERS``) are dropped
wherever they stand.

A flattening can give two tensors of the model one name. It cannot be known to which of them the
EMA tensor belongs, so neither is paired, and both are named (``colliding``).

The words are those of ``load_state_dict``, seen from the model: ``missing_keys`` are names that
the model has and the EMA lacks, and ``unexpected_keys`` are the reverse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from ckptool.contents.inventory import Leaf
from ckptool.records import NamedTuple
from ckptool.tensors.sample import spread
from ckptool.tree.nodes import TensorRef

# Components that wrappers put into names: DataParallel and AveragedModel, torch.compile, FSDP
# (torch's and fairscale's), activation checkpointing, Lightning's strategies before 2.0.
WRAPPERS = frozenset({
    "module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module",
    "_forward_module",
})  # fmt: skip

SAMPLE = 64  # names that vote on the prefixes
LEADING = 32  # prefixes tried for flattened names
MIN_PART = 0.3  # share of the flattened EMA names that must be able to pair under a prefix
GLUED, GLUED_SAMPLE = 64, 16  # most letters of a prefix without its dot; names that vote on it
FINALISTS = 8  # prefix pairs tried on all names


class Alignment(NamedTuple):
    """The EMA tensor that belongs to each tensor of the model."""

    pairs: Mapping[str, str]  # model's name -> EMA's name, in the model's order
    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    mismatched: tuple[str, ...]  # the model's names whose counterpart has another shape or kind
    unplaced: tuple[str, ...]  # unexpected names with the shape of something missing: renamed?
    naming: str  # same | prefixed | wrapped | dots-removed | underscores | positional | by-table
    rivals: tuple[str, ...]  # prefixes of the EMA's names under which as many would pair
    colliding: tuple[str, ...]  # the model's names that the EMA's naming cannot tell apart
    tied: Mapping[str, str]  # pairs of shared tensors: model's name -> the name it shares with


def paired_tensors(
    model: Mapping[str, Leaf], average: Mapping[str, Leaf], pairs: Mapping[str, str]
) -> Iterator[tuple[str, TensorRef, TensorRef]]:
    """Yield (model's name, its tensor, the EMA's tensor) of the pairs of plain tensors."""
    for name, other in pairs.items():
        ours, theirs = model[name], average[other]
        if isinstance(ours, TensorRef) and isinstance(theirs, TensorRef):
            yield name, ours, theirs


def align_names(
    model: Mapping[str, Leaf], average: Mapping[str, Leaf], hint: str | None = None
) -> Alignment:
    """Return the best pairing of the EMA's names with the model's.

    ``hint`` is the prefix of the model's names to prefer when several pair equally well. For a
    group called ``actor_target.`` it is ``actor.``.

    Example:
        >>> from ckptool.dtypes import BY_NAME
        >>> from ckptool.tree.nodes import TensorRef
        >>> ref = TensorRef(BY_NAME["float32"], (2,), ())
        >>> align_names({"model.w": ref, "model.b": ref}, {"w": ref}).pairs
        {'model.w': 'w'}
    """
    attempts: list[_Attempt] = []
    for attempt in _attempts(model, average, hint):
        attempts.append(attempt)
        if len(attempt.pairs) == len(average) and _is_sure(attempt, hint):
            break
    best = max(attempts, key=lambda attempt: (len(attempt.pairs), attempt.ours == hint))
    rivals = tuple(
        attempt.theirs
        for attempt in attempts
        if len(attempt.pairs) == len(best.pairs) > 0
        and attempt.pairs != best.pairs
        and best.ours != hint
    )
    return _finish(model, average, best, rivals)


def align_by_table(
    model: Mapping[str, Leaf], average: Mapping[str, Leaf], names: Mapping[str, str]
) -> Alignment:
    """Return the pairing where ``names`` maps the EMA's names to those they were made from.

    Example:
        >>> from ckptool.dtypes import BY_NAME
        >>> from ckptool.tree.nodes import TensorRef
        >>> ref = TensorRef(BY_NAME["float32"], (2,), ())
        >>> align_by_table({"a.w": ref}, {"0aw": ref}, {"0aw": "0.a.w"}).pairs
        {'a.w': '0aw'}
    """
    made = {names.get(name, name): name for name in average}
    found = align_names(model, {original: average[name] for original, name in made.items()})
    return found._replace(
        pairs={name: made[other] for name, other in found.pairs.items()},
        unexpected_keys=tuple(made[name] for name in found.unexpected_keys),
        unplaced=tuple(made[name] for name in found.unplaced),
        naming="by-table",
    )


def _is_sure(attempt: _Attempt, hint: str | None) -> bool:
    """Return whether a complete pairing is final: by the hint if there is one, else by names."""
    return attempt.ours == hint if hint is not None else attempt.naming in {"same", "wrapped"}


def align_positions(
    model: Mapping[str, Leaf], average: Mapping[str, Leaf], pairs: Mapping[str, str]
) -> Alignment:
    """Return the alignment of pairs that were found by order (``ema/ordering.py``)."""
    return _finish(model, average, _Attempt("positional", "", "", dict(pairs)), ())


class _Attempt(NamedTuple):
    """One way to pair the names."""

    naming: str
    ours: str  # prefix of the model's names, stripped
    theirs: str  # prefix of the EMA's names, stripped
    pairs: dict[str, str]
    colliding: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()  # the model's names that pair, but with another shape


def _attempts(
    model: Mapping[str, Leaf], average: Mapping[str, Leaf], hint: str | None
) -> Iterator[_Attempt]:
    yield _attempt("same", "", "", model, average, {n: n for n in model if n in average})
    bare_model = {unwrapped(name): name for name in model}
    bare_average = {unwrapped(name): name for name in average}
    unambiguous = len(bare_model) == len(model) and len(bare_average) == len(average)
    if not unambiguous:
        bare_model, bare_average = {n: n for n in model}, {n: n for n in average}
    yield _attempt("wrapped", "", "", model, average, _joined(bare_model, bare_average))
    prefixes = _prefix_pairs(bare_model, bare_average)
    if hint is not None and (hint, "") not in prefixes:
        prefixes = [(hint, ""), *prefixes]
    for ours, theirs in prefixes:
        renamed = {
            ours + name[len(theirs) :]: original
            for name, original in bare_average.items()
            if name.startswith(theirs)
        }
        yield _attempt("prefixed", ours, theirs, model, average, _joined(bare_model, renamed))
    if not any("." in name for name in average):  # flattened names have no dots left
        yield from _flattened_attempts(model, average)


FLATTENINGS = {"dots-removed": "", "underscores": "_"}  # what a dot becomes


def _flattened_attempts(
    model: Mapping[str, Leaf], average: Mapping[str, Leaf]
) -> Iterator[_Attempt]:
    prefixes = [p for p, count in _leading_prefixes(model) if count >= MIN_PART * len(average)]
    for naming, replacement in FLATTENINGS.items():
        for ours in prefixes:
            flats = {
                name: name[len(ours) :].replace(".", replacement)
                for name in model
                if name.startswith(ours)
            }
            for theirs in ("", *_glued_prefixes(flats.values(), average)):
                candidates: dict[str, list[str]] = {}
                for name, flat in flats.items():
                    other = theirs + flat
                    if other in average and _is_like(model[name], average[other]):
                        candidates.setdefault(other, []).append(name)
                pairs = {names[0]: other for other, names in candidates.items() if len(names) == 1}
                colliding = [n for names in candidates.values() if len(names) > 1 for n in names]
                yield _Attempt(naming, ours, theirs, pairs, tuple(colliding))


def _glued_prefixes(flats: Iterable[str], average: Iterable[str]) -> list[str]:
    """Return the prefix glued to most of the EMA's names, if any: ``0`` of ``0conv1weight``."""
    known = set(flats)
    votes: Counter[str] = Counter()
    names = spread(list(average), GLUED_SAMPLE)
    for name in names:
        longest = next((k for k in range(1, min(len(name), GLUED)) if name[k:] in known), None)
        if longest is not None:
            votes[name[:longest]] += 1
    return [prefix for prefix, count in votes.most_common(1) if count > max(1, len(names) // 2)]


def _leading_prefixes(names: Mapping[str, Leaf]) -> list[tuple[str, int]]:
    """Return the empty prefix and the most common of one to three components, with counts."""
    votes: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        votes.update(".".join(parts[:depth]) + "." for depth in range(1, min(4, len(parts))))
    return [("", len(names)), *votes.most_common(LEADING)]


def _joined(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str]:
    """Pair the original names whose canonical names are equal."""
    return {name: theirs[canonical] for canonical, name in ours.items() if canonical in theirs}


def _attempt(
    naming: str,
    ours: str,
    theirs: str,
    model: Mapping[str, Leaf],
    average: Mapping[str, Leaf],
    names: Mapping[str, str],
) -> _Attempt:
    """Make pairs of the names whose tensors can belong together."""
    pairs = {n: other for n, other in names.items() if _is_like(model[n], average[other])}
    mismatched = tuple(n for n in names if n not in pairs) if len(pairs) < len(names) else ()
    return _Attempt(naming, ours, theirs, pairs, (), mismatched)


def _is_like(ours: Leaf, theirs: Leaf) -> bool:
    """Return whether theirs may be an EMA of ours; no integer or mask is an EMA of floats."""
    if ours.shape != theirs.shape:
        return False
    return ours.dtype is theirs.dtype or theirs.dtype.is_floating or not ours.dtype.is_floating


def _prefix_pairs(model: Iterable[str], average: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs (prefix of the model, prefix of the EMA), the most voted first.

    Every sampled name of the EMA is compared with the model's names that have the same last
    component. It votes for the prefixes before the longest common tail of components.
    """
    by_last: dict[str, list[str]] = {}
    for name in model:
        by_last.setdefault(name.rpartition(".")[2], []).append(name)
    votes: Counter[tuple[str, str]] = Counter()
    for name in spread(list(average), SAMPLE):
        twins = by_last.get(name.rpartition(".")[2], [])
        tails = {other: len(common_tail(name, other)) for other in spread(twins, SAMPLE * 16)}
        longest = max(tails.values(), default=0)
        votes.update(
            (other[: len(other) - tail], name[: len(name) - tail])
            for other, tail in tails.items()
            if tail == longest
        )
    return [pair for pair, _ in votes.most_common(FINALISTS)]


def common_tail(one: str, other: str) -> str:
    """Return the longest common tail of whole components: ``a.b.w``, ``c.b.w`` -> ``b.w``."""
    ours, theirs = one.split("."), other.split(".")
    same = 0
    for mine, yours in zip(reversed(ours), reversed(theirs), strict=False):
        if mine != yours:
            break
        same += 1
    return ".".join(ours[len(ours) - same :])


def unwrapped(name: str) -> str:
    """Return ``name`` without the components that wrappers put in."""
    if not any(wrapper in name for wrapper in WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _finish(
    model: Mapping[str, Leaf],
    average: Mapping[str, Leaf],
    best: _Attempt,
    rivals: tuple[str, ...],
) -> Alignment:
    pairs = best.pairs
    used = set(pairs.values())
    tied = _through_ties(model, pairs)
    covered = {**pairs, **{name: pairs[other] for name, other in tied.items()}}
    # Mostly both are complete, and 100,000 names need not be looked up.
    is_covered, is_used = len(covered) == len(model), len(used) == len(average)
    missing = () if is_covered else tuple(name for name in model if name not in covered)
    unexpected = () if is_used else tuple(name for name in average if name not in used)
    mismatched = tuple(name for name in best.mismatched if name not in covered)
    ordered = {name: covered[name] for name in model if name in covered}
    wanted = {model[name].shape for name in missing if model[name].dtype.is_floating}
    unplaced = tuple(name for name in unexpected if average[name].shape in wanted - {()})
    return Alignment(
        ordered,
        missing,
        unexpected,
        mismatched,
        unplaced,
        best.naming,
        rivals,
        best.colliding,
        tied,
    )


def _through_ties(model: Mapping[str, Leaf], pairs: Mapping[str, str]) -> dict[str, str]:
    """Return the model's names that have no pair but view the same bytes as one that has."""
    if len(pairs) == len(model):
        return {}
    first = {_place(model[name]): name for name in reversed(list(pairs))}
    return {
        name: first[_place(ref)]
        for name, ref in model.items()
        if name not in pairs and _place(ref) is not None and _place(ref) in first
    }


def _place(ref: Leaf) -> object:
    """Return a key, equal for tensors of the same memory; None for tensors without bytes."""
    chunks = getattr(ref, "chunks", ())
    return (chunks, ref.dtype.name) if chunks and ref.shape and 0 not in ref.shape else None


def paired_prefixes(alignment: Alignment) -> tuple[str, str]:
    """Return the (model, EMA) prefixes by which most pairs differ."""
    votes: Counter[tuple[str, str]] = Counter()
    for name, other in alignment.pairs.items():
        if name not in alignment.tied:
            tail = len(common_tail(name, other))
            votes[name[: len(name) - tail], other[: len(other) - tail]] += 1
    return votes.most_common(1)[0][0] if votes else ("", "")
