"""Numbers and plain values of a comparison, in as few characters as tell them apart."""

from __future__ import annotations

from ckptool.render import text as words
from ckptool.reports.diff import ValueDifference

TEXT = 60  # characters of a text that are shown


def number(value: float | None) -> str:
    """Return a number of a report in few digits; a dash for None."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) and abs(value) < 10**15 else f"{value:.4g}"


def percent(change: float | None) -> str:
    """Return a relative change in percent, with three digits: ``0.836 %``."""
    return f"{100 * change:.3g} %" if change else ""


def value_text(row: ValueDifference) -> str:
    """Return ``3 → 4``, and the remark."""
    skipped = _common_start(row.a, row.b)
    exact = _alone if row.kind in {"added", "removed"} else exactly
    one = "–" if row.kind == "added" else exact(row.a, skipped)
    other = "–" if row.kind == "removed" else exact(row.b, skipped)
    if isinstance(row.a, float) and isinstance(row.b, float) and row.kind == "value":
        one, other = _in_few_digits(row.a, row.b)
    return f"{one} → {other}" + (f"  {words.printable(row.note, 200)}" if row.note else "")


def _in_few_digits(one: float, other: float) -> tuple[str, str]:
    """Return two numbers in as few digits as show that they differ."""
    for digits_shown in (6, 9, 12):
        texts = f"{one:.{digits_shown}g}", f"{other:.{digits_shown}g}"
        if texts[0] != texts[1]:
            return texts
    return repr(one), repr(other)


def exactly(value: object, skipped: int = 0) -> str:
    """Return a value so that different ones look different; skip characters of a text."""
    if isinstance(value, str):
        shown = value[skipped : skipped + TEXT]
        cut = len(value) > skipped + TEXT
        return f"'{'…' if skipped else ''}{words.printable(shown)}{'…' if cut else ''}'"
    return repr(value) if isinstance(value, float) else words.value(value)


def _alone(value: object, skipped: int) -> str:
    """Return a value that has no other side, so that few digits are enough."""
    return f"{value:.6g}" if isinstance(value, float) else exactly(value, skipped)


def _common_start(one: object, other: object) -> int:
    """Return how many characters to skip in two long texts so that their difference shows."""
    if not (isinstance(one, str) and isinstance(other, str)) or max(len(one), len(other)) <= TEXT:
        return 0
    pairs = enumerate(zip(one, other, strict=False))
    same = next((i for i, (x, y) in pairs if x != y), min(len(one), len(other)))
    return max(0, same - TEXT // 3)
