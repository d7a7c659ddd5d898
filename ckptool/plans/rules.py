"""Rules that cut, join, transpose and rename tensors: ``--split``, ``--join``, … and rule files.

A rule goes by names (``rule_patterns.py``). It consumes the tensors that it fits, whole, and makes
others of them; all other tensors stay. So nothing is lost and nothing doubled: a split takes all of
a tensor, a join all parts or none, and two tensors of one name are refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ckptool.contents.globs import meant
from ckptool.contents.renames import parse_rename, renamed_by
from ckptool.errors import CkptError, UsageError
from ckptool.plans.rule_patterns import Axis, Pattern, check_stars, names_of, sides_of
from ckptool.records import NamedTuple
from ckptool.toml import load_toml
from ckptool.tree.nodes import TensorRef
from ckptool.tree.reshaping import joined, lifted, lowered, sliced, transposed

Tensors = Mapping[str, TensorRef]


class Rule(ABC):
    """A rule as it was written, and the patterns of the names that it takes."""

    _sources: Sequence[Pattern] = ()

    def __init__(self, text: str) -> None:
        self.text = text

    def fits(self, name: str) -> bool:
        """Return whether the rule takes a tensor of this name."""
        return any(source.match(name) is not None for source in self._sources)

    def refuse_unused(self, tensors: Tensors) -> None:
        """Refuse tensors of which a pattern fits none."""
        for source in self._sources:
            if not any(source.match(name) is not None for name in tensors):
                hint = meant(source.text, list(tensors), "names")
                raise UsageError(f"no tensor's name fits {source.text!r}", hint=hint)

    @abstractmethod
    def apply(self, tensors: Tensors) -> Iterator[tuple[str, TensorRef]]:
        """Yield all tensors after the rule, under their names."""


class Split(Rule):
    """``GLOB=NAME[:SIZE],…[@AXIS]``: the parts of a tensor along a dimension, by default 0.

    Parts without a size are equal. ``@+AXIS`` removes the dimension; then a single name has a ``#``
    for the index.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        sources, targets, self._axis = sides_of(text, "GLOB=NAME,NAME")
        sized = [_with_size(target) for target in targets]
        self._sources, self._sizes = [Pattern(sources[0])], [size for _, size in sized]
        self._targets = [Pattern(name) for name, _ in sized]
        self._is_numbered = any(target.has_number for target in self._targets)
        if len(sources) > 1 or self._sources[0].has_number:
            raise UsageError("one pattern is split, and it has no #")
        if self._is_numbered and len(targets) > 1:
            raise UsageError("a name with # is the only one")
        check_stars(self._sources, self._targets)

    def apply(self, tensors: Tensors) -> Iterator[tuple[str, TensorRef]]:
        """Yield the parts at the place of each tensor that is split."""
        for name, ref in tensors.items():
            bound = self._sources[0].match(name)
            if bound is None:
                yield name, ref
                continue
            at, begin = self._axis.of(len(ref.shape)), 0
            for target, number, size in self._parts(ref.shape[at]):
                part = _named(name, sliced, ref, at, begin, begin + size)
                part = _named(name, lowered, part, at) if self._axis.is_new else part
                yield target.filled(bound.stars, number), part
                begin += size

    def _parts(self, whole: int) -> list[tuple[Pattern, int | None, int]]:
        """Return the name, the number and the size of each part."""
        if self._is_numbered:
            return [(self._targets[0], number, 1) for number in range(whole)]
        unsized = self._sizes.count(None)
        rest = whole - sum(size or 0 for size in self._sizes)
        equal, odd = divmod(rest, unsized) if unsized else (0, rest)
        sizes = [equal if size is None else size for size in self._sizes]
        if odd or rest < 0 or (self._axis.is_new and set(sizes) != {1}):
            raise UsageError(f"{len(sizes)} parts do not make a dimension of {whole}")
        return [(name, None, size) for name, size in zip(self._targets, sizes, strict=True)]


class Join(Rule):
    """``GLOB,GLOB=NAME[@AXIS]``: tensors one after the other along a dimension, by default 0.

    ``@+AXIS`` stacks them along a new dimension. A single pattern with a ``#`` takes its numbers.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        sources, targets, self._axis = sides_of(text, "GLOB,GLOB=NAME")
        self._sources, self._target = list(map(Pattern, sources)), Pattern(targets[0])
        self._is_numbered = any(source.has_number for source in self._sources)
        if len(targets) > 1 or self._target.has_number:
            raise UsageError("tensors are joined to one, whose name has no #")
        if self._is_numbered and len(sources) > 1:
            raise UsageError("a pattern with # is the only one")
        check_stars(self._sources, [self._target])

    def apply(self, tensors: Tensors) -> Iterator[tuple[str, TensorRef]]:
        """Yield the joined tensor at the place of the first of its parts."""
        groups = self._groups(tensors)
        taken = {name for members in groups.values() for name in members.values()}
        begun: set[tuple[str, ...]] = set()
        for name, ref in tensors.items():
            stars = self._member(name)[0] if name in taken else None
            if stars is None:
                yield name, ref
            elif stars not in begun:
                begun.add(stars)
                parts = [tensors[each] for _, each in sorted(groups[stars].items())]
                yield self._target.filled(stars), _named(name, _together, parts, self._axis)

    def _groups(self, tensors: Tensors) -> dict[tuple[str, ...], dict[int, str]]:
        """Return the names of the parts of each joined tensor, by their places in it."""
        groups: dict[tuple[str, ...], dict[int, str]] = {}
        for name in tensors:
            if self.fits(name):
                stars, place = self._member(name)
                groups.setdefault(stars, {})[place] = name
        for stars, members in groups.items():
            wanted = range(len(members) if self._is_numbered else len(self._sources))
            missing = next((n for n in wanted if n not in members), None)
            if missing is not None:
                source = self._sources[0 if self._is_numbered else missing]
                raise UsageError(f"there is no {source.filled(stars, missing)!r} to join")
        return groups

    def _member(self, name: str) -> tuple[tuple[str, ...], int]:
        """Return the stars of a name, and its place among the parts."""
        found = ((source.match(name), place) for place, source in enumerate(self._sources))
        bound, place = next((bound, place) for bound, place in found if bound is not None)
        return bound.stars, place if bound.number is None else bound.number


class Transpose(Rule):
    """``GLOB,GLOB``: the last two dimensions swapped."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sources = list(map(Pattern, names_of(text)))

    def apply(self, tensors: Tensors) -> Iterator[tuple[str, TensorRef]]:
        """Yield the tensors."""
        for name, ref in tensors.items():
            yield name, _named(name, transposed, ref) if self.fits(name) else ref


class Map(Rule):
    """``REGEX=REPL``: other names, as ``--map`` makes them."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._rename = parse_rename(text)

    def fits(self, name: str) -> bool:
        """Return whether the tensor's name matches."""
        return self._rename[0].search(name) is not None

    def refuse_unused(self, tensors: Tensors) -> None:
        """Refuse tensors of which none has a name that matches."""
        if not any(map(self.fits, tensors)):
            raise UsageError(f"no tensor's name matches {self._rename[0].pattern!r}")

    def apply(self, tensors: Tensors) -> Iterator[tuple[str, TensorRef]]:
        """Yield the tensors."""
        for name, ref in tensors.items():
            yield renamed_by([self._rename], name), ref


class Rename(Rule):
    """``GLOB=NAME``: other names, with what the stars of the glob match."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        sources, targets, axis = sides_of(text, "GLOB=NAME")
        if len(sources) > 1 or len(targets) > 1 or axis != Axis():
            raise UsageError("one pattern gets one name")
        self._sources, self._target = [Pattern(sources[0])], Pattern(targets[0])
        check_stars(self._sources, [self._target])

    def apply(self, tensors: Tensors) -> Iterator[tuple[str, TensorRef]]:
        """Yield the tensors."""
        for name, ref in tensors.items():
            found = self._sources[0].match(name)
            yield name if found is None else self._target.filled(*found), ref


class Drop(Rule):
    """``GLOB,GLOB``: tensors that are left out."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sources = list(map(Pattern, names_of(text)))

    def apply(self, tensors: Tensors) -> Iterator[tuple[str, TensorRef]]:
        """Yield the other tensors."""
        for name, ref in tensors.items():
            if not self.fits(name):
                yield name, ref


# Options, and rules that only a file has, since other options do the same.
RULES: Mapping[str, type[Rule]] = {
    "split": Split, "join": Join, "transpose": Transpose, "map": Map, "rename": Rename,
    "drop": Drop,
}  # fmt: skip


def parse_rule(option: str, text: str) -> Rule:
    """Return the rule of an option.

    Raises:
        UsageError: there is no such rule, or it is written in another way.
    """
    if option not in RULES:
        raise UsageError(f"no rule is called {option!r:.60}", hint=f"rules: {', '.join(RULES)}")
    with _told(option, text):
        return RULES[option](text)


class RuleFile(NamedTuple):
    """The content of a file of rules."""

    rules: tuple[Rule, ...]
    takes_all: bool = False  # a tensor that no rule fits is refused
    dtypes: tuple[str, ...] = ()  # as ``--dtype`` has them


def parse_rule_file(text: str) -> RuleFile:
    """Return the rules of a TOML file, in their order.

    Each ``[[rule]]`` has one key, an option, with the text of that option. ``every_tensor = true``
    refuses tensors that no rule fits.

    Raises:
        UsageError: it is no such file.
    """
    try:
        content = load_toml(text)
    except ValueError as error:
        raise UsageError(f"no TOML: {error}") from error
    rows, takes_all = content.pop("rule", []), content.pop("every_tensor", False)
    if content or not isinstance(takes_all, bool) or not isinstance(rows, list):
        raise UsageError("a file of rules has [[rule]] tables, and maybe every_tensor = true")
    pairs = list(map(_pair_of, rows))
    rules = tuple(parse_rule(option, text) for option, text in pairs if option != "dtype")
    return RuleFile(rules, takes_all, tuple(text for option, text in pairs if option == "dtype"))


def _pair_of(row: Any) -> tuple[str, str]:
    pairs = list(row.items()) if isinstance(row, dict) else []
    if len(pairs) != 1 or not isinstance(pairs[0][1], str):
        raise UsageError('a [[rule]] has one key, such as split = "*.qkv=*.q,*.k,*.v"')
    return pairs[0]


def apply_rules(tensors: Tensors, rules: Sequence[Rule]) -> dict[str, TensorRef]:
    """Return the tensors after all rules, in their order.

    Raises:
        UsageError: a rule fits nothing, or not as it is written; or two tensors get one name.
        UnsupportedError: tensors that cannot be cut or joined.
    """
    made = dict(tensors)
    for rule in rules:
        with _told(_option_of(rule), rule.text):
            rule.refuse_unused(made)
            after = _unique(rule.apply(made))
        counts = [sum(ref.nbytes for ref in each.values()) for each in (made, after)]
        is_all = counts[0] == counts[1] or isinstance(rule, Drop)
        assert is_all, "a rule makes all of what it takes"
        made = after
    return made


def _unique(rows: Iterator[tuple[str, TensorRef]]) -> dict[str, TensorRef]:
    made: dict[str, TensorRef] = {}
    for name, ref in rows:
        if name in made:
            raise UsageError(f"two tensors would be called {name!r}")
        made[name] = ref
    return made


def unfitted(tensors: Tensors, rules: Sequence[Rule]) -> list[str]:
    """Return the names that no rule fits."""
    return [name for name in tensors if not any(rule.fits(name) for rule in rules)]


# ---------------------------------------------------------------------------------------- helpers


def _with_size(text: str) -> tuple[str, int | None]:
    """Return a name and its size: ``q:4096``."""
    name, mark, size = text.rpartition(":")
    return (name, int(size)) if mark and size.isdecimal() and len(size) < 12 else (text, None)


def _together(parts: list[TensorRef], axis: Axis) -> TensorRef:
    at = axis.of(len(parts[0].shape) + axis.is_new)
    return joined([lifted(part, at) for part in parts] if axis.is_new else parts, at)


def _named(name: str, make: Callable[..., TensorRef], *args: Any) -> TensorRef:
    """Return what a function makes of a tensor; its errors get the tensor's name."""
    try:
        return make(*args)
    except CkptError as error:
        error.address = error.address or name
        raise


def _option_of(rule: Rule) -> str:
    return next(option for option, kind in RULES.items() if isinstance(rule, kind))


@contextmanager
def _told(option: str, text: str) -> Iterator[None]:
    """Put the rule before the message of an error."""
    try:
        yield
    except CkptError as error:
        error.message = f"--{option} {text!r}: {error.message}"
        error.args = (error.message,)
        raise
