"""Pairs of key paths, one from each side, that belong together.

Equal key paths are paired first. Of the tensors that are then left on both sides, some were only
renamed. Three rules find them, the surest first:

1. the same name without the components that wrappers put in (``module.``, ``_orig_mod.``);
2. the same content: on each side exactly one of the tensors left has these bytes;
3. the same name under another prefix, when one pair of prefixes fits and no other does.

A renamed tensor is a difference, since a loader looks for names. With ``--map`` it is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from ckptool.comparison.leaves import Leaf, TensorLeaf, form_of, is_tensor
from ckptool.contents.alignment import align_names, unwrapped
from ckptool.contents.globs import fits_one
from ckptool.contents.renames import Rename, parse_rename, renamed_by
from ckptool.errors import UsageError
from ckptool.records import NamedTuple
from ckptool.tree.nodes import TensorRef


class Pair(NamedTuple):
    """Two key paths that belong together, or one alone."""

    a: str | None
    b: str | None

    @property
    def address(self) -> str:
        """The key path of the first side, or the only one."""
        if self.a is not None:
            return self.a
        assert self.b is not None
        return self.b


class Selection(NamedTuple):
    """Choice of the leaves to compare: by globs after the renames, or by role or top-level key."""

    match: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    renames: tuple[Rename, ...] = ()


class Asked(NamedTuple):
    """Options that were typed; those of a configuration are for many checkpoints."""

    match: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    renames: tuple[str, ...] = ()
    tolerances: tuple[str, ...] = ()


def merge_selection(
    settings: Mapping[str, Any],
    *,
    match: Sequence[str] = (),
    ignore: Sequence[str] = (),
    renames: Sequence[str] = (),
) -> Selection:
    """Merge the selection of a configuration with that of the command line.

    ``match`` replaces the configured globs; ``ignore`` and ``renames`` are added to them.

    Raises:
        UsageError: a map has another form.
    """
    return Selection(
        match=tuple(match) or tuple(settings.get("match", ())),
        ignore=(*settings.get("ignore", ()), *ignore),
        renames=tuple(map(parse_rename, (*settings.get("map", ()), *renames))),
    )


Roles = Mapping[str, str]  # by top-level key; that of weights at the top is under ""


def select_leaves(
    leaves: Mapping[str, Leaf], selection: Selection, roles: Roles = MappingProxyType({})
) -> dict[str, Leaf]:
    """Return the leaves to compare, renamed by the maps, then chosen by the globs.

    Raises:
        UsageError: the maps give two leaves one name.
    """
    if not any(selection):
        return dict(leaves)
    chosen: dict[str, Leaf] = {}
    for address, leaf in leaves.items():
        name = renamed_by(selection.renames, address)
        if not _is_chosen(name, _words_for(address, roles), selection):
            continue
        if name in chosen:
            raise UsageError(
                f"--map gives two key paths one name: {name!r}",
                hint="make the regular expression narrower: ^ and $ are the ends of a key path",
            )
        chosen[name] = leaf
    return chosen


def _words_for(address: str, roles: Roles) -> tuple[str, str]:
    """Return the words that stand for all of a part: its top-level key, and its role."""
    key = address.partition("/")[0]
    return key, roles.get(key, roles.get("", ""))


def unused_options(
    asked: Asked, names: Sequence[str], selection: Selection, roles: Roles = MappingProxyType({})
) -> Iterator[str]:
    """Yield the options that were typed and fit none of the names of either side.

    Each map is tried on the names that the maps before it leave. Globs are tried on the names that
    all maps leave, and tolerances on those of them that the globs choose.
    """
    renamed = list(names)
    typed = {parse_rename(text): text for text in asked.renames}
    for rename in selection.renames:
        pattern, replacement = rename
        if rename in typed and not any(map(pattern.search, renamed)):
            yield f"--map {typed[rename]!r}"
        renamed = [pattern.sub(replacement, name) for name in renamed]
    words = [_words_for(name, roles) for name in names]
    known = {word for both in words for word in both}
    for option, globs in (("--match", asked.match), ("--ignore", asked.ignore)):
        unfit = (glob for glob in globs if glob not in known and not fits_one(glob, renamed))
        yield from (f"{option} {glob!r}" for glob in unfit)
    kept = [
        name for name, both in zip(renamed, words, strict=True) if _is_chosen(name, both, selection)
    ]
    for text in asked.tolerances:
        if not fits_one(text.rpartition("=")[0], kept):
            yield f"--tolerance {text!r}"


def _is_chosen(name: str, words: tuple[str, str], selection: Selection) -> bool:
    def fits(glob: str) -> bool:
        return glob in words or fnmatchcase(name, glob)

    wanted = not selection.match or any(map(fits, selection.match))
    return wanted and not any(map(fits, selection.ignore))


Digests = Callable[[Sequence[Leaf]], Sequence[str]]


def pair_up(a: Mapping[str, Leaf], b: Mapping[str, Leaf], digests: Digests) -> list[Pair]:
    """Return all pairs in the order of ``a``; names of ``b`` alone keep their place in ``b``."""
    left = {name: leaf for name, leaf in a.items() if name not in b and is_tensor(leaf)}
    right = {name: leaf for name, leaf in b.items() if name not in a and is_tensor(leaf)}
    renamed: dict[str, str] = {}
    for rule in (_by_wrapper, lambda x, y: _by_content(x, y, digests), _by_prefix):
        if left and right:
            found = rule(left, right)
            renamed |= found
            left = {name: leaf for name, leaf in left.items() if name not in found}
            taken = set(found.values())
            right = {name: leaf for name, leaf in right.items() if name not in taken}
    return _ordered(a, b, renamed)


def _ordered(a: Mapping[str, Leaf], b: Mapping[str, Leaf], renamed: dict[str, str]) -> list[Pair]:
    """Put the pairs in the order of ``a``; a name of ``b`` alone follows its predecessor there."""
    partner = {name: renamed.get(name, name if name in b else None) for name in a}
    taken = {other for other in partner.values() if other is not None}
    following: dict[str | None, list[Pair]] = {}
    before: str | None = None
    for name in b:
        if name in taken:
            before = name
        else:
            following.setdefault(before, []).append(Pair(None, name))
    pairs = list(following.get(None, ()))
    for name, other in partner.items():
        pairs.append(Pair(name, other))
        pairs += following.get(other, ()) if other is not None else ()
    return pairs


def _by_wrapper(left: Mapping[str, Leaf], right: Mapping[str, Leaf]) -> dict[str, str]:
    ours, theirs = (_unique({name: unwrapped(name) for name in side}) for side in (left, right))
    return {name: theirs[bare] for bare, name in ours.items() if bare in theirs}


def _unique(keys: Mapping[str, str]) -> dict[str, str]:
    """Map each key that a single name has to that name."""
    times = Counter(keys.values())
    return {found: name for name, found in keys.items() if times[found] == 1}


def _by_content(
    left: Mapping[str, Leaf], right: Mapping[str, Leaf], digests: Digests
) -> dict[str, str]:
    """Pair by digest; read only tensors of a dtype and shape that both sides have left."""
    shared = {form_of(leaf) for leaf in left.values()} & {form_of(leaf) for leaf in right.values()}
    alike = (
        {name: leaf for name, leaf in side.items() if form_of(leaf) in shared}
        for side in (left, right)
    )
    ours, theirs = (
        _unique(dict(zip(side, digests(list(side.values())), strict=True))) for side in alike
    )
    return {name: theirs[found] for found, name in ours.items() if found in theirs}


def _by_prefix(left: Mapping[str, Leaf], right: Mapping[str, Leaf]) -> dict[str, str]:
    ours, theirs = _dotted(left), _dotted(right)
    if not ours or not theirs:
        return {}
    found = align_names(
        {name: ref for name, (_, ref) in ours.items()},
        {name: ref for name, (_, ref) in theirs.items()},
    )
    if found.rivals or found.colliding or found.naming not in {"same", "prefixed", "wrapped"}:
        return {}
    pairs = {name: other for name, other in found.pairs.items() if name not in found.tied}
    return {ours[name][0]: theirs[other][0] for name, other in pairs.items()}


def _dotted(side: Mapping[str, Leaf]) -> dict[str, tuple[str, TensorRef]]:
    """Map key paths as names, which have dots only, to (key path, tensor)."""
    return {
        name.replace("/", "."): (name, leaf.ref)
        for name, leaf in side.items()
        if isinstance(leaf, TensorLeaf)
    }
