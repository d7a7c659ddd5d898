"""For test suites: a checkpoint that is not what it should be fails the test, in words.

    >>> from ckptool.testing import assert_checkpoint
    >>> assert_checkpoint("fixtures/ema/has_ema/late.pt", require=["ema"])

It works in any test framework, and needs no plugin.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ckptool.commands.like import read_like
from ckptool.commands.verify import Request, chosen_rules, verify_file
from ckptool.render.plain import draw
from ckptool.render.verdicts import show_failures


def assert_checkpoint(
    path: str | Path,
    *,
    require: Sequence[str] = (),
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
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
    options = {"require": require, "select": select, "ignore": ignore, "strict": strict}
    request = Request(
        chosen_rules(options, like=like is not None),
        tuple(require),
        like=None if like is None else read_like(str(like)),
    )
    report = verify_file(Path(path), request)
    if not report.ok:
        said = io.StringIO()
        draw(show_failures(report), said)
        raise AssertionError(said.getvalue())
