"""A test whether an optimizer's states are in an order that its parameters can have.

An optimizer numbers parameters in the order in which it gets them. Usually that is the model's
order, but a script may give the head before the backbone, weights before biases, or large tensors
first. So the shapes of the moments are compared with every order that people use. If none fits,
although the shapes are those of the model's parameters, the states were permuted: by a loader that
sorted ``"10"`` before ``"2"``, or by groups that were rebuilt in another order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import prod

Shape = tuple[int, ...]
Parameter = tuple[str, Shape]
Group = Sequence[Shape | None]
MAX_STEPS = 20_000  # steps of the search among orders of parts


def is_explained(groups: Sequence[Group], parameters: Sequence[Parameter]) -> bool:
    """Return whether the shapes of all groups follow one usual order of the model's parameters.

    A group may hold a part of the parameters. A shape of ``None`` is a parameter without moments.
    """
    return any(
        all(_follows(group, order) for group in groups) for order in _orders(parameters)
    ) or all(_in_parts(group, parameters) for group in groups)


def _follows(group: Group, order: Sequence[Parameter]) -> bool:
    """Return whether the group is a subsequence of the order; the first fitting place is best."""
    places = iter(order)
    return all(any(shape is None or shape == wanted for _, wanted in places) for shape in group)


def _orders(parameters: Sequence[Parameter]) -> Iterator[Sequence[Parameter]]:
    yield parameters
    yield list(reversed(parameters))
    yield sorted(parameters)
    for size in (len, prod):  # the number of dimensions, and of elements
        yield sorted(parameters, key=lambda each: size(each[1]))
        yield sorted(parameters, key=lambda each: size(each[1]), reverse=True)
    kinds = list(dict.fromkeys(_kind(parameter) for parameter in parameters))
    for order in (kinds, kinds[::-1]):
        yield sorted(parameters, key=lambda each: order.index(_kind(each)))


def _kind(parameter: Parameter) -> str:
    return parameter[0].rpartition(".")[2]


def _in_parts(group: Group, parameters: Sequence[Parameter]) -> bool:
    """Return whether the group is all parts of the model in any order, each in its own order.

    Parts have names. The numbered layers of a ``Sequential`` are given as a whole, so they are no
    parts.
    """
    parts: dict[str, list[Shape]] = {}
    shared = _shared_prefix([name for name, _ in parameters])
    for name, shape in parameters:
        first, _, rest = name.removeprefix(shared).partition(".")
        parts.setdefault(first if rest else name, []).append(shape)
    if any(part.isdecimal() for part in parts) or len(parts) < 2:
        return False
    return _cut(list(group), Counter(tuple(shapes) for shapes in parts.values()), [MAX_STEPS])


def _shared_prefix(names: Sequence[str]) -> str:
    """Return the prefix that wrappers put before every name: ``module.``, ``model.net.``."""
    prefix = ""
    while names:
        first, dot, _ = names[0].removeprefix(prefix).partition(".")
        longer = prefix + first + dot
        if not dot or not all(name.startswith(longer) for name in names):
            break
        prefix = longer
    return prefix


def _cut(group: list[Shape | None], parts: Counter[tuple[Shape, ...]], steps: list[int]) -> bool:
    """Return whether the group can be cut into the parts; True if the search takes too long."""
    waiting: list[tuple[int, Counter[tuple[Shape, ...]]]] = [(0, parts)]
    while waiting and steps[0] > 0:
        start, left = waiting.pop()
        if start == len(group):
            return True
        for part in left:
            steps[0] -= 1
            here = group[start : start + len(part)]
            if len(here) == len(part) and all(
                one is None or one == other for one, other in zip(here, part, strict=True)
            ):
                waiting.append((start + len(part), left - Counter([part])))
    return bool(waiting)  # too many steps: assume that nothing is wrong
