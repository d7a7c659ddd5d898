"""Writes the table of ``docs/layouts.md`` from ``LAYOUTS``: ``python tests/layouts_table.py``."""

from __future__ import annotations

from pathlib import Path

from ckptool.ema.layouts import LAYOUTS, EmaLayout

PAGE = Path(__file__).parent.parent / "docs/layouts.md"
HEAD = "| layout | EMA weights | model | written by |"


def table() -> str:
    """Return the table: a row for each layout, in the order in which they are tried."""
    return "\n".join((HEAD, "|---|---|---|---|", *map(_row, LAYOUTS)))


def _row(layout: EmaLayout) -> str:
    link = layout.written_by if layout.written_by.startswith("https://") else ""
    writer = f"[{layout.library}]({link})" if link else layout.library
    return f"| `{layout.name}` | `{layout.ema_at}` | `{layout.model_at}` | {writer} |"


def with_table(text: str) -> str:
    """Return the text of the page with the table in the place of the one that it has."""
    return text.partition(HEAD)[0] + table() + "\n"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
