"""The state dict that ``extract-ema`` writes, computed before anything is written.

Pure functions over references. An :class:`Extraction` names every tensor of the output and where
its values come from. ``--dry-run`` reports this plan, and the writers carry it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from ckptool.contents.alignment import Alignment, paired_prefixes, unwrapped
from ckptool.contents.completeness import Remainder, find_remainder, identities
from ckptool.contents.inventory import Leaf, Table
from ckptool.contents.unplain import Unplain, refuse_incomplete, unplain_entries
from ckptool.ema.candidates import AVERAGED_MODEL, CHOSEN, Candidate, EmaLocation
from ckptool.errors import EmaAmbiguousError, EmaRefusedError
from ckptool.records import NamedTuple
from ckptool.tree.nodes import TensorRef


class Extraction(NamedTuple):
    """The state dict that will be written."""

    tensors: Mapping[str, TensorRef]  # in the order in which they are written to torch files
    averaged: frozenset[str]  # names whose values are EMA weights
    from_model: tuple[str, ...]  # names whose values the EMA weights lack
    dropped: tuple[str, ...]  # names of EMA weights that the model does not have
    refused: Mapping[str, Unplain] = {}  # tensors that cannot be written as they are
    left_out: Mapping[str, str] = {}  # other things beside them: name -> what it is

    @property
    def tied(self) -> dict[str, str]:
        """Names that are the same bytes as an earlier one: {later: first}."""
        first: dict[object, str] = {}
        ties = ((name, first.setdefault(_place(ref), name)) for name, ref in self.tensors.items())
        return {name: other for name, other in ties if name != other}


def _place(ref: TensorRef) -> object:
    """Return what two tensors share if they are one in memory; empty ones share nothing."""
    same = (ref.chunks, ref.shape, ref.dtype.name, ref.byteorder, ref.lazy)
    return same if ref.numel else object()


def plan_extraction(location: EmaLocation, candidate: Candidate | None, names: str) -> Extraction:
    """Return the plan of EMA weights under the model's names (``model``, ``bare``) or their own.

    ``names`` is ``ema`` for their own. ``candidate`` is None if the model's own state dict is
    taken. Tensors that the EMA weights lack come from the model. A state dict that was named and
    that holds no EMA weights of the model is taken as it stands. Tensors that cannot be written as
    they are stay in the plan as ``refused``: see :func:`complete`.

    Raises:
        EmaRefusedError: nothing pairs with the model.
        EmaAmbiguousError: two tensors would get one name.
    """
    model = location.model
    if candidate is None:
        assert model is not None, "it is the model's own state dict that is taken"
        return plan_model(model, names, location)
    average, alignment = candidate.table.entries, candidate.alignment
    if model is None or alignment is None:
        alone = average if names == "ema" else _without_wrapper(candidate)
        around = _around((candidate.table,), location)
        return _extraction(alone, frozenset(alone), (), (), names, around)
    _refuse_strangers(candidate, alignment)
    around = _around((model, candidate.table), location)
    if names == "ema":
        return _under_own_names(model, average, alignment, around)
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
        around,
    )


def _around(tables: tuple[Table, ...], location: EmaLocation | None) -> Remainder:
    """Return the other contents of the containers of the state dicts that are taken."""
    known = (*location.candidates, *location.beside) if location is not None else ()
    return find_remainder(tables, identities(candidate.table for candidate in known))


def complete(plan: Extraction, path: Path | None = None) -> Extraction:
    """Return the plan, if all of it can be written.

    Raises:
        UnsupportedError: a part cannot; the message names the first such part, the hint what to do.
    """
    refuse_incomplete(plan.refused, len(plan.refused) + len(plan.tensors), path)
    return plan


def _refuse_strangers(candidate: Candidate, alignment: Alignment) -> None:
    """Refuse a named state dict that hardly fits the model: two networks would be mixed."""
    matched, total = len(alignment.pairs), len(candidate.table.entries)
    if matched and (candidate.kind != CHOSEN or 2 * matched >= total):
        return
    raise EmaRefusedError(
        f"{matched or 'none'} of its {total} names and shapes "
        f"{'pair' if matched > 1 else 'pairs'} with the model's",
        address=candidate.address,
        hint="name the weights that it averages: "
        "ckptool extract-ema --ema ADDRESS --model ADDRESS; "
        "the same address for both takes these weights unchanged",
    )


def _without_wrapper(candidate: Candidate) -> Mapping[str, Leaf]:
    """Return the entries, without ``module.`` if they are those of a wrapping ``AveragedModel``."""
    entries = candidate.table.entries
    wrapped = AVERAGED_MODEL in candidate.meta and all(n.startswith(WRAPPER) for n in entries)
    return (
        {name.removeprefix(WRAPPER): ref for name, ref in entries.items()} if wrapped else entries
    )


WRAPPER = "module."


def plan_model(model: Table, names: str, location: EmaLocation | None = None) -> Extraction:
    """Plan to take the model's own state dict: it holds the EMA weights, or was asked for."""
    everything = dict(model.entries)
    around = _around((model,), location)
    return _extraction(everything, frozenset(everything), (), (), names, around)


def _under_own_names(
    model: Table, average: Mapping[str, Leaf], alignment: Alignment, around: Remainder
) -> Extraction:
    """Keep the stored names; rename the model's other tensors by the prefix that pairs them."""
    ours, theirs = paired_prefixes(alignment)
    renamed = {
        theirs + name[len(ours) :]: model.entries[name]
        for name in alignment.missing_keys
        if name.startswith(ours)
    }
    outside = tuple(name for name in alignment.missing_keys if not name.startswith(ours))
    merged = {**average, **{n: ref for n, ref in renamed.items() if n not in average}}
    return _extraction(merged, frozenset(average), tuple(renamed), outside, "ema", around)


def _extraction(
    entries: Mapping[str, Leaf],
    averaged: frozenset[str],
    from_model: tuple[str, ...],
    dropped: tuple[str, ...],
    names: str,
    around: Remainder,
) -> Extraction:
    refused = {**unplain_entries(entries), **around.refused}
    plain = {
        name: ref
        for name, ref in entries.items()
        if name not in refused and isinstance(ref, TensorRef)
    }
    plan = Extraction(plain, averaged, from_model, dropped, refused, around.left_out)
    if names == "bare":
        return renamed(plan, unwrapped, "without wrappers", "--names model")
    return plan


def renamed(plan: Extraction, rename: Callable[[str], str], how: str, otherwise: str) -> Extraction:
    """Return the plan with the same tensors under other names.

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
    return plan._replace(
        tensors={new[name]: ref for name, ref in plan.tensors.items()},
        averaged=frozenset(new[name] for name in plan.averaged if name in new),
        from_model=tuple(new[name] for name in plan.from_model if name in new),
        refused={rename(name): why for name, why in plan.refused.items()},
    )
