"""DeepSpeed's universal checkpoint: a directory with a file for each state of each parameter.

Layout, as ``ds_to_universal.py`` writes it::

    zero/<parameter>/fp32.pt          {"param": the whole float32 weight, "cat_dim": …}
    zero/<parameter>/exp_avg.pt, …    the same for each state of the optimizer; step.pt is a number;
                                      of stage 3 all are flat, without the dict
    zero/optimizer_state.pt           what the optimizer keeps besides
    mp_rank_00_model_states.pt        the model's file of the save that it was made of; of stage 3
                                      zero_pp_rank_<r>_mp_rank_00_model_states.pt of each rank
    latest_universal                  beside the directory: its name

The tree is that of ``deepspeed.py``: ``module``, ``optimizer``, then the fields of the model's
file, and what is left of each file under its name.

Rules: each parameter that the model's file gives a shape has a weight of that shape, and all the
states that another one has. Tied parameters may have a weight alone. Buffers are taken from the
model's file, in their own dtype.

Source: DeepSpeed 0.19.8 ``checkpoint/ds_to_universal.py``, ``checkpoint/universal_checkpoint.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from ckptool.errors import DamagedError
from ckptool.formats.base import Checkpoint, FolderFormat
from ckptool.formats.folders import OpenFile, all_or_none, globals_by_file, joined
from ckptool.formats.ranked.assembly import Run, from_runs
from ckptool.formats.ranked.deepspeed import save_named
from ckptool.formats.ranked.ranks import refuse_different, refuse_missing
from ckptool.formats.ranked.zero import (
    MODULE,
    OPTIMIZER,
    PLAN,
    names_of,
    param_groups,
    shapes_of,
)
from ckptool.tree.nodes import TensorRef, Tree, fields_of

ZERO, WEIGHT, PARAM = "zero", "fp32", "param"
STEPS = "global_steps"
LATEST_UNIVERSAL = "latest_universal"
MODEL_FILES = "*mp_rank_*_model_states.pt"
RANK = re.compile(r"zero_pp_rank_(\d{1,9})_")
COMMON = "optimizer_state.pt"
MAX_FILES = 1 << 20

States = dict[str, dict[str, Tree]]  # parameter -> state -> what its file holds


class UniversalFolder(FolderFormat):
    """See the module's docstring."""

    name = "deepspeed-universal"
    written_by = "DeepSpeed's `ds_to_universal.py`"
    is_of_parts = True

    def __init__(self, open_file: OpenFile) -> None:
        self._open_file = open_file

    def matches(self, folder: Path) -> bool:
        """Return whether it is a save, or holds only one, which ``latest_universal`` names."""
        return save_named(folder, LATEST_UNIVERSAL, _is_save) is not None

    def open(self, folder: Path) -> Checkpoint:
        """Return one checkpoint of all files; read the pickle of each, and no values."""
        named, folder = folder, save_named(folder, LATEST_UNIVERSAL, _is_save) or folder
        paths = sorted(islice((folder / ZERO).glob("**/*.pt"), MAX_FILES))
        model, *others = sorted(folder.glob(MODEL_FILES))
        ranks = {int(m[1]): p.name for p in (model, *others) if (m := RANK.search(p.name))}
        with all_or_none() as opened:
            parts = {
                str(path.relative_to(folder)): opened.enter_context(self._open_file(path))
                for path in (model, *others, *paths)
            }
            states: States = {}
            rest = {path.name: parts[path.name].tree for path in others}
            for path in paths:
                part = parts[str(path.relative_to(folder))].tree
                if path.parent.name == ZERO:
                    rest[path.name] = part
                else:
                    states.setdefault(path.parent.name, {})[path.stem] = part
            fields = fields_of(parts[model.name].tree)
            if ranks:
                models = {name: parts[name].tree for name in ranks.values()}
                counts = {name: fields_of(tree).get(STEPS) for name, tree in models.items()}
                refuse_different(counts, STEPS)
            if ranks and type(world := fields.get("dp_world_size")) is int:
                refuse_missing(ranks, world, "the model's states are of")
            settings = param_groups(rest.get(COMMON))
            tree = _tree(fields, states, settings)
        tree[model.name] = {MODULE: fields.get(MODULE)}
        return joined(
            self,
            named,
            parts,
            {**tree, **rest},
            globals_named=globals_by_file(parts),
            strategy="whole parameters, a file for each state of each",
        )


def _is_save(folder: Path) -> bool:
    """Return whether there are the files of parameters beside that of the model."""
    try:
        return any(folder.glob(MODEL_FILES)) and any(folder.glob(f"{ZERO}/*/{WEIGHT}.pt"))
    except OSError:
        return False


def _tree(
    model: Mapping[Any, Any], states: States, settings: Sequence[Mapping[Any, Any]]
) -> dict[Any, Tree]:
    """Return the weights and the optimizer's states by parameter, and the model's fields.

    Args:
        model: the fields of the model's file.
        states: what the files of the parameters hold.
        settings: of each group of the optimizer.

    Raises:
        DamagedError: a parameter lacks its weight or a state, or it has another shape.
    """
    groups = [shapes_of(group) for group in model.get("param_shapes") or ()]
    trained = {name: shape for group in groups for name, shape in group.items()}
    kinds = dict.fromkeys(kind for name in trained for kind in states.get(name, {}))
    for name, shape in trained.items():
        for kind in {WEIGHT: None, **kinds}:
            _refuse_missing(name, kind, shape, states.get(name, {}))
    saved = fields_of(model.get(MODULE))
    buffers = names_of(model, "buffer_names")
    weights = {
        name: _shaped(_value(held[WEIGHT]), trained.get(name), name)
        for name, held in states.items()
        if WEIGHT in held
    }
    weights |= {name: saved[name] for name in buffers if name in saved}
    moments = {
        name: {
            kind: _shaped(_value(states[name][kind]), shape, name)
            for kind in kinds
            if kind != WEIGHT
        }
        for name, shape in trained.items()
    }
    fields = {k: v for k, v in model.items() if k not in PLAN}
    return {
        MODULE: {name: weights.get(name, saved.get(name)) for name in {**saved, **weights}},
        OPTIMIZER: {
            "state": moments,
            "param_groups": [
                {**(settings[n] if n < len(settings) else {}), "params": [*group]}
                for n, group in enumerate(groups)
            ],
        },
        **fields,
    }


def _refuse_missing(name: str, kind: str, shape: tuple[int, ...], held: Mapping[str, Tree]) -> None:
    if kind not in held:
        raise DamagedError(
            f"{ZERO}/{name:.120}/{kind:.40}.pt is missing, a part of the model or its optimizer",
            hint="fetch it from where the others came from, or run ds_to_universal.py again",
        )
    value = _shaped(_value(held[kind]), shape, name)
    if kind == WEIGHT and not (isinstance(value, TensorRef) and value.shape == shape):
        raise DamagedError(
            f"its weight is not of the shape {list(shape)}, which the model's file states",
            address=name,
            hint="files of two saves are in one folder: run ds_to_universal.py again",
        )


def _value(held: Tree) -> Tree:
    return fields_of(held).get(PARAM, held)


def _shaped(value: Tree, shape: tuple[int, ...] | None, name: str) -> Tree:
    """Return a flat tensor in the shape of its parameter, if it has as many elements."""
    if shape is None or not isinstance(value, TensorRef) or value.shape != (prod(shape),):
        return value
    return from_runs(name, shape, [Run(value, 0, prod(shape))])
