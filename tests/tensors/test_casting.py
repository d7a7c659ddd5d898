"""Casts, with torch as the judge of every value, and of what was lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.dtypes import BY_NAME
from ckptool.formats import open_checkpoint
from ckptool.tensors.blocks import BLOCK, numpy_dtype
from ckptool.tensors.casting import CASTABLE, Casting, Losses, converted
from ckptool.writers.files.whole_file import whole_file
from ckptool.writers.transfer import Move, Transfer, transfer
from ckptool.writers.values import Account
from helpers.judge import tensor_bytes
from helpers.samples import filled

TYPES = sorted(CASTABLE)
EDGES = (0.0, -0.0, 448.0, 464.0, 464.1, 480.0, 65504.0, 65519.0, 65520.0, 57344.0, 61440.0, 1e-8,
         2**-25, 2**-24, 2**-149, 2**-150, 1e39, 3e38, 3.4e38, 240.0, 248.0, 2**-17, 2**-10, 1e-300,
         float("inf"), float("-inf"), float("nan"))  # fmt: skip


def cast(tensor, wanted, folder):
    """(the values that ckptool writes, what it says was lost)."""
    path = folder / "in.pt"
    torch.save({"t": tensor}, path)
    output = folder / "out"
    account = Account()
    with open_checkpoint(path) as checkpoint, whole_file(output, force=True) as file:
        move = Move("t", checkpoint.tree["t"], 0)
        transfer([move], Transfer(checkpoint.reader, Casting(BY_NAME[wanted]), account), file)
    return output.read_bytes(), account.losses.get("t", Losses())


def expected(tensor, wanted):
    """What torch makes of it, bytes and losses, in float64, where every type is exact."""
    result = tensor.to(getattr(torch, wanted))
    before, after = (t.double().numpy() for t in (tensor, result))
    beyond = ~np.isfinite(after)
    if wanted == "float8_e4m3fn":
        beyond |= np.abs(before) > 464
    lost = (np.isfinite(before) & beyond, (after == 0) & (before != 0))
    return result, Losses(*(int(np.count_nonzero(each)) for each in lost))


def assert_cast_as_torch(tensor, wanted, folder):
    data, loss = cast(tensor, wanted, folder)
    result, lost = expected(tensor, wanted)
    raw = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    found = raw.view(result.dtype).reshape(result.shape) if data else result
    assert len(data) == result.nbytes
    torch.testing.assert_close(
        found.double(), result.double(), rtol=0, atol=0, equal_nan=True, check_stride=False
    )
    signs = [torch.signbit(t.double()) | t.double().isnan() for t in (found, result)]
    assert torch.equal(*signs)
    assert loss == lost


@pytest.mark.parametrize("wanted", TYPES)
@pytest.mark.parametrize("given", TYPES)
def test_every_pair_of_types(given, wanted, tmp_path):
    edges = torch.tensor(EDGES, dtype=torch.float64).to(getattr(torch, given))
    patterns = filled(getattr(torch, given), 512)
    assert_cast_as_torch(torch.cat([edges, patterns]), wanted, tmp_path)


@pytest.mark.parametrize("wanted", TYPES)
@pytest.mark.parametrize("given", ["float16", "bfloat16"])
def test_every_value_of_16_bits(given, wanted, tmp_path):
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16)
    assert_cast_as_torch(every.view(getattr(torch, given)), wanted, tmp_path)


floats = st.one_of(st.floats(width=64), st.floats(-1e3, 1e3), st.sampled_from(EDGES))


@given(
    st.lists(floats, min_size=1, max_size=40),
    st.sampled_from(TYPES),
    st.sampled_from(TYPES),
    st.integers(1, 3),
)
def test_any_values_in_any_strides(tmp_path_factory, values, given, wanted, step):
    folder = tmp_path_factory.mktemp("cast")
    tensor = torch.tensor(values, dtype=torch.float64).to(getattr(torch, given))
    assert_cast_as_torch(tensor[::step], wanted, folder)


@pytest.mark.parametrize("wanted", ["bfloat16", "float16", "float8_e5m2"])
def test_blocks_of_a_large_tensor_keep_their_order(wanted, tmp_path):
    """Several threads cast them."""
    tensor = torch.randn(9 * BLOCK // 4 + 5, generator=torch.Generator().manual_seed(0))
    tensor[[3, -1]] = torch.tensor([1e30, 1e-44])
    assert_cast_as_torch(tensor, wanted, tmp_path)


@pytest.mark.parametrize("wanted", TYPES)
@pytest.mark.parametrize("given", TYPES)
def test_zeros_are_no_losses(given, wanted, tmp_path):
    zeros = torch.tensor([0.0, -0.0] * 9).to(getattr(torch, given))
    assert_cast_as_torch(zeros, wanted, tmp_path)


@pytest.mark.parametrize("shape", [(0,), (0, 3), ()])
def test_next_to_nothing(shape, tmp_path):
    assert_cast_as_torch(torch.ones(shape), "bfloat16", tmp_path)


def test_big_endian_values(tmp_path, fixtures):
    with open_checkpoint(fixtures / "formats" / "torch_zip" / "big_endian.pt") as checkpoint:
        reference = torch.load(fixtures / "formats" / "torch_zip" / "plain.pt", weights_only=False)
        reference = reference["state_dict"]
        casting = Casting(BY_NAME["bfloat16"])
        for name, ref in checkpoint.tree["state_dict"].items():
            output = tmp_path / name
            with whole_file(output, force=False) as file:
                transfer([Move(name, ref, 0)], Transfer(checkpoint.reader, casting), file)
            expected = reference[name].bfloat16() if casting.is_cast(ref) else reference[name]
            assert output.read_bytes() == tensor_bytes(expected)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e8m0fnu], ids=str
)
def test_other_types_stay(dtype, tmp_path):
    torch.save({"t": filled(dtype, 4)}, tmp_path / "in.pt")
    with open_checkpoint(tmp_path / "in.pt") as checkpoint:
        ref = checkpoint.tree["t"]
        assert not Casting(BY_NAME["float16"]).is_cast(ref)
        assert Casting(BY_NAME["float16"]).nbytes_of(ref) == ref.nbytes


def test_without_a_type_nothing_is_cast(tmp_path):
    torch.save({"t": torch.ones(3)}, tmp_path / "in.pt")
    with open_checkpoint(tmp_path / "in.pt") as checkpoint:
        assert not Casting().is_cast(checkpoint.tree["t"])


@pytest.mark.parametrize("wanted", ["float16", "bfloat16", "float32"])
def test_losses_in_either_byte_order(wanted):
    """Promotion casts into slots as they lie in the file."""
    values = np.array([1.0, 1e300, 1e-300, 0.0, np.inf, np.nan])
    for order in ("little", "big"):
        kind = numpy_dtype(BY_NAME[wanted], order)
        assert converted(values, kind).lost == Losses(overflowed=1, vanished=1)


@pytest.mark.parametrize("wanted", TYPES)
@pytest.mark.parametrize("given", TYPES)
@pytest.mark.parametrize("odd", [None, "nan", "inf", "-inf"])
def test_finite_values_are_known_by_their_cast(given, wanted, odd):
    """True is never said of others."""
    kinds = [numpy_dtype(BY_NAME[name]) for name in (given, wanted)]
    values = np.linspace(-1, 1, 99).astype(kinds[0])
    if odd:
        values[7] = np.float32(odd).astype(kinds[0])
    is_finite = bool(np.isfinite(values.astype(np.float32)).all())
    found = converted(values, kinds[1]).were_finite
    assert found == is_finite or (given == wanted and not found)
