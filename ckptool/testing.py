"""Assertions on checkpoints for test suites; the report of ckptool is their message.

    >>> from ckptool.testing import assert_checkpoint
    >>> assert_checkpoint("fixtures/ema/has_ema/late.pt", require=["ema"])

They work in any test framework and need no plugin.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptool.commands.diff import DiffOptions, diff
from ckptool.commands.like import read_like
from ckptool.commands.verify import Request, chosen_rules, verify_file
from ckptool.comparison.pairing import merge_selection
from ckptool.comparison.tolerances import merge_tolerances
from ckptool.contents.selection import parse_operand
from ckptool.render.layout import draw
from ckptool.render.outputs import rendered
from ckptool.render.verify_text import show_failures


def assert_checkpoint(
    path: str | Path,
    *,
    require: str | Sequence[str] = (),
    select: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    like: str | Path | None = None,
    strict: bool = False,
) -> None:
    """Fail with the report of ``ckptool verify`` unless a checkpoint passes its rules.

    Args:
        path: the checkpoint, or ``PATH#ADDRESS`` for a part of it.
        require: requirements that must hold: ``ema``, ``resume``, ``finite``, ``safe``, …
        select: check only these rules: ``CK404``, or ``CK4`` for a family.
        ignore: do not check these rules.
        like: a checkpoint, or a document of ``ckptool inspect --tensors --json``, with the names
            and shapes of the model that is to load it.
        strict: fail on warnings too.

    Raises:
        AssertionError: a rule failed, or was required and not checked; the message reports these
            rules.
        CkptError: the checkpoint cannot be read, or there is no such rule.
    """
    __tracebackhide__ = True
    options = {
        "require": _several(require), "rules": _several(select),
        "ignore_rules": _several(ignore),
        "strict": strict,
    }  # fmt: skip
    request = Request(
        chosen_rules(options, like=like is not None),
        _several(require),
        like=None if like is None else read_like(str(like)),
    )
    report = verify_file(parse_operand(str(path)), request)
    if not report.ok:
        said = io.StringIO()
        draw(show_failures(report), said)
        raise AssertionError(said.getvalue())


def _several(texts: str | Sequence[str]) -> tuple[str, ...]:
    """Return the texts as a tuple; a single text is one text, not its letters."""
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
        b: the other checkpoint, in the same forms.
        tolerances: glob of key paths to ATOL or (ATOL, RTOL); the most specific glob wins.
        atol: absolute tolerance for all other key paths.
        rtol: tolerance for all other key paths, relative to the larger magnitude.
        ulp: number of floating-point steps that are no difference.
        match: globs of key paths to compare; all by default.
        ignore: globs of key paths to leave out.
        renames: ``REGEX=REPL``, applied to the key paths of both.
        strict: compare strides, sharing, device and gradients too.
        any_dtype: compare values, whatever dtypes they are stored in.

    Raises:
        AssertionError: the checkpoints differ.
        CkptError: a checkpoint cannot be read, which is no difference.

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
        raise AssertionError(rendered([report], "text").rstrip())
