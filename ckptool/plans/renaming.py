"""The choice and the names of the tensors to write: ``--strip-prefix``, ``--match``, ``--drop``.

Pure functions from a plan to a plan. A pattern that fits nothing is refused, with the names that
exist: an option without effect is a typing error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from ckptool.contents.globs import meant, nearby, typable
from ckptool.errors import UsageError
from ckptool.plans.extraction import Extraction, renamed


def strip_prefix(plan: Extraction, prefix: str) -> Extraction:
    """Return the plan with names without ``prefix``, whose last dot is optional.

    Names that do not begin with it stay as they are.

    Raises:
        UsageError: no name begins with it.
        EmaAmbiguousError: two names become one.
    """
    dotted = prefix if prefix.endswith(".") else f"{prefix}."
    asked = (*plan.tensors, *plan.refused)
    begun = next((p for p in (dotted, prefix) if any(n.startswith(p) for n in asked)), None)
    if begun is None or not prefix:
        raise UsageError(
            f"no name begins with {prefix!r}",
            hint=nearby(prefix, _prefixes(plan.tensors), "prefixes"),
        )

    def stripped(name: str) -> str:
        return name.removeprefix(begun) or name

    return renamed(plan, stripped, f"without {begun!r}", "leave out --strip-prefix")


def only_matching(
    plan: Extraction, globs: Sequence[str], stripped: str | None = None
) -> Extraction:
    """Return the plan with only the tensors whose name fits one of the patterns.

    Args:
        plan: the tensors with the names that they will have.
        globs: the patterns.
        stripped: the prefix that names have lost, for the message.

    Raises:
        UsageError: no name fits one of them.
    """
    return _with_names(plan, _fitting(plan, globs, stripped))


def without_matching(plan: Extraction, globs: Sequence[str]) -> Extraction:
    """Return the plan without the tensors whose name fits one of the patterns.

    Raises:
        UsageError: no name fits one of them, or all names fit.
    """
    left = {*plan.tensors, *plan.refused} - _fitting(plan, globs)
    if not left:
        raise UsageError("--drop leaves no tensor", hint="narrow the globs")
    return _with_names(plan, left)


def _fitting(plan: Extraction, globs: Sequence[str], stripped: str | None = None) -> set[str]:
    asked = (*plan.tensors, *plan.refused)
    fits = {glob: {name for name in asked if fnmatchcase(name, glob)} for glob in globs}
    for glob, names in fits.items():
        if not names:
            hint = meant(glob, list(plan.tensors), "names")
            without = f" without {stripped!r}" if stripped else ""
            raise UsageError(f"no tensor's name{without} fits {glob!r}", hint=hint)
    return set().union(*fits.values())


def _with_names(plan: Extraction, kept: set[str]) -> Extraction:
    return plan._replace(
        tensors={name: ref for name, ref in plan.tensors.items() if name in kept},
        averaged=plan.averaged & kept,
        from_model=tuple(name for name in plan.from_model if name in kept),
        refused={name: why for name, why in plan.refused.items() if name in kept},
    )


def _prefixes(names: Iterable[str]) -> dict[str, None]:
    """Return the beginnings of the names up to a dot, the shortest first."""
    parts = [name.split(".")[:-1] for name in typable(names)]
    depths = range(1, max(map(len, parts), default=0) + 1)
    return {".".join(p[:depth]) + ".": None for depth in depths for p in parts if len(p) >= depth}
