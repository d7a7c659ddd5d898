"""The forms of a report of ``ckptool diff``: pages for terminals and pipes, documents as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ckptool.diff_reports import DiffReport
from ckptool.render.as_json import to_json
from ckptool.render.diff_documents import to_github, to_junit, to_markdown
from ckptool.render.diff_html import to_html
from ckptool.render.diff_text import show_diff, show_names, show_stat
from ckptool.render.page import Page

PAGES: Mapping[str, Callable[[DiffReport], Page]] = {
    "full": show_diff,
    "stat": show_stat,
    "names": show_names,
}

DOCUMENTS: Mapping[str, Callable[[DiffReport], str]] = {
    "json": to_json,
    "md": to_markdown,
    "github": to_github,
    "junit": to_junit,
    "html": to_html,
}
