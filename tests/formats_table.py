"""Writes the table of ``docs/formats.md`` from the fields of the formats."""

from __future__ import annotations

from pathlib import Path

from ckptool.formats import all_formats
from ckptool.formats.sharded import ShardIndex

PAGE = Path(__file__).parent.parent / "docs/formats.md"
HEAD = "| format | written by |"


def table() -> str:
    """Return the table; formats of one name share a row."""
    rows: dict[str, list[str]] = {}
    # The index of shards is opened as the folder that it is in.
    others = [known for known in all_formats() if not isinstance(known, ShardIndex)]
    for known in others:
        suffixes = f" (`{' '.join(known.suffixes)}`)" if known.suffixes else ""
        rows.setdefault(known.name, []).append(known.written_by + suffixes)
    lines = (f"| `{name}` | {'; '.join(writers)} |" for name, writers in rows.items())
    return "\n".join((HEAD, "|---|---|", *lines))


def with_table(text: str) -> str:
    """Return the text of the page with the table in the place of the one that it has."""
    before, _, behind = text.partition(HEAD)
    return before + table() + "\n\n" + behind.partition("\n\n")[2]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
