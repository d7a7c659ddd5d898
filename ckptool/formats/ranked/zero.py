"""The parameters of a ZeRO save: how they lie in the flat buffers of the ranks.

Stages 1 and 2 flatten the parameters of a group, one after the other, perhaps padded to an
alignment, and cut the buffer into equal parts. Stage 3 cuts each parameter into equal parts, padded
at the end, and joins a rank's parts; a buffer may be cut into sub-groups anywhere.

Source: DeepSpeed 0.19.8 ``utils/zero_to_fp32.py``, ``runtime/zero/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from ckptool.errors import DamagedError
from ckptool.formats.base import TensorReader
from ckptool.formats.ranked.assembly import Joined, Run, Work, first_of, from_runs
from ckptool.formats.ranked.fragments import Group, refuse_exchanged
from ckptool.formats.ranked.ranks import (
    MODULE,
    OPTIMIZER,
    is_rounded,
    refuse_copies,
    refuse_different,
    refuse_missing,
    scalar,
)
from ckptool.tree.geometry import MAX_SIZE, are_sizes
from ckptool.tree.nodes import Opaque, TensorRef, Tree, fields_of

PARTITIONED = "optimizer_state_dict"
# Fields of the model's file that say how to assemble it; of no use to a reader afterwards.
PLAN = frozenset({
    MODULE, OPTIMIZER, "buffer_names", "param_shapes", "frozen_param_shapes",
    "frozen_param_fragments", "shared_params",
})  # fmt: skip
# What is assembled from the optimizer's files.
MASTERS = ("single_partition_of_fp32_groups", "fp32_flat_groups")
STATES = ("base_optimizer_state", "optimizer_state_dict")
CONSUMED = frozenset({*MASTERS, *STATES})
STEP = "step"
A_PART = 4  # steps of the state of a parameter, or of a flat buffer
WHOLE_STAGE = 3  # from it on the parameters themselves are partitioned


class ZeroPlan:
    """Parameters of one save, given the fields of each file."""

    def __init__(
        self,
        models: Mapping[int | None, tuple[str, Mapping[Any, Any]]],
        optims: Mapping[int, tuple[str, Mapping[Any, Any]]],
    ) -> None:
        self.model_files = [models[rank] for rank in sorted(models, key=lambda r: r or 0)]
        self.optim_files = [optims[rank] for rank in sorted(optims)]
        self._model_ranks = {rank: name for rank, (name, _) in models.items() if rank is not None}
        self._optim_ranks = {rank: name for rank, (name, _) in optims.items()}
        self._first = self.model_files[0][1]
        self.world = len(self.optim_files)
        self._work = Work()
        self._uncut: set[Any] = set()  # states that are not as long as the weights; kept by rank
        self.stage = self._stage()
        self._groups = [shapes_of(g) for g in _list(self._first, "param_shapes")]
        names = [name for group in self._groups for name in group]
        if len(set(names)) < len(names):
            raise DamagedError("param_shapes has a parameter in two groups")

    def _stage(self) -> int:
        """Return the stage of ZeRO: of the optimizer's states, or of the configuration."""
        zero = fields_of(fields_of(self._first.get("ds_config")).get("zero_optimization"))
        optim = self.optim_files[0][1] if self.optim_files else {}
        # The optimizer for bfloat16 with float32 gradients writes no stage.
        return _number(optim.get("zero_stage", zero.get("stage", 0)), "zero_stage")

    def refuse_mixed(self, reader: TensorReader) -> None:
        """Refuse files of several saves, or not all of one.

        Raises:
            DamagedError: a rank is missing, doubled or of another save; the message names it.
        """
        refuse_different(
            {n: _number(m.get("global_steps"), "global_steps") for n, m in self.model_files},
            "global_steps",
        )
        if not self.optim_files:
            if self.stage:
                raise DamagedError(
                    "the files of the optimizer's states are missing, which ZeRO stage "
                    f"{self.stage} writes for each rank",
                    hint="fetch *_optim_states.pt from where the others came from; up to stage 2, "
                    "mp_rank_00_model_states.pt alone has the weights in their training dtype",
                )
            return
        for field in ("zero_stage", "partition_count", "ds_version"):
            refuse_different({n: _said(part.get(field)) for n, part in self.optim_files}, field)
        counts = _said(self.optim_files[0][1].get("partition_count"))
        is_row = isinstance(counts, tuple) and all(type(n) is int for n in counts)
        count = max(counts, default=0) if is_row else counts
        if type(count) is not int:
            raise DamagedError("the optimizer's states do not say how many ranks there were")
        refuse_missing(self._optim_ranks, count, "the optimizer's states are of")
        if self.stage >= WHOLE_STAGE:
            refuse_missing(self._model_ranks, count, "the model's states are of")
            refuse_copies(reader, {name: [*_frozen_parts(m)] for name, m in self.model_files})
        refuse_copies(reader, {name: [*self._flat(part)] for name, part in self.optim_files})
        if self.stage < WHOLE_STAGE:
            refuse_exchanged(self.optim_files, [*self._parted()])
        steps = {name: _steps(part, reader) for name, part in self.optim_files}
        refuse_different(steps, "the optimizer's step")
        self._refuse_other_step({*next(iter(steps.values()))}, reader)

    def _refuse_other_step(self, taken: set[int | float], reader: TensorReader) -> None:
        """Refuse a model of another step than the optimizer.

        Other counts alone prove nothing, since a run may have begun with a new optimizer; then the
        weights are still the rounded float32 weights. Stage 3 leaves no weights to compare.
        """
        name, model = self.model_files[0]
        made = _number(model.get("global_steps"), "global_steps")
        made -= _number(model.get("skipped_steps", 0), "skipped_steps")
        if not taken or taken == {made}:
            return
        masters = self._assembled([[*_masters(part)] for _, part in self.optim_files])
        saved = fields_of(model.get(MODULE))
        if not all(is_rounded(saved.get(key), ref, reader) for key, ref in masters.items()):
            counts = ", ".join(f"{step:g}" for step in sorted(taken))
            raise DamagedError(
                f"{name} is of step {made:,} and holds other weights than the optimizer's states, "
                f"which are of step {counts}: they are from two saves",
                hint="fetch all files of one save again",
            )

    def _flat(self, part: Mapping[Any, Any]) -> Iterator[TensorRef]:
        """Yield the flat buffers of a rank: master weights, then the optimizer's states."""
        yield from _masters(part)
        for state in _states(part).values():
            yield from (
                v for v in fields_of(state).values() if isinstance(v, TensorRef) and v.shape
            )

    def assembled(self) -> dict[Any, Tree]:
        """Return the weights and the optimizer's states."""
        return {MODULE: self.module(), OPTIMIZER: self.optimizer()}

    def left(self) -> Iterator[tuple[str, dict[Any, Tree]]]:
        """Yield what :meth:`assembled` and the fields of the first file leave out, by file."""
        for name, model in self.model_files:
            saved = fields_of(model.get(MODULE))
            buffers = names_of(model, "buffer_names")
            if not self.optim_files or self.stage < WHOLE_STAGE:
                yield name, {MODULE: saved} if self.optim_files else {}
            elif model is not self._first:
                rest = {k: v for k, v in model.items() if k not in PLAN}
                yield name, {MODULE: {k: saved[k] for k in buffers if k in saved}, **rest}
        for name, optim in self.optim_files:
            uncut = {
                number: {
                    key: value for key, value in fields_of(state).items() if key in self._uncut
                }
                for number, state in _states(optim).items()
            }
            rest = {k: v for k, v in optim.items() if k not in CONSUMED}
            yield name, {**rest, "state": uncut} if any(uncut.values()) else rest

    def module(self) -> dict[Any, Tree]:
        """Return the buffers, frozen parameters and master weights by name, then tied ones."""
        saved = fields_of(self._first.get(MODULE))
        tree: dict[Any, Tree] = {
            name: saved[name] for name in names_of(self._first, "buffer_names") if name in saved
        }
        tree |= self._frozen()
        tree |= self._assembled([[*_masters(part)] for _, part in self.optim_files])
        for name, other in fields_of(self._first.get("shared_params")).items():
            if isinstance(other, str) and other in tree:
                tree[name] = tree[other]
        # A parameter that no optimizer trains is in its own dtype, or a placeholder of stage 3.
        return {name: tree.get(name, saved.get(name)) for name in dict.fromkeys((*saved, *tree))}

    def _frozen(self) -> dict[Any, Tree]:
        shapes = shapes_of(self._first.get("frozen_param_shapes") or {})
        held = [fields_of(model.get("frozen_param_fragments")) for _, model in self.model_files]
        if self.stage < WHOLE_STAGE:
            return {name: _tensor(held[0].get(name), name) for name in shapes}
        found: dict[Any, Tree] = {}
        for name, shape in shapes.items():
            flats = [_tensor(part.get(name), name) for part in held]
            runs = [Run(flat, 0, flat.numel) for flat in flats]
            found[name] = from_runs(name, shape, first_of(runs, prod(shape)), self._work)
        return found

    def optimizer(self) -> dict[Any, Tree]:
        """Return the optimizer's states by parameter, and its groups with the names in them."""
        masters = [[*_masters(part)] for _, part in self.optim_files]
        states = [_states(part) for _, part in self.optim_files]
        keys = dict.fromkeys(key for state in states[0].values() for key in fields_of(state))
        by_name: dict[Any, dict[Any, Tree]] = {name: {} for group in self._groups for name in group}
        parts = A_PART * (len(by_name) + sum(map(len, masters)))
        for key in keys:
            self._work.spend(parts)
            rows = [
                [fields_of(state.get(number)).get(key) for number in range(len(flats))]
                for state, flats in zip(states, masters, strict=True)
            ]
            if _are_cut_alike(rows, masters):
                for name, tensor in self._assembled(rows).items():
                    by_name[name][key] = tensor
            elif any(isinstance(v, TensorRef) and v.shape for row in rows for v in row):
                self._uncut.add(key)
            else:
                for number, group in enumerate(self._groups):
                    value = rows[0][number] if number < len(rows[0]) else rows[0][0]
                    for name in group if value is not None else ():
                        by_name[name][key] = value
        groups = param_groups(_base(self.optim_files[0][1]))
        named = [
            {**(groups[n] if n < len(groups) else {}), "params": [*names]}
            for n, names in enumerate(self._groups)
        ]
        return {"state": by_name, "param_groups": named}

    def _assembled(self, flats: Sequence[Sequence[Any]]) -> dict[Any, Tree]:
        """Return the parameters by name, given for each rank its flat buffers."""
        cut = self._cut_each if self.stage >= WHOLE_STAGE else self._cut_groups
        return cut(flats)

    def _cut_groups(self, flats: Sequence[Sequence[Any]]) -> dict[Any, Tree]:
        """Return the parameters of stages 1 and 2: slices of each group's joined buffer."""
        found: dict[Any, Tree] = {}
        for number, shapes in enumerate(self._groups):
            pieces = [rank[number] if number < len(rank) else None for rank in flats]
            if not any(pieces):
                continue  # the optimizer has no such state of this group
            group = Joined([_tensor(piece, "") for piece in pieces])
            *starts, end = self._starts(number)
            for (name, shape), start in zip(shapes.items(), starts, strict=True):
                found[name] = from_runs(name, shape, group.between(start, prod(shape)), self._work)
            _refuse_rest(group.numel - end, 2 * self.world)
        return found

    def _starts(self, number: int) -> list[int]:
        """Return where the parameters of a group begin in its buffer, and where the last ends."""
        paddings, starts = _list(self.optim_files[0][1], "param_alignment_paddings"), [0]
        padded = paddings[number] if number < len(paddings) else []
        for nth, shape in enumerate(self._groups[number].values()):
            starts.append(starts[-1] + prod(shape))
            if isinstance(padded, list) and nth < len(padded):
                starts[-1] += _number(padded[nth], "param_alignment_paddings")
        return starts

    def _parted(self) -> Iterator[Group]:
        """Yield the groups of stages 1 and 2; padding is taken off the part of the last rank."""
        flats = [[*_masters(part)] for _, part in self.optim_files]
        for number, shapes in enumerate(self._groups):
            part = max((rank[number].numel for rank in flats if number < len(rank)), default=0)
            sizes = zip(self._starts(number), map(prod, shapes.values()), strict=False)
            yield Group(dict(zip(shapes, sizes, strict=True)), part)

    def _cut_each(self, flats: Sequence[Sequence[Any]]) -> dict[Any, Tree]:
        """Return the parameters of stage 3: a slice of each rank's joined buffers."""
        found: dict[Any, Tree] = {}
        ranks = [Joined([_tensor(piece, "") for piece in rank]) for rank in flats]
        start = 0
        for shapes in self._groups:
            for name, shape in shapes.items():
                count = -(-prod(shape) // self.world)
                slices = [run for rank in ranks for run in rank.between(start, count)]
                found[name] = from_runs(name, shape, first_of(slices, prod(shape)), self._work)
                start += count
        for rank in ranks:
            _refuse_rest(rank.numel - start, 1)
        return found


def _are_cut_alike(rows: Sequence[Sequence[Any]], masters: Sequence[Sequence[TensorRef]]) -> bool:
    """Return whether states are as long as the weights of their groups, or are not there.

    They may have the padding at the end that DeepSpeed takes off the weights.
    """
    padding = 2 * len(rows)
    pairs = [
        (value, master)
        for row, flats in zip(rows, masters, strict=True)
        for value, master in zip(row, flats, strict=True)
    ]
    return any(isinstance(value, TensorRef) and value.shape for value, _ in pairs) and all(
        value is None
        or (
            isinstance(value, TensorRef)
            and len(value.shape) == 1
            and 0 <= value.numel - master.numel < padding
        )
        for value, master in pairs
    )


def _refuse_rest(rest: int, limit: int) -> None:
    if not 0 <= rest < limit:
        raise DamagedError(
            f"the parameters do not fill the optimizer's flat buffers: {rest:,} elements are left",
            hint="the model's and the optimizer's files are of two saves: fetch them again",
        )


# ------------------------------------------------------------------------------------------ fields


def _masters(part: Mapping[Any, Any]) -> Iterator[TensorRef]:
    """Yield the flat float32 weights of a rank, one for each group or sub-group."""
    held = [part[key] for key in MASTERS if key in part]
    if len(held) != 1:  # DeepSpeed takes one of two by the stage
        raise DamagedError(f"the optimizer's states have {len(held)} sets of float32 weights")
    row = held[0] if isinstance(held[0], (list, tuple)) else ()
    yield from (_tensor(each, "") for each in row)


def _frozen_parts(model: Mapping[Any, Any]) -> Iterator[TensorRef]:
    """Yield the parts that a rank holds of the parameters that are not trained."""
    parts = fields_of(model.get("frozen_param_fragments")).values()
    yield from (part for part in parts if isinstance(part, TensorRef))


def _states(part: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the optimizer's states of a rank by the number of the group or sub-group."""
    base = _base(part)
    if isinstance(base, (list, tuple)):  # elastic checkpoints: the states of each group
        return dict(enumerate(base))
    return fields_of(fields_of(base).get("state"))


def _base(part: Mapping[Any, Any]) -> Any:
    """Return the state dict of a rank's optimizer."""
    return next((part[key] for key in STATES if key in part), None)


def param_groups(optimizer: Any) -> list[dict[Any, Any]]:
    """Return the settings of each group in the state dict of an optimizer."""
    groups = fields_of(optimizer).get("param_groups")
    return [fields_of(group) for group in groups] if isinstance(groups, (list, tuple)) else []


def _steps(part: Mapping[Any, Any], reader: TensorReader) -> tuple[int | float, ...]:
    """Return the counts of steps in a rank's states."""
    found = (fields_of(state).get(STEP) for state in _states(part).values())
    numbers = (scalar(s, reader) if isinstance(s, TensorRef) else s for s in found)
    return tuple(number for number in numbers if isinstance(number, (int, float)))


def shapes_of(group: Any) -> dict[Any, tuple[int, ...]]:
    """Return the shapes of a group's parameters by name.

    Raises:
        DamagedError: it is no dict of sizes, or torch has no such tensors.
    """
    shapes = {}
    for name, shape in fields_of(group).items():
        if not are_sizes(shape) or prod(shape) > MAX_SIZE:
            raise DamagedError("param_shapes states a shape that no tensor has", address=str(name))
        shapes[name] = tuple(shape)
    return shapes


def _tensor(value: Any, name: str) -> TensorRef:
    if not isinstance(value, TensorRef):
        raise DamagedError(
            "the optimizer's states have something else where a flat tensor belongs",
            address=str(name) or None,
        )
    return value


def _list(fields: Mapping[Any, Any], name: str) -> Sequence[Any]:
    """Return a list that DeepSpeed writes; without ZeRO, it writes None."""
    value = fields.get(name)
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise DamagedError(f"{name} is a {type(value).__name__}, where DeepSpeed writes a list")
    return value


def names_of(fields: Mapping[Any, Any], name: str) -> list[str]:
    """Return the names in a list that DeepSpeed writes."""
    return [each for each in _list(fields, name) if isinstance(each, str)]


def _number(value: Any, name: str) -> int:
    """Return an integer, which may be the member of an enum."""
    if isinstance(value, Opaque) and len(value.args) == 1:
        (value,) = value.args
    if type(value) is not int:
        raise DamagedError(f"{name} is a {type(value).__name__}, where DeepSpeed writes an integer")
    return value


def _said(value: Any) -> Any:
    """Return a field so that it can be compared."""
    if isinstance(value, Opaque):
        return value.args
    return tuple(value) if isinstance(value, list) else value
