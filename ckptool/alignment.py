"""Pairs the names of averaged weights with the model's names.

Frameworks wrap and flatten: the model's names carry ``model.`` or ``module.``, the average's do
not; ``_orig_mod.`` stands in the middle; buffers cannot have dots in their names, so dots are
dropped (LitEma) or become underscores (mmcv 1). The rules here know no framework. They look for
the pair of prefixes, and if need be the flattening, by which most names *and shapes* agree.
Wrapper components that torch itself puts in (``WRAPPERS``) are dropped wherever they stand.

A flattening can give two tensors of the model one name. Which of them the average belongs to
cannot be known, so neither is paired, and both are named (``colliding``).

The words are those of ``load_state_dict``, seen from the model: ``missing_keys`` are names that
the model has and the average lacks, ``unexpected_keys`` the reverse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ckptool.inventory import Leaf

# Components that wrappers put into names: DataParallel and AveragedModel, torch.compile, FSDP,
# activation checkpointing.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

SAMPLE = 64  # names that vote on the prefixes
LEADING = 32  # prefixes tried for flattened names
MIN_PART = 0.3  # of a flattened average that must be able to pair under a prefix
FINALISTS = 8  # prefix pairs tried on all names


class Alignment(NamedTuple):
    """Which average belongs to which tensor of the model."""

    pairs: Mapping[str, str]  # model's name -> name in the average, in the model's order
    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    mismatched: tuple[str, ...]  # the model's names whose counterpart has another shape or kind
    unplaced: tuple[str, ...]  # unexpected names with the shape of something missing: renamed?
    naming: str  # same | prefixed | wrapped | dots-removed | underscores | positional
    rivals: tuple[str, ...]  # prefixes in the average under which as many names would pair
    colliding: tuple[str, ...]  # the model's names that the average's naming cannot tell apart
    tied: Mapping[str, str]  # pairs that hold through a tie: model's name -> the name it is tied to

    @property
    def coverage(self) -> float:
        """Share of the model's tensors that have an average."""
        total = len(self.pairs) + len(self.missing_keys)
        return len(self.pairs) / total if total else 0.0


def align_names(
    model: Mapping[str, Leaf], average: Mapping[str, Leaf], hint: str | None = None
) -> Alignment:
    """The best pairing of the average's names with the model's.

    ``hint`` is the prefix of the model's names to prefer when several pair equally well: for a
    group called ``actor_target.``, that is ``actor.``.

    Example:
        >>> from ckptool.dtypes import BY_NAME
        >>> from ckptool.tree import TensorRef
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


def _is_sure(attempt: _Attempt, hint: str | None) -> bool:
    """Whether a complete pairing needs no look at others: by whole names, or by the hint."""
    return attempt.ours == hint if hint is not None else attempt.naming in {"same", "wrapped"}


def align_positions(
    model: Mapping[str, Leaf], average: Mapping[str, Leaf], pairs: Mapping[str, str]
) -> Alignment:
    """An alignment whose pairs were found by order (``ordering.py``)."""
    return _finish(model, average, _Attempt("positional", "", "", dict(pairs)), ())


class _Attempt(NamedTuple):
    """One way to pair the names."""

    naming: str
    ours: str  # prefix of the model's names, stripped
    theirs: str  # prefix of the average's names, stripped
    pairs: dict[str, str]
    colliding: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()  # names of the model that pair, but for their shapes


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
            candidates: dict[str, list[str]] = {}
            for name, ref in model.items():
                if not name.startswith(ours):
                    continue
                flat = name[len(ours) :].replace(".", replacement)
                if flat in average and _is_like(ref, average[flat]):
                    candidates.setdefault(flat, []).append(name)
            pairs = {names[0]: flat for flat, names in candidates.items() if len(names) == 1}
            colliding = [n for names in candidates.values() if len(names) > 1 for n in names]
            yield _Attempt(naming, ours, "", pairs, tuple(colliding))


def _leading_prefixes(names: Mapping[str, Leaf]) -> list[tuple[str, int]]:
    """The empty prefix and the most common ones of one to three components, with their counts."""
    votes: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        votes.update(".".join(parts[:depth]) + "." for depth in range(1, min(4, len(parts))))
    return [("", len(names)), *votes.most_common(LEADING)]


def _joined(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str]:
    """Original names whose canonical names agree."""
    return {name: theirs[canonical] for canonical, name in ours.items() if canonical in theirs}


def _attempt(
    naming: str,
    ours: str,
    theirs: str,
    model: Mapping[str, Leaf],
    average: Mapping[str, Leaf],
    names: Mapping[str, str],
) -> _Attempt:
    """The names of which the tensors are alike are pairs."""
    pairs = {n: other for n, other in names.items() if _is_like(model[n], average[other])}
    mismatched = tuple(n for n in names if n not in pairs) if len(pairs) < len(names) else ()
    return _Attempt(naming, ours, theirs, pairs, (), mismatched)


def _is_like(ours: Leaf, theirs: Leaf) -> bool:
    """Whether one may be an average of the other: masks and quantized values are none of floats."""
    return ours.shape == theirs.shape and (theirs.dtype.is_floating or not ours.dtype.is_floating)


def _prefix_pairs(model: Iterable[str], average: Iterable[str]) -> list[tuple[str, str]]:
    """(prefix of the model, prefix of the average), the most voted first.

    Every sampled name of the average votes, with each model name that has the same last component,
    for what remains before their longest common tail of components.
    """
    by_last: dict[str, list[str]] = {}
    for name in model:
        by_last.setdefault(name.rpartition(".")[2], []).append(name)
    votes: Counter[tuple[str, str]] = Counter()
    for name in _spread(list(average), SAMPLE):
        twins = by_last.get(name.rpartition(".")[2], [])
        tails = {other: len(common_tail(name, other)) for other in _spread(twins, SAMPLE * 16)}
        longest = max(tails.values(), default=0)
        votes.update(
            (other[: len(other) - tail], name[: len(name) - tail])
            for other, tail in tails.items()
            if tail == longest
        )
    return [pair for pair, _ in votes.most_common(FINALISTS)]


def common_tail(one: str, other: str) -> str:
    """The longest common run of whole components at the end: ``a.b.w``, ``c.b.w`` -> ``b.w``."""
    ours, theirs = one.split("."), other.split(".")
    same = 0
    for mine, yours in zip(reversed(ours), reversed(theirs), strict=False):
        if mine != yours:
            break
        same += 1
    return ".".join(ours[len(ours) - same :])


def _spread(names: list[str], count: int) -> list[str]:
    """At most ``count`` of the names, evenly spread."""
    step = max(1, len(names) // count)
    return names[::step][:count]


def unwrapped(name: str) -> str:
    """``name`` without the components that wrappers put in."""
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
    missing = tuple(name for name in model if name not in covered)
    unexpected = tuple(name for name in average if name not in used)
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
    """The model's names without a pair that view the same bytes as one that has a pair."""
    first = {_place(model[name]): name for name in reversed(list(pairs))}
    return {
        name: first[_place(ref)]
        for name, ref in model.items()
        if name not in pairs and _place(ref) is not None and _place(ref) in first
    }


def _place(ref: Leaf) -> object:
    """What makes two tensors the same memory; None for tensors without bytes."""
    chunks = getattr(ref, "chunks", ())
    return (chunks, ref.dtype.name) if chunks and ref.shape and 0 not in ref.shape else None


def paired_prefixes(alignment: Alignment) -> tuple[str, str]:
    """The (model, average) prefixes by which most pairs differ."""
    votes: Counter[tuple[str, str]] = Counter()
    for name, other in alignment.pairs.items():
        if name not in alignment.tied:
            tail = len(common_tail(name, other))
            votes[name[: len(name) - tail], other[: len(other) - tail]] += 1
    return votes.most_common(1)[0][0] if votes else ("", "")
