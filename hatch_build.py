"""The addresses of the project, which only its releases know: links, and where the sources are.

The workflow of releases says where the repository is (``CKPTOOL_REPOSITORY``). The index then gets
these addresses, and a README whose links lead into the repository at the tag of this version: the
index shows no other files. Every other build has neither.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(?P<sign>!?)\[(?P<text>[^\]]*)\]\((?!\w+:|#)(?P<path>[^)\s]+)\)")
VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)


class CustomMetadataHook(MetadataHookInterface):
    """Fills ``readme`` and ``urls`` of the project's metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add both to the metadata."""
        root = Path(self.root)
        text = (root / "README.md").read_text(encoding="utf-8")
        repository = os.environ.get("CKPTOOL_REPOSITORY")
        if repository:
            (version,) = VERSION.findall((root / "ckptool/__init__.py").read_text(encoding="utf-8"))
            text = with_addresses(text, repository, f"v{version}")
            metadata["urls"] = urls(repository, f"v{version}")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def urls(repository: str, tag: str) -> dict[str, str]:
    """Return the addresses that the index shows."""
    return {
        "Source": repository,
        "Documentation": f"{repository}/blob/{tag}/docs/index.md",
        "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


def with_addresses(text: str, repository: str, tag: str) -> str:
    """Return a page whose links to files lead to the repository; pictures are loaded from there."""

    def led(link: re.Match[str]) -> str:
        kind = "raw" if link["sign"] else "blob"
        return f"{link['sign']}[{link['text']}]({repository}/{kind}/{tag}/{link['path']})"

    return LINK.sub(led, text)
