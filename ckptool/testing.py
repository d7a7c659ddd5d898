"""Assertions for the tests of training code: ``from ckptool.testing import ...``."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ckptool.commands.diff import DiffOptions, diff
from ckptool.comparison.settings import merge_selection, merge_tolerances
from ckptool.render import plain
from ckptool.render.diff_text import show_diff

Path = str | os.PathLike[str]


def assert_checkpoints_close(
    a: Path,
    b: Path,
    *,
    tolerances: Mapping[str, Any] | None = None,
    atol: float = 0.0,
    rtol: float = 0.0,
    ulp: int = 0,
    match: Sequence[str] = (),
    ignore: Sequence[str] = (),
    renames: Sequence[str] = (),
    strict: bool = False,
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

    Raises:
        AssertionError: they differ.
        CkptError: one cannot be read: that is no difference.

    Example:
        >>> from ckptool.testing import assert_checkpoints_close
        >>> late = "fixtures/ema/has_ema/late"
        >>> assert_checkpoints_close(f"{late}.pt#@ema", f"{late}.averaged.safetensors")
    """
    options = DiffOptions(
        merge_selection({}, match=match, ignore=ignore, renames=renames),
        merge_tolerances({"tolerance": tolerances or {}}, atol=atol, rtol=rtol, ulp=ulp),
        strict,
    )
    report = diff(os.fspath(a), os.fspath(b), options)
    if not report.equal:
        text = io.StringIO()
        plain.draw(show_diff(report), text)
        raise AssertionError(text.getvalue().rstrip())
