"""The options of ``ckptool rule``, ``layouts`` and ``textconv``."""

from typing import Annotated

from ckptool.cli import completion
from ckptool.cli import options as shared
from ckptool.cli.output import answer, output_for
from ckptool.cli.parameters import Argument
from ckptool.errors import UsageError


def rule(
    rule: Annotated[
        str | None,
        Argument(
            metavar="[RULE]",
            autocompletion=completion.rules,
            help="Show this rule, CK404, or a family of rules, CK4.",
        ),
    ] = None,
    form: shared.Format = "text",
    json: shared.Json = False,
    color: shared.Color = "auto",
) -> None:
    """Explain a rule and its remedy, or list all rules."""
    from ckptool.reports.rules import BY_ID
    from ckptool.reports.verify import RulesReport

    output = output_for("RulesReport", form, json=json)
    wanted = (rule or "CK").upper()
    rows = tuple(row for row in BY_ID.values() if row.id.startswith(wanted))
    if not rows:
        raise UsageError(f"there is no rule {rule}", hint="ckptool rule lists them")
    answer([RulesReport(rows)], output, color=color)


def layouts(
    form: shared.Format = "text", json: shared.Json = False, color: shared.Color = "auto"
) -> None:
    """List the layouts in which frameworks store EMA weights."""
    from ckptool.cli.config import read_layouts
    from ckptool.ema.layouts import LAYOUTS
    from ckptool.reports.base import LayoutsReport

    output = output_for("LayoutsReport", form, json=json)
    answer([LayoutsReport((*read_layouts(), *LAYOUTS))], output, color=color)


def textconv(operand: shared.Operand) -> None:
    """Print one line for each tensor and value, for git diff.

    In .gitattributes:

        *.pt diff=ckptool

        *.ckpt diff=ckptool

        *.safetensors diff=ckptool

    and once, in each clone: git config diff.ckptool.textconv "ckptool textconv"
    """
    from ckptool.commands.textconv import textconv

    answer([textconv(operand)], "text", color="never")
