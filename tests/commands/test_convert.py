"""``ckptool convert``: which state dict, under which names, in which dtypes; the judge is torch."""

from __future__ import annotations

import math
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file

from ckptool.commands.convert import ConvertOptions, convert
from ckptool.commands.writing import WriteOptions, choose_form
from ckptool.errors import UsageError
from ckptool.plans.casts import parse_dtype, plan_casting
from helpers.making import average_of, resumable, save, weights
from helpers.tensors import assert_same_tensors, load
from helpers.thinned import examples


@pytest.fixture
def path(tmp_path):
    model = weights()
    return save(tmp_path / "last.ckpt", model, average_of(model), **resumable(model))


@pytest.fixture
def refused(refusing):
    return partial(refusing, "convert")


@pytest.fixture
def converted(ckptool, tmp_path):
    """Run, and load what was written."""

    def run(*args, name="out.safetensors") -> dict:
        output = tmp_path / name
        done = ckptool("convert", *args, "-o", output)
        assert done.exit_code == 0, done.stderr
        return load_file(output) if output.suffix == ".safetensors" else load(output)

    return run


# -------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("operand", ["#@model", "#state_dict"])
@pytest.mark.parametrize("options", [(), ("--dtype", "bfloat16"), ("--dry-run",), ("--force",)])
def test_nonfinite_weights_are_written_and_told(operand, options, ckptool, tmp_path):
    """As ``extract-ema --force`` tells of them: weights of a run that diverged may be wanted."""
    model = weights() | {"stem.bias": torch.tensor([1.0, math.nan, math.inf, 2.0])}
    path = save(tmp_path / "last.ckpt", model)
    forced = (*options, "--force")
    for command, more in (("convert", options), ("extract-ema", forced)):
        asked = (command, f"{path}{operand}", "-o", tmp_path / f"{command}.pt")
        done = ckptool(*asked, *more, "--json")
        assert done.exit_code == 0
        (found,) = done.json["findings"]
        assert (found["rule"], found["severity"]) == ("CK301", "warning")
        assert (found["address"], found["message"]) == ("stem.bias", "non-finite: 2 values")
        assert "CK301" in ckptool(*asked, *forced)


@pytest.mark.parametrize(
    "values", [[0.0, -math.inf, 0.0, -math.inf], [math.inf] * 4], ids=["mask", "observer"]
)
def test_a_mask_is_no_fault(values, ckptool, tmp_path):
    path = save(tmp_path / "last.ckpt", weights(mask=torch.tensor(values)))
    done = ckptool("convert", f"{path}#@model", "-o", tmp_path / "out.pt", "--json")
    assert done.json["findings"] == []


# ------------------------------------------------------------------------------- which state dict


def test_of_several_state_dicts_none_is_chosen(path, refused, tmp_path):
    error = refused(path, "-o", tmp_path / "out.safetensors")
    assert error["message"].startswith("the checkpoint holds 2 state dicts and an optimizer")
    for place in ("#@model (state_dict)", "#@ema (ema_state_dict)"):
        assert error["hint"].count(place) == 1
    assert "#state_dict" not in error["hint"]  # each place once


@pytest.mark.parametrize(
    ("operand", "more", "key"),
    [
        ("#state_dict", (), "state_dict"), ("#@model", (), "state_dict"),
        ("", ("--only", "model"), "state_dict"),
        ("#ema_state_dict", (), "ema_state_dict"), ("#@ema", (), "ema_state_dict"),
        ("", ("--only", "ema"), "ema_state_dict"),
    ],
)  # fmt: skip
def test_a_state_dict_by_key_path_or_role(path, converted, operand, more, key):
    assert_same_tensors(converted(f"{path}{operand}", *more), load(path)[key])


def test_the_only_state_dict_needs_no_name(tmp_path, converted):
    torch.save({"net": weights(), "epoch": 3}, tmp_path / "net.pt")
    assert_same_tensors(converted(tmp_path / "net.pt"), load(tmp_path / "net.pt")["net"])


def test_an_address_and_a_role_do_not_fit_one_output(path, refused, tmp_path):
    error = refused(f"{path}#state_dict", "-o", tmp_path / "out.pt", "--only", "model")
    assert "one output holds one state dict" in error["hint"]


def test_a_checkpoint_without_weights(tmp_path, refused):
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    error = refused(tmp_path / "empty.pt", "-o", tmp_path / "out.pt")
    assert error["message"] == "the checkpoint holds no state dict of weights"


def test_the_report_says_what_was_taken_and_what_not(path, ckptool, tmp_path):
    report = ckptool("convert", f"{path}#@ema", "-o", tmp_path / "out.pt", "--json").json
    assert report["schema"] == "ckptool/convert/1"
    assert (report["address"], report["kind"]) == ("ema_state_dict", "ema")
    assert "state_dict" in report["beside"]
    assert "epoch" in report["beside"]
    assert "ema_state_dict" not in report["beside"]


def test_what_is_converted_stays_an_ema(path, ckptool, tmp_path):
    """The note goes along, also with a second conversion."""
    ckptool("convert", f"{path}#@ema", "-o", tmp_path / "one.safetensors")
    ckptool("convert", tmp_path / "one.safetensors", "-o", tmp_path / "two.pt")
    ckptool("convert", f"{path}#@model", "-o", tmp_path / "raw.pt")
    for name, code in (("one.safetensors", 0), ("two.pt", 0), ("raw.pt", 1)):
        done = ckptool("verify", tmp_path / name, "--require", "ema")
        assert done.exit_code == code, (name, done.stdout)


def test_from_python(path, tmp_path):
    steps: list[int] = []
    options = ConvertOptions(address="@model", only=["head.*"])
    report = convert(path, tmp_path / "out.pt", options, progress=steps.append, made_at=0)
    assert report.kind == "raw"
    assert list(load(tmp_path / "out.pt")) == ["head.weight"]
    assert sum(steps) == report.bytes


def test_a_directory_takes_a_file_of_the_sources_name(tmp_path):
    options = WriteOptions()
    form = choose_form(tmp_path / "last.ckpt", f"{tmp_path}/", options, "last.safetensors")
    assert (form.output, form.kind) == (tmp_path / "last.safetensors", "safetensors")
    sharded = choose_form(
        tmp_path / "a.pt", f"{tmp_path}/", WriteOptions(max_shard_size="5GB"), "b"
    )
    assert sharded.output == tmp_path / "model.safetensors"


@pytest.mark.parametrize("how", [{}, {"mmap": True}, {"weights_only": False}], ids=str)
@pytest.mark.parametrize("more", [(), ("--wrap", "model"), ("--dtype", "bf16")], ids=str)
def test_torch_loads_it_in_each_way(path, ckptool, tmp_path, how, more):
    done = ckptool("convert", f"{path}#@model", "-o", tmp_path / "out.pt", *more)
    assert done.exit_code == 0
    found = torch.load(tmp_path / "out.pt", **{"weights_only": True, **how})
    found = found["model"] if more[:1] == ("--wrap",) else found
    wanted = load(path)["state_dict"]
    if more[:1] == ("--dtype",):
        wanted = {n: t.bfloat16() if t.is_floating_point() else t for n, t in wanted.items()}
    assert_same_tensors(found, wanted)


# ------------------------------------------------------------------------------- names and a choice


def test_maps_come_first_then_the_choice(path, converted):
    state_dict = load(path)["state_dict"]
    first = next(iter(state_dict))
    layer, _, rest = first.partition(".")
    found = converted(
        f"{path}#state_dict", "--map", rf"^{layer}\.=first.", "--only", "first.*",
        "--drop", "*.bias",
    )  # fmt: skip
    wanted = {
        name.replace(f"{layer}.", "first.", 1): tensor
        for name, tensor in state_dict.items()
        if name.startswith(f"{layer}.") and not name.endswith(".bias")
    }
    assert f"first.{rest}" in found
    assert_same_tensors(found, wanted)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--map", "^nothing=x"), "no tensor's name matches '^nothing'"),
        (("--map", ".*=x"), "several tensors would be called"),
        (("--map", "x"), "a map is REGEX=REPL"),
        (("--only", "nothing"), "no tensor's name fits 'nothing'"),
        (("--drop", "nothing"), "no tensor's name fits 'nothing'"),
        (("--drop", "*"), "--drop leaves no tensor"),
        (("--dtype", "nothing=bf16"), "no tensor's name fits 'nothing'"),
        (("--dtype", "*=int8"), "'int8' is no floating-point dtype"),
        (("--dtype", "bf16", "--dtype", "fp16"), "two dtypes for all tensors"),
        (("--wrap", "model"), "nothing to --wrap"),
    ],
)
def test_an_option_without_effect_is_an_error(path, refused, tmp_path, more, message):
    error = refused(f"{path}#state_dict", "-o", tmp_path / "out.safetensors", *more)
    assert message in error["message"]


# ------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt"])
def test_globs_choose_other_dtypes(path, converted, name):
    state_dict = load(path)["state_dict"]
    found = converted(
        f"{path}#@model", "--dtype", "bfloat16", "--dtype", "*bias=float32",
        "--dtype", "*=float16", "--dtype", "*weight=float64", name=name,
    )  # fmt: skip

    def cast(key: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(torch.float64 if key.endswith("weight") else torch.float16)

    assert_same_tensors(found, {key: cast(key, tensor) for key, tensor in state_dict.items()})


def test_tensors_that_share_bytes_are_cast_alike(tmp_path, refused, converted):
    base = torch.arange(12.0)
    torch.save({"whole": base, "part": base[4:8], "tied": base, "own": base + 1}, tmp_path / "a.pt")
    for name in ("whole", "part", "tied"):
        error = refused(tmp_path / "a.pt", "-o", tmp_path / "b.pt", "--dtype", f"{name}=bf16")
        assert "share bytes" in error["message"]
    found = converted(tmp_path / "a.pt", "--dtype", "[wpt]*=bf16", name="b.pt")
    assert found["own"].dtype == torch.float32
    assert found["part"].dtype == torch.bfloat16
    assert torch.equal(found["part"].float(), base[4:8])
    assert found["part"].untyped_storage().data_ptr() == found["whole"].untyped_storage().data_ptr()


def test_a_dtype_by_all_its_names():
    assert parse_dtype("torch.bfloat16") is parse_dtype("BF16") is parse_dtype("bfloat16")
    with pytest.raises(UsageError, match="no floating-point dtype"):
        parse_dtype("int8")


def test_without_globs_no_place_is_looked_up():
    assert plan_casting({}, ["bf16"]).dtypes == (parse_dtype("bf16"),)
    assert plan_casting({}, []).dtypes == ()


# --------------------------------------------------------------------------------------- round trip

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DTYPES = (*FLOATS, torch.int64, torch.uint8, torch.bool)


@st.composite
def state_dicts(draw) -> dict[str, torch.Tensor]:
    names = draw(st.lists(st.from_regex(r"\A[a-c](\.[a-c]){0,2}\Z"), min_size=1, unique=True))
    shapes = st.lists(st.integers(0, 4), max_size=3)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    return {
        name: torch.randn(draw(shapes), generator=generator).to(draw(st.sampled_from(DTYPES)))
        for name in names
    }


@given(state_dicts())
@examples(40)
def test_a_round_trip_through_each_form_keeps_all(ckptool, tmp_path_factory, state_dict):
    folder = tmp_path_factory.mktemp("trip")
    torch.save(state_dict, folder / "a.pt")
    source, digests = "a.pt", []
    for output in ("b.safetensors", "c.pth", "d.safetensors", "e.dcp", "f.ckpt"):
        more = ("--max-shard-size", "60B") if output == "d.safetensors" else ()
        done = ckptool("convert", folder / source, "-o", folder / output, *more, "--json")
        assert done.exit_code == 0, done.stdout
        source = done.json["output"]  # the index, if there are shards
        rows = ckptool("inspect", source, "--digests", "--json").json["entries"]
        digests.append({row["address"]: row["sha256"] for row in rows})
    assert_same_tensors(load(folder / "f.ckpt"), state_dict)
    assert all(each == digests[0] for each in digests)
