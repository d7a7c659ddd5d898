"""Values that are not finite are counted exactly, in every type, and masks are no alarm."""

from __future__ import annotations

import pytest
import torch

from ckptool.commands.verify import Request, chosen_rules, verify_file

FULL = Request(chosen_rules({"bytes": True, "values": True}))
TYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2,
    torch.complex64,
)  # fmt: skip


def findings(path, rule, request=FULL):
    return [found for found in verify_file(path, request).findings if found.rule == rule]


def saved(tmp_path, **tensors):
    torch.save(
        {"model": {"a.weight": torch.ones(300, 700).cumsum(0), **tensors}}, tmp_path / "m.pt"
    )
    return tmp_path / "m.pt"


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_value_far_behind_is_counted(dtype, bad, tmp_path):
    values = torch.arange(1.0, 400_001).remainder(7).to(dtype)
    values[399_990] = bad
    (found,) = findings(saved(tmp_path, b=values), "CK301")
    what = "NaN" if bad != bad else "infinite"
    assert found.address == "model/b"
    assert found.message == f"model: 1 {what} of 400,000 values"


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_large_values_are_finite(dtype, tmp_path):
    """Their sum overflows."""
    largest = torch.finfo(dtype).max if dtype is not torch.complex64 else 3e38
    values = torch.full((4096,), largest, dtype=dtype)
    assert not findings(saved(tmp_path, b=values), "CK301")


def test_views_of_one_storage_are_told_apart(tmp_path):
    base = torch.arange(1.0, 41)
    base[30] = float("nan")
    path = saved(tmp_path, low=base[:20], high=base[20:], column=base.view(10, 4)[:, 2])
    assert [f.address for f in findings(path, "CK301")] == ["model/high", "model/column"]


def test_big_endian_and_old_files(tmp_path):
    values = {"a": torch.arange(1.0, 9), "b": torch.tensor([1.0, float("nan")])}
    path = tmp_path / "old.pt"
    torch.save({"model": values}, path, _use_new_zipfile_serialization=False)
    assert [f.address for f in findings(path, "CK301")] == ["model/b"]


def test_a_mask_is_no_alarm(tmp_path):
    mask = torch.full((64, 64), float("-inf")).triu(1)
    path = saved(tmp_path, mask=mask)
    assert not findings(path, "CK301")
    assert not findings(path, "CK303", Request(chosen_rules({})))


def test_infinite_weights_are_no_mask(tmp_path):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    weight[3, 3] = float("-inf")
    path = saved(tmp_path, weight=weight)
    assert findings(path, "CK301")
    assert findings(path, "CK303", Request(chosen_rules({})))


def test_the_best_loss_may_be_infinite(tmp_path):
    path = tmp_path / "m.pt"
    callback = {"best_score": torch.tensor(float("inf"))}
    torch.save({"state_dict": {"a": torch.ones(3)}, "callbacks": {"Stop": callback}}, path)
    report = verify_file(path, FULL)
    assert not [f for f in report.findings if f.rule in {"CK301", "CK303"}]


def test_types_without_arithmetic_are_not_checked(tmp_path):
    packed = torch.zeros(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    report = verify_file(saved(tmp_path, packed=packed), FULL)
    (check,) = [check for check in report.checks if check.rule == "CK301"]
    assert (check.state, check.reason) == (
        "not-checked", "there is no arithmetic for float4_e2m1fn_x2",
    )  # fmt: skip


def test_every_section_is_named(tmp_path):
    bad = torch.tensor([1.0, float("nan")])
    state = {
        "model": {"w": bad, "v": torch.arange(4.0)},
        "ema": {"w": bad, "v": torch.arange(4.0)},
        "optimizer": {
            "state": {0: {"exp_avg": bad, "step": torch.tensor(1.0)}},
            "param_groups": [{"params": [0], "betas": (0.9, 0.99), "lr": 0.1}],
        },
    }
    path = tmp_path / "m.pt"
    torch.save(state, path)
    said = {f.address: f.message.partition(":")[0] for f in findings(path, "CK301")}
    assert said == {"model/w": "model", "ema/w": "averages"}
    assert [f.address for f in findings(path, "CK302")] == ["optimizer/state/0/exp_avg"]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_values_that_cannot_be_sampled_are_finite_when_all_were_read(dtype, ckptool, tmp_path):
    torch.save({"model": {"a.weight": torch.ones(30, 70).cumsum(0).to(dtype)}}, tmp_path / "m.pt")
    assert ckptool("verify", tmp_path / "m.pt", "--values", "--require", "finite").exit_code == 0
    sampled = verify_file(tmp_path / "m.pt", Request(chosen_rules({})))
    assert {check.state for check in sampled.checks if check.rule == "CK303"} == {"not-checked"}


# ---------------------------------------------------------------------- saturated and absurd values


def clamped(*shape):
    """Weights of which some overflowed float16, as ``nan_to_num`` leaves them."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    values.view(-1)[[3, 5]] = torch.tensor([9e4, -3e5])
    return torch.nan_to_num(values.half())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_values_that_were_clamped_to_float16_are_told(dtype, tmp_path):
    (found,) = findings(saved(tmp_path, b=clamped(300, 700).to(dtype)), "CK307")
    assert (found.address, found.severity) == ("model/b", "warning")
    assert "2 of 210,000 values" in found.message


def test_averages_that_were_clamped_are_told(tmp_path):
    torch.save({"epoch": 12, "model": None, "ema": {"w": clamped(4, 4)}}, tmp_path / "last.pt")
    assert [f.address for f in findings(tmp_path / "last.pt", "CK307")] == ["ema/w"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1e36, -1e20])
def test_absurd_values_are_told(size, dtype, tmp_path):
    values = torch.randn(900, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[899, 499] = size
    (found,) = findings(saved(tmp_path, b=values), "CK308")
    assert "1 of 450,000 values" in found.message
    assert not findings(saved(tmp_path, b=values), "CK301")


FILLED = {
    "a mask of the smallest float16": torch.full((9, 9), -65504.0).triu(1).half(),
    "a mask of the smallest float32": torch.full((9, 9), torch.finfo(torch.float32).min).triu(1),
    "one value that masks": torch.tensor(-65504.0).half(),
    "a count": torch.tensor(3e15),
    "large but real": torch.tensor([1e9, 2.0]),
    "beyond float16": torch.tensor([65504.0, 70_000.0]),
    "an observer before its first value": torch.tensor([float("inf")] * 4),
    "the same, the other way": torch.full((4,), float("-inf")),
    "one observer": torch.tensor(float("inf")),
}


@pytest.mark.parametrize("name", FILLED)
def test_values_that_code_puts_there_are_no_alarm(name, tmp_path):
    path = saved(tmp_path, b=FILLED[name])
    for request in (FULL, Request(chosen_rules({}))):
        found = {f.rule for f in verify_file(path, request).findings}
        assert not found & {"CK301", "CK303", "CK307", "CK308"}


def test_a_diverged_vector_among_finite_ones_is_told(tmp_path):
    path = saved(tmp_path, b=torch.tensor([float("inf"), 1.0]))
    assert findings(path, "CK301")
    assert findings(path, "CK303", Request(chosen_rules({})))


def test_losses_of_a_run_are_no_weights(tmp_path):
    """A row of numbers beside the parts of a checkpoint; a matrix there is taken for weights."""
    for shape, is_fault in (((9,), False), ((3, 3), True)):
        state = {"model": {"a.weight": torch.randn(4, 3)}, "epoch": 3, "args": {}, "best": 1.0}
        torch.save(state | {"losses": torch.full(shape, float("nan"))}, tmp_path / "m.pt")
        assert bool(findings(tmp_path / "m.pt", "CK303", Request(chosen_rules({})))) == is_fault
