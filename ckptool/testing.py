"""For test suites: a checkpoint that is not what it should be fails the test, in words.

    >>> from ckptool.testing import assert_checkpoint
    >>> assert_checkpoint("fixtures/ema/has_ema/late.pt", require=["ema"])

It works in any test framework, and needs no plugin.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptool.commands.diff import DiffOptions, diff
from ckptool.commands.like import read_like
from ckptool.commands.verify import Request, chosen_rules, verify_file
from ckptool.comparison.settings import merge_selection, merge_tolerances
from ckptool.render.diff_text import show_diff
from ckptool.render.plain import draw
from ckptool.render.verdicts import show_failures


def assert_checkpoint(
    path: str | Path,
    *,
    require: str | Sequence[str] = (),
    select: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    like: str | Path | None = None,
    strict: bool = False,
) -> None:
    """``ckptool verify``, for a test.

    Args:
        path: the checkpoint.
        require: what must hold: ``ema``, ``resume``, ``finite``, ``safe``, …
        select: only these rules: ``CK404``, or ``CK4`` for a family.
        ignore: not these rules.
        like: a checkpoint, or a document of ``ckptool inspect --tensors --json``, with the names
            and shapes of the model that is to load it.
        strict: warnings fail too.

    Raises:
        AssertionError: it is not so; the message is the report of what failed, and of what was
            required and not checked.
        CkptError: it could not be looked at, or there is no such rule.
    """
    __tracebackhide__ = True
    options = {
        "require": _several(require), "select": _several(select), "ignore": _several(ignore),
        "strict": strict,
    }  # fmt: skip
    request = Request(
        chosen_rules(options, like=like is not None),
        _several(require),
        like=None if like is None else read_like(str(like)),
    )
    report = verify_file(Path(path), request)
    if not report.ok:
        said = io.StringIO()
        draw(show_failures(report), said)
        raise AssertionError(said.getvalue())


def _several(texts: str | Sequence[str]) -> tuple[str, ...]:
    """One alone is meant as one, not as its letters."""
    return (texts,) if isinstance(texts, str) else tuple(texts)


def assert_checkpoints_close(
    a: str | Path,
    b: str | Path,
    *,
    tolerances: Mapping[str, Any] | None = None,
    atol: float = 0.0,
    rtol: float = 0.0,
    ulp: int = 0,
    match: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    renames: str | Sequence[str] = (),
    strict: bool = False,
    any_dtype: bool = False,
) -> None:
    """Fail with the report of ``ckptool diff`` unless two checkpoints are equal or close enough.

    Args:
        a: ``PATH``, ``PATH#ADDRESS``, ``PATH#@ema`` or ``PATH#@model``.
        b: the other.
        tolerances: glob of addresses to ATOL or (ATOL, RTOL); the most specific glob wins.
        atol: for all other addresses, absolute.
        rtol: for all other addresses, relative to the larger value.
        ulp: floating-point steps that are no difference.
        match: globs of addresses to compare; all by default.
        ignore: globs of addresses to leave out.
        renames: ``REGEX=REPL``, applied to the addresses of both.
        strict: strides, sharing, device and gradients count too.
        any_dtype: values count, not the types that they are stored in.

    Raises:
        AssertionError: they differ.
        CkptError: one cannot be read: that is no difference.

    Example:
        >>> from ckptool.testing import assert_checkpoints_close
        >>> late = "fixtures/ema/has_ema/late"
        >>> assert_checkpoints_close(f"{late}.pt#@ema", f"{late}.averaged.safetensors")
    """
    options = DiffOptions(
        merge_selection(
            {}, match=_several(match), ignore=_several(ignore), renames=_several(renames)
        ),
        merge_tolerances({"tolerance": tolerances or {}}, atol=atol, rtol=rtol, ulp=ulp),
        strict,
        any_dtype,
    )
    report = diff(str(a), str(b), options)
    if not report.equal:
        text = io.StringIO()
        draw(show_diff(report), text)
        raise AssertionError(text.getvalue().rstrip())
