"""What a cast into the slot costs is counted as torch counts it, and refused where it hurts."""

from __future__ import annotations

import pytest
import torch

from helpers.kinds import noise
from helpers.making import average_of, save, weights
from helpers.tensors import assert_same_tensor, load

FLOATS = (
    torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
)  # fmt: skip
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
WIDE = noise(2000).double() * torch.logspace(-60, 6, 2000, dtype=torch.float64)  # float64


@pytest.fixture
def promote(ckptool, tmp_path):
    """Promote ``values`` into a slot of a type; gives the result of the command and the slot."""

    def run(slot, values, *args):
        model = weights(wide=torch.zeros(values.shape, dtype=slot))
        path = save(tmp_path / "cast.pt", model, average_of(weights()) | {"wide": values})
        named = ("--ema", "ema_state_dict", "--model", "state_dict")  # whatever the values are
        done = ckptool("promote-ema", path, "-o", tmp_path / "out.pt", "--json", *named, *args)
        made = load(tmp_path / "out.pt")["state_dict"]["wide"] if done.exit_code == 0 else None
        if made is None:
            assert list(tmp_path.iterdir()) == [path]
        return done, made

    return run


def messages(done) -> dict[str, str]:
    return {f["address"]: f["message"] for f in done.json["findings"] if f["rule"] == "CK801"}


def told(count) -> str:
    return "1 value" if count == 1 else f"{count} values"


def counted(values, slot) -> str:
    """What torch's own cast does to the values, in the words of the finding."""
    made = values.to(slot)
    if slot is torch.float8_e4m3fn:  # its largest value stands for all that is beyond
        beyond = values.float().abs() > 464  # the half rounds to 448, which is even
    else:
        beyond = ~made.double().isfinite()
    vanished = (made.double() == 0) & (values != 0)
    parts = []
    if beyond.any():
        parts.append(f"overflow in the cast: {told(beyond.sum())}")
    if vanished.any():
        parts.append(f"0 after the cast: {told(vanished.sum())}")
    return ", ".join(parts)


def test_a_million_does_not_fit_float16(promote):
    values = torch.tensor([0.5, 1e6, -1e6, 65504.0])
    done, _ = promote(torch.float16, values)
    error = done.json["error"]
    assert (done.exit_code, error["code"]) == (2, "ema-refused")
    assert error["message"].startswith("2 values that the type of the cast cannot hold")
    assert "2 values of wide" in error["message"]
    assert "--force" in error["hint"]
    done, made = promote(torch.float16, values, "--force")
    assert done.exit_code == 0
    assert messages(done) == {"wide": "overflow in the cast: 2 values"}
    assert_same_tensor(made, values.half())


@pytest.mark.parametrize("slot", FLOATS, ids=str)
@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_counts_are_those_of_torch(source, slot, promote):
    values = WIDE.to(source)
    done, made = promote(slot, values, "--force")
    assert done.exit_code == 0, done
    wanted = counted(values, slot)
    assert messages(done) == ({"wide": wanted} if wanted else {})
    ours, theirs = (tensor.double().nan_to_num(nan=1e99) for tensor in (made, values.to(slot)))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("slot", FLOATS, ids=str)
def test_what_overflows_is_refused_and_what_vanishes_is_told(slot, promote):
    values = WIDE.float()
    wanted = counted(values, slot)
    done, _ = promote(slot, values)
    assert done.exit_code == (2 if "overflow" in wanted else 0)
    small = values[values.abs() < 100]
    done, made = promote(slot, small, "--force")
    assert messages(done).get("wide", "") == counted(small, slot)
    assert_same_tensor(made, small.to(slot))


def test_nothing_is_said_of_a_cast_that_loses_nothing(promote):
    values = noise(100).half()
    done, made = promote(torch.float32, values)
    assert done.json["casts"] == {"float16 to float32": 1}
    assert done.json["findings"] == []
    assert_same_tensor(made, values.float())


# ---------------------------------------------------------------------------------------- integers


@pytest.mark.parametrize("slot", INTEGERS, ids=str)
@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_whole_numbers_go_into_integers(source, slot, promote):
    values = (
        torch.tensor([0.0, 1.0, 1.0]) if slot is torch.bool else torch.tensor([0.0, 7.0, 100.0])
    )
    done, made = promote(slot, values.to(source))
    assert done.json["findings"] == []
    assert_same_tensor(made, values.to(slot))


@pytest.mark.parametrize("slot", INTEGERS, ids=str)
def test_fractions_do_not_go_into_integers_by_themselves(slot, promote):
    values = torch.tensor([1.0, 1.5, 0.25, 0.0])
    done, _ = promote(slot, values)
    assert (done.exit_code, done.json["error"]["code"]) == (2, "ema-refused")
    assert "2 values of wide" in done.json["error"]["message"]
    done, made = promote(slot, values, "--force")
    assert_same_tensor(made, values.to(slot))
    assert "fraction lost in the cast: 2 values" in messages(done)["wide"]


@pytest.mark.parametrize(
    ("slot", "value"),
    [(torch.int8, 128.0), (torch.int16, -32769.0), (torch.uint8, 256.0), (torch.int64, 2.0**63)],
)
def test_numbers_beyond_an_integer_are_refused(slot, value, promote):
    done, _ = promote(slot, torch.tensor([1.0, value], dtype=torch.float64))
    assert (done.exit_code, done.json["error"]["code"]) == (2, "ema-refused")
    assert "1 value of wide" in done.json["error"]["message"]
