"""What is taken is all of it: every tensor is written, or refused or left out by name."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ckptool.contents.inventory import take_inventory
from ckptool.contents.selection import select_table
from ckptool.ema.locate import locate_ema
from ckptool.errors import UnknownFormatError
from ckptool.formats import folder_format, open_checkpoint
from ckptool.plans.extraction import Extraction, plan_extraction, plan_model
from helpers.paths import FIXTURES

GENUINE = FIXTURES / "genuine"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # half of torch is in beta


# ---------------------------------------------------------------------- what libraries have written


def genuine_tables():
    """(file, address, its tensors as the library's own loader gives them)."""
    for truth in sorted(GENUINE.glob("*/truth.json")):
        for row in json.loads(truth.read_text())["files"]:
            for table in row["tables"]:
                yield truth.parent / row["file"], table["address"], table["tensors"]


GENUINE_TABLES = list(genuine_tables())
NAMES = [f"{path.relative_to(GENUINE)}#{address}" for path, address, _ in GENUINE_TABLES]
NOT_READ = ("torch_export", "torch_package", "onnx")  # formats that are named, with what to do


def plan_of(path: Path, address: str) -> Extraction:
    with open_checkpoint(path) as checkpoint:
        return plan_model(select_table(take_inventory(checkpoint.tree), address), "ema")


def is_refused(name: str, plan: Extraction) -> bool:
    """By its own name, by that of the container that holds it, or with its quantized layer.

    Such a layer adds its numbers to the state dict as tensors, by code in its class.
    """
    layer = name.rpartition(".")[0]
    quantized = any(other.startswith(f"{layer}._packed_params") for other in plan.refused)
    return name in plan.refused or name.rpartition("/")[0] in plan.refused or quantized


@pytest.mark.parametrize(("path", "address", "truth"), GENUINE_TABLES, ids=NAMES)
def test_the_account_holds_for_what_libraries_write(path, address, truth):
    if path.parent.name in NOT_READ:
        with pytest.raises(UnknownFormatError) as caught:
            open_checkpoint(path)
        assert "torch." in caught.value.message
        assert "torch." in caught.value.hint
        return
    if path.is_dir() and folder_format(path) is None:
        path, address = path / address, ""  # a folder of several files
    plan = plan_of(path, address)
    written = {name: [str(r.dtype), list(r.shape)] for name, r in plan.tensors.items()}
    expected = {n: kind for n, kind in truth.items() if n in written or not is_refused(n, plan)}
    assert written == expected
    assert plan.tensors or plan.refused


@pytest.mark.parametrize(
    ("file", "refused", "says"),
    [
        ("fsdp1/local_rank0.pt", 1, "flattened FSDP parameters"),
        ("fsdp1/sharded_rank0.pt", 6, "the part of one process: stem.weight ([3, 4] of [6, 4])"),
        ("fsdp2/rank0.pt", 6, "the part of one process: stem.weight ([3, 4] of [6, 4])"),
        ("torchao/int8.pt", 2, "0.weight (Int8Tensor: qdata, scale, zero_point)"),
        ("torchao/float8.pt", 2, "0.weight (Float8Tensor: qdata, scale)"),
        ("torch_quantized/dynamic_state.pt", 2, "packed weights of quantized layers"),
        ("torch_quantized/static_state.pt", 2, "packed weights of quantized layers"),
        ("torch_quantized/static_module.pt", 2, "packed weights of quantized layers"),
        (
            "deepspeed/zero3/global_step1/zero_pp_rank_0_mp_rank_00_model_states.pt",
            6,
            "placeholders without values (shape [0])",
        ),
    ],
)
def test_a_part_of_the_weights_is_refused_and_nothing_written(
    file, refused, says, ckptool, tmp_path
):
    out = tmp_path / "out.safetensors"
    output = ckptool("extract-ema", GENUINE / file, "--ema", "@model", "-o", out)
    assert output.exit_code == 2
    assert output.stderr.startswith(f"error: {GENUINE / file}: ")
    assert f": {refused} of " in output.stderr
    assert says in output.stderr
    assert "hint: " in output.stderr
    assert not out.exists()


@pytest.mark.parametrize("file", ["fsdp2/rank0.pt", "torchao/int8.pt"])
def test_the_library_and_diff_refuse_it_too(file, ckptool):
    import ckptool as library

    with pytest.raises(library.CkptError, match="cannot be taken as plain tensors"):
        library.load_state_dict(GENUINE / file, "model")
    output = ckptool("diff", f"{GENUINE / file}#@model", f"{GENUINE / file}#@model")
    assert output.exit_code == 2
    assert "cannot be taken as plain tensors" in output.stderr


def test_the_rest_is_taken_when_it_is_asked_for(ckptool, tmp_path):
    path, out = GENUINE / "torchao/int8.pt", tmp_path / "out.pt"
    output = ckptool("extract-ema", path, "--ema", "@model", "--match", "*.bias", "-o", out)
    assert output.exit_code == 0
    assert list(torch.load(out)) == ["0.bias", "1.bias", "2.bias"]


@pytest.mark.parametrize(
    "file",
    [
        "fsdp2/replicated.pt",
        "fsdp2_one_rank/one_rank.pt",
        "torch_fx/graph_module.pt",
        "torch_fx/graph_module_in_dict.pt",
        "torch_jit/scripted.pt",
        "torch_jit/traced.pt",
    ],
)
def test_what_is_whole_in_another_form_is_written_as_its_loader_gives_it(file, ckptool, tmp_path):
    out = tmp_path / "out.pt"
    assert ckptool("extract-ema", GENUINE / file, "--ema", "@model", "-o", out).exit_code == 0
    written, expected = torch.load(out), loaded(GENUINE / file)
    assert list(written) == list(expected)
    for name, value in expected.items():
        assert torch.equal(written[name], value)


def loaded(path: Path) -> dict[str, torch.Tensor]:
    """The state dict that the library's own loader gives, as plain tensors."""
    if path.parent.name == "torch_jit":
        return dict(torch.jit.load(path).state_dict())
    state = torch.load(path, weights_only=False)
    state = state["model"] if isinstance(state, dict) else state
    state = state.state_dict() if isinstance(state, nn.Module) else state
    return {name: getattr(value, "_local_tensor", value) for name, value in state.items()}


def test_a_scripted_module_is_called_what_it_is(ckptool):
    output = ckptool("inspect", GENUINE / "torch_jit/scripted.pt", "--json")
    assert output.json["format"] == "torchscript"
    assert output.json["tensors"]["count"] == 9


def test_onnx_is_called_what_it_is():
    with pytest.raises(UnknownFormatError, match="ONNX"):
        open_checkpoint(GENUINE / "onnx/model.onnx")


def test_attributes_of_a_scripted_module_are_no_weights(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.mask = torch.ones(2)

        def forward(self, x):
            return self.layer(x) * self.mask

    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.script(Net()), path)
    plan = plan_of(path, "")
    assert list(plan.tensors) == list(torch.jit.load(path).state_dict())
    assert list(plan.left_out) == ["mask"]


# ----------------------------------------------------------------------------- rebuilt from reports


def test_placeholders_of_zero3_are_told_from_weights(tmp_path, ckptool):
    full = {
        f"module.blocks.{i}.{name}": torch.ones(shape)
        for i in range(3)
        for name, shape in (("proj.weight", (12, 12)), ("proj.bias", (12,)), ("alpha", (1,)))
    }
    half = {n: torch.empty(0) if v.numel() > 100 else v for n, v in full.items()}
    torch.save(full, tmp_path / "full.pt")
    torch.save(half, tmp_path / "merged.pt")
    output = ckptool("verify", tmp_path / "merged.pt", "--json")
    (found,) = [f for f in output.json["findings"] if f["rule"] == "CK606"]
    assert found["message"].startswith("3 of 9 weights are placeholders without values (shape [0])")
    assert "CK606" in {f["rule"] for f in ckptool_findings(ckptool, tmp_path / "merged.pt")}
    like = ckptool("verify", tmp_path / "merged.pt", "--like", tmp_path / "full.pt", "--json")
    assert {"CK603", "CK606"} <= {f["rule"] for f in like.json["findings"]}
    assert like.exit_code == 1
    assert not any(f["rule"] == "CK606" for f in ckptool_findings(ckptool, tmp_path / "full.pt"))


def ckptool_findings(ckptool, path):
    return ckptool("inspect", path, "--json").json["findings"]


def test_an_empty_buffer_is_nothing_unusual(tmp_path, ckptool):
    state = nn.Linear(2, 2).state_dict() | {"cache": torch.empty(0), "ids": torch.empty(0).long()}
    torch.save({"model": state}, tmp_path / "model.pt")
    out = tmp_path / "out.pt"
    assert (
        ckptool("extract-ema", tmp_path / "model.pt", "--ema", "@model", "-o", out).exit_code == 0
    )
    assert list(torch.load(out)) == list(state)
    assert ckptool("verify", tmp_path / "model.pt", "--strict").exit_code == 0


def test_placeholders_are_not_promoted(tmp_path, ckptool):
    model = {f"{i}.weight": torch.empty(0) for i in range(4)} | {"bias": torch.ones(3)}
    torch.save({"model": model, "ema": {n: v * 0.5 for n, v in model.items()}}, tmp_path / "a.pt")
    output = ckptool("promote-ema", tmp_path / "a.pt", "-o", tmp_path / "b.pt")
    assert output.exit_code == 2
    assert "placeholders without values" in output.stderr


def test_views_of_large_tensors_are_written_alone(tmp_path, ckptool):
    big = torch.arange(10_000.0).reshape(100, 100)
    state = {"head.weight": big[:1], "tail.weight": big[7, 10:20]}
    torch.save({"model": state}, tmp_path / "sliced.pt")
    torch.save({"model": {n: v.clone() for n, v in state.items()}}, tmp_path / "cloned.pt")
    totals = ckptool("inspect", tmp_path / "sliced.pt", "--json").json["tensors"]
    assert (totals["bytes"], totals["storage_bytes"]) == (440, 40_000)
    cloned = ckptool("inspect", tmp_path / "cloned.pt", "--json").json["tensors"]
    assert (cloned["bytes"], cloned["storage_bytes"]) == (440, 440)
    out = tmp_path / "out.safetensors"
    assert (
        ckptool("extract-ema", tmp_path / "sliced.pt", "--ema", "@model", "-o", out).exit_code == 0
    )
    assert out.stat().st_size < 2_000
    assert ckptool("diff", tmp_path / "sliced.pt", tmp_path / "cloned.pt").exit_code == 0


def test_slices_are_told_with_what_they_carry_along(tmp_path, ckptool):
    big = torch.zeros(300, 300)
    torch.save({"model": {"head.weight": big[:1]}}, tmp_path / "sliced.pt")
    assert "they show 1.17 KiB of 352 KiB of storages" in ckptool("inspect", tmp_path / "sliced.pt")
    torch.save({"model": {"head.weight": big}}, tmp_path / "whole.pt")
    assert "slices" not in ckptool("inspect", tmp_path / "whole.pt")


def test_a_part_below_the_state_dict_is_not_forgotten(tmp_path, ckptool):
    layer = nn.Linear(2, 2).state_dict()
    torch.save({"model": {"encoder": layer, "scale": torch.ones(2)}}, tmp_path / "a.pt")
    output = ckptool("extract-ema", tmp_path / "a.pt", "--ema", "model", "-o", tmp_path / "b.pt")
    assert output.exit_code == 2
    assert "containers with tensors of their own: encoder (2 tensors in a dict)" in output.stderr


ASIDE_BY_NAME = ("optim_head", "rng_embed", "energy_seed_proj", "optimus_decoder", "seed", "optim")


@pytest.mark.parametrize("name", ASIDE_BY_NAME)
@pytest.mark.parametrize("made", [dict, nn.ParameterDict, lambda part: [part]])
def test_no_layer_is_left_out_for_its_name(name, made, tmp_path, ckptool):
    model = {"weight": torch.ones(2), name: made({"w": torch.ones(3, 2)})}
    torch.save({"model": model}, tmp_path / "a.pt")
    output = ckptool("extract-ema", f"{tmp_path / 'a.pt'}#@model", "-o", tmp_path / "b.pt")
    assert output.exit_code == 2
    assert f": {name} (1 tensor in " in output.stderr
    assert not (tmp_path / "b.pt").exists()


def test_optimizers_and_random_states_are_left_out_by_their_form(tmp_path, ckptool):
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    aside = {
        "opt": optimizer.state_dict(),
        "both": [optimizer.state_dict(), optimizer.state_dict()],
        "torch": [torch.get_rng_state()],
        "numpy": np.random.RandomState(0).get_state(),
        "rng": {"numpy": np.random.RandomState(0).get_state(), "cuda": [torch.ones(16).byte()]},
        "generators": np.random.RandomState(0),
    }
    torch.save({"weight": weight, "bias": torch.ones(1), **aside}, tmp_path / "a.pt")
    output = ckptool("extract-ema", f"{tmp_path / 'a.pt'}#@model", "--dry-run", "--json")
    assert output.exit_code == 0, output.stderr
    assert set(output.json["left_out"]) == set(aside)


def test_keys_that_are_written_alike_are_not_one(tmp_path, ckptool):
    torch.save(
        {"model": {1: torch.ones(2), "1": torch.zeros(2), "a": torch.ones(1)}}, tmp_path / "a"
    )
    output = ckptool("extract-ema", tmp_path / "a", "--ema", "@model", "-o", tmp_path / "b.pt")
    assert output.exit_code == 2
    assert "keys are written alike" in output.stderr


def test_arrays_are_refused_where_there_is_nothing_else(tmp_path, ckptool):
    torch.save({"model": {"a": np.ones(3), "b": np.ones((2, 2))}}, tmp_path / "a.pt")
    for place in ("@model", "model"):
        output = ckptool("extract-ema", tmp_path / "a.pt", "--ema", place, "-o", tmp_path / "b.pt")
        assert output.exit_code == 2
        assert (
            "2 of 2 weights cannot be taken as plain tensors: numpy arrays: a, b" in output.stderr
        )


class Weights(NamedTuple):
    """A model in a named tuple, whose field names no pickle holds."""

    weight: torch.Tensor
    bias: torch.Tensor


def test_no_name_is_invented_for_the_fields_of_a_named_tuple(tmp_path, ckptool):
    torch.save({"model": Weights(torch.ones(2, 2), torch.ones(2))}, tmp_path / "a.pt")
    output = ckptool("extract-ema", f"{tmp_path / 'a.pt'}#@model", "-o", tmp_path / "b.pt")
    assert output.exit_code == 2
    assert "2 of 2 weights cannot be taken as plain tensors" in output.stderr
    assert "_asdict()" in output.stderr


def test_plain_values_are_named_and_left_out(tmp_path, ckptool):
    state = nn.Linear(2, 2).state_dict() | {"version": 3, "_extra_state": {"heads": 4}}
    torch.save({"model": state}, tmp_path / "a.pt")
    output = ckptool(
        "extract-ema", tmp_path / "a.pt", "--ema", "@model", "-o", tmp_path / "b.pt", "--json"
    )
    assert output.json["left_out"] == {"version": "a number", "_extra_state": "a dict"}
    shown = ckptool("extract-ema", tmp_path / "a.pt", "--ema", "@model", "--dry-run")
    assert "2 left out: version (a number), _extra_state (a dict)" in shown.stdout


def test_an_average_of_shards_is_refused_as_such(tmp_path, ckptool):
    state = torch.load(GENUINE / "fsdp2/rank0.pt", weights_only=False)
    torch.save({"model": state["model"], "ema": dict(state["model"])}, tmp_path / "a.pt")
    output = ckptool("extract-ema", tmp_path / "a.pt", "--ema", "ema", "-o", tmp_path / "b.pt")
    assert output.exit_code == 2
    assert "the part of one process" in output.stderr


def test_inspect_lists_what_is_not_plain(ckptool):
    output = ckptool("inspect", GENUINE / "torchao/int8.pt", "--tensors", "--json")
    kinds = {entry["address"]: entry.get("kind") for entry in output.json["entries"]}
    assert kinds["0.weight"] == "torchao.quantization.Int8Tensor: qdata, scale, zero_point"
    assert kinds["0.bias"] is None
    empty = GENUINE / "deepspeed/zero3/global_step1/zero_pp_rank_0_mp_rank_00_model_states.pt"
    output = ckptool("inspect", empty, "--tensors", "--json")
    kinds = {entry["address"]: entry.get("kind") for entry in output.json["entries"]}
    assert kinds["module/stem.weight"] == "no values"
    assert kinds["module/norm.running_mean"] is None


# ------------------------------------------------------------------------------------- the property


class Marked(torch.Tensor):
    """A subclass with values of its own."""


class Pair(torch.Tensor):
    """A subclass made of two tensors, as libraries for quantization make them."""

    @staticmethod
    def __new__(cls, one, other):
        return torch.Tensor._make_wrapper_subclass(cls, one.shape, dtype=one.dtype)

    def __init__(self, one, other):
        self.one, self.other = one, other

    def __tensor_flatten__(self):
        return ["one", "other"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return cls(args[0].one, args[0].other)  # detach, which a parameter asks for


class Holder:
    """An object of the user with a tensor in it."""

    def __init__(self, value):
        self.value = [value]


def values() -> torch.Tensor:
    return torch.arange(6.0).reshape(2, 3)


def with_attribute(cls: type[torch.Tensor] = torch.Tensor) -> torch.Tensor:
    tensor = values().as_subclass(cls)
    tensor.scale = torch.ones(2)
    return tensor


WRITTEN = {
    "float": values,
    "int": lambda: torch.arange(3),
    "half view": lambda: values().half().t(),
    "bool": lambda: torch.tensor([True, False]),
    "parameter": lambda: nn.Parameter(values()),
    "subclass": lambda: values().as_subclass(Marked),
    "with an attribute": with_attribute,
    "empty": lambda: torch.empty(0, 4),
    "conjugated": lambda: torch.ones(2, dtype=torch.complex64).conj(),
}
REFUSED = {
    "sparse": lambda: values().to_sparse(),
    "csr": lambda: values().to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged
    ),
    "masked": lambda: torch.masked.masked_tensor(values(), values() > 1),
    "meta": lambda: torch.empty(3, device="meta"),
    "pair": lambda: Pair(values(), values()),
    "subclass with a tensor": lambda: with_attribute(Marked),  # it may compute with both
    "parameter pair": lambda: nn.Parameter(Pair(values(), values()), requires_grad=False),
    "lazy": nn.UninitializedParameter,
    "lazy buffer": nn.UninitializedBuffer,
    "storage": lambda: values().untyped_storage(),
    "typed storage": lambda: values().storage(),
    "array": lambda: np.ones((2, 2)),
    "masked array": lambda: np.ma.masked_array(np.ones(3), mask=[0, 1, 0]),
    "set": lambda: {values()},
    "packed": lambda: (torch.quantize_per_tensor(values(), 0.1, 0, torch.qint8), None),
    "dict": lambda: {"inner": {"weight": values()}},
    "list": lambda: [1, [values()]],
    "object": lambda: Holder(values()),
    "module": lambda: nn.Linear(1, 1),
    "key": lambda: {values(): 1},
    "array in a dict": lambda: {"amax": np.ones(2)},
}
LEFT_OUT = {
    "number": lambda: 3,
    "text": lambda: "adam",
    "none": lambda: None,
    "configuration": lambda: {"heads": 4, "names": ["a", "b"]},
    "type": lambda: torch.float32,
    "empty list": list,
    "size": lambda: torch.Size([2, 3]),
    "bytes": lambda: b"abc",
}
KINDS = {**WRITTEN, **REFUSED, **LEFT_OUT}
PLACES = ("weight", "layer.weight", "_extra_state", "a/b", "0", "norm.running_mean")


@st.composite
def state_dicts(draw):
    """(kind of each name, the state dict), with one plain tensor at least."""
    kinds = draw(st.dictionaries(st.sampled_from(PLACES), st.sampled_from(sorted(KINDS))))
    kinds["anchor"] = "float"
    return kinds, {name: KINDS[kind]() for name, kind in kinds.items()}


@given(state_dicts(), st.sampled_from(["{}", "model", "list"]))
def test_extracted_and_named_is_all_that_torch_loads(made, around):
    kinds, state = made
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.pt")
        torch.save({"model": state, "epoch": 3} if around == "model" else state, path)
        plan = plan_of(path, "model" if around == "model" else "")
        judge = torch.load(path, weights_only=False)
    judge = judge["model"] if around == "model" else judge
    named = {n.partition("/scale")[0] for n in plan.left_out}
    assert {*plan.tensors, *plan.refused, *named} == set(judge)
    assert set(plan.tensors) == {name for name, kind in kinds.items() if kind in WRITTEN}
    assert set(plan.refused) == {name for name, kind in kinds.items() if kind in REFUSED}
    attributes = {f"{n}/scale" for n, kind in kinds.items() if kind == "with an attribute"}
    plain = {name for name, kind in kinds.items() if kind in LEFT_OUT}
    assert set(plan.left_out) == attributes | plain
    for name, ref in plan.tensors.items():
        assert (str(ref.dtype), ref.shape) == (
            str(judge[name].dtype).removeprefix("torch."),
            tuple(judge[name].shape),
        )


@pytest.mark.parametrize("kind", sorted(WRITTEN))
def test_what_is_written_has_the_values_that_torch_loads(kind, tmp_path, ckptool):
    torch.save({"model": {"anchor": values(), "it": WRITTEN[kind]()}}, tmp_path / "a.pt")
    out = tmp_path / "b.pt"
    assert ckptool("extract-ema", tmp_path / "a.pt", "--ema", "@model", "-o", out).exit_code == 0
    judge = torch.load(tmp_path / "a.pt", weights_only=False)["model"]["it"]
    assert torch.equal(torch.load(out)["it"], judge.detach().as_subclass(torch.Tensor))


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_is_refused_is_named_with_what_to_do(kind, tmp_path, ckptool):
    torch.save({"model": {"anchor": values(), "it": REFUSED[kind]()}}, tmp_path / "a.pt")
    out = tmp_path / "b.pt"
    output = ckptool("extract-ema", tmp_path / "a.pt", "--ema", "@model", "-o", out, "--json")
    assert output.exit_code == 2
    assert ": it" in output.json["error"]["message"]
    assert output.json["error"]["hint"]
    assert not out.exists()


def test_whole_modules_are_accounted_for_by_their_state_dict(tmp_path):
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module.register_buffer("grid", torch.ones(2), persistent=False)
    module.table = torch.ones(3)
    torch.save(module, tmp_path / "a.pt")
    plan = plan_of(tmp_path / "a.pt", "")
    assert list(plan.tensors) == list(module.state_dict())
    assert set(plan.left_out) == {"grid", "table"}
    assert not plan.refused


def test_the_average_inside_the_models_state_dict_is_another_part(tmp_path):
    model = {f"{i}.weight": torch.ones(3) * i for i in range(5)}
    torch.save(
        {"model": {**model, "_ema": {n: v + 0.01 for n, v in model.items()}}}, tmp_path / "a.pt"
    )
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        location = locate_ema(checkpoint, ema="@model")
        plan = plan_extraction(location, location.selected, "model")
    assert list(plan.tensors) == list(model)
    assert (list(plan.refused), list(plan.left_out)) == ([], ["_ema"])
