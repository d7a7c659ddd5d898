"""What extraction and promotion will do, computed before anything is written.

Pure functions over references: an :class:`Extraction` names every tensor of the output and where
its values come from; the same plan is what ``--dry-run`` reports and what the writers carry out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ckptool.alignment import Alignment, paired_prefixes, unwrapped
from ckptool.candidates import AVERAGED_MODEL, CHOSEN, Candidate, EmaLocation
from ckptool.errors import EmaAmbiguousError, EmaRefusedError, UnsupportedError
from ckptool.inventory import Leaf, Table
from ckptool.tree import Address, Blob, TensorRef, format_address, joined_runs


class Extraction(NamedTuple):
    """The state dict that will be written."""

    tensors: Mapping[str, TensorRef]  # in the order in which they are written to torch files
    averaged: frozenset[str]  # names whose values are averages
    from_model: tuple[str, ...]  # names whose values the average lacks
    dropped: tuple[str, ...]  # names in the average that the model does not have

    @property
    def tied(self) -> dict[str, str]:
        """Names that are the same bytes as an earlier one: {later: first}."""
        first: dict[object, str] = {}
        ties = ((name, first.setdefault(_place(ref), name)) for name, ref in self.tensors.items())
        return {name: other for name, other in ties if name != other}


def _place(ref: TensorRef) -> object:
    """What two tensors share when they are one in memory; empty ones share nothing."""
    same = (ref.chunks, ref.shape, ref.dtype.name, ref.byteorder, ref.lazy)
    return same if ref.numel else object()


def plan_extraction(location: EmaLocation, candidate: Candidate | None, names: str) -> Extraction:
    """The averaged weights under the model's names (``model``, ``bare``) or their own (``ema``).

    When the model's own slot holds the averages, they are taken from there. Tensors that the
    average lacks come from the model. A table that was named and is no average of the model is
    taken as it stands.

    Raises:
        EmaRefusedError: nothing pairs with the model.
        EmaAmbiguousError: two tensors would get one name.
        UnsupportedError: a tensor has no plain values.
    """
    model = location.model
    if model is not None and location.main_slot == "averaged":
        return plan_model(model, names)
    assert candidate is not None, "a location without a candidate has an averaged main slot"
    average, alignment = candidate.table.entries, candidate.alignment
    if model is None or alignment is None:
        alone = average if names == "ema" else _without_wrapper(candidate)
        return _extraction(alone, frozenset(alone), (), (), names)
    _refuse_strangers(candidate, alignment)
    if names == "ema":
        return _under_own_names(model, average, alignment)
    merged = {
        name: average[alignment.pairs[name]] if name in alignment.pairs else ref
        for name, ref in model.entries.items()
    }
    return _extraction(
        merged,
        frozenset(alignment.pairs),
        alignment.missing_keys,
        alignment.unexpected_keys,
        names,
    )


def _refuse_strangers(candidate: Candidate, alignment: Alignment) -> None:
    """A table that was named must be mostly of the model: else two networks would be mixed.

    Raises:
        EmaRefusedError: nothing of it pairs, or little.
    """
    matched, total = len(alignment.pairs), len(candidate.table.entries)
    if matched and (candidate.kind != CHOSEN or 2 * matched >= total):
        return
    raise EmaRefusedError(
        f"{matched or 'none'} of its {total} names and shapes "
        f"{'pair' if matched > 1 else 'pairs'} with the model's",
        address=candidate.address,
        hint="name the weights that it averages: --model ADDRESS; "
        "the same address for both takes it as it stands",
    )


def _without_wrapper(candidate: Candidate) -> Mapping[str, Leaf]:
    """The names that the model has, where only its ``AveragedModel`` is there, which wraps it."""
    entries = candidate.table.entries
    wrapped = AVERAGED_MODEL in candidate.meta and all(map(_is_wrapped, entries))
    return (
        {name.removeprefix(WRAPPER): ref for name, ref in entries.items()} if wrapped else entries
    )


WRAPPER = "module."


def _is_wrapped(name: str) -> bool:
    return name.startswith(WRAPPER)


def plan_model(model: Table, names: str) -> Extraction:
    """The model's own slot as it stands: it holds the averages, or was asked for."""
    everything = dict(model.entries)
    return _extraction(everything, frozenset(everything), (), (), names)


def _under_own_names(model: Table, average: Mapping[str, Leaf], alignment: Alignment) -> Extraction:
    """The stored names; what the average lacks is renamed by the prefix that pairs the others."""
    ours, theirs = paired_prefixes(alignment)
    renamed = {
        theirs + name[len(ours) :]: model.entries[name]
        for name in alignment.missing_keys
        if name.startswith(ours)
    }
    outside = tuple(name for name in alignment.missing_keys if not name.startswith(ours))
    merged = {**average, **{n: ref for n, ref in renamed.items() if n not in average}}
    return _extraction(merged, frozenset(average), tuple(renamed), outside, "ema")


def _extraction(
    entries: Mapping[str, Leaf],
    averaged: frozenset[str],
    from_model: tuple[str, ...],
    dropped: tuple[str, ...],
    names: str,
) -> Extraction:
    plain: dict[str, TensorRef] = {}
    for name, ref in entries.items():
        if not isinstance(ref, TensorRef) or not ref.chunks:
            kind = ref.layout if not isinstance(ref, TensorRef) else ref.device
            raise UnsupportedError(f"a {kind} tensor has no plain values to write", address=name)
        plain[name] = ref
    plan = Extraction(plain, averaged, from_model, dropped)
    if names == "bare":
        return renamed(plan, unwrapped, "without wrappers", "--names model")
    return plan


def renamed(plan: Extraction, rename: Callable[[str], str], how: str, otherwise: str) -> Extraction:
    """The same tensors under other names.

    Raises:
        EmaAmbiguousError: two names become one.
    """
    new = {name: rename(name) for name in plan.tensors}
    twice = [name for name, times in Counter(new.values()).items() if times > 1]
    if twice:
        raise EmaAmbiguousError(
            f"{how} several tensors would be called {twice[0]!r}",
            hint=f"keep the names apart: {otherwise}",
        )
    return Extraction(
        tensors={new[name]: ref for name, ref in plan.tensors.items()},
        averaged=frozenset(new[name] for name in plan.averaged),
        from_model=tuple(new[name] for name in plan.from_model),
        dropped=plan.dropped,
    )


# ---------------------------------------------------------------------------------------- promotion


def shared_with_others(
    targets: Mapping[str, TensorRef],
    others: Iterable[tuple[Address, TensorRef]],
) -> tuple[str, ...]:
    """Addresses of the others whose tensors view bytes that the targets will change."""
    spans = (ref.chunks[0].span for ref in targets.values())
    runs = joined_runs((span.offset, span.offset + span.nbytes) for span in spans if span.nbytes)
    return tuple(
        format_address(address) for address, ref in others if ref.chunks and _overlaps(runs, ref)
    )


def _overlaps(runs: list[tuple[int, int]], ref: TensorRef) -> bool:
    span = ref.chunks[0].span
    if not span.nbytes or isinstance(span.source, Blob):
        return False
    at = bisect_left(runs, (span.offset + span.nbytes, 0)) - 1
    return at >= 0 and runs[at][1] > span.offset
