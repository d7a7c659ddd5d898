"""A directory with a ``torch.save`` of each rank, of one model that the ranks share.

Layout, with any text before the rank::

    model_world_size_8_rank_3.pt      DTensors (FSDP2 and tensor parallelism) or ShardedTensors
    optim_world_size_8_rank_3.pt      (FSDP1), and plain values that every rank has
    model_rank-3-of-8.pth             the same
    rank3.pt, checkpoint_rank_3.pt    the same, without the number of ranks in the name
    checkpoint-shard3.pt              flattened parameters of fairscale; see flattened.py
    ema_rank_3.safetensors            the EMA weights of each rank as plain tensors

Each kind of file is joined into one tree, under its name if there are several: tensors that are
cut are assembled, everything else is rank 0's. Values of other ranks that differ from rank 0's
(random states, statistics of a normalisation) stay in the tree under the name of their file.

Rules: all ranks of one save are there, once. Counters that every rank has are equal. Copies of a
replicated part begin alike. A flattened parameter of torch's FSDP1 does not say what is in it, and
nothing is taken from it. Plain EMA weights that differ from rank to rank may be slices, and are
never taken for the whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from ckptool.errors import CkptError, DamagedError
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.formats.folders import FolderOfFiles, all_or_none, joined, reader_of
from ckptool.formats.ranked.assembly import Box, from_boxes, held_boxes
from ckptool.formats.ranked.distributed import (
    is_distributed,
    parts_of,
    rank_of,
    strategy_of,
    world_of,
)
from ckptool.formats.ranked.flattened import FLATTENED, is_flattened, unflattened
from ckptool.formats.ranked.ranks import (
    FILE,
    PREFIX,
    refuse_different,
    refuse_missing,
    refuse_renamed,
    scalar,
    world_by_name,
)
from ckptool.formats.ranked.sharding_info import DIFFERING
from ckptool.formats.unopened import CHECKPOINT_SUFFIXES
from ckptool.names import STATISTICS, marker_in
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.sources.places import files_in
from ckptool.tree.nodes import CompositeTensor, TensorRef, Tree

SERIES = regex(r"\d+|latest|last|best")  # what differs between the saves of a run
SHOWN = 4  # ways of sharing that are named
MAX_VISITS = 1 << 22  # values of all ranks that are looked at
MAX_NESTING = 16  # levels at which tensors are joined; state dicts of optimizers have three
# Keys of counts that are equal in all ranks of one save.
COUNTERS = frozenset({
    "epoch", "global_step", "global_steps", "iteration", "last_epoch", "num_batches_tracked",
    "step", "_step_count",
})  # fmt: skip


Held = tuple[str, Tree]  # the name of a rank's file, and what it has at a key path


class RankFile(NamedTuple):
    """A file of a rank, by what its name says."""

    kind: str
    world: int | None
    rank: int
    path: Path


class RankFolder(FolderOfFiles):
    """See the module's docstring."""

    name = "ranks"
    title = "torch.save of each rank"
    written_by = "`torch.save` of each rank: FSDP2, FSDP1 (sharded), fairscale, tensor parallelism"
    file_kinds = (
        (r"(.*[_.-])?optim.*(rank|shard)[_-]?\d+\.\w+", "each rank's part of the optimizer state"),
        (r"extra_state.*rank_\d+\.\w+", "each rank's scheduler and random states"),
        (r"(.*[_.-])?ema.*(rank|shard)[_-]?\d+\.\w+", "each rank's EMA weights"),
        (r"(.*[_.-])?(rank|shard)[_-]?\d+\.\w+", "each rank's part of the weights"),
    )

    def matches(self, folder: Path) -> bool:
        """Return whether all checkpoints in the directory are of the ranks of one save.

        Names tell it if they have the number of ranks, or say that each rank has EMA weights of its
        own; else the tensors of the first file do.
        """
        listed = files_in(folder)
        files = sorted(_files(listed))
        others = any(p.suffix in CHECKPOINT_SUFFIXES and not FILE.fullmatch(p.name) for p in listed)
        kinds = {file.kind for file in files}
        is_series = len({SERIES.sub("#", kind) for kind in kinds}) < len(kinds)
        if not files or others or is_series:
            return False
        is_told = any(file.world for file in files) or _are_averages(files)
        return is_told or self._is_cut(files[0].path)

    def _is_cut(self, path: Path) -> bool:
        try:
            with self._open_file(path) as first:
                return is_flattened(first.tree) or _world(first.tree) is not None
        except CkptError:
            return False

    def open(self, folder: Path) -> Checkpoint:
        """Return the files of all ranks as one checkpoint; read their pickles."""
        files = sorted(_files(files_in(folder)))
        with all_or_none() as opened:
            parts = self._opened(opened, (file.path for file in files))
            refuse_renamed(parts)
            tree = _tree(files, parts, reader_of(parts))
        return joined(
            self,
            folder,
            parts,
            tree,
            world=len({file.rank for file in files}),
            strategy=_strategy(part.tree for part in parts.values()),
            of_one_rank=tuple((name,) for name in parts),
        )


def _are_averages(files: Sequence[RankFile]) -> bool:
    """Return whether several ranks each have a file that its name calls EMA weights."""
    kinds = Counter(file.kind for file in files)
    return any(count > 1 and marker_in([kind]) for kind, count in kinds.items())


def _files(listed: Sequence[Path]) -> Iterator[RankFile]:
    for path in listed:
        match = FILE.fullmatch(path.name)
        if match:
            yield RankFile(match["kind"] or "", world_by_name(match), int(match["rank"]), path)


# -------------------------------------------------------------------------------------------- tree


def _tree(files: Sequence[RankFile], parts: Mapping[str, Checkpoint], reader: TensorReader) -> Tree:
    """Return the joined trees of all kinds of files."""
    kinds: dict[str, list[RankFile]] = {}
    for file in files:
        kinds.setdefault(file.kind, []).append(file)
    joined_trees: dict[str, Tree] = {}
    rest: dict[str, Tree] = {}
    for kind, ranks in kinds.items():
        trees = {file.path.name: parts[file.path.name].tree for file in ranks}
        told = {file.path.name: file.world for file in ranks if file.world is not None}
        if told:
            refuse_different(told, "the number of ranks")
        # A mesh may be of some of the ranks, which are then all there by their names.
        stated = max((world for tree in trees.values() if (world := _world(tree))), default=0)
        count = next(iter(told.values()), max(stated, *(file.rank + 1 for file in ranks)))
        refuse_missing({file.rank: file.path.name for file in ranks}, count, "the state is of")
        if stated > count:
            raise DamagedError(
                f"{ranks[0].path.name} is of {count:,} ranks by its name, and of {stated:,} by its "
                "tensors",
                hint="give the files their names back, or fetch them again",
            )
        if any(map(is_flattened, trees.values())):
            trees = unflattened(trees, reader)
        joining = _Joining(reader, {file.path.name: file.rank for file in ranks})
        joined_trees[kind or "model"] = joining.joined([*trees.items()], "", 0)
        first, *others = trees
        rest |= {n: left for n in others if (left := joining.left(trees[first], trees[n], 0))}
    is_named = len(joined_trees) > 1 or rest or any(marker_in([kind]) for kind in kinds)
    whole = joined_trees if is_named else next(iter(joined_trees.values()))
    return {**whole, **rest} if isinstance(whole, dict) else whole


def _world(tree: Tree) -> int | None:
    """Return the number of ranks that share the first tensor that says it; None if none does."""
    return next((world for node in _distributed(tree) if (world := world_of(node))), None)


def _distributed(tree: Tree) -> Iterator[CompositeTensor | TensorRef]:
    """Yield the tensors of a tree of which each rank may hold a part."""
    waiting, visits = [(tree, 0)], 0
    while waiting and visits < MAX_VISITS:
        node, depth = waiting.pop()
        visits += 1
        if is_distributed(node):
            yield node
        elif depth < MAX_NESTING and isinstance(node, (dict, list)):
            parts = node.values() if isinstance(node, dict) else node
            waiting += [(part, depth + 1) for part in parts]


def _strategy(trees: Iterable[Tree]) -> str:
    """Return how the ranks share tensors, by those of the first file that has any."""
    for tree in trees:
        if is_flattened(tree):
            return FLATTENED
        if found := sorted({strategy_of(node) for node in _distributed(tree)}):
            more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
            return "; ".join(found[:SHOWN]) + more
    return "plain tensors, which do not say how they are shared"


class _Joining:
    """The joining of the trees of all ranks of one kind of file."""

    def __init__(self, reader: TensorReader, ranks: Mapping[str, int]) -> None:
        self._reader, self._ranks = reader, ranks
        self._visits = 0

    def _visit(self) -> None:
        self._visits += 1
        if self._visits > MAX_VISITS:
            raise DamagedError(f"the ranks have more than {MAX_VISITS:,} values")

    def joined(self, ranks: Sequence[Held], name: str, depth: int) -> Tree:
        """Return what the ranks, given as (file, value), hold together at one key path."""
        self._visit()
        first = ranks[0][1]
        if any(is_distributed(node) for _, node in ranks):
            return self._assembled(ranks, name)
        if isinstance(first, dict) and depth < MAX_NESTING:
            held = [(file, node) for file, node in ranks if isinstance(node, dict)]
            return {
                key: self.joined(
                    [(file, node[key]) for file, node in held if key in node],
                    f"{name}/{key}" if name else str(key),
                    depth + 1,
                )
                for key in dict.fromkeys(k for _, node in held for k in node)
            }
        if isinstance(first, list) and depth < MAX_NESTING:
            rows = [(f, n) for f, n in ranks if isinstance(n, list) and len(n) == len(first)]
            return [
                self.joined([(file, row[i]) for file, row in rows], f"{name}/{i}", depth + 1)
                for i in range(len(first))
            ]
        last = re.split(r"[./]", name)[-1]
        if last in COUNTERS and len(ranks) == len(self._ranks):
            refuse_different({file: self._counted(node) for file, node in ranks}, name)
        if last not in STATISTICS and self._is_slice(ranks):
            refs = {file: node for file, node in ranks if isinstance(node, TensorRef)}
            return CompositeTensor(DIFFERING, first.dtype, first.shape, refs)
        return first

    def _is_slice(self, ranks: Sequence[Held]) -> bool:
        """Return whether plain weights differ, so that rank 0's may be a part of the whole."""
        refs = [node for _, node in ranks if isinstance(node, TensorRef)]
        if len(refs) < 2 or not refs[0].dtype.is_floating:
            return False
        one, *others = refs
        return any(
            (ref.shape, ref.dtype) != (one.shape, one.dtype)
            or self._beginning(ref) != self._beginning(one)
            for ref in others
        )

    def _counted(self, node: Tree) -> Any:
        if isinstance(node, TensorRef):
            return scalar(node, self._reader)
        return node if isinstance(node, (int, float)) else None

    def _assembled(self, ranks: Sequence[Held], name: str) -> TensorRef:
        """Return a tensor that is cut among the ranks."""
        held: dict[Box, TensorRef] = {}
        shapes = {}
        for file, node in ranks:
            if not is_distributed(node):
                raise DamagedError(f"it is cut in other ranks, and whole in {file}", address=name)
            shapes[file] = node.shape
            self._refuse_other_rank(rank_of(node), file)
            for box, ref in parts_of(node, name):
                self._refuse_other_copy(held.setdefault(box, ref), ref, file, name)
        refuse_different(shapes, f"the shape of {name:.80}")
        shape = next(iter(shapes.values()))
        boxes = held_boxes([*held], shape, name)
        return from_boxes(name, shape, ((box, held[box]) for box in boxes))

    def _refuse_other_rank(self, told: int | None, file: str) -> None:
        if told is not None and told != self._ranks[file]:
            raise DamagedError(
                f"{file} is of rank {self._ranks[file]} by its name, and of rank {told} by its "
                "tensors: one file is a copy of another",
                hint="fetch the file of each rank from where the others came from",
            )

    def _refuse_other_copy(self, one: TensorRef, other: TensorRef, file: str, name: str) -> None:
        if one is not other and self._beginning(one) != self._beginning(other):
            raise DamagedError(
                f"{file} holds another copy of a replicated part than a rank before it: "
                "they are from two saves",
                address=name,
                hint="fetch all files of one save again",
            )

    def _beginning(self, ref: TensorRef) -> bytes:
        chunk = ref.chunks[0] if ref.chunks else None
        return self._reader.read(chunk.span, 0, PREFIX) if chunk else b""

    def left(self, first: Tree, other: Tree, depth: int, key: Any = None) -> Tree:
        """Return the values of another rank that differ from rank 0's, None if there are none."""
        self._visit()
        if is_distributed(other):
            return None
        if isinstance(other, dict) and isinstance(first, dict) and depth < MAX_NESTING:
            pairs = ((k, first.get(k), value) for k, value in other.items())
            found = {k: self.left(one, value, depth + 1, k) for k, one, value in pairs}
            return {k: value for k, value in found.items() if value is not None} or None
        if isinstance(other, list) and isinstance(first, list) and len(other) == len(first):
            parts = [self.left(a, b, depth + 1) for a, b in zip(first, other, strict=True)]
            return other if any(part is not None for part in parts) else None
        if isinstance(other, TensorRef) and isinstance(first, TensorRef):
            is_own = re.split(r"[./]", str(key))[-1] in STATISTICS
            if not is_own and self._is_slice([("", first), ("", other)]):
                return None  # a part of the joined tree, since it may be a slice
            return None if self._is_equal(first, other) else other
        is_plain = isinstance(other, (str, int, float, bool, type(None), tuple))
        return None if is_plain and other == first else other

    def _is_equal(self, one: TensorRef, other: TensorRef) -> bool:
        alike = (one.dtype, one.shape, one.lazy) == (other.dtype, other.shape, other.lazy)
        if not alike or prod(one.shape) * one.dtype.itemsize > PREFIX:
            return False
        return self._beginning(one) == self._beginning(other)
