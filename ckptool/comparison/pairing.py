"""Which address of one side belongs to which of the other.

By equal address first. Of the tensors that are then left on both sides, some were only renamed,
and three rules find them, the surest first:

1. the same name without the components that wrappers put in (``module.``, ``_orig_mod.``);
2. the same content: one tensor left on either side has these bytes, and no other has;
3. the same name under another prefix, when one pair of prefixes fits and no other does.

A renamed tensor is a difference, since a loader looks for names; ``--map`` makes it none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from ckptool.alignment import align_names, unwrapped
from ckptool.comparison.leaves import Digest, Held, Leaf, is_tensor
from ckptool.errors import UsageError
from ckptool.tree import TensorRef

Rename = tuple[re.Pattern[str], str]


class Pair(NamedTuple):
    """Two addresses that belong together, or one alone."""

    a: str | None
    b: str | None

    @property
    def address(self) -> str:
        """The first side's name, or the only one."""
        if self.a is not None:
            return self.a
        assert self.b is not None
        return self.b


class Selection(NamedTuple):
    """What of both sides is compared, and under which names."""

    match: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    renames: tuple[Rename, ...] = ()


def parse_rename(text: str) -> Rename:
    """``REGEX=REPL``, cut at the last ``=``.

    Raises:
        UsageError: no ``=``, or no regular expression.
    """
    pattern, mark, replacement = text.rpartition("=")
    if not mark or not pattern:
        raise UsageError(f"a map is REGEX=REPL, not {text!r}")
    try:
        compiled = re.compile(pattern)
        compiled.sub(replacement, "")
        re.compile(f"{pattern}|").sub(replacement, "")  # a replacement is only parsed when used
    except (re.error, IndexError) as error:
        raise UsageError(f"--map {text!r}: {error}") from error
    return compiled, replacement


def select_leaves(leaves: Mapping[str, Leaf], selection: Selection) -> dict[str, Leaf]:
    """The leaves to compare, renamed by the maps, then chosen by the globs.

    Raises:
        UsageError: the maps give two tensors one name.
    """
    chosen: dict[str, Leaf] = {}
    for address, leaf in leaves.items():
        name = address
        for pattern, replacement in selection.renames:
            name = pattern.sub(replacement, name)
        if not _is_chosen(name, selection):
            continue
        if name in chosen:
            raise UsageError(
                f"--map gives two places one name: {name!r}",
                hint="make the regular expression narrower: ^ and $ are the ends of an address",
            )
        chosen[name] = leaf
    return chosen


def _is_chosen(name: str, selection: Selection) -> bool:
    wanted = not selection.match or any(fnmatchcase(name, glob) for glob in selection.match)
    return wanted and not any(fnmatchcase(name, glob) for glob in selection.ignore)


Digests = Callable[[Sequence[Leaf]], Sequence[str]]


def pair_up(a: Mapping[str, Leaf], b: Mapping[str, Leaf], digests: Digests) -> list[Pair]:
    """All pairs in the order of ``a``, what only ``b`` has at the place where it stands there."""
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
    """The order of ``a``; what is only in ``b`` follows its predecessor there."""
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
    """Key -> the only name that has it."""
    times = Counter(keys.values())
    return {found: name for name, found in keys.items() if times[found] == 1}


def _by_content(
    left: Mapping[str, Leaf], right: Mapping[str, Leaf], digests: Digests
) -> dict[str, str]:
    """Read only where both sides have something of that type and shape left."""
    shared = {_form(leaf) for leaf in left.values()} & {_form(leaf) for leaf in right.values()}
    alike = (
        {name: leaf for name, leaf in side.items() if _form(leaf) in shared}
        for side in (left, right)
    )
    ours, theirs = (
        _unique(dict(zip(side, digests(list(side.values())), strict=True))) for side in alike
    )
    return {name: theirs[found] for found, name in ours.items() if found in theirs}


def _form(leaf: Leaf) -> tuple[str, tuple[int, ...]]:
    if isinstance(leaf, Digest):
        return leaf.dtype, leaf.shape
    return leaf.ref.dtype.name, leaf.ref.shape


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
    """Addresses as names, which have dots only."""
    return {
        name.replace("/", "."): (name, leaf.ref)
        for name, leaf in side.items()
        if isinstance(leaf, Held)
    }
