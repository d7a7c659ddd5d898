"""Checks the links of Markdown pages: files are there, and so are the headings they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

PARSER = MarkdownIt("commonmark").enable("table")
TARGETS = {"link_open": "href", "image": "src"}  # of the tokens that lead somewhere


def broken_links(page: Path) -> list[str]:
    """Return the links of a page that lead nowhere. Links to the web are not followed."""
    return [link for link in links_of(page.read_text()) if not _leads_somewhere(page, link)]


def links_of(text: str) -> list[str]:
    """Return where the links and the pictures of a page lead, in their order."""
    found = (token for token in _tokens(PARSER.parse(text)) if token.type in TARGETS)
    return [str(token.attrGet(TARGETS[token.type])) for token in found]


def _tokens(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _tokens(token.children or [])


def _leads_somewhere(page: Path, link: str) -> bool:
    parts = urlsplit(link)
    if parts.scheme:
        return parts.scheme in {"https", "mailto"}
    target = page.parent / parts.path if parts.path else page
    return target.exists() and (not parts.fragment or parts.fragment in _headings(target))


def _headings(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub and the site make them of headings."""
    tokens = PARSER.parse(page.read_text())
    pairs = pairwise(tokens)
    return {_slug(text.content) for opening, text in pairs if opening.type == "heading_open"}


def _slug(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", heading.lower()).strip()
    return re.sub(r"[- ]+", "-", kept)
