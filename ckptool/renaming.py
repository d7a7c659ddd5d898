"""Which tensors of a plan are written, and under which names: ``--strip-prefix`` and ``--match``.

Pure functions from a plan to a plan. What fits nothing is refused with the names that are there:
an option that does nothing is a typing error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import islice

from ckptool.errors import UsageError
from ckptool.plans import Extraction, renamed

MAX_NEARBY = 5_000  # names that are looked at for those like a wrong one
MAX_LENGTH = 200  # of such a name: a longer one is none that somebody meant to type
SHOWN_NEARBY = 3


def strip_prefix(plan: Extraction, prefix: str) -> Extraction:
    """Names without ``prefix``, which may leave out its last dot; others stay as they are.

    Raises:
        UsageError: no name begins so.
        EmaAmbiguousError: two names become one.
    """
    dotted = prefix if prefix.endswith(".") else f"{prefix}."
    begun = next((p for p in (dotted, prefix) if any(n.startswith(p) for n in plan.tensors)), None)
    if begun is None or not prefix:
        raise UsageError(
            f"no name begins with {prefix!r}",
            hint=_nearby("prefixes", prefix, _prefixes(plan.tensors)),
        )

    def stripped(name: str) -> str:
        return name.removeprefix(begun) or name

    return renamed(plan, stripped, f"without {begun!r}", "leave out --strip-prefix")


def only_matching(plan: Extraction, globs: Sequence[str]) -> Extraction:
    """The tensors whose name fits one of the patterns.

    Raises:
        UsageError: nothing fits one of them.
    """
    fits = {glob: {name for name in plan.tensors if fnmatchcase(name, glob)} for glob in globs}
    for glob, names in fits.items():
        if not names:
            raise UsageError(
                f"no tensor's name fits {glob!r}", hint=_nearby("names", glob, plan.tensors)
            )
    kept = set().union(*fits.values())
    return Extraction(
        tensors={name: ref for name, ref in plan.tensors.items() if name in kept},
        averaged=plan.averaged & kept,
        from_model=tuple(name for name in plan.from_model if name in kept),
        dropped=plan.dropped,
    )


def _prefixes(names: Iterable[str]) -> dict[str, None]:
    """The beginnings of the names up to a dot, the shortest first."""
    parts = [name.split(".")[:-1] for name in _typable(names)]
    depths = range(1, max(map(len, parts), default=0) + 1)
    return {".".join(p[:depth]) + ".": None for depth in depths for p in parts if len(p) >= depth}


def _typable(names: Iterable[str]) -> list[str]:
    return list(islice((name for name in names if len(name) <= MAX_LENGTH), MAX_NEARBY))


def _nearby(what: str, wanted: str, names: Iterable[str]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - 3 ms, for a refusal only

    listed = _typable(names)
    near = get_close_matches(wanted, listed, SHOWN_NEARBY, 0.3) or listed[:SHOWN_NEARBY]
    return f"{what} nearby: {', '.join(near) or 'none'}"
