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

Rules: the files of all model-parallel ranks describe the parameters: a pipeline's stage has those
of its own. Each parameter that has a shape there has a weight of that shape, and all the states
that another one has. Tied parameters have a weight alone. Buffers are taken from the model's file,
in their own dtype. Slices of tensor parallelism are refused: no file says how the rest of the model
is sliced.

Source: DeepSpeed 0.19.8 ``checkpoint/ds_to_universal.py``, ``checkpoint/universal_checkpoint.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.base import Checkpoint
from ckptool.formats.folders import FolderOfFiles, all_or_none, joined
from ckptool.formats.ranked.assembly import Run, from_runs
from ckptool.formats.ranked.deepspeed import save_named
from ckptool.formats.ranked.ranks import (
    MODEL_WORLD,
    MODULE,
    OPTIMIZER,
    WORLD,
    refuse_different,
    refuse_missing,
    refuse_renamed,
)
from ckptool.formats.ranked.zero import PLAN, names_of, param_groups, shapes_of
from ckptool.regex import regex
from ckptool.tree.nodes import TensorRef, Tree, fields_of

ZERO, WEIGHT, PARAM = "zero", "fp32", "param"
STEPS = "global_steps"
LATEST_UNIVERSAL = "latest_universal"
MODEL_FILES = "*mp_rank_*_model_states.pt"
MODEL_RANK = regex(r"mp_rank_(\d{1,9})_")
# What a file's name says of its rank, and the field that states how many there are.
WORLDS = {regex(r"zero_pp_rank_(\d{1,9})_"): WORLD, MODEL_RANK: MODEL_WORLD}
COMMON = "optimizer_state.pt"
MAX_FILES = 1 << 20

States = dict[str, dict[str, Tree]]  # parameter -> state -> what its file holds


class UniversalFolder(FolderOfFiles):
    """See the module's docstring."""

    name = "deepspeed-universal"
    title = "DeepSpeed (universal)"
    written_by = "DeepSpeed's `ds_to_universal.py`"
    file_kinds = (
        (r"fp32\.pt", "the float32 weight of each parameter"),
        (r"(exp_avg|exp_avg_sq|step)\.pt", "a state of the optimizer for each parameter"),
        (r"optimizer_state\.pt", "settings of the optimizer"),
    )

    def matches(self, folder: Path) -> bool:
        """Return whether it is a save, or holds only one, which ``latest_universal`` names."""
        return save_named(folder, LATEST_UNIVERSAL, _is_save) is not None

    def open(self, folder: Path) -> Checkpoint:
        """Return one checkpoint of all files; read the pickle of each, and no values."""
        named, folder = folder, save_named(folder, LATEST_UNIVERSAL, _is_save) or folder
        paths = sorted(islice((folder / ZERO).glob("**/*.pt"), MAX_FILES))
        model, *others = sorted(folder.glob(MODEL_FILES))
        with all_or_none() as opened:
            parts = {
                str(path.relative_to(folder)): opened.enter_context(self._open_file(path))
                for path in (model, *others, *paths)
            }
            refuse_renamed(parts)
            states: States = {}
            rest = {path.name: parts[path.name].tree for path in others}
            for path in paths:
                part = parts[str(path.relative_to(folder))].tree
                name = path.parent.relative_to(folder / ZERO).as_posix()
                if name == ".":
                    rest[path.name] = part
                else:
                    states.setdefault(name, {})[path.stem] = part
            models = {path.name: fields_of(parts[path.name].tree) for path in (model, *others)}
            refuse_different({name: held.get(STEPS) for name, held in models.items()}, STEPS)
            fields = models[model.name]
            for pattern, stated in WORLDS.items():
                ranks = {int(m[1]): name for name in models if (m := pattern.search(name))}
                if ranks and type(world := fields.get(stated)) is int:
                    refuse_missing(ranks, world, "the model's states are of")
            settings = param_groups(rest.get(COMMON))
            tree = _tree(models, states, settings)
        tree[model.name] = {MODULE: fields.get(MODULE)}
        return joined(
            self,
            named,
            parts,
            {**tree, **rest},
            strategy="whole parameters, a file for each state of each",
        )


def _is_save(folder: Path) -> bool:
    """Return whether there are the files of parameters beside that of the model."""
    try:
        return any(folder.glob(MODEL_FILES)) and any(folder.glob(f"{ZERO}/*/{WEIGHT}.pt"))
    except OSError:
        return False


def _tree(
    models: Mapping[str, Mapping[Any, Any]], states: States, settings: Sequence[Mapping[Any, Any]]
) -> dict[Any, Tree]:
    """Return the weights and the optimizer's states by parameter, and the first model's fields.

    Args:
        models: the fields of the model's file of each rank, by its name.
        states: what the files of the parameters hold.
        settings: of each group of the optimizer.

    Raises:
        DamagedError: a parameter lacks its weight, its shape or a state, or has another shape.
        UnsupportedError: the parameters of the model's files are slices.
    """
    groups = _groups(models)
    trained = {name: shape for group in groups for name, shape in group.items()}
    _refuse_slices(models, trained, states)
    kinds = dict.fromkeys(kind for name in trained for kind in states.get(name, {}))
    for name, shape in trained.items():
        for kind in {WEIGHT: None, **kinds}:
            _refuse_missing(name, kind, shape, states.get(name, {}))
    saved: dict[Any, Tree] = {}
    for model in models.values():
        saved = {**fields_of(model.get(MODULE)), **saved}
    buffers = {name for model in models.values() for name in names_of(model, "buffer_names")}
    weights = {
        name: _weight(name, held, trained.get(name), saved.get(name))
        for name, held in states.items()
    }
    weights |= {name: saved[name] for name in saved if name in buffers}
    moments = {
        name: {
            kind: _shaped(_value(states[name][kind]), shape, name)
            for kind in kinds
            if kind != WEIGHT
        }
        for name, shape in trained.items()
    }
    fields = {k: v for k, v in next(iter(models.values())).items() if k not in PLAN}
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


def _groups(models: Mapping[str, Mapping[Any, Any]]) -> list[dict[Any, tuple[int, ...]]]:
    """Return the shapes of the parameters of each group, from the files of all ranks."""
    groups: list[dict[Any, tuple[int, ...]]] = []
    stated: dict[Any, tuple[str, int, tuple[int, ...]]] = {}
    for file, model in models.items():
        for n, group in enumerate(model.get("param_shapes") or ()):
            if n == len(groups):
                groups.append({})
            for name, shape in shapes_of(group).items():
                first, at, other = stated.setdefault(name, (file, n, shape))
                if (at, other) != (n, shape):
                    raise DamagedError(
                        f"it has the shape {list(other)} in group {at} of {first}, "
                        f"but {list(shape)} in group {n} of {file}",
                        address=str(name),
                        hint="files of two saves, or slices of tensor parallelism, which are not "
                        "joined: fetch it again, or save it at a tensor-parallel size of 1",
                    )
                groups[n][name] = shape
    return groups


def _refuse_slices(
    models: Mapping[str, Mapping[Any, Any]], trained: Mapping[Any, tuple[int, ...]], states: States
) -> None:
    """Refuse parameters of which the file of each model-parallel rank describes a slice."""
    ranks: dict[Any, set[str]] = {}
    for file, model in models.items():
        number = MODEL_RANK.search(file)
        for group in model.get("param_shapes") or ():
            for name in fields_of(group):
                ranks.setdefault(name, set()).add(number[1] if number else "")
    for name, shape in trained.items():
        weight = _value(states.get(name, {}).get(WEIGHT))
        is_whole = not isinstance(weight, TensorRef) or weight.shape in {shape, (prod(shape),)}
        if len(ranks[name]) > 1 and not is_whole:
            raise UnsupportedError(
                f"slices of tensor parallelism are not joined: its weight is whole, "
                f"{list(weight.shape)}, and {len(ranks[name])} model-parallel ranks describe "
                f"slices of it, {list(shape)}",
                address=str(name),
                hint="load it with DeepSpeed and save it at a tensor-parallel size of 1",
            )


def _weight(
    name: str, held: Mapping[str, Tree], shape: tuple[int, ...] | None, saved: Tree
) -> Tree:
    """Return a parameter's weight; one that is not trained has its shape from the module alone."""
    if shape is None:
        is_known = isinstance(saved, TensorRef) and saved.numel and {*held} == {WEIGHT}
        if not is_known:
            raise DamagedError(
                f"{ZERO}/{name:.120} is of a parameter that no model's file gives a shape",
                hint="fetch the model's files of all ranks, or run ds_to_universal.py again",
            )
        shape = saved.shape
        _refuse_missing(name, WEIGHT, shape, held)
    return _shaped(_value(held[WEIGHT]), shape, name)


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
