"""Comparison of two checkpoints: whether they are equal, what differs and by how much.

Everything is compared by key path: model weights, EMA weights, optimizer, random states, numbers,
structure. The answer is one bit. The report is its evidence, in the order of the tree.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress
from operator import not_
from typing import Any

from ckptool.comparison.differences import (
    Judged,
    TensorJudge,
    count_kinds,
    counter_changes,
    is_tensor_pair,
    relative_l2,
)
from ckptool.comparison.digests import digests_of
from ckptool.comparison.engine import Engine
from ckptool.comparison.files import hold_files
from ckptool.comparison.integrity import SUSPECT, refuse_damaged
from ckptool.comparison.leaves import Leaves, TensorLeaf, numbers_as_tensors
from ckptool.comparison.operands import Side
from ckptool.comparison.pairing import (
    Asked,
    Pair,
    Selection,
    pair_up,
    select_leaves,
    unused_options,
)
from ckptool.comparison.plain_values import compare_values, section_of
from ckptool.comparison.tolerances import Tolerance, Tolerances
from ckptool.contents.globs import fits_one, meant
from ckptool.ema.layouts import Layouts
from ckptool.errors import UsageError
from ckptool.process.limits import usable_cpus
from ckptool.process.progress import Progress, no_progress
from ckptool.process.ranks import Ranks
from ckptool.records import NamedTuple
from ckptool.reports.base import GroupDistance
from ckptool.reports.diff import (
    CounterDifference,
    DiffReport,
    DiffSummary,
    Divergence,
    RoleDistance,
    TensorDifference,
    ValueDifference,
)
from ckptool.tensors.volume import refuse_repetition
from ckptool.tree.nodes import TensorRef

Row = TensorDifference | ValueDifference


class DiffOptions(NamedTuple):
    """Options of a comparison."""

    selection: Selection = Selection()
    tolerances: Tolerances = Tolerances((Tolerance(),))
    strict: bool = False
    any_dtype: bool = False  # only values count, not the dtypes that they are stored in
    device: str = "cpu"
    threads: int = 0  # or processes; 0: one for each CPU
    asked: Asked = Asked()  # as typed, to report those that match nothing
    # Of lists of tensors: change, name or size; None: by role, then by change.
    order: str | None = None


def diff(
    a: str,
    b: str,
    options: DiffOptions = DiffOptions(),  # noqa: B008 - a tuple
    *,
    progress: Progress = no_progress,
    layouts: Layouts = (),
    ranks: Ranks = Ranks(),  # noqa: B008 - a tuple
) -> DiffReport:
    """Compare two operands.

    Args:
        a: ``PATH[#ADDRESS]``, ``PATH#@ema``, ``PATH#@model``, or a document of digests.
        b: the other.
        options: what is compared, and with which tolerances.
        progress: called with the bytes read.
        layouts: custom layouts, for the roles.
        ranks: the processes that share the bytes.

    Raises:
        CkptError: an operand cannot be read or is damaged, or the device is not there.
    """
    strict = options.strict
    with Side(a, layouts, strict=strict) as one, Side(b, layouts, one, strict=strict) as other:
        left_out = [*_only_weights(one, other, layouts), *_of_single_ranks(one, other)]
        report = _compared(one, other, options, progress, ranks, left_out)
        one.refuse_changed()
        other.refuse_changed()
        return report


def _compared(
    one: Side,
    other: Side,
    options: DiffOptions,
    progress: Progress,
    ranks: Ranks,
    left_out: Sequence[str],
) -> DiffReport:
    by_digest = one.is_manifest or other.is_manifest
    unread = hold_files(one, other)
    roles = other.roles | one.roles
    left, right = (
        select_leaves(
            side.tensors_once() if by_digest else side.leaves,
            options.selection,
            roles | {"": side.roles.get("", "")},  # weights at the top of one side only
        )
        for side in (one, other)
    )
    if options.any_dtype:
        left, right = numbers_as_tensors(left, right), numbers_as_tensors(right, left)
    if not (left or right) and (one.leaves or other.leaves):
        raise _nothing_left(options, [*one.leaves, *other.leaves])
    pairs = pair_up(left, right, digests_of)
    are_tensors = [is_tensor_pair(left, right, pair) for pair in pairs]
    tensors = list(compress(pairs, are_tensors))
    rest = list(compress(pairs, map(not_, are_tensors)))
    kept, any_dtype = options.tolerances, options.any_dtype
    for names in (left, right):
        refuse_repetition(leaf.ref for leaf in names.values() if isinstance(leaf, TensorLeaf))
    of_states = other.parameters | one.parameters
    judge = TensorJudge(
        left, right, kept, roles, of_states, strict=options.strict, any_dtype=any_dtype
    )
    engine = Engine(options.device, options.threads or usable_cpus(), progress, ranks)
    judged = judge.judge(tensors, engine.compare)
    values = compare_values(left, right, rest, kept, roles, any_dtype=any_dtype)
    rows = [(each.pair, each.row) for each in judged if each.row and each.row.is_counter]
    counters = tuple(counter_changes(rows, left, right))
    found = _Evidence(pairs, judged, values, judge.unread, roles, counters, (*left_out, *unread))
    for side, names, at in ((one, left, 0), (other, right, 1)):
        if side.checkpoint is not None:
            values_differ = any(row.kind in {"value", "type"} for row in values)
            suspects = _suspects(found, names, at)
            refuse_damaged(side.checkpoint, suspects, values_differ=values_differ)
    return _report(one, other, options, found)


def _only_weights(one: Side, other: Side, layouts: Layouts) -> Iterator[str]:
    """Take the model's weights alone of a directory that is compared with a file of weights.

    Yields:
        What is not compared for that reason.
    """
    for whole, bare in ((one, other), (other, one)):
        has_other_names = bare.is_manifest and not bare.leaves.keys() & whole.leaves.keys()
        is_bare = "" in bare.roles or has_other_names
        is_whole = bool(whole.roles) and "" not in whole.roles and whole.is_folder
        if is_bare and is_whole and whole.take_weights(layouts):
            yield f"all of {whole.text} but its model weights: {bare.text} holds weights alone"


def _of_single_ranks(one: Side, other: Side) -> Iterator[str]:
    """Leave out what single processes keep, if other numbers of them saved the two sides.

    Yields:
        What is not compared for that reason.
    """
    sides = [side.checkpoint for side in (one, other)]
    worlds = [side.world for side in sides if side and side.world and not side.is_part]
    if len(worlds) == 2 and worlds[0] != worlds[1] and one.roles and other.roles:
        for side in (one, other):
            if side.checkpoint and (count := side.leave_out(side.checkpoint.of_one_rank)):
                kept = "1 value" if count == 1 else f"{count:,} values"
                world = side.checkpoint.world
                yield f"{kept} that single ranks keep in {side.text}, of which there are {world}"


def _nothing_left(options: DiffOptions, names: Sequence[str]) -> UsageError:
    """Return the error for globs that leave nothing, with a hint on what to type instead."""
    hint = (
        "ckptool inspect --tensors lists the key paths; a glob fits whole ones: "
        "--match 'model/*' takes all in model"
    )
    globs = options.selection.match
    if globs and not any(fits_one(glob, names) for glob in globs):
        hint = meant(globs[0], names)
    return UsageError("no tensor or value is left to compare", hint=hint)


def _suspects(found: _Evidence, leaves: Leaves, at: int) -> Iterator[TensorRef]:
    """Yield the tensors of a side that differ in so few bytes that it may be damage."""
    for each in found.judged:
        if each.row and each.row.kind == "value" and each.partial:
            ref = leaves[each.pair[at] or ""].ref
            if each.partial.differing * ref.dtype.itemsize <= SUSPECT:
                yield ref


# ------------------------------------------------------------------------------------------- report


SETTINGS = "config"  # the role of plain values that no training changes


class _Evidence(NamedTuple):
    """Results of a comparison, in the order of the tree."""

    pairs: Sequence[Pair]
    judged: Sequence[Judged]
    values: Sequence[ValueDifference]
    unread: Sequence[str]
    roles: Mapping[str, str]
    counters: tuple[CounterDifference, ...]
    files: Sequence[str] = ()  # in a directory, which are not compared

    @property
    def rows(self) -> tuple[TensorDifference, ...]:
        return tuple(each.row for each in self.judged if each.row is not None)


def _report(one: Side, other: Side, options: DiffOptions, found: _Evidence) -> DiffReport:
    rows: list[Row] = [*found.rows, *found.values]
    counted = {row.address: row for row in rows if row.kind != "within"}
    return DiffReport(
        equal=not counted,
        summary=_summary(one, other, found, counted),
        tensors=found.rows,
        values=tuple(found.values),
        a=one.text,
        b=other.text,
        formats=(one.format_name, other.format_name),
        sections=_sections(found),
        layers=tuple(
            _group(name, "", members, 0) for name, members in _members(found, layer_of).items()
        ),
        tolerances=tuple(row._asdict() for row in dict.fromkeys(options.tolerances.rows)),
        strict=options.strict,
        hint=_hint(one, other),
        counters=found.counters,
        unused=tuple(_unused(one, other, options)),
        order=options.order,
    )


def _unused(one: Side, other: Side, options: DiffOptions) -> Iterator[str]:
    if not any(options.asked):
        return
    names = list(dict.fromkeys([*one.leaves, *other.leaves]))
    yield from unused_options(options.asked, names, options.selection, other.roles | one.roles)


def _hint(one: Side, other: Side) -> str | None:
    """Return what to compare instead of a whole checkpoint and a file of weights alone."""
    whole, bare = (one, other) if "" in other.roles else (other, one)
    if "" in whole.roles or not whole.roles or "" not in bare.roles:
        return None
    return f"{bare.text} holds weights alone: compare it with {whole.text}#@model or #@ema"


def _summary(one: Side, other: Side, found: _Evidence, counted: Mapping[str, Row]) -> DiffSummary:
    ordered = [counted[p.address] for p in found.pairs if p.address in counted]
    settings = {row.address for row in found.values if found.roles.get(row.section) == SETTINGS}
    of_state = (row for row in ordered if row.address not in settings)
    kinds, value_kinds = count_kinds(found.rows), count_kinds(found.values)
    paired = [each for each in found.judged if None not in each.pair]
    values = len(found.pairs) - len(found.judged)
    partials = [each.partial for each in found.judged if each.partial is not None]
    return DiffSummary(
        first=_divergence(next(iter(ordered), None), found),
        first_state=_divergence(next(of_state, None), found),
        settings=tuple(row.address for row in ordered if row.address in settings),
        tensors={"compared": len(paired), "equal": _equal(len(found.judged), kinds), **kinds},
        values={"compared": values, "equal": _equal(values, value_kinds), **value_kinds},
        elements=sum(each.elements for each in paired),
        differing=sum(partial.differing for partial in partials),
        bytes=sum(each.nbytes for each in paired),
        **_distances(found.judged),
        not_compared=tuple(_not_compared(one, other, found)),
        roles=tuple(_roles(found)),
    )


def _divergence(row: Row | None, found: _Evidence) -> Divergence | None:
    if row is None:
        return None
    return Divergence(row.section, found.roles.get(row.section, ""), row.address, row.kind)


def _roles(found: _Evidence) -> Iterator[RoleDistance]:
    """Yield the distances of each role: the largest values would decide a number across roles."""

    def role_of(address: str) -> str:
        return found.roles.get(section_of(address, found.roles, of_tensor=True), "")

    for role, members in _members(found, role_of).items():
        differing = sum(each.counts for each in members)
        yield RoleDistance(role=role, differing=differing, **_distances(members))


def _equal(total: int, kinds: Mapping[str, int]) -> int:
    return total - sum(kinds.values())


def _not_compared(one: Side, other: Side, found: _Evidence) -> Iterable[str]:
    for side in (one, other):
        if side.is_manifest:
            yield f"{side.text} holds digests of tensors: no other values, and no distances"
    if found.unread:
        unread = len(found.unread)
        tensors = "1 tensor has" if unread == 1 else f"{unread} tensors have"
        yield f"{tensors} no stored values on either side"
    yield from found.files


# ------------------------------------------------------------------------------------------- groups


def layer_of(address: str) -> str:
    """Return the part of a model that a tensor belongs to: up to its first number, or its module.

    Example:
        >>> layer_of("state_dict/blocks.11.attn.qkv.weight")
        'state_dict/blocks.11'
        >>> layer_of("head.weight")
        'head'
    """
    section, mark, name = address.rpartition("/")
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    kept = parts[: numbered + 1] if numbered is not None else parts[:-1]
    return section + mark + ".".join(kept) if kept else section


def _members(found: _Evidence, group: Callable[[str], str]) -> dict[str, list[Judged]]:
    members: dict[str, list[Judged]] = {}
    for each in found.judged:
        members.setdefault(group(each.pair.address), []).append(each)
    return members


def _sections(found: _Evidence) -> tuple[GroupDistance, ...]:
    members = _members(found, lambda at: section_of(at, found.roles, of_tensor=True))
    values = Counter(row.section for row in found.values if row.kind != "within")
    order = {pair.address: at for at, pair in enumerate(found.pairs)}
    first = {row.section: order[row.address] for row in reversed(found.values)}
    first |= {name: order[group[0].pair.address] for name, group in members.items()}
    return tuple(
        _group(name, found.roles.get(name, ""), members.get(name, []), values[name])
        for name in sorted(first, key=lambda name: first[name])
    )


def _group(name: str, role: str, members: Sequence[Judged], values: int) -> GroupDistance:
    return GroupDistance(
        address=name,
        role=role,
        tensors=len(members),
        differing=sum(each.counts for each in members),
        values_differing=values,
        elements=sum(each.elements for each in members),
        **_distances(members),
    )


def _distances(members: Sequence[Judged]) -> dict[str, Any]:
    """Return the distances of several tensors together, for a group or the summary.

    Floating-point tensors alone count, unless only others differ: the bytes of a random state say
    nothing about the weights beside it. The norms of equal tensors are not taken: their bytes are
    compared, which is much faster. So a report says how many of them a distance is over.
    """
    differing = [
        (each.is_floating, each.partial)
        for each in members
        if each.partial is not None and each.partial.differing and each.has_distance
    ]
    floating = [partial for is_floating, partial in differing if is_floating]
    sums = [partial.sums for partial in floating]
    change = relative_l2(
        math.fsum(s.distance_sq for s in sums),
        math.fsum(s.a_sq for s in sums),
        math.fsum(s.b_sq for s in sums),
    )
    measured = floating or [partial for _, partial in differing]
    return {
        "max_abs": max((partial.max_abs for partial in measured), default=0.0),
        "relative_l2": change if floating or not differing else None,
        "nonfinite": sum(partial.nonfinite for _, partial in differing),
        "measured": len(floating),
        "floating": sum(each.may_have_distance for each in members),
    }
