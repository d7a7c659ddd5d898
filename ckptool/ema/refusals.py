"""Reasons why no EMA weights can be taken, each with a hint; the first that applies is raised.

Taking the wrong weights is worse than taking none. So everything but a single clear EMA is refused
here, with the candidates and the command that picks one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import quote

from ckptool.contents.inventory import scalars_in
from ckptool.ema.candidates import CHOSEN, RAW_KIND, Candidate, EmaLocation, table_address
from ckptool.ema.metadata import DECLARATIONS
from ckptool.errors import CkptError, EmaAmbiguousError, EmaNotFoundError, EmaRefusedError
from ckptool.formats.base import Checkpoint
from ckptool.records import NamedTuple
from ckptool.tree.describing import named
from ckptool.tree.nodes import is_container


class Request(NamedTuple):
    """A request for the EMA weights of a checkpoint."""

    location: EmaLocation
    checkpoint: Checkpoint
    command: str | None  # first words of a hint: ckptool extract-ema; None: for PATH#@ema

    @property
    def path(self) -> Path:
        """The path of the checkpoint."""
        return self.checkpoint.path


EXTRACT = "ckptool extract-ema"  # first words of a hint, where options name the weights
# Kind of an average that an optimizer's state holds or implies -> hint.
IMPLIED_HINTS = {
    "schedule-free": "load the optimizer with its library, call optimizer.eval(), and save again",
    "asgd": "load the model and its optimizer, copy optimizer.state[p]['ax'] into each parameter "
    "p, and save the model's state dict",
}


def require_ema(
    location: EmaLocation, checkpoint: Checkpoint, command: str | None = EXTRACT
) -> Candidate:
    """Return the one candidate to take; hints begin with ``command``.

    If it is None, hints name an operand, ``PATH#ADDRESS``, since no option can name the weights.

    Raises:
        EmaNotFoundError: there is no candidate, its averaging has not begun, or its weights only
            follow from an optimizer's state.
        EmaAmbiguousError: there are several, names cannot be told apart, the file does not state
            which weights are averaged, or the only candidate must be named.
        EmaRefusedError: there is one, but its values have nothing to do with the model's.
    """
    request = Request(location, checkpoint, command)
    refusal = next((error for row in REFUSALS if (error := row(request))), None)
    if refusal is not None:
        raise refusal
    assert location.selected is not None, "every location without a selection has its row"
    return location.selected


def _unrelated_choice(request: Request) -> CkptError | None:
    chosen = request.location.selected
    asked_for = {CHOSEN, RAW_KIND}
    if chosen is None or chosen.kind in asked_for or not chosen.is_unrelated:
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
        f"no EMA weights yet: {waiting.doubt}",
        path=request.path,
        address=waiting.address,
        hint="take a checkpoint from after the averaging began; the raw weights: "
        + _raw_weights(request),
    )


def _implied(request: Request) -> CkptError | None:
    candidates = _undecided(request)
    if not candidates or not all(c.is_implied for c in candidates):
        return None
    return EmaNotFoundError(
        f"no EMA weights are stored as such; {candidates[0].why}",
        path=request.path,
        address=candidates[0].address,
        hint=IMPLIED_HINTS[candidates[0].kind],
    )


def _absent(request: Request) -> CkptError | None:
    if request.location.candidates:
        return None
    return EmaNotFoundError(
        "no EMA weights are stored beside the model's; this file does not show whether these "
        "weights are EMA weights themselves"
        + _declared(request.checkpoint)
        + _unread(request.location),
        path=request.path,
        hint=f"if you know where they are: {_typed('ADDRESS', request)}; the model's own weights: "
        + _raw_weights(request),
    )


def _unread(location: EmaLocation) -> str:
    return f"; not read beside it: {named(location.unread)}" if location.unread else ""


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
    """Refuse a candidate that may be swapped with the raw weights: only the user knows."""
    only, model = _only(request), request.location.model
    if only is None or model is None or only.layout is None or not only.layout.doubt:
        return None
    return EmaAmbiguousError(
        f"{_place(only)}: {only.doubt}",
        path=request.path,
        hint=f"{_typed(table_address(model), request)} takes the model's state dict unchanged, and "
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


def _raw_weights(request: Request) -> str:
    """Return the command or the operand that takes the raw weights."""
    place = quote(f"{request.path}#@model")
    return f"ckptool extract-ema {place}" if request.command else place


def _undecided(request: Request) -> tuple[Candidate, ...]:
    """Return the candidates if none of them was selected."""
    return () if request.location.selected is not None else request.location.candidates


def _only(request: Request) -> Candidate | None:
    candidates = _undecided(request)
    return candidates[0] if len(candidates) == 1 else None


def _place(candidate: Candidate) -> str:
    """Return the place of a candidate for a sentence: the sidecar file, or the key path."""
    return candidate.file.name if candidate.file else candidate.address or "(root)"


def _command(candidate: Candidate, request: Request) -> str:
    """Return the command or the operand that takes a candidate."""
    begin = f"{request.command} " if request.command else ""
    if candidate.file:
        return begin + quote(str(candidate.file))
    place = _typed(candidate.address, request)
    return f"{begin}{quote(str(request.path))} {place}" if begin else place


def _typed(address: str, request: Request) -> str:
    return typed_place(address, request.path, request.command)


def typed_place(address: str, path: Path, command: str | None) -> str:
    """Return the option of a command, or the operand if None, that names a key path."""
    return f"--ema {quote(address)}" if command else quote(f"{path}#{address}")


def _declared(checkpoint: Checkpoint) -> str:
    """Return the declarations of the file itself about its EMA, in parentheses."""
    if not is_container(checkpoint.tree):
        return ""
    values = scalars_in(checkpoint.tree)
    said = [f"{k} is {values[k]}" for k in DECLARATIONS if k in values]
    return f" ({', '.join(said)})" if said else ""
