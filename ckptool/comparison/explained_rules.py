"""The rules that reproduce a conversion, written from the explanation of each tensor.

First every rule is written for single tensors. Then rules that differ in numbers alone, as those of
the layers do, become one with ``*`` for the number. In the end the rules are applied, to references
only: where they do not make what was explained, they are used without ``*``, or left out. A rule is
held against the name of each tensor. Where that would take too long, because a hundred thousand
tensors have a rule each, no rules are written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ckptool.comparison.explanations import (
    Cut,
    Explanations,
    Found,
    Joined,
    Same,
    Stacked,
    sources_of,
)
from ckptool.comparison.tilings import Named, Tiling
from ckptool.errors import CkptError
from ckptool.plans.casts import plan_casting
from ckptool.plans.rule_patterns import Pattern
from ckptool.plans.rules import apply_rules, parse_rule_file
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.tree.nodes import TensorRef
from ckptool.tree.reshaping import joined, lifted, lowered, sliced, transposed

_DIGITS = regex(r"\d+")
# Characters that a rule takes for something else, or that TOML cannot hold.
_UNWRITABLE = regex(r"[*#,=:@\s\x00-\x1f\x7f\ud800-\udfff]")
MAX_MATCHES = 1 << 23  # names that are held against rules
NEW = "new/"  # before new names, where one of them is a name of the source
Tensors = Mapping[str, TensorRef]


class Step(NamedTuple):
    """A rule for single tensors."""

    option: str
    sources: tuple[str, ...]
    targets: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()  # of the parts of a split
    axis: str = ""

    def text(self) -> str:
        """Return the rule as it is written."""
        sizes = self.sizes or (None,) * len(self.targets)
        named = (
            name if size is None else f"{name}:{size}"
            for name, size in zip(self.targets, sizes, strict=True)
        )
        right = f"={','.join(named)}" if self.targets else ""
        return f"{','.join(self.sources)}{right}{self.axis}"


ORDER = ("split", "transpose", "join", "rename", "drop")


def rules_for(found: Explanations, source: Tensors, result: Tensors) -> tuple[str, set[str]]:
    """Return the rules as TOML, and the names of the tensors that they make as explained."""
    writable = {name: each for name, each in found.found.items() if is_writable(name, each)}
    unused = [name for name in found.unused if not _UNWRITABLE.search(name)]
    expected = {name: expected_ref(each) for name, each in writable.items()}
    best: tuple[str, set[str]] = ("", set())
    for shorten in (True, False):
        steps = list(_steps(writable, unused, source))
        lines = _lines(steps, source, shorten=shorten)
        if len(lines) * len(source) > MAX_MATCHES:
            continue
        lines += [("dtype", text) for text in _dtypes(writable, result)]
        text = _toml(lines)
        made = _made_by(text, source)
        right = {
            name
            for name, ref in expected.items()
            if name in made and made[name] == (ref, result[name].dtype.name)
        }
        if len(right) > len(best[1]) or not best[0]:
            best = (text, right)
        if len(right) == len(expected):
            break
    return best


def is_writable(name: str, each: Found) -> bool:
    """Return whether rules can have the name of a tensor and of those that it is made of."""
    return not any(_UNWRITABLE.search(one) for one in (name, *sources_of(each)))


def _made_by(text: str, source: Tensors) -> dict[str, tuple[TensorRef, str]]:
    """Return the tensors that the rules make, with their dtypes; nothing if they do not fit."""
    try:
        file = parse_rule_file(text)
        made = apply_rules(source, file.rules)
        casting = plan_casting(made, file.dtypes)
    except CkptError:
        return {}
    return {name: (ref, casting.dtype_of(ref).name) for name, ref in made.items()}


# --------------------------------------------------------------------------- what is expected


def expected_ref(found: Found) -> TensorRef:
    """Return the tensor that an explanation describes, before a cast."""
    if isinstance(found, Same):
        return transposed(found.source.ref) if found.is_turned else found.source.ref
    if isinstance(found, Joined):
        return _joined_ref(found.tiling)
    if isinstance(found, Stacked):
        return joined([lifted(expected_ref(entry), 0) for entry in found.entries], 0)
    ref = found.source.ref
    if found.number is not None:
        ref = lowered(sliced(ref, 0, found.number, found.number + 1), 0)
    if found.tiling is not None:
        piece = found.tiling.pieces[found.place]
        ref = sliced(ref, found.tiling.axis, piece.begin, piece.end)
    return transposed(ref) if found.is_turned else ref


def _joined_ref(tiling: Tiling) -> TensorRef:
    parts = [transposed(p.tensor.ref) if p.is_turned else p.tensor.ref for p in tiling.pieces]
    return joined(parts, tiling.axis)


# -------------------------------------------------------------------------------- single rules


def _steps(found: Mapping[str, Found], unused: Sequence[str], source: Tensors) -> Iterator[Step]:
    """Yield the rules for single tensors, in an order in which they can be applied."""
    kept = {
        name for name, each in found.items()
        if isinstance(each, Same) and each.source.name == name
    }  # fmt: skip
    new = NEW if any(name in source for name in found.keys() - kept) else ""
    steps: list[Step] = []
    for name, each in found.items():
        steps += _steps_of(name, each, new)
    steps += _cuts(found, new)
    ranks = {option: at for at, option in enumerate(ORDER)}
    unique = dict.fromkeys(steps)
    yield from sorted(unique, key=lambda step: (ranks[step.option], step.axis.startswith("@+")
                                                == (step.option == "join")))  # fmt: skip
    for name in unused:
        yield Step("drop", (name,))
    if new:
        yield Step("map", (f"^{NEW}",), ("",))


def _steps_of(name: str, found: Found, new: str) -> Iterator[Step]:
    if isinstance(found, Same):
        if found.is_turned:
            yield Step("transpose", (found.source.name,))
        if found.source.name != name:
            yield Step("rename", (found.source.name,), (new + name,))
    elif isinstance(found, Joined):
        yield from _join(found.tiling, new + name)
    elif isinstance(found, Stacked):
        parts: list[str] = []
        for at, entry in enumerate(found.entries):
            if isinstance(entry, Same):
                parts.append(entry.source.name)
                if entry.is_turned:
                    yield Step("transpose", (entry.source.name,))
            else:
                parts.append(f"{new}{name}/{at}")
                yield from _join(entry.tiling, parts[-1])
        yield Step("join", tuple(parts), (new + name,), axis="@+0")


def _join(tiling: Tiling, name: str) -> Iterator[Step]:
    for piece in tiling.pieces:
        if piece.is_turned:
            yield Step("transpose", (piece.tensor.name,))
    names = tuple(piece.tensor.name for piece in tiling.pieces)
    yield Step("join", names, (name,), axis=f"@{tiling.axis}" if tiling.axis else "")


def _cuts(found: Mapping[str, Found], new: str) -> Iterator[Step]:
    """Yield the splits of all tensors that are cut, with what has to be done to their parts."""
    cuts: dict[str, dict[int | None, list[tuple[str, Cut]]]] = {}
    for name, each in found.items():
        if isinstance(each, Cut):
            cuts.setdefault(each.source.name, {}).setdefault(each.number, []).append((name, each))
    for by_number in cuts.values():
        source = next(iter(by_number.values()))[0][1].source
        if None not in by_number:
            yield Step("split", (source.name,), (f"{source.name}/#",), axis="@+0")
            for gap in sorted(set(range(source.ref.shape[0])) - by_number.keys()):
                yield Step("drop", (f"{source.name}/{gap}",))
        for number, rows in by_number.items():
            whole = source.name if number is None else f"{source.name}/{number}"
            yield from _parts(source, whole, rows, new)


def _parts(source: Named, whole: str, rows: Sequence[tuple[str, Cut]], new: str) -> Iterator[Step]:
    tiling = rows[0][1].tiling
    for name, cut in rows:
        if cut.is_turned:
            yield Step("transpose", (whole if tiling is None else new + name,))
    if tiling is None:
        yield Step("rename", (whole,), (new + rows[0][0],))
        return
    names = {cut.place: new + name for name, cut in rows}
    axis = tiling.axis + (rows[0][1].number is not None)
    gaps = tiling.gaps(source.ref.shape[axis])
    parts = [(piece.begin, piece.end, names[at]) for at, piece in enumerate(tiling.pieces)]
    parts += [(begin, end, f"{whole}/rest{at}") for at, (begin, end) in enumerate(gaps)]
    parts.sort()
    sizes = tuple(end - begin for begin, end, _ in parts)
    yield Step(
        "split", (whole,), tuple(name for *_, name in parts),
        sizes if len(set(sizes)) > 1 else (), f"@{tiling.axis}" if tiling.axis else "",
    )  # fmt: skip
    for _, _, name in parts[: len(parts) if gaps else 0]:
        if "/rest" in name:
            yield Step("drop", (name,))


def _dtypes(found: Mapping[str, Found], result: Tensors) -> list[str]:
    """Return the casts: the most common dtype for all, and the others by name."""
    floats = {name: result[name].dtype for name in found if result[name].dtype.kind == "float"}
    is_cast = any(
        expected_ref(each).dtype is not result[name].dtype for name, each in found.items()
    )
    if not is_cast or not floats:
        return []
    common, _ = Counter(floats.values()).most_common(1)[0]
    others = [f"{name}={dtype.name}" for name, dtype in floats.items() if dtype is not common]
    return [common.name, *others]


# ------------------------------------------------------------------------------- rules for many


def _lines(steps: Sequence[Step], source: Tensors, *, shorten: bool) -> list[tuple[str, str]]:
    """Return the rules; with ``shorten``, those that differ in numbers alone as one."""
    groups: dict[object, list[Step]] = {}
    for step in steps:
        key = (_blank(step), step.option, step.sizes, step.axis) if shorten else id(step)
        groups.setdefault(key, []).append(_counted(step) if shorten else step)
    lines: list[tuple[str, str]] = []
    names = {*source, *(name for step in steps for name in step.targets)}
    matches = 0
    for members in groups.values():
        together = _together(members) if len(members) > 1 else None
        matches += len(together.sources) * len(names) if together else 0
        if together and matches <= MAX_MATCHES and _fits_only(together, members, names):
            members = [together]  # noqa: PLW2901
        lines += [(step.option, step.text()) for step in members]
    return _gathered(lines)


def _gathered(lines: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the rules with neighbours of one kind, whose names are a list, as one."""
    made: list[tuple[str, str]] = []
    for option, text in lines:
        if made and made[-1][0] == option and option in {"transpose", "drop"}:
            made[-1] = (option, f"{made[-1][1]},{text}")
        else:
            made.append((option, text))
    return made


def _blank(step: Step) -> tuple[tuple[str, ...], ...]:
    sources, targets = step.sources, step.targets
    if step.option == "join" and step.axis.startswith("@+"):
        sources = sources[:1]  # of a stack of any number
    return tuple(tuple(_DIGITS.sub("0", name) for name in side) for side in (sources, targets))


def _counted(step: Step) -> Step:
    """Return a stack with ``#`` for the numbers of its parts, if these are 0, 1 and so on."""
    if step.option != "join" or not step.axis.startswith("@+"):
        return step
    numbers = [_DIGITS.findall(name) for name in step.sources]
    shapes = {_DIGITS.sub("0", name) for name in step.sources}
    if len(shapes) > 1:
        return step
    varying = [at for at, column in enumerate(zip(*numbers, strict=True)) if len(set(column)) > 1]
    wanted = [str(at) for at in range(len(numbers))]
    if len(varying) != 1 or [row[varying[0]] for row in numbers] != wanted:
        return step
    slots = iter(range(len(numbers[0])))
    name = _DIGITS.sub(lambda m: "#" if next(slots) == varying[0] else m[0], step.sources[0])
    return step._replace(sources=(name,))


def _together(steps: Sequence[Step]) -> Step | None:
    """Return one rule for several that differ in numbers alone; None if there is none."""
    sides = [(*step.sources, *step.targets) for step in steps]
    if len({len(names) for names in sides}) > 1:
        return None
    made: list[str] = []
    stars: list[tuple[tuple[str, ...], ...]] = []
    for names in zip(*sides, strict=True):
        columns = list(zip(*(_DIGITS.findall(name) for name in names), strict=True))
        varying = [at for at, column in enumerate(columns) if len(set(column)) > 1]
        stars.append(tuple(columns[at] for at in varying))
        slots = iter(range(len(columns)))
        made.append(_DIGITS.sub(lambda m: "*" if next(slots) in varying else m[0], names[0]))  # noqa: B023
    if not stars[0] or len(set(stars)) > 1:
        return None
    count = len(steps[0].sources)
    return steps[0]._replace(sources=tuple(made[:count]), targets=tuple(made[count:]))


def _fits_only(together: Step, members: Sequence[Step], names: Iterable[str]) -> bool:
    """Return whether a rule takes the tensors of the single rules, and no others."""
    meant = {name for step in members for name in step.sources}
    counted = [Pattern(name) for name in meant if "#" in name]
    return not any(
        pattern.match(name) and name not in meant and not any(one.match(name) for one in counted)
        for pattern in map(Pattern, together.sources)
        for name in names
    )


def _toml(lines: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f"[[rule]]\n{option} = {json.dumps(text, ensure_ascii=False)}\n" for option, text in lines
    )
