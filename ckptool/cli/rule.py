"""The options of ``ckptool rule``."""

from __future__ import annotations

from typing import Annotated

import typer

from ckptool.cli.options import ColorOption, JsonOption
from ckptool.cli.output import answer
from ckptool.errors import UsageError
from ckptool.rules import BY_ID
from ckptool.verify_reports import RulesReport


def command(
    rule: Annotated[
        str | None, typer.Argument(metavar="[RULE]", help="CK404, or CK4 for a family.")
    ] = None,
    json: JsonOption = False,
    color: ColorOption = "auto",
) -> None:
    """Say what a rule means and what to do about it; without one, list them all."""
    wanted = (rule or "CK").upper()
    rows = tuple(row for row in BY_ID.values() if row.id.startswith(wanted))
    if not rows:
        raise UsageError(f"there is no rule {rule}", hint="ckptool rule lists them")
    answer(RulesReport(rows), json=json, color=color)
