"""ZeRO's flat buffers: of any parameters, groups and number of ranks, cut, they are the whole."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptool.dtypes import BY_NAME
from ckptool.errors import DamagedError, UnsupportedError
from ckptool.formats.base import TensorReader
from ckptool.formats.ranked import assembly
from ckptool.formats.ranked.fragments import Group, refuse_exchanged
from ckptool.formats.ranked.zero import ZeroPlan
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tensors.blocks import value_bytes
from ckptool.tree.nodes import Chunk, TensorRef

FLOAT32 = BY_NAME["float32"]

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
# The shapes of the parameters in each group. A group without elements is not trained.
groups = st.lists(
    st.lists(shapes, min_size=1, max_size=4).filter(lambda row: any(map(prod, row))),
    min_size=1,
    max_size=3,
)


def held(values: np.ndarray) -> TensorRef:
    """A flat tensor in a file of its own."""
    data = values.astype("<f4").tobytes()
    span = ByteSpan(Memory(data), 0, len(data))
    return TensorRef(FLOAT32, values.shape, (Chunk(span, (0,), values.shape, (1,)),))


def read(ref: TensorRef) -> np.ndarray:
    return np.frombuffer(b"".join(value_bytes(TensorReader(), ref)), "<f4").reshape(ref.shape)


def padded(values: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(values, (0, -len(values) % multiple), constant_values=-1)


def named(rows) -> list[dict[str, np.ndarray]]:
    """The parameters of each group by name; no two values are alike."""
    numbers = iter(range(1, 1 << 20))

    def values(shape):
        return np.fromiter((next(numbers) for _ in range(prod(shape))), float).reshape(shape)

    return [
        {f"g{g}.p{n}": values(shape) for n, shape in enumerate(row)} for g, row in enumerate(rows)
    ]


def save(stage: int, parameters, flats) -> ZeroPlan:
    """The fields of the files of all ranks, given the flat buffers of each."""
    model = {
        "param_shapes": [{name: p.shape for name, p in group.items()} for group in parameters],
        "module": {},
        "global_steps": 1,
    }
    optims = {
        rank: (
            f"optim{rank}",
            {
                "zero_stage": stage,
                "partition_count": len(flats),
                ("fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"): buffers,
                "base_optimizer_state": {
                    "state": {n: {"exp_avg": buffer} for n, buffer in enumerate(buffers)}
                },
            },
        )
        for rank, buffers in enumerate(flats)
    }
    models = {r: (f"model{r}", model) for r in range(len(flats))} if stage == 3 else {
        None: ("model", model)
    }  # fmt: skip
    return ZeroPlan(models, optims)


def assert_whole(plan: ZeroPlan, parameters) -> None:
    plan.refuse_mixed(TensorReader())
    tree = plan.assembled()
    wanted = {name: p for group in parameters for name, p in group.items()}
    assert tree["module"].keys() == wanted.keys()
    for name, values in wanted.items():
        assert np.array_equal(read(tree["module"][name]), values)
        assert np.array_equal(read(tree["optimizer"]["state"][name]["exp_avg"]), values)


@given(groups, st.integers(1, 8), st.sampled_from([1, 2]))
def test_groups_cut_in_equal_parts_are_the_parameters(rows, world, stage):
    """Stages 1 and 2: a group is joined, padded to a multiple of twice the ranks, and cut."""
    parameters = named(rows)
    joined = [
        padded(np.concatenate([p.ravel() for p in group.values()]), 2 * world)
        for group in parameters
    ]
    flats = [[held(np.split(flat, world)[rank]) for flat in joined] for rank in range(world)]
    assert_whole(save(stage, parameters, flats), parameters)


@given(groups, st.integers(1, 8), st.data())
def test_parameters_cut_one_by_one_are_whole(rows, world, data):
    """Stage 3: each parameter is padded and cut; a rank's parts are joined, and cut anywhere."""
    parameters = named(rows)
    each = [padded(p.ravel(), world) for group in parameters for p in group.values()]
    joined = [
        np.concatenate([np.split(flat, world)[rank] for flat in each]) for rank in range(world)
    ]
    inside = data.draw(st.lists(st.integers(0, len(joined[0])), max_size=3))
    ends = [0, *sorted(inside), len(joined[0])]
    flats = [[held(flat[a:b]) for a, b in pairwise(ends)] for flat in joined]
    assert_whole(save(3, parameters, flats), parameters)


def stating(parameters, world: int) -> list[dict[str, object]]:
    """What each rank states of its parts, as DeepSpeed counts it: element by element."""
    flats = [np.concatenate([np.full(p.size, n) for n, p in enumerate(group.values())])
             for group in parameters]  # fmt: skip
    parts = [np.split(np.pad(flat, (0, -len(flat) % world), constant_values=-1), world)
             for flat in flats]  # fmt: skip
    return [
        {
            "param_slice_mappings": [
                {
                    name: {"start": int(np.argmax(part[rank] == n)), "numel": int(count)}
                    for n, name in enumerate(group)
                    if (count := (part[rank] == n).sum())
                }
                for group, part in zip(parameters, parts, strict=True)
            ]
        }
        for rank in range(world)
    ]


def placed(parameters, world: int) -> list[Group]:
    """The groups with the places of their parameters."""
    made = []
    for group in parameters:
        sizes = [p.size for p in group.values()]
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        part = -(-sum(sizes) // world)
        made.append(Group(dict(zip(group, zip(starts, sizes, strict=True), strict=True)), part))
    return made


@given(groups, st.integers(2, 8), st.data())
def test_ranks_in_another_order_are_refused_where_they_say_so(rows, world, data):
    parameters = named(rows)
    stated, known = stating(parameters, world), placed(parameters, world)
    order = data.draw(st.permutations(range(world)))
    files = [(f"rank{n}", stated[rank]) for n, rank in enumerate(order)]
    told = [stated[rank] for rank in order]
    is_other = any(a != b and any(a["param_slice_mappings"])
                   for a, b in zip(told, stated, strict=True))  # fmt: skip
    if is_other:
        with pytest.raises(DamagedError, match="exchanged"):
            refuse_exchanged(files, known)
    else:
        refuse_exchanged(files, known)


@pytest.mark.parametrize(
    "mappings", [None, 3, [], [{}], [{"w": None}], [{"w": {"start": 1, "numel": 99}}], [[]], [3]]
)
def test_other_statements_say_nothing(mappings):
    known = placed(named([[(4,), (2,)]]), 2)
    refuse_exchanged([("a", {"param_slice_mappings": mappings}), ("b", {})], known)


def test_parameters_that_do_not_fit_their_buffers_take_no_time():
    known = [Group({"w": (0, 1 << 60)}, 1)]
    stated = {"param_slice_mappings": [{"w": {"start": 0, "numel": 1}}]}
    refuse_exchanged([("a", stated), ("b", stated)], known)


def in_pieces(dimensions: int, pieces: int) -> ZeroPlan:
    """Stage 3 on one rank, with one parameter in many sub-groups of three elements."""
    parameter = np.arange(1.0, 3 * pieces + 1)
    group = {"w": parameter.reshape((1,) * (dimensions - 2) + (3, pieces))}
    flats = [[held(part) for part in np.split(parameter, pieces)]]
    return save(3, [group], flats)


def test_a_parameter_of_few_dimensions_may_be_in_many_pieces(monkeypatch):
    monkeypatch.setattr(assembly, "MAX_STEPS", 1 << 14)
    assert in_pieces(2, 100).assembled()["module"]["w"].shape == (3, 100)


def test_pieces_of_many_dimensions_are_counted(monkeypatch):
    """Each piece may be a hundred boxes of sixty numbers: the file of 3 MB took gigabytes."""
    monkeypatch.setattr(assembly, "MAX_STEPS", 1 << 14)
    with pytest.raises(UnsupportedError, match="more pieces"):
        in_pieces(60, 100).assembled()


def test_states_of_all_parameters_are_counted(monkeypatch):
    """A key for each parameter, which all parameters have: their product."""
    monkeypatch.setattr(assembly, "MAX_STEPS", 1 << 14)
    shapes = named([[(1,)] * 100])
    flat = held(padded(np.concatenate([p.ravel() for p in shapes[0].values()]), 2))
    plan = save(2, shapes, [[flat]])
    (_, optim) = plan.optim_files[0]
    optim["base_optimizer_state"]["state"][0] |= {f"step{i}": i for i in range(100)}
    with pytest.raises(UnsupportedError, match="more states"):
        plan.assembled()


@pytest.mark.parametrize(
    "claim",
    [0, 1, 3, 4, -2, 10**9, 1 << 70, 2.0, True, None, "2", [], [1], [3, 2], [2, "2"], (2, 3)],
    ids=repr,
)
@pytest.mark.parametrize("is_of_all", [True, False])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_another_number_of_ranks_than_there_are_files_is_refused(stage, is_of_all, claim):
    """DeepSpeed joins as many files as ``partition_count`` says, so a smaller one loses weights."""
    parameters = named([[(4, 2)]])
    flats = [[held(part)] for part in np.split(parameters[0]["g0.p0"].ravel(), 2)]
    assert_whole(save(stage, parameters, flats), parameters)
    plan = save(stage, parameters, flats)
    for _, optim in plan.optim_files[: None if is_of_all else 1]:
        optim["partition_count"] = claim
    with pytest.raises(DamagedError, match=r"rank|from two saves"):
        plan.refuse_mixed(TensorReader())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_sets_of_weights_are_refused(stage):
    """DeepSpeed's consolidator takes the one of the stage, whatever stands beside it."""
    parameters = named([[(4, 2)]])
    plan = save(stage, parameters, [[held(parameters[0]["g0.p0"].ravel())]])
    ((_, optim),) = plan.optim_files
    for key in ("fp32_flat_groups", "single_partition_of_fp32_groups"):
        optim.setdefault(key, [held(np.zeros(8))])
    with pytest.raises(DamagedError, match="2 sets"):
        plan.refuse_mixed(TensorReader())
