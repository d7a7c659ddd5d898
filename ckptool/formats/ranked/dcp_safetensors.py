"""torch's distributed checkpoint in safetensors files: a directory with a file for each rank.

Layout::

    shard-00001-model-00001-of-00001.safetensors    of each rank, with the offsets of its parts in
    shard-00002-model-00001-of-00001.safetensors    the header; see ``sharding_info.py``

The second number is that of a group of tensors, each of which a rank writes into one file.

Rules: the files of all groups are there; a rank that holds nothing of a group writes no file for
it. The parts of a tensor are boxes that cover it, each element once. The shape of a tensor is
how far its parts reach, as in torch, since no file states it; nor does any file state the number of
ranks. So parts that are missing at the end are not noticed, which a note says.

Source: torch 2.13 ``torch/distributed/checkpoint/_consolidate_hf_safetensors.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from ckptool.errors import DamagedError
from ckptool.formats.base import Checkpoint, Note
from ckptool.formats.folders import FolderOfFiles, all_or_none, joined
from ckptool.formats.ranked.assembly import Box, from_boxes, held_boxes
from ckptool.formats.ranked.ranks import refuse_different
from ckptool.formats.ranked.sharding_info import KEY, PART, SHARD, saved_offsets
from ckptool.sources.places import entries
from ckptool.tree.nodes import CompositeTensor, TensorRef, Tree


class DcpSafetensorsFolder(FolderOfFiles):
    """See the module's docstring."""

    name = "dcp-safetensors"
    title = "torch.distributed.checkpoint (safetensors)"
    written_by = "`torch.distributed.checkpoint` with `HuggingFaceStorageWriter`: shards of ranks"
    is_pickle = False
    file_kinds = ((r"shard-\d+-model-\d+-of-\d+\.safetensors", "each rank's parts of the weights"),)

    def matches(self, folder: Path) -> bool:
        """Return whether the directory has files of ranks."""
        return bool(_shards(folder))

    def open(self, folder: Path) -> Checkpoint:
        """Return the assembled tensors; read only the headers."""
        with all_or_none() as opened:
            parts = self._opened(opened, _shards(folder))
            names = {name: match for name in parts if (match := SHARD.fullmatch(name))}
            _refuse_missing(names)
            tree = _tree(parts)
        ranks = {int(match["rank"]) for match in names.values()}
        said = f"shards of {len(ranks):,} ranks were found, and no file states how many there are"
        strategy = f"parts by their offsets, in the files of {len(ranks):,} ranks"
        whole = joined(
            self, folder, parts, tree, notes=(Note("CK125", "", said),), strategy=strategy
        )
        metadata = next(iter(parts.values())).metadata
        whole.metadata.update({k: v for k, v in metadata.items() if k != KEY})
        return whole


def _shards(folder: Path) -> list[Path]:
    return [path for path in entries(folder) if SHARD.fullmatch(path.name)]


def _refuse_missing(names: Mapping[str, re.Match[str]]) -> None:
    """Refuse files whose names state several numbers of groups, or a group that is not there."""
    totals = {name: int(match["groups"]) for name, match in names.items()}
    refuse_different(totals, "the number of groups of tensors")
    held = {int(match["group"]) for match in names.values()}
    total = next(iter(totals.values()))
    missing = next(number for number in count(1) if number not in held)
    if missing <= total or max(held) > total:
        which = (
            f"no file is of number {missing:,}" if missing <= total else f"one is of {max(held):,}"
        )
        raise DamagedError(
            f"by their names the tensors are in {total:,} groups of files, and {which}",
            hint="fetch all files of one save again",
        )


def _tree(parts: Mapping[str, Checkpoint]) -> dict[str, Tree]:
    """Return the assembled tensors."""
    held: dict[str, dict[Box, TensorRef]] = {}
    for file, part in parts.items():
        offsets = saved_offsets(part.metadata) or {}
        for name, node in part.tree.items():
            ref = node.parts[PART] if isinstance(node, CompositeTensor) else node
            if name not in offsets:
                raise DamagedError(
                    f"{KEY} in {file} does not say where its part begins", address=name
                )
            box = Box(offsets[name], ref.shape)
            if box in held.setdefault(name, {}):
                raise DamagedError(f"{file} holds a part that another file has too", address=name)
            held[name][box] = ref
    return {name: _assembled(name, boxes) for name, boxes in held.items()}


def _assembled(name: str, held: Mapping[Box, TensorRef]) -> TensorRef:
    if len({len(size) for box in held for size in box}) != 1:
        raise DamagedError("its parts have different numbers of dimensions", address=name)
    ends = ([a + b for a, b in zip(*box, strict=True)] for box in held)
    shape = tuple(map(max, zip(*ends, strict=True)))
    return from_boxes(name, shape, ((box, held[box]) for box in held_boxes([*held], shape, name)))
