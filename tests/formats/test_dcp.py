"""dcp: what ``torch.distributed.checkpoint.save`` writes, a plan and shards."""

from __future__ import annotations

import pickle
import random
import socket
from collections import UserDict
from contextlib import suppress
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)

from ckptool.errors import CkptError, DamagedError, RepetitionError, UnsupportedError
from ckptool.formats import dcp as format_dcp
from ckptool.formats import open_checkpoint
from ckptool.tensors.blocks import value_bytes
from helpers.judge import assert_reads_like, tensor_bytes
from helpers.thinned import examples

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

CUT = (4, 6)


def state():
    return {
        "model": {
            "weight": torch.arange(6.0).view(2, 3),
            "scalar": torch.tensor(2.0),
            "empty": torch.empty(0, 3),
            "half": torch.ones(4, dtype=torch.bfloat16),
        },
        "epoch": 3,
    }


def save(folder, obj):
    dcp.save(obj, checkpoint_id=folder, no_dist=True)


def edit_plan(folder, change):
    """Change the plan of a folder, as an object."""
    file = folder / ".metadata"
    plan = pickle.loads(file.read_bytes())
    change(plan)
    file.write_bytes(pickle.dumps(plan))


def test_reads_alike(tmp_path):
    save(tmp_path, state())
    assert_reads_like(tmp_path, state())


def test_conjugated_tensors_are_refused(tmp_path):
    save(tmp_path, {"weight": torch.ones(2, dtype=torch.complex64).conj()})
    with pytest.raises(UnsupportedError, match="conj") as refused:
        open_checkpoint(tmp_path)
    assert refused.value.address == "weight"


# --------------------------------------------------------------------------------- several chunks


def in_chunks(folder, corners, shape=CUT):
    """A folder with one tensor in chunks, (offsets, sizes) each; the values are made up."""
    save(folder, {f"part{i}": torch.full(sizes, float(i)) for i, (_, sizes) in enumerate(corners)})

    def join(plan):
        entry = plan.state_dict_metadata["part0"]
        entry.size = torch.Size(shape)
        entry.chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in corners]
        parts = {index.fqn: info for index, info in plan.storage_data.items()}
        plan.state_dict_metadata = {"weight": entry}
        plan.planner_data = {"weight": ("weight",)}
        plan.storage_data = {
            MetadataIndex("weight", torch.Size(offsets)): parts[f"part{i}"]
            for i, (offsets, _) in enumerate(corners)
        }

    edit_plan(folder, join)


GRID = [((0, 0), (2, 3)), ((0, 3), (2, 3)), ((2, 0), (2, 3)), ((2, 3), (2, 3))]
COLUMNS_CUT_UNLIKE = [((0, 0), (1, 3)), ((1, 0), (3, 3)), ((0, 3), (3, 3)), ((3, 3), (1, 3))]
EMPTY_RANK = [((0, 0), (4, 6)), ((4, 0), (0, 6))]


@pytest.mark.parametrize("corners", [GRID, COLUMNS_CUT_UNLIKE, EMPTY_RANK])
def test_chunks_are_put_together(corners, tmp_path):
    in_chunks(tmp_path, corners)
    wanted = torch.empty(CUT)
    for i, ((row, column), (rows, columns)) in enumerate(corners):
        wanted[row : row + rows, column : column + columns] = i
    with open_checkpoint(tmp_path) as checkpoint:
        stored = b"".join(value_bytes(checkpoint.reader, checkpoint.tree["weight"]))
    assert stored == tensor_bytes(wanted)


@st.composite
def cut_anywhere(draw):
    """(shape, chunks): slabs of the first dimension, each cut in its own way along the second."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    found = []
    for top, bottom in pairwise(draw(cuts(rows))):
        for left, right in pairwise(draw(cuts(columns))):
            found.append(((top, left), (bottom - top, right - left)))
    return (rows, columns), draw(st.permutations(found))


def cuts(size):
    inside = st.lists(st.integers(1, size), max_size=3, unique=True)
    return inside.map(lambda ends: [0, *sorted({*ends, size})])


@examples(50)
@given(cut_anywhere())
def test_chunks_cut_anywhere_are_the_tensor(tmp_path_factory, case):
    """As any mesh and any planner cuts; without one of them there is a hole."""
    shape, corners = case
    folder = tmp_path_factory.mktemp("plan")
    in_chunks(folder, corners, shape)
    wanted = torch.empty(shape)
    for i, ((row, column), (rows, columns)) in enumerate(corners):
        wanted[row : row + rows, column : column + columns] = i
    with open_checkpoint(folder) as checkpoint:
        stored = b"".join(value_bytes(checkpoint.reader, checkpoint.tree["weight"]))
    assert stored == tensor_bytes(wanted)
    if len(corners) > 1:
        folder = tmp_path_factory.mktemp("hole")
        in_chunks(folder, corners[1:], shape)
        with pytest.raises(DamagedError):
            open_checkpoint(folder)


@pytest.mark.parametrize(
    "corners",
    [
        pytest.param(GRID[:3], id="hole"),
        pytest.param([((0, 0), (2, 6))], id="single and short"),
        pytest.param([((0, 0), (6, 4))], id="single and turned"),
        pytest.param([*GRID[:3], ((3, 3), (2, 3))], id="out of bounds"),
        pytest.param([*GRID[:3], ((1, 3), (2, 3))], id="overlap"),
        pytest.param([((0,), (4,)), ((4,), (20,))], id="other dimensions"),
    ],
)
def test_chunks_that_are_not_the_tensor(corners, tmp_path):
    in_chunks(tmp_path, corners)
    with pytest.raises(DamagedError) as refused:
        open_checkpoint(tmp_path)
    assert refused.value.address == "weight"


def test_many_chunks_take_no_time(tmp_path):
    in_chunks(tmp_path, [((0, i), (1, 1)) for i in range(1000)], shape=(1, 1000))
    with open_checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.tree["weight"].chunks) == 1000


@pytest.mark.parametrize("is_long", [False, True])
def test_a_chunk_that_is_named_again_and_again_is_refused(is_long, tmp_path, monkeypatch):
    """A plan of 200 bytes a name could have a value of megabytes read for each."""
    monkeypatch.setattr(format_dcp, "MAX_CHUNKS", 1 << 20 if is_long else 100)
    save(tmp_path, {f"v{i}": ["x" * 100] for i in range(150)})
    with open_checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.tree) == 150

    def all_at_one_place(plan):
        (first, *_) = plan.storage_data.values()
        for index in plan.storage_data:
            plan.storage_data[index] = first

    edit_plan(tmp_path, all_at_one_place)
    if is_long:
        (file,) = tmp_path.glob("*.distcp")
        (place, *_) = pickle.loads((tmp_path / ".metadata").read_bytes()).storage_data.values()
        data = file.read_bytes()
        file.write_bytes(data[place.offset : place.offset + place.length].rjust(
            place.offset + place.length, b"\0"
        ))  # fmt: skip
    else:
        monkeypatch.setattr(format_dcp, "REPEATS", 1 << 20)
        monkeypatch.setattr(format_dcp, "A_CHUNK", 1 << 20)
    with pytest.raises(RepetitionError, match="more chunks"):
        open_checkpoint(tmp_path)


def test_a_shard_that_is_cut_off_says_what_is_missing(tmp_path, ckptool):
    """Its first chunk is a whole zip, in which nothing is missing."""
    save(tmp_path, {"model": {f"w{i}": torch.full((100,), float(i)) for i in range(4)}, "at": 3})
    (file,) = tmp_path.glob("*.distcp")
    plan = pickle.loads((tmp_path / ".metadata").read_bytes())
    ends = {at.fqn: where.offset + where.length for at, where in plan.storage_data.items()}
    full, kept = file.stat().st_size, sorted(ends.values())[1] + 100
    file.write_bytes(file.read_bytes()[:kept])
    lost = sorted(name for name, end in ends.items() if end > kept)
    said = (f"it ends at {kept:,} bytes, and by the plan its values end at {full:,}: "
            f"3 of 5 tensors and values are not all there: {', '.join(lost)}")  # fmt: skip
    with pytest.raises(DamagedError, match=said) as refused:
        open_checkpoint(tmp_path)
    assert refused.value.path == file
    (found,) = ckptool("verify", tmp_path, "--json").json["findings"]
    told = found["rule"], found["address"], found["message"]
    assert told == ("CK102", file.name, f"truncated: {said}")


def test_a_folder_of_several_state_dicts_says_what_makes_one_file(tmp_path, ckptool):
    tree = {"model": {"w": torch.ones(2, 2)}, "ema": {"w": torch.zeros(2, 2)}, "epoch": 3}
    save(tmp_path / "dcp", tree)
    torch.save(tree, tmp_path / "whole.pt")
    for more in ((), ("--safe",), ("--whole",), ("--drop", "epoch")):
        said = ckptool("convert", tmp_path / "dcp", "-o", tmp_path / "out.pt", *more).stderr
        assert "ckptool writes no whole folder as one file" in said
        assert "dcp_to_torch_save" in said
    other = ckptool("convert", tmp_path / "whole.pt", "-o", tmp_path / "out.pt").stderr
    assert "which one is meant?" in other
    assert "dcp_to_torch" not in other


def test_checksums_that_are_asked_for_and_not_read_are_named(tmp_path, ckptool):
    save(tmp_path / "dcp", state())
    torch.save(state(), tmp_path / "whole.pt")
    asked = ("verify", tmp_path / "dcp", "--rules", "CK1")
    note = "note: --bytes: the checksums of the zips inside shards are not read"
    assert ckptool(*asked, "--bytes").stderr.strip() == note
    assert not ckptool(*asked).stderr
    assert "the checksums of" not in ckptool(*asked, "--bytes", "--json").stderr
    both = ckptool(*asked, tmp_path / "whole.pt", "--bytes").stderr
    assert both.strip() == f"{note} (in 1 file)"


def test_chunks_of_other_types(tmp_path):
    save(tmp_path, {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.float64)})

    def join(plan):
        entry = plan.state_dict_metadata.pop("b")
        del plan.state_dict_metadata["a"]
        entry.size = torch.Size([4])
        entry.chunks = [ChunkStorageMetadata(torch.Size([i]), torch.Size([2])) for i in (0, 2)]
        plan.state_dict_metadata["weight"] = entry
        plan.storage_data = {
            MetadataIndex("weight", torch.Size([0 if index.fqn == "b" else 2])): info
            for index, info in plan.storage_data.items()
        }

    edit_plan(tmp_path, join)
    with pytest.raises(DamagedError, match=r"chunk at \[2\] has another dtype"):
        open_checkpoint(tmp_path)


def test_another_type_than_planned(tmp_path):
    save(tmp_path, {"weight": torch.ones(2)})

    def change(plan):
        plan.state_dict_metadata["weight"].properties = TensorProperties(dtype=torch.int32)

    edit_plan(tmp_path, change)
    with pytest.raises(DamagedError, match="another dtype"):
        open_checkpoint(tmp_path)


# ------------------------------------------------------------------------------------ broken plans


@pytest.mark.parametrize("owner", ["entry", "chunk"])
@pytest.mark.parametrize("value", [None, 3, "ab", [-1, 1], [1.5], [2**70, 0], "gone"])
def test_plans_with_wrong_fields(owner, value, tmp_path):
    save(tmp_path, {"weight": torch.ones(2, 3)})
    plain = (tmp_path / ".metadata").read_bytes()
    for name in {"entry": ("size", "chunks"), "chunk": ("offsets", "sizes")}[owner]:

        def change(plan, name=name):
            entry = plan.state_dict_metadata["weight"]
            fields = vars(entry if owner == "entry" else entry.chunks[0])
            fields[name] = value
            if value == "gone":
                del fields[name]

        (tmp_path / ".metadata").write_bytes(plain)
        edit_plan(tmp_path, change)
        with pytest.raises(DamagedError):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.storage_data.clear(),
        lambda plan: plan.planner_data.update(epoch=("model",)),
        lambda plan: plan.planner_data.update(epoch=((1, 2), "x")),
        lambda plan: plan.state_dict_metadata.update({5: 5}),
        lambda plan: vars(plan).update(storage_data=[1]),
        lambda plan: vars(next(iter(plan.storage_data))).update(offset=[[]]),
        lambda plan: vars(next(iter(plan.storage_data.values()))).update(length=1 << 40),
        lambda plan: vars(next(iter(plan.storage_data.values()))).update(relative_path="../x"),
    ],
)
def test_broken_plans(change, tmp_path):
    save(tmp_path, state())
    edit_plan(tmp_path, change)
    with pytest.raises(DamagedError):
        open_checkpoint(tmp_path)


def swap_key_paths(plan):
    paths = plan.planner_data
    one, other = "model.weight", "model.scalar"
    paths[one], paths[other] = paths[other], paths[one]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap_key_paths, "make another name"),
        (lambda plan: plan.planner_data.update({"model.weight": ("model", "other")}), "name"),
        (lambda plan: plan.planner_data.update({"model.weight": ()}), "make another name"),
        (lambda plan: plan.planner_data.update({"model.weight": "ab"}), "make another name"),
        (lambda plan: vars(plan).update(planner_data=UserDict(plan.planner_data)), "UserDict"),
    ],
)
def test_key_paths_that_torch_takes_for_other_tensors_are_refused(change, said, tmp_path):
    """Torch joins the keys of a path to a name again, and reads the tensor of that name."""
    save(tmp_path, state())
    edit_plan(tmp_path, change)
    with pytest.raises(DamagedError, match=said):
        open_checkpoint(tmp_path)


def test_key_paths_may_be_lists(tmp_path):
    save(tmp_path, state())
    edit_plan(tmp_path, lambda plan: plan.planner_data.update({"model.half": ["model", "half"]}))
    assert_reads_like(tmp_path, state())


def test_lists_are_lists_as_torch_converts_them(tmp_path, ckptool):
    """Torch cuts a list with tensors or dicts into its values, and a dict's keys become text."""
    groups = [{"lr": 0.1, "params": ["a", "b"]}, {"lr": 0.2, "params": ["c"]}]
    nested = [[torch.ones(2), torch.zeros(3)], {"deep": [torch.ones(1), 5]}]
    long = [torch.full((1,), float(i)) for i in range(12)]  # 10 comes before 2 as text
    by_number = {0: torch.ones(2), 1: torch.zeros(2)}
    save(tmp_path / "dcp", {"optimizer": {"param_groups": groups, "state": by_number},
                            "nested": nested, "long": long, "plain": [1, [2, 3]]})  # fmt: skip
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "whole.pt")
    assert_reads_like(tmp_path / "dcp", torch.load(tmp_path / "whole.pt"))
    assert ckptool("diff", tmp_path / "dcp", tmp_path / "whole.pt").startswith("equal")


def test_indices_that_leave_one_out_stay_keys(tmp_path):
    """Torch keeps nothing of an empty dict, and puts None where it was, any number of them."""
    save(tmp_path, {"list": [torch.ones(1), {}, torch.zeros(1)]})
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.tree["list"]) == {0, 2}


def test_only_refusals_escape_from_mutated_plans(tmp_path):
    save(tmp_path, state())
    file = tmp_path / ".metadata"
    plain = file.read_bytes()
    chance = random.Random(0)
    for _ in range(400):
        broken = bytearray(plain)
        for _ in range(chance.randint(1, 3)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        file.write_bytes(broken)
        with suppress(CkptError):
            open_checkpoint(tmp_path).close()


# --------------------------------------------------------------------------------------- two ranks


def grid():
    return torch.arange(15.0).view(5, 3)


def save_sharded(rank, port, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    cut = {
        "rows": distribute_tensor(grid(), mesh, [Shard(0)]),
        "columns": distribute_tensor(grid(), mesh, [Shard(1)]),
        "one_row": distribute_tensor(grid()[:1].clone(), mesh, [Shard(0)]),
    }
    dcp.save({"model": cut}, checkpoint_id=folder)
    dist.destroy_process_group()


@pytest.mark.slow
def test_tensors_sharded_over_two_ranks(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(save_sharded, (port, str(tmp_path)), nprocs=2)
    with open_checkpoint(tmp_path) as checkpoint:
        model = checkpoint.tree["model"]
        stored = {name: b"".join(value_bytes(checkpoint.reader, model[name])) for name in model}
    assert len(model["rows"].chunks) == len(model["columns"].chunks) == 2
    assert stored == {
        "rows": tensor_bytes(grid()),
        "columns": tensor_bytes(grid()),
        "one_row": tensor_bytes(grid()[:1].clone()),
    }


# ------------------------------------------------------------------ what lies in the folder, or not


def rules(output):
    return {f["rule"]: f for f in output.json["findings"]}


def test_a_missing_file_of_chunks_is_named(tmp_path, ckptool):
    save(tmp_path, state())
    (tmp_path / "__0_0.distcp").unlink()
    output = ckptool("verify", tmp_path, "--json")
    assert output.exit_code == 1
    assert rules(output)["CK104"]["message"].startswith("__0_0.distcp: it is missing")


@pytest.mark.parametrize(("content", "is_told"), [(b"old", True), (b"", False)])
def test_a_file_of_an_earlier_save_is_told(content, is_told, tmp_path, ckptool):
    """By more processes; one that had nothing to write leaves an empty file."""
    save(tmp_path, state())
    (tmp_path / "__7_0.distcp").write_bytes(content)
    found = rules(ckptool("verify", tmp_path, "--json"))
    assert ("CK108" in found) == is_told
    assert not is_told or "__7_0.distcp" in found["CK108"]["message"]


# --------------------------------------------------------------------------- optimizers in a folder


def training(*, flat):
    """Two groups with rates of their own, and a scheduler of them."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1]},
        {"params": [p for p in net.parameters() if p.ndim < 2], "lr": 1e-4},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    for _ in range(5):
        net(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        scheduler.step()
    more = {"scheduler": scheduler.state_dict(), "global_step": 5}
    if flat is None:
        return {"model": net.state_dict(), "optimizer": optimizer.state_dict(), **more}
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, states = get_state_dict(net, optimizer, options=options)
    return {"model": model, "optimizer": states, **more}


def exchange(state, *, flat):
    """The moments of two weights exchanged."""
    states = state["optimizer"] if flat else state["optimizer"]["state"]
    one, other = ("state.0.weight", "state.1.weight") if flat else ("0.weight", "1.weight")
    if flat:
        for slot in ("exp_avg", "exp_avg_sq"):
            a, b = f"{one}.{slot}", f"{other}.{slot}"
            states[a], states[b] = states[b], states[a]
    else:
        states[one], states[other] = states[other], states[one]


@pytest.mark.parametrize("flat", [None, False, True], ids=["by number", "by name", "flat"])
@pytest.mark.parametrize("write", [save, lambda path, s: torch.save(s, path / "last.pt")],
                         ids=["folder", "file"])  # fmt: skip
def test_an_optimizer_in_any_form_is_held_against_model_and_scheduler(
    write, flat, tmp_path, ckptool
):
    write(tmp_path, training(flat=flat))
    path = next(tmp_path.glob("*.pt"), tmp_path)
    output = ckptool("verify", path, "--select", "CK5", "--json")
    assert output.json["findings"] == []
    states = {check["rule"]: check["state"] for check in output.json["checks"]}
    assert {states[f"CK{rule}"] for rule in (504, 505, 506, 508, 520, 522, 523)} == {"passed"}


@pytest.mark.parametrize("flat", [False, True], ids=["by name", "flat"])
def test_moments_of_another_name_are_told(flat, tmp_path, ckptool):
    state = training(flat=flat)
    exchange(state, flat=flat)
    save(tmp_path, state)
    found = rules(ckptool("verify", tmp_path, "--json"))["CK504"]
    assert "0.weight [8, 4], its moment [2, 8]" in found["message"]


def test_a_rate_that_is_not_the_schedulers_is_told_in_a_folder(tmp_path, ckptool):
    state = training(flat=None)
    state["scheduler"]["_last_lr"] = [0.5, 0.5]
    save(tmp_path, state)
    assert "CK508" in rules(ckptool("verify", tmp_path, "--json"))
