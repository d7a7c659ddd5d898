"""Places in a checkpoint below a key path, for completion on the command line."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from ckptool.contents.selection import ROLES, select_node
from ckptool.formats import open_checkpoint
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import is_container
from ckptool.tree.walking import children

MOST = 10_000  # keys of a container


def keys_at(path: str, container: str) -> list[str]:
    """Return the keys of a container, escaped as in key paths; containers end in a slash.

    Raises:
        CkptError: the file cannot be read, or has no such container.
    """
    with open_checkpoint(Path(path)) as checkpoint:
        node = select_node(checkpoint.tree, container)
        keys = [
            format_address((key,)) + ("/" if is_container(child) and children(child) else "")
            for key, child in islice(children(node), MOST)
        ]
    return [*(ROLES if not container else ()), *keys]
