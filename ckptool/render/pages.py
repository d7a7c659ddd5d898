"""Which page shows which report: only the module of the report that is shown is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckptool.render.page import Page

Views = Mapping[str, Callable[[Any], Page]]  # class of a report, or its plural -> what draws it


def _views() -> Views:
    from ckptool.render.views import VIEWS  # noqa: PLC0415

    return VIEWS


def _verdicts() -> Views:
    from ckptool.render.verdicts import VIEWS  # noqa: PLC0415

    return VIEWS


def _diff_text() -> Views:
    from ckptool.render.diff_text import VIEWS  # noqa: PLC0415

    return VIEWS


HOMES: Mapping[str, Callable[[], Views]] = {
    "InspectReport": _views,
    "RunReport": _views,
    "ExtractReport": _views,
    "PromoteReport": _views,
    "LayoutsReport": _views,
    "ErrorReport": _views,
    "VerifyReport": _verdicts,
    "VerifyReports": _verdicts,
    "ChoiceReport": _verdicts,
    "RulesReport": _verdicts,
    "TextReport": _diff_text,
}


def page_of(report: Any) -> Page:
    """The page of a report, or of a list of reports of one type."""
    is_list = isinstance(report, list)
    name = type(report[0] if is_list else report).__name__ + ("s" if is_list else "")
    return HOMES[name]()[name](report)
