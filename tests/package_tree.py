"""The tree of the package in ``CONTRIBUTING.md``: ``python tests/package_tree.py`` writes it anew.

Each line is a module or a package with the first sentence of its docstring.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ckptool

PACKAGE = Path(ckptool.__file__).parent
PAGE = PACKAGE.parent / "CONTRIBUTING.md"
BEGIN, END = "```\nckptool/\n", "```\n"
COLUMN = 28  # where the sentences begin


def tree() -> str:
    """Return the lines of the tree, below the line of the package itself."""
    return "".join(f"{line}\n" for line in _below(PACKAGE, ""))


def _below(folder: Path, indent: str) -> Iterator[str]:
    places = sorted(filter(_is_room, folder.iterdir()), key=lambda p: (p.is_file(), p.name))
    for place in places:
        is_last = place == places[-1]
        yield _line(f"{indent}{'└── ' if is_last else '├── '}", place)
        if place.is_dir():
            yield from _below(place, indent + ("    " if is_last else "│   "))


def _is_room(path: Path) -> bool:
    if path.is_dir():
        return (path / "__init__.py").is_file()
    return path.suffix == ".py" and path.name != "__init__.py"


def _line(branch: str, place: Path) -> str:
    source = place / "__init__.py" if place.is_dir() else place
    said = ast.get_docstring(ast.parse(source.read_text())) or ""
    name = f"{branch}{place.name}/" if place.is_dir() else f"{branch}{place.name}"
    first = said.partition("\n")[0].rstrip(".").replace("``", "")
    return f"{name:<{COLUMN}} {first}"


def page(text: str) -> str:
    """Return the page with the tree as it is now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + tree() + END + after


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
