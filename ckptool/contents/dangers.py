"""Findings on the code that a pickle would run: exact name, key path and arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ckptool.formats.base import DANGEROUS, UNKNOWN, Checkpoint, NamedGlobal
from ckptool.formats.pickles.plain_names import is_built_by_call, is_put_off, trust_of
from ckptool.reports.base import Finding
from ckptool.reports.rules import finding
from ckptool.tree.addresses import format_address
from ckptool.tree.describing import describe
from ckptool.tree.describing import named as few
from ckptool.tree.nodes import Address, Opaque, Tree
from ckptool.tree.walking import walk

MAX_FINDINGS = 100
MAX_SHOWN = 4  # names and calls of unknown classes that are shown
MAX_ARGUMENTS = 200  # characters of the arguments that are shown
# The settings of Hugging Face's Trainer, training_args.bin.
_TRAINERS = ("transformers.", "accelerate.", "trl.")
_TRAINER_WRITES_IT = (
    "the Trainer of transformers writes such settings; load the file only from people you trust"
)


def trust_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield CK201 for each dangerous name, and for each call of it that was kept."""
    dangerous = [named for named in checkpoint.globals_named if trust_of(named) == DANGEROUS]
    wanted = {_placed(named, use) for named in dangerous for use in named.uses}
    places = _places(checkpoint.tree, wanted)
    found = [each for named in dangerous for each in _findings(named, places)]
    yield from found[:MAX_FINDINGS]
    if len(found) > MAX_FINDINGS:
        message = f"{len(found) - MAX_FINDINGS} more names and calls like these"
        yield finding("CK201", "", message)


def built_by_calls(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield one CK210 for all names written like classes that a loader calls with plain values.

    Yield another for the names that functools.partial and its like bind to plain values.
    """
    yield from _calls_of_unknown(
        checkpoint, is_built_by_call,
        ("name written like a class", "names written like classes"), "called with plain values",
    )  # fmt: skip
    yield from _calls_of_unknown(
        checkpoint, is_put_off, ("name", "names"), "bound to plain values, for other code to call",
    )  # fmt: skip


def _calls_of_unknown(
    checkpoint: Checkpoint,
    are_meant: Callable[[NamedGlobal], bool],
    nouns: tuple[str, str],
    how: str,
) -> Iterator[Finding]:
    """Yield one CK210 for the calls of such names; say how they are called."""
    calls = {
        named.ref.qualname: (named.uses[0], _placed(named, named.uses[0]))
        for named in checkpoint.globals_named
        if named.uses and are_meant(named)
    }
    if not calls:
        return
    places = _places(checkpoint.tree, {at for _, at in calls.values()})
    shown = []
    for name, (use, at) in list(calls.items())[:MAX_SHOWN]:
        place = places.get(at)
        shown.append(
            f"{name}({arguments(use)})" + (f" at {format_address(place)}" if place else "")
        )
    more = len(calls) - len(shown)
    one, several = nouns
    what = (
        f"a {one}, which ckptool does not know, is"
        if len(calls) == 1
        else f"{len(calls)} {several}, which ckptool does not know, are"
    )
    message = f"{what} {how}: {', '.join(shown)}" + (f" and {more} more" if more else "")
    first = places.get(next(at for _, at in calls.values()))
    is_trainers = all(name.startswith(_TRAINERS) for name in calls)
    address = format_address(first) if first else ""
    yield finding("CK210", address, message, _TRAINER_WRITES_IT if is_trainers else None)


def _placed(named: NamedGlobal, use: Opaque) -> int:
    """Return the identity of the value at whose key path a call is shown: what puts it off."""
    return id(use.state) if named.is_put_off else id(use)


def unknown_classes(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield one CK203 for all unknown classes that a loader would import."""
    names = sorted({
        entry.ref.qualname
        for entry in checkpoint.globals_named
        if trust_of(entry) == UNKNOWN and not entry.called and not entry.is_put_off
    })  # fmt: skip
    if names:
        counted = "1 name" if len(names) == 1 else f"{len(names)} names"
        shown = few(names, MAX_SHOWN)
        yield finding("CK203", "", f"{counted} that ckptool does not know: {shown}")


def _findings(named: NamedGlobal, places: dict[int, Address]) -> Iterator[Finding]:
    name = named.ref.qualname
    why = ", which runs what its arguments prepare" if named.is_misused else ""
    verb = "bind the arguments of" if named.is_put_off else "call"
    if named.is_put_off:
        why = ", for other code to call"
    elif not named.called:
        why = " and hand it on, which is vetted only for calls" if named.is_misused else ""
        yield _finding(named.pickle, f"import {name}{why}")
    elif not named.uses:
        yield _finding(named.pickle, f"call {name}")
    for use in named.uses:
        place = places.get(_placed(named, use))
        address = named.pickle if place is None else format_address(place)
        yield _finding(address, f"{verb} {name}({arguments(use)}){why}")


def met_before_failing(names: tuple[str, ...]) -> Iterator[Finding]:
    """Yield CK201 for each dangerous name before the place where reading a file fails."""
    for name in names[:MAX_FINDINGS]:
        yield _finding("", f"meet {name} before it fails")


def met_by_other_loaders(names: Iterable[NamedGlobal]) -> Iterator[Finding]:
    """Yield CK201 for each dangerous name in a file that torch does not load."""
    for named in names:
        if trust_of(named) == DANGEROUS:
            what = f"{'call' if named.called else 'import'} {named.ref.qualname}"
            yield _finding("", what, "numpy.load or joblib.load")


def _finding(address: str, what: str, by: str = "torch.load(weights_only=False)") -> Finding:
    return finding("CK201", address, f"{by} would {what}; ckptool did not")


def arguments(use: Opaque) -> str:
    """Return the arguments of a call as text of at most ``MAX_ARGUMENTS`` characters."""
    given = [describe(arg) for arg in use.args[:8]]
    given += [f"{_keyword(key)}={describe(value)}" for key, value in list(use.kwargs.items())[:8]]
    text = ", ".join(given)
    return text if len(text) <= MAX_ARGUMENTS else text[: MAX_ARGUMENTS - 1] + "…"


def _keyword(key: Any) -> str:
    is_plain = isinstance(key, str) and key.isascii() and key.isidentifier()
    return key if is_plain and len(key) < MAX_ARGUMENTS else describe(key)


def _places(tree: Tree, wanted: set[int]) -> dict[int, Address]:
    """Return the key paths of objects; one that was thrown away or is part of a key has none."""
    places: dict[int, Address] = {}
    for visit in walk(tree) if wanted else ():
        if id(visit.node) in wanted:
            places.setdefault(id(visit.node), visit.address)
            if len(places) == len(wanted):
                break
    return places
