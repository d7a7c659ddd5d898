"""What extraction and promotion will do, computed before anything is written.

Pure functions over references: an :class:`Extraction` names every tensor of the output and where
its values come from; the same plan is what ``--dry-run`` reports and what the writers carry out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ckptool.alignment import Alignment, paired_prefixes, unwrapped
from ckptool.candidates import AVERAGED_MODEL, Candidate, EmaLocation
from ckptool.errors import EmaAmbiguousError, EmaRefusedError, UnsupportedError
from ckptool.inventory import Leaf, Table
from ckptool.tree import Address, Blob, TensorRef, format_address


class Extraction(NamedTuple):
    """The state dict that will be written."""

    tensors: Mapping[str, TensorRef]  # in the order in which they are written to torch files
    averaged: frozenset[str]  # names whose values are averages
    from_model: tuple[str, ...]  # names whose values the average lacks
    tied: Mapping[str, str]
    dropped: tuple[str, ...]


def plan_extraction(location: EmaLocation, candidate: Candidate | None, names: str) -> Extraction:
    """The averaged weights under the model's names (``model``, ``bare``) or their own (``ema``).

    When the model's own slot holds the averages, they are taken from there. Tensors that the
    average lacks come from the model.

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
        return _extraction(alone, frozenset(alone), (), {}, (), names)
    if not alignment.pairs:
        raise EmaRefusedError(
            "none of its names and shapes pairs with the model's",
            address=candidate.address,
            hint="name the weights that it averages: --model ADDRESS",
        )
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
        alignment.tied,
        alignment.unexpected_keys,
        names,
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
    return _extraction(everything, frozenset(everything), (), {}, (), names)


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
    return _extraction(merged, frozenset(average), tuple(renamed), {}, outside, "ema")


def _extraction(
    entries: Mapping[str, Leaf],
    averaged: frozenset[str],
    from_model: tuple[str, ...],
    tied: Mapping[str, str],
    dropped: tuple[str, ...],
    names: str,
) -> Extraction:
    plain: dict[str, TensorRef] = {}
    for name, ref in entries.items():
        if not isinstance(ref, TensorRef) or not ref.chunks:
            kind = ref.layout if not isinstance(ref, TensorRef) else ref.device
            raise UnsupportedError(f"a {kind} tensor has no plain values to write", address=name)
        plain[name] = ref
    if names == "bare":
        return _bare(Extraction(plain, averaged, from_model, tied, dropped))
    return Extraction(plain, averaged, from_model, tied, dropped)


def _bare(plan: Extraction) -> Extraction:
    """Names without wrappers.

    Raises:
        EmaAmbiguousError: two names become one.
    """
    bare = {name: unwrapped(name) for name in plan.tensors}
    twice = [name for name, times in Counter(bare.values()).items() if times > 1]
    if twice:
        raise EmaAmbiguousError(
            f"without wrappers several tensors would be called {twice[0]!r}",
            hint="keep the model's names: --names model",
        )
    return Extraction(
        tensors={bare[name]: ref for name, ref in plan.tensors.items()},
        averaged=frozenset(bare[name] for name in plan.averaged),
        from_model=tuple(bare[name] for name in plan.from_model),
        tied={bare[name]: bare[other] for name, other in plan.tied.items()},
        dropped=plan.dropped,
    )


# ---------------------------------------------------------------------------------------- promotion


def shared_with_others(
    targets: Mapping[str, TensorRef],
    others: Iterable[tuple[Address, TensorRef]],
) -> tuple[str, ...]:
    """Addresses of the others whose tensors view bytes that the targets will change."""
    runs = sorted(
        (span.offset, span.offset + span.nbytes)
        for ref in targets.values()
        for span in [ref.chunks[0].span]
        if span.nbytes
    )
    return tuple(
        format_address(address) for address, ref in others if ref.chunks and _overlaps(runs, ref)
    )


def _overlaps(runs: list[tuple[int, int]], ref: TensorRef) -> bool:
    span = ref.chunks[0].span
    if not span.nbytes or isinstance(span.source, Blob):
        return False
    at = bisect_left(runs, (span.offset + span.nbytes, 0)) - 1
    return at >= 0 and runs[at][1] > span.offset
