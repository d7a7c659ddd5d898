"""Why there is no average to take, and what to type next: a row a reason, the first that fits.

Taking the wrong weights is worse than taking none, so everything that is not one plain average ends
here, with the candidates and the command that picks one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from ckptool.candidates import CHOSEN, Candidate, EmaLocation, table_address
from ckptool.errors import CkptError, EmaAmbiguousError, EmaNotFoundError, EmaRefusedError
from ckptool.formats.base import Checkpoint
from ckptool.inventory import scalars_in
from ckptool.tree import is_container


class Request(NamedTuple):
    """Somebody wants the average."""

    location: EmaLocation
    checkpoint: Checkpoint
    command: str | None  # what a hint begins with: ckptool extract-ema; None: they typed PATH#@ema

    @property
    def path(self) -> Path:
        """Of the checkpoint."""
        return self.checkpoint.path


def require_ema(
    location: EmaLocation, checkpoint: Checkpoint, command: str | None = "ckptool extract-ema"
) -> Candidate:
    """The one candidate to take; ``command`` is what the hint begins with.

    With None the hint names an operand, ``PATH#ADDRESS``, since there is no option to name it by.

    Raises:
        EmaNotFoundError: none.
        EmaAmbiguousError: several, names that cannot be told apart, or only kinds that must be
            asked for.
        EmaRefusedError: one, whose values have nothing to do with the model's.
    """
    request = Request(location, checkpoint, command)
    refusal = next((error for row in REFUSALS if (error := row(request))), None)
    if refusal is not None:
        raise refusal
    assert location.selected is not None, "every location without a selection has its row"
    return location.selected


def _unrelated_choice(request: Request) -> CkptError | None:
    chosen = request.location.selected
    if chosen is None or chosen.kind == CHOSEN or not chosen.is_unrelated:
        return None
    return EmaRefusedError(
        f"{_place(chosen)} is called {chosen.kind}, but its values are unrelated to the model's",
        path=request.path,
        hint=f"if it is what you want: {_command(chosen, request)}",
    )


def _unstarted(request: Request) -> CkptError | None:
    waiting = next((c for c in _undecided(request) if c.is_unstarted), None)
    if waiting is None:
        return None
    return EmaNotFoundError(
        f"no averaged weights yet: {waiting.doubt}",
        path=request.path,
        address=waiting.address,
        hint="take a checkpoint from after the averaging began",
    )


def _implied(request: Request) -> CkptError | None:
    candidates = _undecided(request)
    if not candidates or not all(c.is_implied for c in candidates):
        return None
    return EmaNotFoundError(
        f"no averaged weights are stored as such; {candidates[0].why}",
        path=request.path,
        address=candidates[0].address,
        hint="load the optimizer with its library, switch it to evaluation, and save again",
    )


def _absent(request: Request) -> CkptError | None:
    if request.location.candidates:
        return None
    return EmaNotFoundError(
        "no averaged weights are stored beside the model's; whether these weights are "
        "themselves averaged cannot be told from this file" + _declared(request.checkpoint),
        path=request.path,
        hint=f"if you know where they are: {_typed('ADDRESS', request)}; the model's own weights: "
        + ("ckptool extract-ema " if request.command else "")
        + quote(f"{request.path}#@model"),
    )


def _several(request: Request) -> CkptError | None:
    candidates = _undecided(request)
    if len(candidates) < 2:
        return None
    listed = ", ".join(f"{_place(c)} ({c.kind})" for c in candidates)
    many = "too many places" if request.location.given_up else f"{len(candidates)} places"
    among = ", among others" if request.location.given_up else ""
    return EmaAmbiguousError(
        f"{many} could be meant{among}: {listed}",
        path=request.path,
        hint=_command(candidates[0], request),
    )


def _either_slot(request: Request) -> CkptError | None:
    """A writer that may have swapped the slots: only the user knows which holds the averages."""
    only, model = _only(request), request.location.model
    if only is None or model is None or only.layout is None or not only.layout.doubt:
        return None
    return EmaAmbiguousError(
        f"{_place(only)}: {only.doubt}",
        path=request.path,
        hint=f"{_typed(table_address(model), request)} takes the model's slot as it stands, and "
        f"this one: {_command(only, request)}",
    )


def _doubted(request: Request) -> CkptError | None:
    only = _only(request)
    if only is None or not only.doubt:
        return None
    return EmaAmbiguousError(
        f"{_place(only)}: {only.doubt}",
        path=request.path,
        hint=f"name the part that is meant: {_typed('ADDRESS/PREFIX*', request)}"
        + (" or --model ADDRESS" if request.command else ""),
    )


def _other_kind(request: Request) -> CkptError | None:
    only = _only(request)
    if only is None:
        return None
    unrelated = f"called {only.kind}, but its values are unrelated to the model's"
    other = f"a {only.kind}, which is not taken unless it is named"
    return EmaAmbiguousError(
        f"{only.address} is {unrelated if only.is_unrelated else other}",
        path=request.path,
        hint=_command(only, request),
    )


REFUSALS: tuple[Callable[[Request], CkptError | None], ...] = (
    _unrelated_choice,
    _unstarted,
    _implied,
    _absent,
    _several,
    _either_slot,
    _doubted,
    _other_kind,
)


def _undecided(request: Request) -> tuple[Candidate, ...]:
    """The candidates, where none of them was selected."""
    return () if request.location.selected is not None else request.location.candidates


def _only(request: Request) -> Candidate | None:
    candidates = _undecided(request)
    return candidates[0] if len(candidates) == 1 else None


def _place(candidate: Candidate) -> str:
    """Where a candidate is, in a sentence: the file when it is another one."""
    return candidate.file.name if candidate.file else candidate.address or "(the top)"


def _command(candidate: Candidate, request: Request) -> str:
    """What takes a candidate."""
    begin = f"{request.command} " if request.command else ""
    if candidate.file:
        return begin + quote(str(candidate.file))
    place = _typed(candidate.address, request)
    return f"{begin}{quote(str(request.path))} {place}" if begin else place


def _typed(address: str, request: Request) -> str:
    """How a place is named on the command line."""
    if request.command:
        return f"--ema {quote(address)}"
    return quote(f"{request.path}#{address}")


def _declared(checkpoint: Checkpoint) -> str:
    """What the file itself says about having no EMA."""
    if not is_container(checkpoint.tree):
        return ""
    values = scalars_in(checkpoint.tree)
    said = [f"{k} is {values[k]}" for k in ("has_ema", "ema_state_dict") if k in values]
    return f" ({', '.join(said)})" if said else ""
