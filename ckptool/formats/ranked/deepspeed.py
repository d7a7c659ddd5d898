"""DeepSpeed's ZeRO: a directory with the model, and a part of the optimizer for each rank.

Layout, with the tag of a save as the directory's name::

    mp_rank_00_model_states.pt                     stages 0 to 2: the model in its training dtype
                                                   (module), shapes and names (param_shapes,
                                                   buffer_names), steps and client state
    zero_pp_rank_<r>_mp_rank_00_model_states.pt    stage 3: the same for each rank, with
                                                   placeholders of shape [0] for the parameters
    zero_pp_rank_<r>_mp_rank_00_optim_states.pt    the part of rank r: float32 master weights and
                                                   the optimizer's states, flattened
    latest                                         beside the directory: its name

The tree has the assembled float32 weights under ``module``, as ``zero_to_fp32.py`` gives them but
with buffers and frozen parameters in their own dtype, and the optimizer's states by parameter under
``optimizer``; then the fields of rank 0's model file, and what is left of each file under its name,
such as the weights in the training dtype.

Rules: all ranks of one save are there, once, and none has the name of another. Expert, tensor and
pipeline parallelism are refused, since the files do not say how to join their parts.

Source: DeepSpeed 0.19.8 ``utils/zero_to_fp32.py``, ``runtime/engine.py``, ``runtime/zero/``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.base import Checkpoint, TensorReader
from ckptool.formats.folders import FolderOfFiles, all_or_none, joined, reader_of
from ckptool.formats.ranked.ranks import MODEL_WORLD, MODULE, OPTIMIZER, WORLD, refuse_renamed
from ckptool.formats.ranked.zero import PARTITIONED, PLAN, ZeroPlan
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.sources.places import entries, open_file
from ckptool.tree.describing import named
from ckptool.tree.nodes import Tree, fields_of

LATEST = "latest"
# Fields of the model's file: the ranks among which the batches, and the model, are divided.
MAX_TAG = 255  # bytes of a file name
FILE = regex(
    r"(?:(?:bf16_|fp16_)?zero_pp_rank_(?P<rank>\d{1,9})_)?mp_rank_(?P<mp>\d{1,9})"
    r"_(?P<kind>model|optim)_states\.pt"
)
PARALLEL = regex(r"(layer_\d+|expp?)[-_].*_states\.pt")  # of pipelines and of experts


JOIN = "convert it with DeepSpeed's ds_to_universal.py; or name a single file to see what is in it"


class StateFile(NamedTuple):
    """A file of a save, by what its name says."""

    kind: str
    rank: int | None
    path: Path


class DeepSpeedFolder(FolderOfFiles):
    """See the module's docstring."""

    name = "deepspeed"
    title = "DeepSpeed"
    written_by = "DeepSpeed: ZeRO stages 0 to 3, one rank or many"
    # fmt: off
    file_kinds = (
        (r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt",
         "each rank's buffers, frozen parameters, steps, client state"),
        (r"mp_rank_\d+_model_states\.pt",
         "the weights in their training dtype, steps, client state"),
        (r"((bf16|fp16)_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt",
         "each rank's part of the float32 weights and of the optimizer state"),
    )
    # fmt: on

    def matches(self, folder: Path) -> bool:
        """Return whether it is a save, or holds only one, which ``latest`` in it names."""
        return save_named(folder, LATEST, _has_save) is not None

    def open(self, folder: Path) -> Checkpoint:
        """Return the save as one checkpoint; read the pickle of each file, and no values."""
        files = _files(save_named(folder, LATEST, _has_save) or folder)
        with all_or_none() as opened:
            parts = self._opened(opened, (file.path for file in files))
            refuse_renamed(parts)
            trees = [(file, parts[file.path.name].tree) for file in files]
            plan = _plan(trees, reader_of(parts))
            tree = _tree(plan)
        return joined(
            self,
            folder,
            parts,
            tree,
            world=plan.world or None,
            strategy=f"ZeRO stage {plan.stage}" if plan.world else "without ZeRO",
            of_one_rank=(*((f.path.name,) for f in files if f.rank is not None), (WORLD,)),
        )


def save_named(folder: Path, latest: str, is_save: Callable[[Path], bool]) -> Path | None:
    """Return the directory of the save: the given one, or the one that ``latest`` in it names.

    With several saves below it, a directory is a run.

    Args:
        folder: the directory that was named.
        latest: the name of the file in it with the tag of the last save.
        is_save: whether a directory holds the files of a save.
    """
    if is_save(folder):
        return folder
    file = folder / latest
    if not file.is_file():
        return None
    with open_file(file) as opened:
        tag = opened.read(0, min(opened.size, MAX_TAG)).decode(errors="replace").strip()
    if tag in {"", ".", ".."} or "/" in tag or "\0" in tag or not is_save(folder / tag):
        return None
    saves = [path for path in entries(folder) if path.is_dir() and is_save(path)]
    return saves[0] if len(saves) == 1 else None


def _has_save(folder: Path) -> bool:
    return any(FILE.fullmatch(path.name) for path in entries(folder))


def _files(folder: Path) -> list[StateFile]:
    """Return the files of a save, in the order of ranks."""
    listed = entries(folder)
    _refuse_unjoinable(listed)
    found = [
        StateFile(match["kind"], None if match["rank"] is None else int(match["rank"]), path)
        for path in listed
        if (match := FILE.fullmatch(path.name))
    ]
    files = sorted(found, key=lambda f: (f.kind, f.rank or 0, f.path.name))
    for one, other in pairwise(files):
        if (one.kind, one.rank) == (other.kind, other.rank):
            raise DamagedError(
                f"{one.path.name} and {other.path.name} are of the same rank",
                hint="files of two saves are in one folder: fetch it again",
            )
    return files


def _refuse_unjoinable(listed: Sequence[Path]) -> None:
    """Refuse the parts of a model that the files do not say how to join, all by name."""
    parallel = [path.name for path in listed if PARALLEL.fullmatch(path.name)]
    if parallel:
        are = "are parts" if len(parallel) > 1 else "is a part"
        raise UnsupportedError(
            f"{named(parallel)} {are} of a pipeline or of experts, and the files do not say how "
            "the parts are joined",
            hint=JOIN,
        )
    slices = [path.name for path in listed if (m := FILE.fullmatch(path.name)) and int(m["mp"])]
    if slices:
        raise UnsupportedError(
            f"tensor parallelism: {named(slices)} hold slices of the model beside those of rank 0, "
            "and the files do not say how they are joined",
            hint=JOIN,
        )


# -------------------------------------------------------------------------------------------- tree


def _plan(trees: Sequence[tuple[StateFile, Tree]], reader: TensorReader) -> ZeroPlan:
    """Return the plan of a save, all of whose files are there."""
    models = {f.rank: (f.path.name, _fields(tree, f)) for f, tree in trees if f.kind == "model"}
    optims = {
        f.rank or 0: (f.path.name, _fields(fields_of(tree).get(PARTITIONED), f))
        for f, tree in trees
        if f.kind == "optim"
    }
    if not models:
        raise DamagedError(
            "there is no file of the model's states, only of the optimizer's",
            hint="fetch *_model_states.pt from where the others came from",
        )
    for name, fields in models.values():
        if type(world := fields.get(MODEL_WORLD)) is int and world > 1:
            raise UnsupportedError(
                f"tensor parallelism: {name} holds a slice of the model, of {world:,} ranks, and "
                "the files do not say how they are joined",
                hint=JOIN,
            )
    plan = ZeroPlan(models, optims)
    plan.refuse_mixed(reader)
    return plan


def _tree(plan: ZeroPlan) -> dict[Any, Tree]:
    """Return the tree of a save."""
    _, first = plan.model_files[0]
    tree = plan.assembled() if plan.world else {k: first.get(k) for k in (MODULE, OPTIMIZER)}
    tree |= {key: value for key, value in first.items() if key not in PLAN and key not in tree}
    return tree | {name: part for name, part in plan.left() if part}


def _fields(node: Any, file: StateFile) -> Mapping[Any, Any]:
    fields = fields_of(node)
    if not fields:
        raise DamagedError(f"{file.path.name} has none of the fields that DeepSpeed writes")
    return fields
