"""What a pickle would run, as findings: the exact name, where the object sits, its arguments."""

from __future__ import annotations

from collections.abc import Iterator

from ckptool.formats.base import Checkpoint, NamedGlobal
from ckptool.reports import Finding
from ckptool.rules import finding
from ckptool.tree import Address, Opaque, Tree, describe, format_address, walk
from ckptool.trust import DANGEROUS, trust_of

MAX_FINDINGS = 100
MAX_ARGUMENTS = 200  # characters of them that are shown


def trust_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """CK201 for each dangerous name, and for each call of it that was kept."""
    dangerous = [named for named in checkpoint.globals_named if trust_of(named) == DANGEROUS]
    wanted = {id(use) for named in dangerous for use in named.uses}
    places = _places(checkpoint.tree, wanted)
    found = [each for named in dangerous for each in _findings(named, places)]
    yield from found[:MAX_FINDINGS]
    if len(found) > MAX_FINDINGS:
        message = f"{len(found) - MAX_FINDINGS} more names and calls like these"
        yield finding("CK201", "", message)


def _findings(named: NamedGlobal, places: dict[int, Address]) -> Iterator[Finding]:
    name = named.ref.qualname
    if not named.called:
        yield _finding(named.pickle, f"import {name}")
    elif not named.uses:
        yield _finding(named.pickle, f"call {name}")
    for use in named.uses:
        place = places.get(id(use))
        address = named.pickle if place is None else format_address(place)
        yield _finding(address, f"call {name}({arguments(use)})")


def met_before_failing(names: tuple[str, ...]) -> Iterator[Finding]:
    """CK201 for what a loader would have met in a file that cannot be read to its end."""
    for name in names[:MAX_FINDINGS]:
        yield _finding("", f"meet {name} before it fails")


def _finding(address: str, what: str) -> Finding:
    message = f"torch.load(weights_only=False) would {what}; ckptool did not"
    return finding("CK201", address, message)


def arguments(use: Opaque) -> str:
    """What a call is given, as text of at most ``MAX_ARGUMENTS`` characters."""
    given = [describe(arg) for arg in use.args[:8]]
    given += [f"{describe(key)}={describe(value)}" for key, value in list(use.kwargs.items())[:8]]
    text = ", ".join(given)
    return text if len(text) <= MAX_ARGUMENTS else text[: MAX_ARGUMENTS - 1] + "…"


def _places(tree: Tree, wanted: set[int]) -> dict[int, Address]:
    """Where the objects sit: one that was thrown away, or is a part of a key, sits nowhere."""
    places: dict[int, Address] = {}
    for visit in walk(tree) if wanted else ():
        if id(visit.node) in wanted:
            places.setdefault(id(visit.node), visit.address)
            if len(places) == len(wanted):
                break
    return places
