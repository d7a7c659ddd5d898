"""Directories that Lightning saves: a distributed checkpoint, and ``meta.pt`` with the rest.

Layout, of ``last.ckpt/`` (ModelParallelStrategy, FSDPStrategy with sharded state dicts, Fabric)::

    .metadata, __<rank>_<n>.distcp    the model and the optimizers; see ``dcp.py``
    meta.pt                           a torch.save: epoch, global_step, loops, callbacks, …

The tree has the keys of both, as Lightning loads them. A key in both is refused.

Source: lightning 2.6 ``pytorch/strategies/model_parallel.py``, ``fsdp.py``.
"""

from __future__ import annotations

from pathlib import Path

from ckptool.errors import DamagedError
from ckptool.formats.base import Checkpoint, FolderFormat
from ckptool.formats.dcp import DcpFolder
from ckptool.formats.folders import OpenFile, all_or_none, joined

META = "meta.pt"


class LightningFolder(FolderFormat):
    """See the module's docstring."""

    name = "dcp"
    title = "torch.distributed.checkpoint"
    written_by = "Lightning, with `meta.pt` beside them"
    unread_checksums = DcpFolder.unread_checksums
    may_trail = True
    file_kinds = ((r"meta\.pt", "progress of the run"),)

    def __init__(self, open_file: OpenFile) -> None:
        self._open_file = open_file
        self._tensors = DcpFolder()

    def matches(self, folder: Path) -> bool:
        """Return whether the directory holds a plan, and Lightning's file."""
        return self._tensors.matches(folder) and (folder / META).is_file()

    def open(self, folder: Path) -> Checkpoint:
        """Return one checkpoint of both.

        Raises:
            DamagedError: a key is in both.
        """
        with all_or_none() as opened:
            tensors = opened.enter_context(self._tensors.open(folder))
            meta = opened.enter_context(self._open_file(folder / META))
            if not isinstance(meta.tree, dict) or not isinstance(tensors.tree, dict):
                raise DamagedError("it is no dict, as Lightning writes it", path=folder / META)
            twice = sorted(map(str, meta.tree.keys() & tensors.tree.keys()))
            if twice:
                raise DamagedError(f"{META} has what the plan has too", address=twice[0])
        parts = {folder.name: tensors, META: meta}
        tree, strategy = {**tensors.tree, **meta.tree}, tensors.strategy
        return joined(self, folder, parts, tree, parts=tensors.parts, strategy=strategy)
