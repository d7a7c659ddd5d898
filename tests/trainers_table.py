"""Writes the table of ``docs/resuming.md`` from TRAINERS: ``python tests/trainers_table.py``."""

from __future__ import annotations

from pathlib import Path

from ckptool.contents.trainers import PLAIN, TRAINERS, Trainer

PAGE = Path(__file__).parent.parent / "docs/resuming.md"
HEAD = "| trainer | known by | makes again | a resume loses |"


def table() -> str:
    """Return the table: a row for each trainer, in the order in which they are tried."""
    return "\n".join((HEAD, "|---|---|---|---|", *map(_row, (*TRAINERS, PLAIN))))


def _row(row: Trainer) -> str:
    signs = ", ".join(f"`{sign}`" for sign in row.signs) or "none of these"
    lost = [*row.never.values(), *([row.within] if row.within else ())]
    cells = (row.name, signs, "; ".join(row.remade.values()) or "–", "; ".join(lost) or "nothing")
    return f"| {' | '.join(cells)} |"


def with_table(text: str) -> str:
    """Return the text of the page with the table in the place of the one that it has."""
    return text.partition(HEAD)[0] + table() + "\n"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
